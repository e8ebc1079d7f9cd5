/** How fast a pool grows: what comes back soon need not be opened. */

import type { Clock } from "../clock.ts";

/** How much of a new reading enters a running mean. */
const SHARE = 1 / 8;
/** A connect that lasts for longer than this many times the usual, and this many milliseconds more … */
const OVERDUE = 3;
/** … is one that may hang. */
const OVERDUE_SLACK = 50;

/**
 * Weighs opening against waiting. A waiter whose turn comes within the time that a connect takes
 * gains nothing by one more connection; and a burst of short loans would leave the pool full of
 * connections that nobody needs a moment later.
 *
 * How many turns come within that time is estimated from recent loans, and measured as soon as a
 * connect is done while callers wait: those that came back while it was under way. One connect is
 * always under way for those who are not covered otherwise, so that a wrong estimate lasts no longer
 * than one connect. One that hangs does not count, or those behind it would wait for its timeout.
 */
export class Pace {
  readonly #clock: Clock;
  /** Loans that have ended. */
  returns = 0;
  /** How long a loan lasts, in milliseconds; NaN until one has ended. */
  #loan = NaN;
  /** How long a connect takes, in milliseconds; NaN until one was done. */
  #connect = NaN;
  /** When the newest connect was begun. */
  #begunAt = -Infinity;
  /** Loans that ended while the last connect for those who wait now was under way. */
  #measured: number | null = null;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** A connect begins. */
  begun(now: number): void {
    this.#begunAt = now;
  }

  /** After how many milliseconds a connect may hang; Infinity when nobody knows. */
  get patience(): number {
    const limit = OVERDUE * this.#connect + OVERDUE_SLACK;
    return Number.isNaN(limit) ? Infinity : limit;
  }

  /** In how many milliseconds the newest connect, if it is still under way, may hang; Infinity when nobody knows. */
  get overdueIn(): number {
    return this.#begunAt + this.patience - this.#clock.now();
  }

  /** A loan has ended. */
  returned(used: number): void {
    this.returns++;
    this.#loan = mean(this.#loan, used);
  }

  /** A connect is done that began when `returns` was `before`; `waiting` callers are not covered. */
  connected(took: number, before: number, waiting: number): void {
    this.#connect = mean(this.#connect, took);
    this.#measured = waiting > 0 ? this.returns - before : null;
  }

  /** Nobody waits: what comes next is another rush. */
  calm(): void {
    this.#measured = null;
  }

  /**
   * How many more connections to open when `missing` callers have none on its way to them.
   *
   * @param connecting How many are being opened.
   * @param leased How many may come back. When nothing stands, nothing can.
   */
  wanted(missing: number, connecting: number, leased: number): number {
    if (missing <= 0 || leased === 0) return missing;
    const more = missing - this.#soon(leased);
    if (more > 0) return more;
    return connecting === 0 || this.overdueIn <= 0 ? 1 : 0;
  }

  /** How many of `leased` connections come back within the time of one connect, one more than once. */
  #soon(leased: number): number {
    if (this.#measured !== null) return this.#measured;
    // Nothing is known yet: the first connect will tell.
    if (Number.isNaN(this.#loan + this.#connect)) return Infinity;
    return Math.floor(leased * this.#connect / Math.max(this.#loan, 0.01));
  }
}

function mean(old: number, value: number): number {
  return Number.isNaN(old) ? value : old + (value - old) * SHARE;
}
