/** A server that stops, crashes, kills, refuses and loses patience. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { startPostgres } from "./support/embedded_postgres.ts";
import { postgresMajor } from "./support/embedded_postgres_setup.ts";
import { PoolError, SimpleConnectionPool } from "../mod.ts";
import { assertLendable, eventuallyStats, faulty, pidOf, textOf, timed } from "./support/faults.ts";
import { test } from "./support/harness.ts";
import { uniqueName } from "./support/postgres.ts";
import { asAdmin, eventually, killBackend, testServer } from "./support/server.ts";

/** A pool on the test server. */
async function plain(
  minconn: number,
  maxconn: number,
  options: Record<string, unknown> = {},
): Promise<SimpleConnectionPool> {
  const { url } = await testServer();
  return new SimpleConnectionPool(minconn, maxconn, url, { fetch_types: false, ...options });
}

test("server restart, immediate, under load: nobody hangs, the pool comes back by itself, every slot is left", async () => {
  await using server = await startPostgres();
  await using pool = new SimpleConnectionPool(2, 4, server.url, {
    fetch_types: false,
    onnotice: () => {},
    pool: { timeout: 60_000 },
  });
  await pool.ready();
  let stop = false;
  const errors: unknown[] = [];
  let after = 0;
  let restarted = false;
  const tasks = Array.from({ length: 8 }, async () => {
    while (!stop) {
      try {
        await pool.use(async (conn) => {
          assertEquals(conn.transactionStatus, "idle");
          await conn.begin(async (sql) => void await sql`select pg_sleep(0.002)`);
        });
        if (restarted) after++;
      } catch (error) {
        errors.push(error);
      }
    }
  });
  await eventually(() => assert(pool.stats().requestsNum > 50));
  for (let round = 0; round < 2; round++) {
    restarted = false;
    // The others may all be between two transactions when it dies; this one never is.
    const lent = Promise.withResolvers<void>();
    const open = timed(pool.use(async (conn) => {
      await conn`select 1`;
      lent.resolve();
      await conn`select pg_sleep(60)`;
    }));
    await lent.promise;
    await server.stop("immediate");
    errors.push((await open).error);
    await server.start();
    after = 0;
    restarted = true;
    await eventually(() => assert(after > 50));
  }
  stop = true;
  for (const task of tasks) assertEquals((await timed(task)).error, undefined);
  for (const error of errors) assert(error !== undefined && !textOf(error).includes(":postgres@"));
  await eventuallyStats(pool, { leased: 0 });
  await assertLendable(pool);
});

test("server restart while everything is idle: minconn stand again without anybody asking", async () => {
  await using server = await startPostgres();
  await using pool = new SimpleConnectionPool(3, 4, server.url, {
    fetch_types: false,
    onnotice: () => {},
  });
  await pool.ready();
  await server.stop("immediate");
  await eventuallyStats(pool, { idle: 0 });
  await server.start();
  await eventuallyStats(pool, { idle: 3 });
  await assertLendable(pool);
});

test("57P03: a server that is starting up or shutting down is tried again until it takes connections", async () => {
  await using server = await startPostgres();
  await using pool = new SimpleConnectionPool(0, 2, server.url, { fetch_types: false });
  const conn = await pool.getconn();
  // A smart shutdown waits for our session and refuses new ones: 57P03.
  const stopped = server.stop("smart");
  const refused = await eventually(async () => {
    const { value, error } = await timed(pool.getconn());
    if (value !== undefined) await pool.putconn(value, null, true);
    assertEquals(error?.code, "CONNECT_FAILED");
    return error;
  });
  assert(["57P03", "ECONNREFUSED"].includes((refused?.cause as { code: string }).code));
  await pool.putconn(conn, null, true);
  await stopped;
  const waiting = timed(pool.getconn(null, { timeout: 60_000 }));
  await server.start();
  const { value } = await waiting;
  await pool.putconn(value!);
});

test("57P01: a killed backend, idle, lent, in a statement, in a transaction: the next borrower never sees it", async () => {
  await using pool = await plain(1, 3, { pool: { timeout: 60_000 } });
  await pool.ready();
  const idlePid = await pool.use((conn) => conn.pid);
  await killBackend(idlePid);
  await eventually(async () => assert(await pool.use((conn) => conn.pid) !== idlePid));

  const lent = await pool.getconn();
  await killBackend(lent.pid);
  await eventually(() => assert(lent.closed));
  await assertRejects(() => Promise.resolve(lent`select 1`), PoolError, "connection is closed");
  await pool.putconn(lent);

  const active = await pool.getconn();
  const statement = timed(active`select pg_sleep(20)`.execute());
  await eventually(() => assertEquals(active.transactionStatus, "active"));
  await killBackend(active.pid);
  const cut = (await statement).error;
  assertEquals(cut?.code, "CONNECTION_CLOSED");
  assertEquals((cut?.cause as { code?: string }).code, "57P01", "the server's last words");
  await pool.putconn(active);

  const failed = await timed(pool.transaction(async (conn) => {
    await conn`select 1`;
    await killBackend(conn.pid);
    await conn`select 2`;
  }));
  assert(failed.error !== undefined);
  assertEquals(pool.stats().leased, 0);
  await assertLendable(pool);
});

