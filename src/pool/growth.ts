/** How fast a pool grows: what comes back soon need not be opened. */

/** How much of a new reading enters a running mean. */
const SHARE = 1 / 8;
/** What takes longer than this many times the usual connect, and this many milliseconds more … */
const OVERDUE = 3;
/** … is not counted on any more. */
const OVERDUE_SLACK = 50;
/** The same for the first connect of all, of which nobody knows how long it takes, in milliseconds. */
const FIRST_PATIENCE = 500;

/**
 * Weighs opening against waiting. A waiter whose turn comes within the time that a connect takes
 * gains nothing by one more connection; and a burst of short loans would leave the pool full of
 * connections that nobody needs a moment later.
 *
 * How many turns come within that time is estimated from recent loans, and measured as soon as a
 * connect is done while callers wait: those that came back while it was under way. One connect is
 * always under way for those who are not covered otherwise, so that a wrong estimate lasts no longer
 * than one connect. One that gives no sign does not count, or those behind it would wait for its timeout.
 */
export class Pace {
  /** Loans that have ended. */
  returns = 0;
  /** How long a loan lasts, in milliseconds; NaN until one has ended. */
  #loan = NaN;
  /** How long a connect takes, in milliseconds; NaN until one was done. */
  #connect = NaN;
  /** Loans that ended while the last connect for those who wait now was under way. */
  #measured: number | null = null;

  /**
   * For how many milliseconds what is on its way is counted on without a sign. A connect is several round trips
   * and more, so that what suffices for it suffices for a check or a rollback.
   */
  get patience(): number {
    const limit = OVERDUE * this.#connect + OVERDUE_SLACK;
    return Number.isNaN(limit) ? FIRST_PATIENCE : limit;
  }

  /** How long a connect takes, in milliseconds; Infinity when nobody knows. */
  get connect(): number {
    return Number.isNaN(this.#connect) ? Infinity : this.#connect;
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
   * @param connecting How many are being opened and can be counted on.
   * @param leased How many may come back. When nothing stands, nothing can.
   */
  wanted(missing: number, connecting: number, leased: number): number {
    if (missing <= 0 || leased === 0) return missing;
    const more = missing - this.#soon(leased);
    if (more > 0) return more;
    return connecting === 0 ? 1 : 0;
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
