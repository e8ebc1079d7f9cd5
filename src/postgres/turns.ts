/** One after the other: parts of one holder's right that must not run beside each other. */

import { type Clock, currentClock } from "../clock.ts";
import type { Timer } from "../runtime.ts";

/** Somebody who wants its turn. */
export interface Turn {
  /** True when it keeps the turn until {@linkcode Turns.give}; a single statement does not. */
  readonly keeps: boolean;
  /** It is its turn now. */
  start(): void;
  /** It will never be. */
  refuse(reason: unknown): void;
}

/** How often those who wait look whether the one whose turn it is does anything, in milliseconds. */
const LOOK_EVERY = 1_000;
/** After so many looks in a row without a sign it may wait for one that waits for it. */
const LOOKS = 2;

/** What tells whether the one whose turn it is gets on. */
export interface Progress {
  /** Changes with each thing that it does. */
  readonly steps: number;
  /** True while it is in the middle of one. */
  readonly busy: boolean;
  /** What those are told who wait for one that does nothing. */
  stalled(): Error;
}

/**
 * Turns, in the order of asking. With a {@linkcode Progress} nobody waits for ever: whoever has its turn and does
 * nothing for two to three seconds may be waiting for one of those who wait, and these are refused.
 */
export class Turns {
  #taken = false;
  #waiting: Turn[] = [];
  readonly #progress: Progress | null;
  readonly #clock: Clock = currentClock();
  #timer: Timer | undefined;
  #steps = 0;
  #looks = 0;

  constructor(progress: Progress | null) {
    this.#progress = progress;
  }

  get taken(): boolean {
    return this.#taken;
  }

  /** Starts `turn`, at once when it is nobody's. */
  take(turn: Turn): void {
    if (this.#taken) {
      this.#waiting.push(turn);
      if (this.#waiting.length === 1) this.#watch();
      return;
    }
    this.#taken = turn.keeps;
    turn.start();
  }

  /** The turn is over: the next one's begins. */
  give(): void {
    this.#taken = false;
    while (!this.#taken) {
      const next = this.#waiting.shift();
      if (next === undefined) return this.#clock.clearTimeout(this.#timer);
      this.#taken = next.keeps;
      next.start();
    }
    this.#clock.clearTimeout(this.#timer);
    if (this.#waiting.length > 0) this.#watch();
  }

  /** Sends away all who wait. */
  refuse(reason: unknown): void {
    this.#clock.clearTimeout(this.#timer);
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const turn of waiting) turn.refuse(reason);
  }

  #watch(): void {
    if (this.#progress === null) return;
    this.#looks = 0;
    this.#steps = this.#progress.steps;
    this.#timer = this.#clock.setTimeout(this.#look, LOOK_EVERY);
  }

  readonly #look = (): void => {
    const { steps, busy } = this.#progress!;
    if (busy || steps !== this.#steps) this.#looks = 0;
    else if (++this.#looks >= LOOKS) return this.refuse(this.#progress!.stalled());
    this.#steps = steps;
    this.#timer = this.#clock.setTimeout(this.#look, LOOK_EVERY);
  };
}