test("all backends killed again and again under load: no slot is lost, no statement runs outside its transaction", async () => {
  const name = uniqueName();
  const table = `t_${crypto.randomUUID().replaceAll("-", "")}`;
  await asAdmin((sql) => sql.unsafe(`create table ${table} (task int, half int)`));
  {
    await using pool = await plain(0, 4, {
      connection: { application_name: name },
      pool: { timeout: 60_000 },
    });
    let stop = false;
    let done = 0;
    const tasks = Array.from({ length: 8 }, async (_, task) => {
      while (!stop) {
        try {
          await pool.use((conn) =>
            conn.begin(async (sql) => {
              // Both or none: a statement on a new session would leave one.
              await Promise.all(
                [1, 2].map((half) => sql.unsafe(`insert into ${table} values (${task}, ${half})`)),
              );
            })
          );
          done++;
        } catch { /* Killed. */ }
      }
    });
    await asAdmin(async (sql) => {
      for (let kills = 0; kills < 15; kills++) {
        const before = done;
        await eventually(() => assert(done > before + 5));
        await sql`select pg_terminate_backend(pid) from pg_stat_activity
          where application_name = ${name}`;
      }
    });
    stop = true;
    for (const task of tasks) assertEquals((await timed(task)).error, undefined);
    await assertLendable(pool, name);
  }
  const rows = await asAdmin((sql) =>
    sql.unsafe(
      `select count(*) filter (where half = 1)::int as a, count(*) filter (where half = 2)::int as b
       from ${table}`,
    )
  );
  await asAdmin((sql) => sql.unsafe(`drop table ${table}`));
  assertEquals(rows[0]!["a"], rows[0]!["b"]);
});

test("idle_in_transaction_session_timeout: the lost lease fails, its work is undone, the pool goes on", async () => {
  await using pool = await plain(0, 1, { pool: { timeout: 60_000 } });
  const { error } = await timed(pool.transaction(async (conn) => {
    // From here on, and not before: we may be slow from one statement to the next.
    await conn`set local idle_in_transaction_session_timeout = 50`;
    await eventually(() => assert(conn.closed));
    await conn`select 2`;
  }));
  assertEquals((error as PoolError).code, "CONNECTION_LOST");
  await assertLendable(pool);
});

test("statement_timeout: 57014 fails the statement and keeps the session", async () => {
  // For each statement of the test, also on a busy machine.
  await using pool = await plain(0, 1, { connection: { statement_timeout: 1_500 } });
  const conn = await pool.getconn();
  const pid = await pidOf(conn);
  assertEquals((await timed(conn`select pg_sleep(60)`.execute())).error?.code, "57014");
  await conn`begin`;
  assertEquals((await timed(conn`select pg_sleep(60)`.execute())).error?.code, "57014");
  assertEquals(conn.transactionStatus, "inerror");
  await pool.putconn(conn);
  await pool.use(async (next) => {
    assertEquals(next.transactionStatus, "idle");
    assertEquals(await pidOf(next), pid);
  });
});

test("53300: a server without room is tried again while the caller waits; those that stand serve on", async () => {
  await using server = await startPostgres({
    config: {
      max_connections: 8,
      superuser_reserved_connections: 0,
      ...await postgresMajor() >= 16 && { reserved_connections: 0 },
    },
  });
  await using greedy = new SimpleConnectionPool(0, 8, server.url, { fetch_types: false });
  await using pool = new SimpleConnectionPool(0, 4, server.url, { fetch_types: false });
  const mine = await pool.getconn();
  const theirs = [];
  for (;;) {
    const { value, error } = await timed(greedy.getconn());
    if (error !== undefined) break;
    theirs.push(value!);
  }
  const { error } = await timed(pool.getconn());
  assertEquals((error?.cause as { code?: string }).code, "53300");
  const waiting = timed(pool.getconn(null, { timeout: 30_000 }));
  await pool.putconn(mine);
  const { value } = await waiting;
  await pool.putconn(value!);
  for (const conn of theirs) await greedy.putconn(conn);
  await greedy.closeall();
  await assertLendable(pool);
});

test("08P01 and worse: an answer that is no PostgreSQL is a failed attempt and nothing more", async () => {
  await using all = await faulty(0, 2, { pool: { timeout: 60_000 } });
  const { pool, proxy } = all;
  await proxy.set("reset");
  const { error } = await timed(pool.getconn(null, { timeout: 200 }));
  assertEquals((error as PoolError).code, "POOL_TIMEOUT");
  await proxy.set("pass");
  await assertLendable(pool);
});

test("credentials as functions: asked for each connection; a rotated one works, a failing one is the cause", async () => {
  const role = `rotating_${Date.now()}`;
  await asAdmin((sql) => sql.unsafe(`create role ${role} login password 'first'`));
  const { url } = await testServer();
  const target = new URL(url);
  let password: () => string | Promise<string> = () => "first";
  let asked = 0;
  {
    await using pool = new SimpleConnectionPool(0, 3, {
      host: target.hostname,
      port: Number(target.port),
      database: "postgres",
      user: role,
      password: () => (asked++, password()),
      fetch_types: false,
    });
    const one = await pool.getconn();
    await asAdmin((sql) => sql.unsafe(`alter role ${role} password 'second'`));
    password = () => Promise.resolve("second");
    const two = await pool.getconn();
    assertEquals(asked, 2);
    password = () => Promise.reject(new Error("the vault is sealed"));
    const { error } = await timed(pool.getconn());
    assertEquals((error?.cause as Error).message, "the vault is sealed");
    password = () => "wrong-secret";
    const refused = await timed(pool.getconn());
    assertEquals((refused.error?.cause as { code?: string }).code, "28P01");
    assert(!textOf(refused.error).includes("wrong-secret"));
    for (const conn of [one, two]) await pool.putconn(conn);
    password = () => "second";
    await assertLendable(pool);
  }
  await asAdmin((sql) => sql.unsafe(`drop role ${role}`));
});
