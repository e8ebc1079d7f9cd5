/** How fast a pool grows: what comes back soon need not be opened, and what fails is not tried at once again. */

/** How much of a new reading enters a running mean. */
const SHARE = 1 / 8;
/** What takes longer than this many times the usual connect, and this many milliseconds more … */
const OVERDUE = 3;
/** … is not counted on any more. */
const OVERDUE_SLACK = 50;
/** The same for the first connect of all, of which nobody knows how long it takes, in milliseconds. */
const FIRST_PATIENCE = 500;
/** And of any, however long others took: as long as a check may take. One that came up after a minute tells nothing of the next. */
const LONGEST_PATIENCE = 5_000;

/**
 * Weighs opening against waiting. A waiter whose turn comes within the time that a connect takes
 * gains nothing by one more connection; and a burst of short leases would leave the pool full of
 * connections that nobody needs a moment later.
 *
 * How many turns come within that time is estimated from recent leases, and measured as soon as a
 * connect is done while callers wait: those that came back while it was under way. One connect is
 * always under way for those who are not covered otherwise, so that a wrong estimate lasts no longer
 * than one connect. One that gives no sign does not count, or those behind it would wait for its timeout.
 */
export class Growth {
  /** Leases that have ended. */
  returns = 0;
  /** How long a lease lasts, in milliseconds; NaN until one has ended. */
  #lease = NaN;
  /** How long a connect takes, in milliseconds; NaN until one was done. */
  #connect = NaN;
  /** Leases that ended while the last connect for those who wait now was under way. */
  #measured: number | null = null;

  /**
   * For how many milliseconds what is on its way is counted on without a sign. A connect is several round trips
   * and more, so that what suffices for it suffices for a check or a rollback.
   */
  get patience(): number {
    const limit = OVERDUE * this.#connect + OVERDUE_SLACK;
    return Number.isNaN(limit) ? FIRST_PATIENCE : Math.min(limit, LONGEST_PATIENCE);
  }

  /** How long a connect takes, in milliseconds; Infinity when nobody knows. */
  get connect(): number {
    return Number.isNaN(this.#connect) ? Infinity : this.#connect;
  }

  /** A lease has ended. */
  returned(used: number): void {
    this.returns++;
    this.#lease = mean(this.#lease, used);
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
    if (Number.isNaN(this.#lease + this.#connect)) return Infinity;
    return Math.floor(leased * this.#connect / Math.max(this.#lease, 0.01));
  }
}

function mean(old: number, value: number): number {
  return Number.isNaN(old) ? value : old + (value - old) * SHARE;
}

/** The first pause, in milliseconds; every further failure in a row doubles it. Nobody makes a pause shorter than this. */
const FIRST_PAUSE = 100;
/** The longest pause, in milliseconds. */
const LONGEST_PAUSE = 10_000;
/** So many attempts find room in the time of whoever waits. */
const ATTEMPTS = 8;
/** Who comes during a pause has its first attempt when the last one is so many milliseconds old, or earlier. */
const LONGEST_PAUSE_FOR_NEWCOMERS = 1_000;

/**
 * Exponential back-off with jitter over what went wrong in a row: attempts that failed, and attempts
 * that give no sign. Times in milliseconds, by the clock that nobody sets.
 *
 * The pause belongs to the background. Who waits has a time of its own, and gets attempts within
 * that: while somebody waits, a pause is no longer than an eighth of the shortest time in use, and who comes
 * ends a pause that is longer. How many wait makes no difference: one attempt at a time, and never
 * two within the first pause.
 */
export class Backoff {
  /** Rounds of attempts that failed since the last success. */
  failures = 0;
  /** Attempts without a sign since the last success. */
  silences = 0;
  /** No attempt in the background before this time. */
  retryAt = 0;
  /** Whether the last failure is one that comes again until somebody changes something. */
  permanent = false;
  /** Whether `reconnectTimeout` has passed since the first failure. */
  gaveUp = false;
  /** When the first of these failures was. */
  since = 0;
  /** When something was tried for the last time, or was seen to fail. */
  #lastAt = -Infinity;

  readonly #random: () => number;

  /** `random` gives a number from 0 to below 1. */
  constructor(random: () => number) {
    this.#random = random;
  }

  /** True while attempts go wrong: then there is one at a time. */
  get troubled(): boolean {
    return this.failures + this.silences > 0;
  }

  /** True while connecting fails: then old connections are all there is. */
  get failing(): boolean {
    return this.failures > 0;
  }

  /** An attempt begins. */
  begun(now: number): void {
    this.#lastAt = now;
  }

  /**
   * Notes a failure; returns the pause. Half of it is random, so that many pools do not return in step.
   * What fails within a pause was begun before it: it belongs to the same round and makes no pause longer.
   *
   * @param shortest The shortest time for which somebody waits; Infinity when nobody does.
   */
  failed(now: number, shortest: number): number {
    this.#lastAt = now;
    if (now < this.retryAt) return Math.round(this.retryAt - now);
    if (this.failures++ === 0) this.since = now;
    return this.#pause(now, FIRST_PAUSE * 2 ** Math.min(this.failures - 1, 20), shortest);
  }

  /**
   * Notes that attempts give no sign for longer than `patience`: that was the first pause, so another one
   * may begin at once. Every further silence in a row doubles the pause, which counts from the beginning of the last attempt.
   */
  silent(now: number, patience: number, shortest: number): void {
    if (now < this.retryAt) return;
    if (this.silences++ === 0) this.retryAt = now;
    else this.#pause(this.#lastAt, patience * 2 ** Math.min(this.silences - 1, 20), shortest);
  }

  /** Somebody comes who waits for `timeout`. */
  asked(timeout: number): void {
    const pause = this.permanent
      ? FIRST_PAUSE
      : Math.min(ownPause(timeout), LONGEST_PAUSE_FOR_NEWCOMERS);
    this.retryAt = Math.min(this.retryAt, this.#lastAt + pause);
  }

  /**
   * Someone asks again: pauses are short again, and the background tries anew. It stays one attempt at a time, or
   * each of many that ask would begin as many as there is room for.
   */
  revive(now: number): void {
    this.failures = Math.min(this.failures, 1);
    this.silences = Math.min(this.silences, 1);
    this.since = now;
    this.gaveUp = false;
  }

  /** Starts anew, after a success. */
  reset(): void {
    this.failures = 0;
    this.silences = 0;
    this.retryAt = 0;
    this.since = 0;
    this.permanent = false;
    this.gaveUp = false;
  }

  #pause(from: number, pause: number, shortest: number): number {
    const middle = Math.min(pause, ownPause(shortest), LONGEST_PAUSE);
    const jittered = Math.round(middle * (0.75 + this.#random() / 2));
    this.retryAt = from + jittered;
    return jittered;
  }
}

/** The longest pause that leaves room for enough attempts within `timeout`. */
export function ownPause(timeout: number): number {
  return Math.max(FIRST_PAUSE, timeout / ATTEMPTS);
}
