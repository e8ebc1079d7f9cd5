/** Statistics: every key is always there, and the sums hold in every snapshot. */

import { assert, assertEquals, assertGreaterOrEqual } from "@std/assert";
import process from "node:process";
import type { PoolEventType, PoolStats } from "../mod.ts";
import { outcome, withClock } from "./support/checks.ts";
import { Dice } from "./support/dice.ts";
import { FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

const KEYS = [
  "closing",
  "connecting",
  "connectionsErrors",
  "connectionsLost",
  "connectionsMs",
  "connectionsNum",
  "idle",
  "leased",
  "name",
  "poolAvailable",
  "poolMax",
  "longestWaitMs",
  "poolMin",
  "poolSize",
  "requestsErrors",
  "requestsNum",
  "requestsQueued",
  "requestsWaitMs",
  "requestsWaiting",
  "returnsBad",
  "shared",
  "usageMs",
] as const satisfies readonly (keyof PoolStats)[];
/** The isolates of a shared pool; a pool that cannot be shared has none. */
const WORKERS = "workers" satisfies keyof PoolStats;

/** What only grows. */
const COUNTERS = [
  "requestsNum",
  "requestsQueued",
  "requestsWaitMs",
  "requestsErrors",
  "usageMs",
  "returnsBad",
  "connectionsNum",
  "connectionsMs",
  "connectionsErrors",
  "connectionsLost",
] as const satisfies readonly (keyof PoolStats)[];

const EVENTS: readonly PoolEventType[] = [
  "connect",
  "connectfailed",
  "wait",
  "acquire",
  "share",
  "release",
  "remove",
  "lost",
  "exhausted",
  "timeout",
];

test("stats() has every key from the start, with zeros", async () => {
  const pool = new FakePool(0, 3, { name: "orders" });
  const stats = pool.stats();
  for (const key of KEYS) assert(key in stats, key);
  assertEquals(stats[WORKERS], []);
  assertEquals(stats.lastFailure, null);
  assert(Object.isFrozen(stats));
  for (const key of KEYS) {
    const wanted = key === "name" ? "orders" : key === "poolMax" ? 3 : 0;
    assertEquals(stats[key], wanted, key);
  }
  await pool.closeall();
  assertEquals(Object.keys(pool.stats()), Object.keys(stats));
});

test("stats() tells psycopg_pool's measures", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1, { timeout: 1_000 });
    pool.fake.hold.add("open");
    const first = pool.getconn();
    await clock.tickAsync(30);
    pool.fake.next("open").go();
    const conn = await first;
    const second = pool.getconn();
    const late = outcome(pool.getconn(null, { timeout: 10 }));
    await clock.tickAsync(50);
    assertEquals(late.word, "POOL_TIMEOUT");
    conn.status = "intrans";
    await pool.putconn(conn);
    const other = await second;
    pool.fake.byId(other.hello()).die();
    await pool.putconn(other);
    const { requestsNum, requestsQueued, requestsWaitMs, requestsErrors } = pool.stats();
    assertEquals({ requestsNum, requestsQueued, requestsWaitMs, requestsErrors }, {
      requestsNum: 3,
      requestsQueued: 3,
      requestsWaitMs: 80,
      requestsErrors: 1,
    });
    const { usageMs, returnsBad, connectionsNum, connectionsMs, connectionsErrors } = pool.stats();
    assertEquals({ usageMs, returnsBad, connectionsNum, connectionsMs, connectionsErrors }, {
      usageMs: 50,
      returnsBad: 2,
      connectionsNum: 1,
      connectionsMs: 30,
      connectionsErrors: 0,
    });
    assertEquals(pool.stats().connectionsLost, 1);
    await pool.closeall();
  });
});

/** Takes a snapshot wherever the pool calls somebody, and compares each with the one before. */
class Watch {
  snapshots = 0;
  fault: unknown;
  #last: PoolStats;
  readonly #pool: FakePool;

  constructor(pool: FakePool) {
    this.#pool = pool;
    this.#last = pool.stats();
    for (const type of EVENTS) pool.on(type, () => this.look());
    const { fake } = pool;
    for (const name of ["open", "close", "check", "rollback", "status"] as const) {
      const method = (fake[name] as (...args: unknown[]) => unknown).bind(fake);
      Object.assign(fake, {
        [name]: (...args: unknown[]) => {
          this.look();
          return method(...args);
        },
      });
    }
  }

