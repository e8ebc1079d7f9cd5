/** One timer for all that many have to do by the clock. */

import { type Clock, LONGEST } from "../clock.ts";
import { requestBond, type Timer } from "../runtime.ts";

/**
 * A timer that is overdue by so much is given up for lost: its host may have dropped it. Before that
 * it only waits for its turn, in a loop that is busy. Milliseconds.
 */
const LOST_AFTER = 1_000;

/**
 * Rings at the earliest of the times that were asked for; whoever is called asks for the next.
 *
 * Invariant: a ring that is due comes, whatever is asked for later.
 */
export class Alarm {
  readonly #clock: Clock;
  readonly #ring: () => void;
  #timer: Timer | undefined;
  #due = Infinity;
  #holds: boolean;
  /** Where a timer belongs to the request that set it: whether that is the one at hand. */
  #isOurs: (() => boolean) | null = null;

  /** `holds`: whether the process stays alive for it. */
  constructor(clock: Clock, ring: () => void, holds: boolean) {
    this.#clock = clock;
    this.#ring = ring;
    this.#holds = holds;
  }

  /** Rings at `at` or before; Infinity asks for nothing. */
  set(at: number, now: number): void {
    if (
      at >= this.#due && now - this.#due < LOST_AFTER && (this.#isOurs === null || this.#isOurs())
    ) return;
    // Another request's timer is left to it: that may be all that it waits for.
    if (this.#isOurs === null || this.#isOurs()) this.#clock.clearTimeout(this.#timer);
    this.#due = Math.max(now, Math.min(at, this.#due));
    // Never a fraction too early: who is called then would find nothing to do.
    const delay = Math.min(Math.ceil(this.#due - now - 1e-3), LONGEST);
    this.#isOurs = requestBond();
    this.#timer = this.#clock.setTimeout(() => this.#fired(), delay);
    if (!this.#holds) this.#clock.hold(this.#timer, false);
  }

  /** Keeps the process alive for the next ring, or no more. */
  hold(on: boolean): void {
    if (on === this.#holds) return;
    this.#holds = on;
    if (this.#timer !== undefined) this.#clock.hold(this.#timer, on);
  }

  /** Calls everything off. */
  clear(): void {
    if (this.#timer === undefined) return;
    this.#clock.clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#due = Infinity;
  }

  #fired(): void {
    this.#timer = undefined;
    this.#due = Infinity;
    this.#ring();
  }
}
