/** `sql.end()`: what was asked for before it is finished, what comes after it is refused. */

import { assert, assertEquals, assertInstanceOf } from "@std/assert";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PoolClosed, SimpleConnectionPool, ThreadedConnectionPool } from "@getconn/pool";
import type postgres from "postgres";
import { test } from "./support/harness.ts";
import { asAdmin, eventually, testServer } from "./support/server.ts";
import { both, failure, uniqueName } from "./support/sql.ts";

/** How many rows a table has that `fn` may fill until its client is ended. */
async function rowsAfter(fn: (table: string) => Promise<unknown>): Promise<number> {
  const table = uniqueName("t");
  await asAdmin((admin) => admin.unsafe(`create table ${table} (n int)`));
  try {
    await fn(table);
    const [row] = await asAdmin((admin) => admin.unsafe(`select count(*)::int as n from ${table}`));
    return row!["n"];
  } finally {
    await asAdmin((admin) => admin.unsafe(`drop table ${table}`));
  }
}

async function warm(sql: postgres.Sql): Promise<void> {
  await Promise.all([sql`select pg_sleep(0.02)`, sql`select pg_sleep(0.02)`]);
}

for (const state of ["cold", "warm"] as const) {
  both(`end() finishes statements of the same turn, ${state}`, async (make) => {
    const rows = await rowsAfter(async (table) => {
      const sql = make({ max: 2 });
      if (state === "warm") await warm(sql);
      const all = Array.from(
        { length: 300 },
        (_, n) => sql`insert into ${sql(table)} values (${n})`.execute(),
      );
      await sql.end();
      await Promise.all(all);
    });
    assertEquals(rows, 300);
  });
}

both("end() finishes transactions that wait for a connection", async (make) => {
  const rows = await rowsAfter(async (table) => {
    const sql = make({ max: 2 });
    await warm(sql);
    const all = Array.from({ length: 6 }, (_, n) =>
      sql.begin(async (tx) => {
        await tx`insert into ${tx(table)} values (${n})`;
        await tx`select pg_sleep(0.01)`;
      }));
    await sql.end();
    await Promise.all(all);
  });
  assertEquals(rows, 6);
});

both(
  "end() is refused nothing, and later calls get CONNECTION_ENDED, also in its own turn",
  async (make) => {
    const sql = make({ max: 1 });
    await sql`select 1`;
    const ended = sql.end();
    assertEquals((await failure(sql`select 1`)).code, "CONNECTION_ENDED");
    assertEquals((await failure(sql.unsafe("select 1"))).code, "CONNECTION_ENDED");
    await ended;
    assertEquals((await failure(sql`select 1`)).code, "CONNECTION_ENDED");
    await sql.end();
  },
);

both("end({ timeout: 0 }) destroys what runs and what waits", async (make) => {
  const name = uniqueName("app");
  const sql = make({ max: 1, connection: { application_name: name } });
  const running = failure(sql`select pg_sleep(20)`);
  const waiting = failure(sql`select 1, pg_sleep(20)`);
  await eventually(async () => {
    const busy = await asAdmin((admin) =>
      admin`select 1 from pg_stat_activity where application_name = ${name} and state = 'active'`
    );
    assertEquals(busy.length, 1);
  });
  await sql.end({ timeout: 0 });
  assertEquals([(await running).code, (await waiting).code], [
    "CONNECTION_DESTROYED",
    "CONNECTION_DESTROYED",
  ]);
});

both(
  "a transaction that runs nothing while its client is ended gets CONNECTION_CLOSED",
  async (make) => {
    const sql = make({ max: 1 });
    const { promise, resolve } = Promise.withResolvers<void>();
    const transaction = failure(sql.begin(async () => {
      resolve();
      await new Promise(() => {});
    }));
    await promise;
    await sql.end({ timeout: 0 });
    assertEquals((await transaction).code, "CONNECTION_CLOSED");
  },
);

