/** Timers and clocks: the runtime's own, as they were when the module was loaded, or one for all of a pool. */

import { assertEquals } from "@std/assert";
import FakeTimers from "@sinonjs/fake-timers";
import { PoolTimeout, SimpleConnectionPool } from "../mod.ts";
import { type Clock, setCurrentClock } from "../src/clock.ts";
import { FakePool } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { scripted, settle } from "./support/scripted.ts";
import { testServer } from "./support/server.ts";

/** Runs `fn` while a test runner's fake timers are installed, of which none ever fires. */
async function underFakeTimers(fn: () => unknown): Promise<void> {
  const clock = FakeTimers.install({
    now: 1_700_000_000_000,
    toFake: [
      "setTimeout",
      "clearTimeout",
      "setInterval",
      "clearInterval",
      "Date",
      "performance",
      "setImmediate",
      "clearImmediate",
      "queueMicrotask",
    ],
  });
  try {
    await fn();
    assertEquals(clock.countTimers(), 0, "a timer that ends with its world");
  } finally {
    clock.uninstall();
  }
}

/** A clock that goes on only when it is told to; the runtime's own timers are as they were. */
class HandClock implements Clock {
  readonly random: () => number = () => 0.5;
  #now = 1_000;
  readonly #timers = new Map<number, { fn: () => void; at: number }>();
  #last = 0;
  now(): number {
    return this.#now;
  }
  wall(): number {
    return this.#now;
  }
  setTimeout(fn: () => void, ms: number): ReturnType<Clock["setTimeout"]> {
    this.#timers.set(++this.#last, { fn, at: this.#now + ms });
    return this.#last as unknown as ReturnType<Clock["setTimeout"]>;
  }
  clearTimeout(timer: Parameters<Clock["clearTimeout"]>[0]): void {
    this.#timers.delete(timer as unknown as number);
  }
  hold(): void {}
  get pending(): number {
    return this.#timers.size;
  }
  /** Time passes, and what is due by then is called. */
  async go(ms: number): Promise<void> {
    this.#now += ms;
    for (const [id, { fn, at }] of this.#timers) {
      if (at > this.#now) continue;
      this.#timers.delete(id);
      fn();
      await settle();
    }
  }
}

/** Runs `fn` with such a clock for what is made in it. */
async function byHand(fn: (clock: HandClock) => Promise<void>): Promise<void> {
  const clock = new HandClock();
  const restore = setCurrentClock(() => clock);
  try {
    await fn(clock);
  } finally {
    restore();
  }
}

test("a session that is closed and does not let go is cut off by the pool's clock", async () => {
  await byHand(async (clock) => {
    const { session, transport } = scripted();
    const closing = session.close();
    await settle();
    await clock.go(4_999);
    assertEquals([transport.ended, transport.closed], [true, false]);
    await clock.go(1);
    assertEquals(transport.closed, true);
    await closing;
    assertEquals(clock.pending, 0);
  });
});

test("a statement's limit, and the patience after it, are by the pool's clock", async () => {
  await byHand(async (clock) => {
    const { run, transport } = scripted();
    const late = run("select pg_sleep(60)", [], { queryTimeout: 300 }).catch((error) => error);
    await settle();
    await clock.go(299);
    assertEquals([clock.pending, transport.closed], [1, false]);
    await clock.go(1);
    await clock.go(4_999);
    assertEquals(transport.closed, false);
    await clock.go(1);
    assertEquals(transport.closed, true);
    assertEquals((await late as { code?: string }).code, "QUERY_TIMEOUT");
    assertEquals(clock.pending, 0);
  });
});

test("queryTimeout begins when a connection has the statement, not while it waits for one", async () => {
  const { url } = await testServer();
  await byHand(async (clock) => {
    const pool = new SimpleConnectionPool(1, 1, url, { queryTimeout: 300 });
    const conn = await pool.getconn();
    const waiting = pool.sql<{ one: number }[]>`select 1 as one`.then(([row]) => row?.one);
    await settle();
    await clock.go(1_000);
    assertEquals(pool.stats().requestsWaiting, 1);
    await pool.putconn(conn);
    assertEquals(await waiting, 1);
    await pool.close();
    assertEquals(clock.pending, 0);
  });
});

test("a waiter under fake timers makes no later waiter with the same timeout hang", async () => {
  const pool = new FakePool(0, 1, { timeout: 100 });
  const lease = await pool.getconn();
  let first: Promise<unknown> | undefined;
  await underFakeTimers(() => {
    first = pool.getconn().catch((error) => error);
  });
  const [one, two] = await Promise.all([first, pool.getconn().catch((error) => error)]);
  assertEquals([one, two].map((error) => error instanceof PoolTimeout), [true, true]);
  await pool.putconn(lease);
  await pool.closeall();
});

test("under fake timers, microtasks among them, statements are sent and answered", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 1, url);
  await pool.use((conn) => conn`select 1`);
  await underFakeTimers(async () => {
    const [leased] = await pool.use((conn) => conn`select 2 as n`);
    const [shared] = await pool.sql`select 3 as n`;
    const pipelined = await Promise.all([4, 5].map((n) => pool.sql`select ${n}::int as n`));
    assertEquals([leased!.n, shared!.n, ...pipelined.map(([row]) => row!.n)], [2, 3, 4, 5]);
  });
  // What was shared under them is everybody's again.
  await pool.use((conn) => conn`select 6`);
});

test("a pool that is used under fake timers closes what is idle when these are gone", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 2, url, { pool: { maxIdle: 300 } });
  await pool.use((conn) => conn`select 1`);
  await underFakeTimers(() => pool.use((conn) => conn`select 2`));
  await pool.use((conn) => conn`select 3`);
  const removed = new Promise<void>((resolve) => pool.on("remove", () => resolve()));
  const late = new Promise<string>((resolve) => {
    const timer = setTimeout(resolve, 3_000, "late");
    void removed.then(() => clearTimeout(timer));
  });
  assertEquals(await Promise.race([removed, late]), undefined);
  assertEquals(pool.stats().idle, 0);
});
