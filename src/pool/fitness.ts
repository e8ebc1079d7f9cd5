/** Which connections may be lent: neither too old, nor lost, nor idle for so long that they may be dead. */

import type { PoolContext } from "./state.ts";
import type { PoolEntry } from "./entry.ts";
import type { Succession } from "./succession.ts";
import type { Supply } from "./connections.ts";
import type { RemoveReason } from "./types.ts";

/** What was lent again within this time, in milliseconds, was so without a pause of the process. */
const ONE_TURN = 0.05;

/** Judges the connections of one pool. */
export class Fitness<C extends object> {
  readonly #context: PoolContext<C>;
  readonly #supply: Supply<C>;
  readonly #succession: Succession<C>;

  constructor(context: PoolContext<C>, supply: Supply<C>, succession: Succession<C>) {
    this.#context = context;
    this.#supply = supply;
    this.#succession = succession;
  }

  /** Takes the idle connection to use now; null when there is none, or it has to be checked first. */
  atHand(now: number): PoolEntry<object> | null {
    const { idle } = this.#supply;
    while (idle.length > 0) {
      const entry = idle[idle.length - 1] as PoolEntry<object>;
      if (this.#succession.over(entry, now)) {
        void this.#supply.retire(entry, "lifetime");
      } else if (this.#supply.status(entry) === "unknown") {
        void this.#supply.retire(entry, "lost");
      } else if (this.#suspicious(entry, now)) {
        return null;
      } else {
        idle.pop();
        this.#context.permits.others?.tellIdle(idle.length);
        return entry;
      }
    }
    return null;
  }

  /** Why a connection must not be used again, or null. */
  objection(entry: PoolEntry<object>, now: number): RemoveReason | null {
    if (entry.spoilt) return "dirty";
    if (entry.lost !== null) return "lost";
    if (entry.generation !== this.#supply.generation) return "renewed";
    if (this.#succession.over(entry, now)) return "lifetime";
    return this.#context.permits.over(this.#context.size) ? "resized" : null;
  }

  /** Idle for so long, frozen time included, that it may be dead. A wall clock that was set back tells nothing, and counts as too long. */
  #suspicious(entry: PoolEntry<object>, now: number): boolean {
    const context = this.#context;
    const { checkAfter } = context.options;
    if (checkAfter === Infinity || context.connector.check === undefined) return false;
    let idleFor = now - entry.idleSince;
    // To look at the wall clock is a fifth of a loan, and between two loans in one turn nothing is frozen.
    if (idleFor >= ONE_TURN) {
      context.wallAhead = context.clock.wall() - now;
      idleFor += context.wallAhead - entry.wallAhead;
    }
    // The wall clock counts in whole milliseconds, the other one does not.
    return !(idleFor > -1 && idleFor <= checkAfter && checkAfter !== 0);
  }
}
