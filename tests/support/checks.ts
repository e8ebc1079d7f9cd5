/** What the tests of the pool's logic share: a clock of their own, and what must hold after any storm. */

import { assert, assertEquals, assertLessOrEqual } from "@std/assert";
import FakeTimers from "@sinonjs/fake-timers";
import { PoolError } from "../../mod.ts";
import { type Clock as PoolClock, setCurrentClock, systemClock } from "../../src/clock.ts";
import { type FakePool, settle, type Thing } from "./fake.ts";

/** The part of a fake clock that the tests use. */
export interface Clock {
  tick(ms: number): number;
  tickAsync(ms: number): Promise<number>;
  countTimers(): number;
  /** Moves the wall clock, and no timer, as a user or NTP does. */
  setSystemTime(now: number): void;
  /** Time passes, for pools, and no timer fires: something keeps the event loop busy. */
  stall(ms: number): void;
  /** No timer that is set now will ever fire: the host has dropped them. */
  loseTimers(): void;
}

/** Runs `fn` on a clock that stands still until told; a pool has to be made inside. */
export async function withClock(fn: (clock: Clock) => Promise<void>): Promise<void> {
  const clock = FakeTimers.install({
    now: 1_700_000_000_000,
    toFake: ["setTimeout", "clearTimeout", "Date", "performance"],
  });
  let stalled = 0;
  const timers: ReturnType<typeof setTimeout>[] = [];
  // A pool has taken the real ones: it goes by these when it is made now.
  const ours: PoolClock = {
    random: () => Math.random(),
    now: () => performance.now() + stalled,
    wall: () => Date.now() + stalled,
    setTimeout: (fn, ms) => {
      const timer = setTimeout(fn, ms);
      timers.push(timer);
      return timer;
    },
    clearTimeout: (timer) => clearTimeout(timer),
    hold: systemClock.hold,
  };
  const restore = setCurrentClock(() => ours);
  const stall = (ms: number): void => {
    stalled += ms;
  };
  const loseTimers = (): void => timers.splice(0).forEach((timer) => clearTimeout(timer));
  try {
    await fn(Object.assign(clock as unknown as Clock, { stall, loseTimers }));
  } finally {
    restore();
    clock.uninstall();
  }
}

/** A promise's end, taken hold of at once so that no rejection is unhandled. */
export interface Outcome<T> {
  readonly settled: boolean;
  readonly value: T | undefined;
  readonly error: unknown;
  /** The code of a PoolError, the message of another error, "ok", or "pending". */
  readonly word: string;
}

/** Watches a promise. */
export function outcome<T>(promise: Promise<T>): Outcome<T> {
  const state = { settled: false, value: undefined as T | undefined, error: undefined as unknown };
  promise.then(
    (value) => Object.assign(state, { settled: true, value }),
    (error) => Object.assign(state, { settled: true, error: error ?? new Error("undefined") }),
  );
  return {
    get settled() {
      return state.settled;
    },
    get value() {
      return state.value;
    },
    get error() {
      return state.error;
    },
    get word() {
      if (!state.settled) return "pending";
      if (state.error === undefined) return "ok";
      return state.error instanceof PoolError ? state.error.code : (state.error as Error).message;
    },
  };
}

/** The code or message with which it rejects; "ok" when it does not. */
export async function wordOf(promise: Promise<unknown>): Promise<string> {
  const seen = outcome(promise);
  await settle();
  return seen.word;
}

/** The identity of what stands behind a lease. */
export function idOf(conn: Thing | undefined): number {
  return conn?.hello() ?? -1;
}

/** Numbers that must agree at every moment. */
export function assertCounts(pool: FakePool): void {
  const { poolSize, connecting, idle, leased, closing, poolMax } = pool.stats();
  assertEquals(poolSize, connecting + idle + leased);
  assertLessOrEqual(poolSize + closing, Math.max(poolMax, pool.fake.mostAllowed));
  assertLessOrEqual(pool.fake.standing, Math.max(poolMax, pool.fake.mostAllowed));
}

/** After whatever happened: every slot can be lent again, and closing leaves nothing behind. */
export async function assertWhole(pool: FakePool, given: readonly Thing[] = []): Promise<void> {
  const { fake } = pool;
  fake.failure = null;
  fake.hold.clear();
  for (const step of fake.held.splice(0)) step.go();
  await settle();
  for (const conn of given) await pool.putconn(conn);
  await settle();
  assertCounts(pool);
  assertEquals(pool.stats().leased, 0, "a lease is missing");
  const calls = Array.from(
    { length: pool.maxconn },
    () => outcome(pool.getconn(null, { timeout: 0 })),
  );
  await settle();
  assertEquals(calls.map((one) => one.word), calls.map(() => "ok"), "a slot is lost");
  const ids = new Set(calls.map((one) => idOf(one.value)));
  assertEquals(ids.size, pool.maxconn, "one connection was lent twice");
  for (const one of calls) assertEquals(fake.status(fake.byId(idOf(one.value))), "idle");
  await assertEnded(pool);
}

/** closeall leaves nothing standing and nothing pending. */
export async function assertEnded(pool: FakePool): Promise<void> {
  if (!pool.closed) await pool.closeall();
  await settle();
  assertEquals(pool.fake.standing, 0);
  const { poolSize, closing, requestsWaiting } = pool.stats();
  assertEquals({ poolSize, closing, requestsWaiting }, {
    poolSize: 0,
    closing: 0,
    requestsWaiting: 0,
  });
  assert(pool.fake.things.every((thing) => thing.closed));
}
