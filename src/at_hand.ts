/** Which connection can be lent at once, and which cannot be lent any more. */

import type { PoolContext } from "./context.ts";
import type { PoolEntry } from "./pool_entry.ts";
import type { Succession } from "./succession.ts";
import type { Supply } from "./supply.ts";
import type { RemoveReason } from "./types.ts";

/** Takes out the idle connection to use now; null when there is none, or it has to be checked first. */
export function takeAtHand<C extends object>(
  context: PoolContext<C>,
  supply: Supply<C>,
  succession: Succession<C>,
  now: number,
): PoolEntry<object> | null {
  const { idle } = supply;
  while (idle.length > 0) {
    const entry = idle[idle.length - 1] as PoolEntry<object>;
    if (succession.over(entry, now)) {
      void supply.retire(entry, "lifetime");
    } else if (supply.status(entry) === "unknown") {
      void supply.retire(entry, "lost");
    } else if (isSuspicious(context, entry, now)) {
      return null;
    } else {
      idle.pop();
      context.budget.idle(idle.length);
      return entry;
    }
  }
  return null;
}

/** Idle for so long, by a clock that may have jumped, that it may be dead. */
function isSuspicious<C extends object>(
  { options, connector }: PoolContext<C>,
  entry: PoolEntry<object>,
  now: number,
): boolean {
  const { checkAfter } = options;
  const idleFor = now - entry.idleSince;
  if (idleFor >= 0 && idleFor <= checkAfter && checkAfter !== 0) return false;
  return checkAfter !== Infinity && connector.check !== undefined;
}

/** Why a connection must not be lent again, or null. */
export function unfitness<C extends object>(
  { budget, size }: PoolContext<C>,
  succession: Succession<C>,
  generation: number,
  entry: PoolEntry<object>,
  now: number,
): RemoveReason | null {
  if (entry.spoilt) return "dirty";
  if (entry.lost !== null) return "lost";
  if (entry.generation !== generation) return "renewed";
  if (succession.over(entry, now)) return "lifetime";
  return budget.over(size) ? "resized" : null;
}