  look(): void {
    this.snapshots++;
    try {
      this.#compare(this.#pool.stats());
    } catch (error) {
      this.fault ??= error;
    }
  }

  #compare(stats: PoolStats): void {
    const { poolSize, poolAvailable, connecting, idle, leased, shared } = stats;
    assertEquals(poolSize, connecting + idle + leased + shared, JSON.stringify(stats));
    assertEquals(poolAvailable, idle);
    for (const key of KEYS) {
      if (key !== "name") assertGreaterOrEqual(stats[key], 0, key);
    }
    for (const key of COUNTERS) assertGreaterOrEqual(stats[key], this.#last[key], key);
    this.#last = stats;
  }
}

/** One random deed. */
function step(dice: Dice, pool: FakePool, leases: Thing[], calls: ReturnType<typeof call>[]): void {
  const { fake } = pool;
  const roll = dice.below(12);
  const lease = leases[dice.below(Math.max(1, leases.length))];
  if (roll < 4) calls.push(call(pool, dice, leases));
  else if (roll < 8 && lease !== undefined) {
    leases.splice(leases.indexOf(lease), 1);
    if (dice.chance(0.3)) fake.byId(lease.hello()).status = dice.of(["intrans", "active"]);
    outcome(pool.putconn(lease, undefined, dice.chance(0.1)));
  } else if (roll === 8 && fake.held.length > 0) {
    const [held] = fake.held.splice(dice.below(fake.held.length), 1);
    if (dice.chance(0.2)) held?.fail();
    else held?.go();
  } else if (roll === 9) {
    const kind = dice.of(["open", "close", "check", "rollback"] as const);
    if (!fake.hold.delete(kind)) fake.hold.add(kind);
  } else if (roll === 10) {
    const max = 1 + dice.below(4);
    outcome(dice.chance(0.5) ? pool.resize(dice.below(max + 1), max) : pool.renew());
  } else if (roll === 11) fake.failure = fake.failure === null ? new Error("away") : null;
}

function call(pool: FakePool, dice: Dice, leases: Thing[]): { readonly served: boolean } {
  const result = { served: false };
  pool.getconn(null, { timeout: dice.of([0, 20, 1_000]) }).then((conn) => {
    result.served = true;
    leases.push(conn);
  }, () => {});
  return result;
}

const SEED = process.env["STATS_SEED"];

test("stats(): total = connecting + idle + leased + shared in every snapshot of 300 random runs", async () => {
  const first = SEED === undefined ? Math.floor(Math.random() * 1e9) : Number(SEED);
  for (let seed = first; seed < first + (SEED === undefined ? 300 : 1); seed++) {
    await withClock(async (clock) => {
      const dice = new Dice(seed);
      const pool = new FakePool(dice.below(2), 1 + dice.below(3), {
        maxIdle: dice.of([0, 100]),
        checkAfter: dice.of([0, 10, Infinity]),
      });
      const watch = new Watch(pool);
      const leases: Thing[] = [];
      const calls: ReturnType<typeof call>[] = [];
      for (let i = 0; i < 80; i++) {
        step(dice, pool, leases, calls);
        watch.look();
        if (dice.chance(0.5)) await settle();
        if (dice.chance(0.2)) await clock.tickAsync(dice.of([1, 30, 500]));
      }
      await settle();
      const { requestsNum, requestsErrors, requestsWaiting } = pool.stats();
      const served = calls.filter((one) => one.served).length;
      assertEquals(requestsNum, calls.length, `STATS_SEED=${seed}`);
      assertEquals(requestsNum - requestsErrors - requestsWaiting, served, `STATS_SEED=${seed}`);
      pool.fake.hold.clear();
      for (const held of pool.fake.held.splice(0)) held.go();
      await pool.closeall();
      watch.look();
      assertGreaterOrEqual(watch.snapshots, 80);
      if (watch.fault !== undefined) {
        throw new Error(`STATS_SEED=${seed} fails`, { cause: watch.fault });
      }
    });
  }
});
