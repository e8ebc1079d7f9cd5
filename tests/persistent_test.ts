/** PersistentConnectionPool: keys that the pool makes itself. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { PersistentConnectionPool, PoolError } from "../mod.ts";
import { test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";
import { FakeConnector, settle, type Thing } from "./support/fake.ts";
import { TestWorker } from "./support/workers.ts";

async function make(
  maxconn: number,
  pool: Record<string, unknown> = {},
): Promise<PersistentConnectionPool> {
  return new PersistentConnectionPool(0, maxconn, (await testServer()).url, { pool });
}

test("PersistentConnectionPool gives this worker one connection, until putconn() without an argument", async () => {
  await using pool = await make(2);
  const [one, two] = await Promise.all([pool.getconn(), pool.getconn()]);
  assert(one === two);
  assert(await pool.getconn() === one);
  assertEquals(pool.stats().leased, 1);
  await pool.putconn();
  assertEquals(pool.stats().leased, 0);
  const error = await assertRejects(() => pool.putconn(), PoolError);
  assert(error.message.startsWith("trying to put unkeyed connection"));
  const again = await pool.getconn();
  // As the other pools have it, with a key in between.
  const misplaced = pool.putconn as unknown as (...args: unknown[]) => Promise<void>;
  await assertRejects(() => misplaced.call(pool, again, null, true), TypeError, "true or false");
  await pool.putconn(again, true);
  assertEquals(pool.stats().poolSize, 0);
});

test("PersistentConnectionPool.use() and transaction() leave what was held before", async () => {
  await using pool = await make(2);
  const held = await pool.getconn();
  await pool.use((conn) => assert(conn === held));
  await pool.transaction(async (conn) => {
    assert(conn === held);
    await pool.use((inner) => assert(inner === held));
    const error = await assertRejects(() => pool.transaction(() => {}), PoolError);
    assertEquals(error.code, "IN_TRANSACTION");
  });
  await assertRejects(() => pool.transaction(() => Promise.reject(new Error("mine"))), Error);
  assertEquals(held.transactionStatus, "idle");
  assertEquals((await held`select 1 as one`)[0]!["one"], 1);
  await pool.putconn();
  await pool.use(() => pool.use(() => {}));
  assertEquals(pool.stats().leased, 0);
  let kept;
  await pool.use(async () => kept = await pool.getconn());
  assert(await pool.getconn() === kept);
  await pool.putconn();
});

test('PersistentConnectionPool with scope "context" keeps one connection for each run()', async () => {
  await using pool = await make(2, { scope: "context", timeout: 60_000 });
  const both = Promise.withResolvers<void>();
  let having = 0;
  const request = () =>
    pool.run(async () => {
      const one = await pool.getconn();
      const { pid } = one;
      // Else one may be served by what the other has put back.
      if (++having === 2) both.resolve();
      await both.promise;
      await one`select 1`;
      assert(await pool.getconn() === one);
      return pid;
    });
  const pids = await Promise.all([request(), request()]);
  assert(pids[0] !== pids[1]);
  assertEquals(pool.stats().leased, 0);
  await assertRejects(() => pool.getconn(), PoolError, "outside of pool.run()");
  await assertRejects(() => pool.putconn(), PoolError, "unkeyed");
  assertEquals(await pool.use((conn) => conn`select 1 as one`).then((r) => r[0]!["one"]), 1);
  assertEquals(pool.stats().leased, 0);
});

test("PersistentConnectionPool refuses a bad scope, and run() without it", async () => {
  assertThrows(
    () => new PersistentConnectionPool(0, 1, { pool: { scope: "thread" as never } }),
    TypeError,
    '"pool.scope" must be',
  );
  await using pool = await make(1);
  await assertRejects(() => pool.run(() => {}), PoolError, 'needs the scope "context"');
});

test(
  "PersistentConnectionPool: each worker has one connection, and the cap holds for all",
  async () => {
    await using pool = await make(2);
    await using one = await TestWorker.join(pool, "persistent");
    await using two = await TestWorker.join(pool, "persistent");
    await using three = await TestWorker.join(pool, "persistent");
    const all = await Promise.all(
      [one, two, three].map((worker) => worker.tell<number[]>("persistent")),
    );
    for (const [first, second] of all) assertEquals(first, second);
    assert(pool.stats().poolSize <= 2);
  },
  // A worker has to be compiled, which takes seconds where others are at work.
  { sanitize: false, timeout: 240_000 },
);

for (const scope of ["worker", "context"] as const) {
  test(`PersistentConnectionPool: two transactions at once do not share one, scope "${scope}"`, async () => {
    await using pool = await make(2, { scope, timeout: 60_000 });
    const table = `persistent_${crypto.randomUUID().replaceAll("-", "")}`;
    const { sql } = pool;
    await sql.unsafe(`create table ${table} (who text)`);
    const body = async () => {
      for (const failing of [0, 1]) {
        const gate = Promise.withResolvers<void>();
        const work = (who: number) => async (conn: { unsafe: typeof sql.unsafe }) => {
          await conn.unsafe(`insert into ${table} values (${who})`);
          await gate.promise;
          if (who === failing) throw new Error("nothing of this one may stay");
        };
        const both = [0, 1].map((who) => pool.transaction(work(who)));
        const ended = Promise.allSettled(both);
        // The second one is refused while the first is at work.
        const second = await assertRejects(() => both[1]!, PoolError);
        assertEquals(second.code, "IN_TRANSACTION");
        gate.resolve();
        const [first] = await ended;
        assertEquals(first!.status, failing === 0 ? "rejected" : "fulfilled");
        const rows = await pool.use((conn) => conn.unsafe(`select who from ${table}`));
        assertEquals(rows.map(({ who }) => who), failing === 0 ? [] : ["0"]);
      }
    };
    try {
      await (scope === "context" ? pool.run(body) : body());
    } finally {
      await sql.unsafe(`drop table ${table}`);
    }
    assertEquals(pool.stats().leased, 0);
  });
}

test("PersistentConnectionPool: a rollback that cannot be done takes the connection out of use", async () => {
  const fake = new FakeConnector();
  const pool = new PersistentConnectionPool<Thing>(0, 1, { pool: { connector: fake, maxIdle: 0 } });
  const held = await pool.getconn();
  fake.hold.add("rollback");
  const failed = assertRejects(() => pool.transaction(() => Promise.reject(new Error("mine"))));
  await settle();
  fake.next("rollback").fail();
  await failed;
  fake.hold.clear();
  const again = await pool.getconn();
  assert(again !== held);
  assertEquals(again.hello(), 2);
  await pool.putconn();
  await pool.close();
});

test("PersistentConnectionPool: putconn() of one task leaves the connection to another's use()", async () => {
  await using pool = await make(2);
  const entered = Promise.withResolvers<void>();
  const leave = Promise.withResolvers<void>();
  const used = pool.use(async (conn) => {
    entered.resolve();
    await leave.promise;
    return (await conn`select 1 as one`)[0]!["one"];
  });
  await entered.promise;
  const conn = await pool.getconn();
  await pool.putconn(conn);
  assertEquals([conn.closed, pool.stats().leased], [false, 1]);
  await pool.getconn();
  await pool.putconn(null, true);
  leave.resolve();
  assertEquals(await used, 1);
  // With `close`, though it was the end of use() that put it back.
  assertEquals([conn.closed, pool.stats().leased, pool.stats().poolSize], [true, 0, 0]);
  await assertRejects(() => pool.putconn(), PoolError, "trying to put unkeyed connection");
});

test("PersistentConnectionPool: getconn() in the turn in which the last use() ends gives a live connection", async () => {
  const fake = new FakeConnector();
  const pool = new PersistentConnectionPool<Thing>(0, 1, { pool: { connector: fake } });
  for (let hops = 0; hops < 20; hops++) {
    for (const first of [true, false]) {
      const { promise, resolve } = Promise.withResolvers<void>();
      const ask = async (): Promise<Thing> => {
        await promise;
        for (let i = 0; i < hops; i++) await Promise.resolve();
        return await pool.getconn();
      };
      // Who listened first goes on first.
      const early = first ? ask() : null;
      const used = pool.use(() => promise);
      await settle();
      const other = early ?? ask();
      resolve();
      const conn = await other;
      await used;
      assertEquals([hops, first, conn.hello(), pool.stats().leased], [hops, first, 1, 1]);
      await pool.putconn(conn);
      assertEquals([hops, first, pool.stats().leased], [hops, first, 0]);
    }
  }
  await pool.close();
});

test("PersistentConnectionPool: a connection of getconn() that is lost leaves nothing that keeps the next one lent", async () => {
  const fake = new FakeConnector();
  await using pool = new PersistentConnectionPool<Thing>(0, 1, { pool: { connector: fake } });
  const lost = await pool.getconn();
  for (const thing of fake.things) thing.die();
  // It notices, and has another one.
  await pool.use((conn) => assert(conn !== lost));
  await assertRejects(() => pool.putconn(lost), PoolError);
  assertEquals(pool.stats().leased, 0);
  await pool.use(() => {});
  assertEquals(pool.stats().leased, 0);
});

test("PersistentConnectionPool: what run() leaves behind gets no connection, and holds none", async () => {
  const fake = new FakeConnector();
  const pool = new PersistentConnectionPool<Thing>(0, 1, {
    pool: { connector: fake, scope: "context", timeout: 60_000 },
  });
  const release = Promise.withResolvers<void>();
  const holding = pool.run(async () => {
    await pool.getconn();
    await release.promise;
  });
  await settle();
  const late = Promise.withResolvers<void>();
  const left: Promise<unknown>[] = [];
  await pool.run(() => {
    // One that waits, one in use(), and each of the calls when the run has ended.
    left.push(pool.getconn(), pool.use(() => "never"), pool.transaction(() => "never"));
    left.push(late.promise.then(() => pool.getconn()));
    left.push(late.promise.then(() => pool.use(() => "never")));
    left.push(late.promise.then(() => pool.transaction(() => "never")));
  });
  late.resolve();
  for (const one of left) {
    const error = await assertRejects(() => one, PoolError);
    assertEquals(error.code, "RUN_ENDED");
  }
  assertEquals(pool.stats().requestsWaiting, 0);
  release.resolve();
  await holding;
  assertEquals(pool.stats().leased, 0);
  // Served in the very turn in which its run ends, however many steps that takes.
  for (let hops = 0; hops < 20; hops++) {
    fake.hold.add("open");
    await pool.renew();
    let got: Promise<unknown> | undefined;
    const end = Promise.withResolvers<void>();
    const run = pool.run(async () => {
      got = pool.getconn();
      got.catch(() => {});
      await end.promise;
    });
    await settle();
    fake.next("open").go();
    for (let i = 0; i < hops; i++) await Promise.resolve();
    end.resolve();
    await run;
    await got!.catch((error) => assertEquals(error.code, "RUN_ENDED"));
    await settle();
    assertEquals([hops, pool.stats().leased], [hops, 0]);
    fake.hold.clear();
  }
  // A run within a run has a connection of its own, and ends alone.
  await pool.run(async () => {
    await pool.run(() => pool.getconn());
    assertEquals((await pool.getconn()).hello(), fake.made);
  });
  assertEquals(pool.stats().leased, 0);
  await pool.close();
});

test("PersistentConnectionPool: a signal of the caller's own still ends its getconn() in a run()", async () => {
  const fake = new FakeConnector();
  fake.hold.add("open");
  const pool = new PersistentConnectionPool<Thing>(0, 1, {
    pool: { connector: fake, scope: "context", timeout: 60_000 },
  });
  await pool.run(async () => {
    const abort = new AbortController();
    const waiting = pool.getconn({ signal: abort.signal });
    const mine = new Error("mine");
    abort.abort(mine);
    assert(await waiting.catch((error) => error) === mine);
    const aborted = AbortSignal.abort(mine);
    assert(await pool.getconn({ signal: aborted }).catch((error) => error) === mine);
  });
  await pool.closeall();
});

test("PersistentConnectionPool that drains leaves a connection to the use() that has it", async () => {
  const fake = new FakeConnector();
  const pool = new PersistentConnectionPool<Thing>(0, 1, { pool: { connector: fake } });
  const leave = Promise.withResolvers<void>();
  const conn = await pool.getconn();
  const used = pool.use(async (held) => {
    await leave.promise;
    return held.hello();
  });
  await settle();
  const closed = pool.close();
  await pool.putconn(conn);
  leave.resolve();
  assertEquals(await used, 1);
  await closed;
});
