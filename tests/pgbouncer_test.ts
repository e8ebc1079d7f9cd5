/** A pool of ours over a pool of PgBouncer's. */

import postgres from "postgres";
import { assert, assertEquals, assertLess, assertLessOrEqual, assertMatch } from "@std/assert";
import { PoolTimeout, type PostgresOptions, SimpleConnectionPool } from "../mod.ts";
import { insideOf } from "../src/abstract_pool.ts";
import { assertLendable, eventuallyStats, pidOf, timed } from "./support/faults.ts";
import { test } from "./support/harness.ts";
import { noPgBouncer, type PgBouncer, startPgBouncer } from "./support/pgbouncer.ts";
import { rejection, uniqueName } from "./support/postgres.ts";
import { asAdmin, eventually, sessions, testServer } from "./support/server.ts";

const options = { skip: noPgBouncer };

/** Ours over its. */
function over(
  bouncer: PgBouncer,
  minconn: number,
  maxconn: number,
  name: string,
  more: PostgresOptions = {},
): SimpleConnectionPool {
  return new SimpleConnectionPool(minconn, maxconn, bouncer.url, {
    fetch_types: false,
    connection: { application_name: name },
    ...more,
  });
}

/** A table of this test, gone at the end. */
async function table(stack: AsyncDisposableStack): Promise<string> {
  const name = `t_${crypto.randomUUID().replaceAll("-", "")}`;
  await asAdmin((sql) => sql.unsafe(`create table ${name} (id int primary key)`));
  stack.defer(() => asAdmin(async (sql) => void await sql.unsafe(`drop table ${name}`)));
  return name;
}

test(
  "PgBouncer, session mode: leases keep their session, what comes back dirty is clean, its cap holds",
  async () => {
    await using bouncer = await startPgBouncer("session", 3);
    const name = uniqueName();
    await using pool = over(bouncer, 0, 4, name, { pool: { timeout: 60_000 } });
    const conns = await Promise.all([1, 2, 3].map(() => pool.getconn()));
    for (const conn of conns) {
      const pid = await pidOf(conn);
      await conn`begin`;
      assertEquals([conn.transactionStatus, await pidOf(conn)], ["intrans", pid]);
    }
    // It has no fourth: our caller waits for its place, as long as it said and no longer.
    const { error, took } = await timed(pool.getconn(null, { timeout: 300 }));
    assert(error instanceof PoolTimeout);
    assertLess(took, 15_000);
    assertLessOrEqual(await sessions(name), 3);
    for (const conn of conns) await pool.putconn(conn);
    for (let i = 0; i < 6; i++) {
      await pool.use((conn) => assertEquals(conn.transactionStatus, "idle"));
    }
    await pool.resize(0, 3);
    await eventuallyStats(pool, { connecting: 0, leased: 0 });
    await assertLendable(pool, name);
  },
  options,
);

test(
  "PgBouncer, transaction mode: 10 of ours over 2 of its; every transaction is whole, the state is known",
  async () => {
    await using stack = new AsyncDisposableStack();
    await using bouncer = await startPgBouncer("transaction", 2);
    const name = uniqueName();
    const rows = await table(stack);
    await using pool = over(bouncer, 0, 10, name, { prepare: false, pool: { timeout: 60_000 } });
    let most = 0;
    let id = 0;
    const tasks = Array.from({ length: 20 }, async (_, task) => {
      for (let i = 0; i < 10; i++) {
        const own = id++;
        const work = pool.transaction(async (conn) => {
          assertEquals(conn.transactionStatus, "intrans");
          const pid = await pidOf(conn);
          await conn.unsafe(`insert into ${rows} values ($1)`, [own]);
          assertEquals(await pidOf(conn), pid);
          if (task % 2 === 1) throw new Error("undone");
        });
        await (task % 2 === 1 ? work.catch(() => {}) : work);
      }
    });
    const sampling = (async () => {
      while (id < 200) most = Math.max(most, await sessions(name));
    })();
    await Promise.all(tasks);
    await sampling;
    assert(most >= 1 && most <= 2, `${most} sessions at the server`);
    const [count] = await asAdmin((sql) => sql.unsafe(`select count(*)::int as n from ${rows}`));
    assertEquals(count!["n"], 100);
    const conn = await pool.getconn();
    await conn`begin`;
    await timed(conn`select 1/0`.execute());
    assertEquals(conn.transactionStatus, "inerror");
    await pool.putconn(conn);
    await pool.use((next) => assertEquals(next.transactionStatus, "idle"));
  },
  options,
);

for (const mode of ["session", "transaction"] as const) {
  test(
    `PgBouncer, ${mode} mode: restarted under load, nobody hangs, nothing acknowledged is lost`,
    async () => {
      await using stack = new AsyncDisposableStack();
      const bouncer = stack.use(await startPgBouncer(mode, 4));
      const rows = await table(stack);
      const pool = stack.use(
        over(bouncer, 2, 4, uniqueName(), { prepare: false, pool: { timeout: 60_000 } }),
      );
      const acknowledged: number[] = [];
      let id = 0;
      let stop = false;
      const tasks = Array.from({ length: 8 }, async () => {
        while (!stop) {
          const own = id++;
          try {
            await pool.transaction(async (conn) => {
              await conn.unsafe(`insert into ${rows} values ($1)`, [own]);
            });
            acknowledged.push(own);
          } catch { /* Undecided. */ }
        }
      });
      for (let round = 0; round < 2; round++) {
        const before = acknowledged.length;
        await eventually(() => assert(acknowledged.length > before + 50));
        await bouncer.stop();
        await bouncer.start();
      }
      const before = acknowledged.length;
      await eventually(() => assert(acknowledged.length > before + 50));
      stop = true;
      for (const task of tasks) assertEquals((await timed(task)).error, undefined);
      const found = await asAdmin((sql) => sql.unsafe(`select id from ${rows}`));
      const there = new Set(found.map((row) => row["id"]));
      assertEquals(acknowledged.filter((own) => !there.has(own)), []);
      await eventuallyStats(pool, { leased: 0 });
      if (mode === "session") await assertLendable(pool);
    },
    options,
  );
}

