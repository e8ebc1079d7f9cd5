/**
 * Time, as everything here sees it. It is taken from the runtime when this module is loaded: timers
 * that a program replaces later, as test runners do, neither stop a pool nor outlive their world in it.
 */

import { holdTimer, type Timer } from "./runtime.ts";

/** Two clocks, a timer, and chance. Times are milliseconds. */
export interface Clock {
  /** The time by the clock that nobody sets: for every duration. It begins anywhere. */
  now(): number;
  /** The time of day, which may jump: only to learn of time that `now` does not count, as of a frozen isolate. */
  wall(): number;
  /** Calls `fn` once, after `ms`; at most {@linkcode LONGEST}. */
  setTimeout(fn: () => void, ms: number): Timer;
  /** Calls it off. */
  clearTimeout(timer: Timer | undefined): void;
  /** Whether the process stays alive until the timer has fired; at first it does. */
  hold(timer: Timer, on: boolean): void;
  /** A number from 0 to below 1, so that what many do by the clock does not fall together. */
  random(): number;
}

/** Calls `fn` once, after so many milliseconds; returns how to call it off. */
export type After = (ms: number, fn: () => void) => () => void;

/** By this clock. */
export function afterBy(clock: Clock): After {
  return (ms, fn) => {
    const timer = clock.setTimeout(fn, ms);
    return () => clock.clearTimeout(timer);
  };
}

/** The longest time that a timer can take: 2^31 - 1 ms, 24.8 days. */
export const LONGEST = 2_147_483_647;

/** A timer that comes by so much too late was held up, in milliseconds: the loop was blocked, or the process frozen. */
const LATE = 50;
/** The longest chance that somebody gets for that, in milliseconds. */
const LONGEST_CHANCE = 1_000;

/**
 * For how many milliseconds to wait on, once, when a timer comes `late`; 0 when it is in time. In the time that
 * nobody lived nobody could hear what has come: it does not count before that had one chance.
 */
export function chanceAfter(late: number): number {
  return late < LATE ? 0 : Math.min(late, LONGEST_CHANCE);
}

const { setTimeout, clearTimeout } = globalThis;

/** Calls `fn` after what runs now, in this turn; the runtime's own, as the timers. */
export const queueMicrotask: (fn: () => void) => void = globalThis.queueMicrotask;

const now = performance.now.bind(performance);
const wall = Date.now;

/** The runtime's own. */
export const systemClock: Clock = {
  now,
  wall,
  setTimeout: (fn, ms) => setTimeout(fn, ms),
  clearTimeout: (timer) => clearTimeout(timer),
  hold: holdTimer,
  random: () => Math.random(),
};

let current = (): Clock => systemClock;

/** The clock for what is made now; it keeps it for its life. */
export function currentClock(): Clock {
  return current();
}

/**
 * Gives what is made from now on another clock, which `source` tells: for tests and simulations, which are not
 * part of a program that has pools of its own. Returns how to undo it.
 */
export function setCurrentClock(source: () => Clock): () => void {
  const before = current;
  current = source;
  return () => {
    current = before;
  };
}
