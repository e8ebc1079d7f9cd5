/** When to try again after a failure to connect. */

/** The first pause; every further failure in a row doubles it. */
const FIRST_PAUSE = 100;
/** The longest pause. */
const LONGEST_PAUSE = 10_000;

/** Exponential back-off with jitter over the failures in a row. Times in milliseconds. */
export class Reconnect {
  /** Rounds of attempts that failed since the last success. */
  failures = 0;
  /** No attempt in the background before this time. */
  retryAt = 0;
  /** Whether `reconnectTimeout` has passed since the first failure. */
  gaveUp = false;
  /** When the first of these failures was. */
  since = 0;

  /**
   * Notes a failure; returns the pause. Half of it is random, so that many pools do not return in step.
   * What fails within a pause was begun before it: it belongs to the same round and makes no pause longer.
   */
  failed(now: number): number {
    if (now < this.retryAt) return Math.round(this.retryAt - now);
    if (this.failures++ === 0) this.since = now;
    const pause = Math.min(FIRST_PAUSE * 2 ** Math.min(this.failures - 1, 20), LONGEST_PAUSE);
    const jittered = Math.round(pause * (0.75 + Math.random() / 2));
    this.retryAt = now + jittered;
    return jittered;
  }

  /** Starts anew: after a success, or because someone asks again after the background gave up. */
  reset(): void {
    this.failures = 0;
    this.retryAt = 0;
    this.since = 0;
    this.gaveUp = false;
  }
}