test("end() finishes cursors, files, listen, reserve, largeObject and statements that run alone", async () => {
  const { url } = await testServer();
  const folder = await mkdtemp(join(tmpdir(), "end-"));
  const rows = await rowsAfter(async (table) => {
    const file = join(folder, "insert.sql");
    await writeFile(file, `insert into ${table} values (1)`);
    // Every call takes the pool's only other connection after the others.
    for (const size of [2, 5]) {
      const { sql } = new SimpleConnectionPool(0, size, url, { onnotice: () => {} });
      await warm(sql);
      const all: PromiseLike<unknown>[] = [
        sql.file(file).execute(),
        sql.file(file, [1]).execute().then(() => assert(false), () => {}),
        sql`insert into ${sql(table)} select generate_series(1, 3) returning n`.cursor(2, () => {}),
        sql.unsafe(`do $$ begin insert into ${table} values (5); end $$`).execute(),
        sql.begin((tx) => tx`insert into ${tx(table)} values (6)`),
        sql.reserve().then(async (one) => {
          await one`insert into ${one(table)} values (7)`;
          one.release();
        }),
        sql.notify("x", "y"),
        sql.listen(uniqueName("c"), () => {}),
        sql.largeObject().then((object) => object.close()),
        (async () => {
          for await (const _ of sql`insert into ${sql(table)} values (8) returning n`.cursor());
        })(),
      ];
      const settled = Promise.allSettled(all);
      await sql.end();
      assertEquals(
        (await settled).flatMap((one) => one.status === "rejected" ? [one.reason] : []),
        [],
      );
    }
  });
  await rm(folder, { recursive: true });
  assertEquals(rows, 2 * 8);
});

test("end() ends also when a file cannot be read, or is asked for too late", async () => {
  const { url } = await testServer();
  const { sql } = new SimpleConnectionPool(0, 1, url);
  const missing = failure(sql.file("/does/not/exist"));
  await sql.end();
  assertEquals((await missing).code, "ENOENT");
  assertEquals((await failure(sql.file("/does/not/exist"))).code, "CONNECTION_ENDED");
});

test("end() refuses callers of getconn who wait, and serves the calls of sql behind them", async () => {
  const { url } = await testServer();
  const pool = new SimpleConnectionPool(0, 1, url, { pool: { timeout: 60_000 } });
  const lease = await pool.getconn();
  const before = failure(pool.getconn());
  const transaction = pool.sql.begin((tx) => tx`select 1 as x`);
  const statement = pool.sql`select 2 as x`.execute();
  const ended = pool.sql.end();
  assertEquals((await before).code, "POOL_CLOSED");
  await pool.putconn(lease);
  assertEquals([[...await transaction], [...await statement]], [[{ x: 1 }], [{ x: 2 }]]);
  await ended;
  assertEquals(pool.closed, true);
});

test("the driver's word for the end has the pool's own as its cause", async () => {
  const { url } = await testServer();
  const pool = new SimpleConnectionPool(0, 1, url);
  await pool.close();
  for (
    const call of [
      pool.sql`select 1`,
      pool.sql.begin(() => 1),
      pool.sql.reserve(),
      pool.sql.listen("x", () => {}),
    ]
  ) {
    const error = await failure(call) as unknown as Error & { code: string };
    if (pool.maxconn === 1 && error.code === "UNSUPPORTED") continue;
    assertEquals(error.code, "CONNECTION_ENDED");
    assertInstanceOf(error.cause, PoolClosed);
  }
});

both(
  "what listen() gives tells the session that listens now, also after another one was lost",
  async (make) => {
    const sql = make({ max: 3 });
    const listening = await sql.listen(uniqueName("c"), () => {});
    const { pid } = listening.state;
    await asAdmin((admin) => admin`select pg_terminate_backend(${pid})`);
    await eventually(() => assert(listening.state.pid !== pid));
  },
);

test("end() of a pool for workers serves what was asked for before, though no connection stands yet", async () => {
  const pool = new ThreadedConnectionPool(0, 1, (await testServer()).url);
  const asked = [1, 2, 3].map((n) => Promise.resolve(pool.sql`select ${n}::int as n`));
  await pool.sql.end();
  const rows = await Promise.all(asked);
  assertEquals(rows.map(([row]) => row?.["n"]), [1, 2, 3]);
});
