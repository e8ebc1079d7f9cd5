/** Statements that run for too long, leases that are held for too long, and what `inspect` shows of both. */

import { AsyncLocalStorage } from "node:async_hooks";
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import {
  PoolError,
  type PoolEventDetails,
  SimpleConnectionPool,
  ThreadedConnectionPool,
} from "../mod.ts";
import { outcome, withClock } from "./support/checks.ts";
import { FACTS, FakePool } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { rejection } from "./support/postgres.ts";
import { asAdmin, eventually, testServer } from "./support/server.ts";
import { TestWorker } from "./support/workers.ts";

type Slow = PoolEventDetails["slowstatement"];
type Leak = PoolEventDetails["leak"];

test("slowStatementAfter tells of a statement while it runs and when it ends, in its caller's context", async () => {
  await withClock(async (clock) => {
    const request = new AsyncLocalStorage<string>();
    const pool = new FakePool(0, 2, { slowStatementAfter: 1_000, leakAfter: 60_000 });
    const told: unknown[] = [];
    pool.on("slowstatement", ({ detail }: { detail: Slow }) => {
      const { text, duration, over, key, stack, pid } = detail;
      told.push([text, duration, over, key, stack !== "", pid, request.getStore()]);
    });
    const conn = await pool.getconn("job 7");
    const thing = pool.fake.byId(conn.id);
    const start = () => pool.fake.observer!.sent(FACTS, thing)!;
    const end = (duration: number) => ({ duration, rows: 1, failure: null });
    const quick = start();
    const slow = request.run("one", start);
    await clock.tickAsync(500);
    const later = start();
    quick.ended(end(500));
    await clock.tickAsync(499);
    assertEquals(told, []);
    await clock.tickAsync(1);
    const text = FACTS.text;
    assertEquals(told, [[text, 1_000, false, "job 7", true, 7, "one"]]);
    later.ended(end(500));
    await clock.tickAsync(5_000);
    assertEquals(told.length, 1, "told once, and not of those that have ended");
    request.run("one", () => slow.ended(end(6_000)));
    assertEquals(told.slice(1), [[text, 6_000, true, "job 7", true, 7, "one"]]);
    await pool.putconn(conn);
    await pool.closeall();
    assertEquals(clock.countTimers(), 0);
  });
});

test("slowStatementAfter sets no timer while nothing runs, and one for all that do", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1, {
      slowStatementAfter: 1_000,
      maxLifetime: 0,
      maxIdle: Infinity,
    });
    assertEquals(clock.countTimers(), 0);
    const running = Array.from({ length: 50 }, () => pool.fake.observer!.sent(FACTS, {})!);
    assertEquals(clock.countTimers(), 1);
    for (const one of running) one.ended({ duration: 1, rows: 0, failure: null });
    await clock.tickAsync(1_000);
    assertEquals(clock.countTimers(), 0);
    await pool.closeall();
    const plain = new FakePool(0, 1);
    assertEquals(plain.fake.observer, null);
    await plain.closeall();
  });
});

test("reclaimAfter takes a lease from its holder, closes its connection, and the next caller is served", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1, { reclaimAfter: 1_000, leakAfter: 400, timeout: 10_000 });
    const leaks: Leak[] = [];
    const removed: string[] = [];
    const released: unknown[] = [];
    pool.on("leak", ({ detail }) => void leaks.push(detail));
    pool.on("remove", ({ detail }) => void removed.push(detail.reason));
    pool.on("release", ({ detail }) => void released.push(detail.key));
    const conn = await pool.getconn("key");
    const waiter = outcome(pool.getconn());
    await clock.tickAsync(999);
    assertEquals([conn.hello(), waiter.settled, pool.fake.things.length], [1, false, 1]);
    await clock.tickAsync(1);
    assertEquals([waiter.settled, pool.fake.byId(1).closed, pool.fake.most], [true, true, 1]);
    assertEquals([removed, released], [["reclaimed"], ["key"]]);
    assertEquals(
      leaks.map(({ held, returned, collected, reclaimed, stack }) => [
        held,
        returned,
        collected,
        reclaimed,
        stack.includes("stuck_test"),
      ]),
      [[400, false, false, false, true], [1_000, true, false, true, true]],
    );
    // Its later use says so, whatever it is; so does putconn, and nothing is lost by that.
    let thrown: unknown;
    try {
      conn.hello();
    } catch (error) {
      thrown = error;
    }
    assert(thrown instanceof PoolError && thrown.code === "LEASE_RECLAIMED", String(thrown));
    assertMatch(thrown.message, /lent for longer than reclaimAfter, 1000 ms/);
    const put = await assertRejects(() => pool.putconn(conn), PoolError);
    assertEquals(put.code, "LEASE_RECLAIMED");
    await pool.putconn(waiter.value!);
    // The key is free for another connection.
    const again = await pool.getconn("key");
    assertEquals([again.hello(), pool.stats().leased], [2, 1]);
    await pool.closeall();
  });
});

test("reclaimAfter ends use() and transaction(), whose functions may never return", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 2, { reclaimAfter: 1_000 });
    const never = () => new Promise<never>(() => {});
    const calls = [outcome(pool.use(never)), outcome(pool.transaction(never))];
    // Put back in time, or at the last moment, nothing is told.
    await clock.tickAsync(999);
    assertEquals(calls.map(({ settled }) => settled), [false, false]);
    await clock.tickAsync(2);
    for (const { error } of calls) assertEquals((error as PoolError).code, "LEASE_RECLAIMED");
    await clock.tickAsync(10);
    assertEquals([pool.stats().poolSize, pool.fake.standing], [0, 0]);
    await pool.use((conn) => conn.hello());
    await pool.closeall();
  });
});

