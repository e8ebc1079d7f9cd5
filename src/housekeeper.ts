/** What happens by the clock: one timer, which lets the process end, and none while there is nothing to do. */

import type { PoolContext } from "./context.ts";
import { LONGEST } from "./options.ts";
import type { PoolEntry } from "./pool_entry.ts";
import { type Timer, unrefTimer } from "./runtime.ts";
import type { Supply } from "./supply.ts";

/** Closes what is idle or old, reports leaks, and wakes the pool when it is time to reconnect. */
export class Housekeeper<C extends object> {
  readonly #context: PoolContext<C>;
  readonly #supply: Supply<C>;
  readonly #wake: () => void;
  #timer: Timer | undefined;
  #due = Infinity;

  /** `wake` is called at every tick. */
  constructor(context: PoolContext<C>, supply: Supply<C>, wake: () => void) {
    this.#context = context;
    this.#supply = supply;
    this.#wake = wake;
  }

  /** Makes sure of a tick no later than `at`. */
  arm(at: number): void {
    if (at >= this.#due) return;
    clearTimeout(this.#timer);
    this.#due = at;
    const delay = Math.min(Math.max(at - Date.now(), 0), LONGEST);
    this.#timer = setTimeout(() => this.#tick(), delay);
    unrefTimer(this.#timer);
  }

  /** No more ticks. */
  stop(): void {
    clearTimeout(this.#timer);
    this.#due = -Infinity;
  }

  #tick(): void {
    if (this.#due === -Infinity) return;
    this.#due = Infinity;
    const now = Date.now();
    this.#retireIdle(now);
    this.#wake();
    this.arm(Math.min(this.#reportLeaks(now), this.#nextExpiry()));
  }

  #retireIdle(now: number): void {
    const { minconn, options, budget } = this.#context;
    for (const entry of [...this.#supply.idle]) {
      if (now >= entry.expiresAt) void this.#supply.retire(entry, "lifetime");
      else if (this.#context.size + budget.elsewhere > minconn && now >= entry.idleSince + options.maxIdle) {
        void this.#supply.retire(entry, "idle");
      }
    }
  }

  #nextExpiry(): number {
    const { minconn, options, size, budget } = this.#context;
    const spare = size + budget.elsewhere > minconn;
    let next = Infinity;
    for (const entry of this.#supply.idle) {
      next = Math.min(next, entry.expiresAt);
      if (spare) next = Math.min(next, entry.idleSince + options.maxIdle);
    }
    return next;
  }

  #reportLeaks(now: number): number {
    const { leakAfter } = this.#context.options;
    if (leakAfter === 0) return Infinity;
    let next = Infinity;
    for (const entry of this.#supply.entries) {
      const due = this.#leakDue(entry, leakAfter);
      if (due <= now) this.#reportLeak(entry, now);
      else next = Math.min(next, due);
    }
    return next;
  }

  #leakDue(entry: PoolEntry<object>, leakAfter: number): number {
    return entry.loan === null || entry.loan.reported ? Infinity : entry.loan.since + leakAfter;
  }

  #reportLeak(entry: PoolEntry<object>, now: number): void {
    const { loan } = entry;
    if (loan === null) return;
    loan.reported = true;
    if (!this.#context.heard("leak")) return;
    this.#context.tell("leak", {
      held: now - loan.since,
      stack: loan.stack ?? "",
      returned: false,
    });
  }
}
