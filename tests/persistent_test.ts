/** PersistentConnectionPool: keys that the pool makes itself. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { PersistentConnectionPool, PoolError } from "../mod.ts";
import { test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";
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
  await using pool = await make(2, { scope: "context", timeout: 5_000 });
  const request = () =>
    pool.run(async () => {
      const one = await pool.getconn();
      const { pid } = one;
      await one`select pg_sleep(0.02)`;
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
    const pool = await make(2);
    const workers = await Promise.all([1, 2, 3].map(() => TestWorker.join(pool, "persistent")));
    const all = await Promise.all(workers.map((worker) => worker.tell<number[]>("persistent")));
    for (const [first, second] of all) assertEquals(first, second);
    assert(pool.stats().poolSize <= 2);
    await pool.closeall();
    for (const worker of workers) worker[Symbol.dispose]();
  },
  { sanitize: false },
);
