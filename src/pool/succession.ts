/** The end of a connection by age: its successor stands before it goes. */

import type { PoolContext } from "./state.ts";
import type { PoolEntry } from "./entry.ts";
import type { Supply } from "./connections.ts";

/** This part of `maxLifetime` is left for the successor to come up. */
const GRACE = 0.025;
/** Lives end earlier by up to this part, so that they do not all end at once. */
const JITTER = 0.025;

/** Replaces connections that have reached their age. */
export class Succession<C extends object> {
  readonly #context: PoolContext<C>;
  readonly #supply: Supply<C>;
  readonly #failing: () => boolean;
  /** Those whose successors are on their way. */
  readonly #outgoing = new Set<PoolEntry<object>>();

  /** `failing` tells whether connecting fails at present: then old connections are all there is. */
  constructor(context: PoolContext<C>, supply: Supply<C>, failing: () => boolean) {
    this.#context = context;
    this.#supply = supply;
    this.#failing = failing;
  }

  /** A connection has come up: its life begins, and it may be the successor of an old one. */
  arrived(entry: PoolEntry<object>, now: number): void {
    const { clock, options: { maxLifetime } } = this.#context;
    if (maxLifetime === 0) return;
    entry.expiresAt = now + maxLifetime * (1 - GRACE - clock.random() * JITTER);
  }

  /** After a connection that came up has found its place: one old connection may go. */
  settled(): void {
    for (const old of this.#outgoing) {
      this.#outgoing.delete(old);
      if (old.gone !== null) continue;
      if (old.state === "idle") void this.#supply.retire(old, "lifetime");
      // It is in somebody's hands: then it goes when it comes back.
      else old.expiresAt = -Infinity;
      return;
    }
  }

  /**
   * Whether the connection's life is over. When it would be missed, a successor is begun first, and
   * the old one serves until that stands, or at most until `maxLifetime`.
   */
  over(entry: PoolEntry<object>, now: number): boolean {
    if (now < entry.expiresAt) return false;
    if (this.#outgoing.delete(entry)) return true;
    const { minconn, size, waiting, options } = this.#context;
    const grace = options.maxLifetime * GRACE;
    // Much too late: the process was frozen, or it was lent for long.
    if (now - entry.expiresAt >= grace) return true;
    if (size - this.#leaving > minconn && waiting === 0) return true;
    if (!this.#failing() && !this.#supply.open()) return true;
    this.#outgoing.add(entry);
    entry.expiresAt += grace;
    return false;
  }

  /** Those that are on their way out and still there. */
  get #leaving(): number {
    let count = 0;
    for (const old of this.#outgoing) if (old.gone === null) count++;
    return count;
  }
}