test(
  "PgBouncer ends of itself: it is started again, and the pool goes on with it",
  async () => {
    await using bouncer = await startPgBouncer("session", 2, { admin_users: "postgres" });
    await using pool = over(bouncer, 1, 2, uniqueName(), { pool: { timeout: 60_000 } });
    await pool.use((conn) => conn`select 1`);
    const admin = new URL(bouncer.url);
    admin.pathname = "/pgbouncer";
    const sql = postgres(admin.href, { max: 1, fetch_types: false });
    await timed(sql.unsafe("shutdown").simple());
    await sql.end({ timeout: 1 });
    await eventually(() => assertEquals(bouncer.crashes.length, 1));
    await pool.use((conn) => conn`select 1`);
    await assertLendable(pool);
  },
  options,
);

test(
  "PgBouncer: a server that refuses writes is left by a pool that wants to write, by leases and by sql",
  async () => {
    await using stack = new AsyncDisposableStack();
    const name = `db_${crypto.randomUUID().replaceAll("-", "_")}`;
    await asAdmin((sql) => sql.unsafe(`create database ${name}`));
    stack.defer(() =>
      asAdmin(async (sql) => void await sql.unsafe(`drop database ${name} with (force)`))
    );
    const server = new URL((await testServer()).url);
    server.pathname = `/${name}`;
    const bouncer = stack.use(await startPgBouncer("transaction", 1, {}, server.href));
    // What PgBouncer has behind it becomes another server, and it tells nobody.
    const readOnly = (on: boolean) =>
      asAdmin(async (sql) => {
        await sql.unsafe(`alter database ${name} set default_transaction_read_only = ${on}`);
        await sql`select pg_terminate_backend(pid) from pg_stat_activity where datname = ${name}`;
      });
    const pool = stack.use(over(bouncer, 0, 1, uniqueName(), {
      prepare: false,
      target_session_attrs: "read-write",
      onnotice: () => {},
      pool: { timeout: 5_000 },
    }));
    const ways = [
      () => pool.use((conn) => conn.unsafe("create table if not exists t ()")),
      () => pool.sql.unsafe("create table if not exists t ()"),
    ];
    for (const write of ways) {
      await write();
      await readOnly(true);
      // The first may still be told of the session that was ended.
      let error = await rejection(write());
      if (error.code !== "25006") error = await rejection(write());
      assertEquals(error.code, "25006");
      await eventuallyStats(pool, { poolSize: 0 });
      assertMatch(String((await rejection(write())).message), /session is read-only/);
      await readOnly(false);
      await eventually(write);
    }
  },
  options,
);

for (const max_pipeline of [undefined, 8]) {
  const how = max_pipeline === undefined ? "one statement at a time" : "max_pipeline says how many";
  test(
    `PgBouncer, transaction mode: ${how} on a connection, of pool.sql and of a lease`,
    async () => {
      await using bouncer = await startPgBouncer("transaction", 1);
      await using pool = over(bouncer, 0, 1, uniqueName(), { prepare: false, max_pipeline });
      let most = 0;
      const look = (): void => {
        for (const { inFlight } of insideOf(pool).state.entries) most = Math.max(most, inFlight);
      };
      for (let round = 0; round < 20; round++) {
        const running = Array.from({ length: 8 }, () => pool.sql.unsafe("select 1").execute());
        for (const one of running) {
          await one;
          look();
        }
      }
      await pool.use(async (conn) => {
        const waits = [1, 2].map(() => conn.unsafe("select pg_sleep(0.2)"));
        const { took } = await timed(Promise.all(waits));
        assert(took >= 400);
      });
      assertEquals(most > 1, max_pipeline !== undefined);
    },
    options,
  );
}

test(
  "PgBouncer, transaction mode: large values beside many small ones go with their own statements",
  async () => {
    await using bouncer = await startPgBouncer("transaction", 3);
    await using pool = over(bouncer, 0, 4, uniqueName(), { prepare: false });
    const { sql } = pool;
    let left = 3_000;
    const work = async (): Promise<void> => {
      for (let n = left--; n > 0; n = left--) {
        if (n % 12 !== 0) {
          const [row] = await sql`select ${n}::int as n`;
          assertEquals(row?.["n"], n);
          continue;
        }
        const text = String(n).repeat(10_000);
        const [row] = await sql`select left(${text}, 9) as l, length(${text}) as n`;
        assertEquals([row?.["l"], row?.["n"]], [text.slice(0, 9), text.length]);
      }
    };
    await Promise.all(Array.from({ length: 60 }, work));
  },
  options,
);