test("a listener that throws, closes the pool or puts the lease back when it is reclaimed harms nobody", async () => {
  await withClock(async (clock) => {
    const { error: print } = console;
    console.error = () => {};
    try {
      for (const act of ["throw", "closeall", "putconn"]) {
        const pool = new FakePool(0, 2, { reclaimAfter: 100 });
        const conn = await pool.getconn();
        for (const type of ["leak", "release", "remove"] as const) {
          pool.on(type, () => {
            if (act === "throw") throw new Error("a bad listener");
            return act === "closeall" ? pool.closeall() : pool.putconn(conn);
          });
        }
        await clock.tickAsync(200);
        assertEquals([pool.stats().poolSize, pool.fake.standing], [0, 0], act);
        if (!pool.closed) await pool.closeall();
      }
    } finally {
      console.error = print;
    }
  });
});

test("reclaimAfter cancels what a lease runs at the server; pool.sql's own listening and single statements go on", async () => {
  const { url } = await testServer();
  const name = `reclaim-${crypto.randomUUID()}`;
  await using pool = new SimpleConnectionPool(0, 3, url, {
    application_name: name,
    pool: { reclaimAfter: 300, timeout: 60_000 },
  });
  const heard: string[] = [];
  await pool.sql.listen("reclaim", (payload) => void heard.push(payload));
  // Alone on a connection, and longer than the limit.
  const single = pool.sql`show work_mem`.then(() =>
    pool.sql.unsafe("create temp table x as select 1 from pg_sleep(0.6)")
  );
  const held = await pool.getconn();
  const stuck = rejection(held`select pg_sleep(60)`);
  const failed = await stuck;
  // What ran there fails by it, and says so; use() and transaction() tell it as what it is.
  assertEquals([failed.code, (failed.cause as PoolError).code], [
    "CONNECTION_DESTROYED",
    "LEASE_RECLAIMED",
  ]);
  for (const how of ["use", "transaction"] as const) {
    const told = await rejection(pool[how]((conn) => conn`select pg_sleep(60)`));
    assertEquals(told.code, "LEASE_RECLAIMED");
  }
  assertEquals((await rejection(held`select 1`)).code, "LEASE_RECLAIMED");
  assertEquals(held.closed, true);
  await single;
  // Nothing sleeps at the server any more.
  await eventually(async () => {
    const active = await asAdmin((sql) =>
      sql`select query from pg_stat_activity where application_name = ${name}
        and state = 'active' and query like '%pg_sleep(60)%'`
    );
    assertEquals(active.length, 0);
  });
  await pool.sql.notify("reclaim", "still here");
  await eventually(() => assertEquals(heard, ["still here"]));
});

test("inspect() shows for each connection what runs and for how long, and who waits for what, without values", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 2, url, { pool: { timeout: 30_000 } });
  const sleeping = await pool.getconn("report");
  const slept = sleeping`select pg_sleep(60), ${"secret"}::text as s`.execute();
  const shared = pool.sql.unsafe("select pg_sleep(60) from (values ('hunter2')) v").execute();
  const calls: Promise<unknown>[] = [];
  await eventually(() => assertEquals(pool.stats().shared, 1));
  calls.push(pool.getconn("next").then((conn) => pool.putconn(conn)));
  calls.push(pool.sql`select ${"secret"}::text from pg_class limit 1`.then(() => {}));
  await new Promise((resolve) => setTimeout(resolve, 50));
  const text = pool.inspect();
  assertMatch(
    text,
    /^ {2}leased for [\d.]+ m?s under "report", runs for [\d.]+ m?s: select pg_sleep\(60\), \$1::text as s$/m,
  );
  assertMatch(
    text,
    /^ {2}shared by 1 statements, runs for [\d.]+ m?s: select pg_sleep\(\?\) from \(values \(\?\)\) v$/m,
  );
  assertMatch(text, /^ {2}waits for [\d.]+ m?s: getconn under "next"$/m);
  assertMatch(
    text,
    /^ {2}waits for [\d.]+ m?s: pool\.sql: select \$1::text from pg_class limit 1$/m,
  );
  assert(!/secret|hunter2/.test(text), text);
  const ended = [rejection(slept), rejection(shared)];
  await Promise.all([slept.cancel(), shared.cancel()]);
  await Promise.all(ended);
  await pool.putconn(sleeping);
  await Promise.all(calls);
});

test("reclaimAfter holds in every worker of a pool: its permit comes back to who waits elsewhere", async () => {
  const { url } = await testServer();
  await using pool = new ThreadedConnectionPool(0, 1, url, {
    pool: { reclaimAfter: 500, slowStatementAfter: 60_000, timeout: 30_000 },
  });
  using worker = await TestWorker.join(pool);
  await worker.tell("get");
  // The worker holds the only permit, and would for ever.
  await pool.use((conn) => conn`select 1`);
  const error = await rejection(worker.tell("put"));
  assertEquals(error.code, "LEASE_RECLAIMED");
  assertEquals(await worker.tell("query"), 1);
});
