/** PgBouncer's own faults and limits: paused, reconnected, killed, full, and with a server that goes away behind it. */

import postgres from "postgres";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { limited, PoolTimeout, type PostgresOptions, SimpleConnectionPool } from "../mod.ts";
import { pidOf } from "./support/faults.ts";
import { test } from "./support/harness.ts";
import { noPgBouncer, type PgBouncer, startPgBouncer } from "./support/pgbouncer.ts";
import { rejection, uniqueName, within } from "./support/postgres.ts";
import { asAdmin, eventually } from "./support/server.ts";

const options = { skip: noPgBouncer };

/** Ours over its; nothing is prepared, as in transaction mode sessions change. */
function over(bouncer: PgBouncer, maxconn: number, more: PostgresOptions = {}) {
  return new SimpleConnectionPool(0, maxconn, bouncer.url, {
    fetch_types: false,
    prepare: false,
    connection: { application_name: uniqueName() },
    onnotice: () => {},
    ...more,
  });
}

/** A command on its console. */
async function command(bouncer: PgBouncer, text: string): Promise<Record<string, unknown>[]> {
  const url = new URL(bouncer.url);
  url.pathname = "/pgbouncer";
  const sql = postgres(url.href, { max: 1, fetch_types: false, onnotice: () => {} });
  try {
    return [...await sql.unsafe(text).simple()];
  } finally {
    await sql.end({ timeout: 1 });
  }
}

const database = (bouncer: PgBouncer) => new URL(bouncer.url).pathname.slice(1);

/** Its connections to the server end, as by a restart there. */
async function endServerSessions(name: string): Promise<void> {
  await asAdmin((sql) =>
    sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = ${name}`
  );
}

/** Tasks that ask without end, each answer compared with its question. */
function asking(pool: SimpleConnectionPool, tasks: number) {
  let answers = 0;
  let stopped = false;
  const errors: unknown[] = [];
  const wrong: string[] = [];
  const all = Array.from({ length: tasks }, async (_, task) => {
    for (let n = task; !stopped; n += tasks) {
      try {
        const ask = async (sql: postgres.Sql) => (await sql`select ${n}::int as n`)[0]!["n"];
        const got = n % 3 === 0
          ? await ask(pool.sql as never)
          : n % 3 === 1
          ? await pool.use((conn) => ask(conn as never))
          : await pool.transaction((conn) => ask(conn as never));
        if (got !== n) wrong.push(`${got} for ${n}`);
        answers++;
      } catch (error) {
        errors.push(error);
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    }
  });
  return {
    errors,
    more: async (count = 60) => {
      const before = answers;
      await eventually(() => assert(answers > before + count));
    },
    stop: async () => {
      stopped = true;
      await within(Promise.all(all));
      assertEquals(wrong, []);
    },
  };
}

test("PgBouncer paused: limits hold, and after RESUME all goes on", async () => {
  await using bouncer = await startPgBouncer("transaction", 2, { admin_users: "postgres" });
  await using pool = over(bouncer, 2, { pool: { timeout: 60_000 } });
  await pool.sql`select 1`;
  await command(bouncer, `pause ${database(bouncer)}`);
  // The request to cancel is not answered either: then the session is ended.
  const late = rejection(within(limited(pool.sql`select 1`, { queryTimeout: 300 })));
  assertEquals((await late).code, "QUERY_TIMEOUT");
  // A login is taken, but who waits for a connection waits for one that works.
  assert(await rejection(pool.getconn(null, { timeout: 300 })) instanceof PoolTimeout);
  const waiting = [pool.sql`select 2 as n`, pool.use((conn) => conn`select 2 as n`)];
  const answers = Promise.all(waiting);
  await command(bouncer, `resume ${database(bouncer)}`);
  for (const [row] of await within(answers)) assertEquals(row!["n"], 2);
}, options);

for (const mode of ["transaction", "session"] as const) {
  test(`PgBouncer, ${mode} mode: RECONNECT under load is not felt`, async () => {
    await using bouncer = await startPgBouncer(mode, 2, { admin_users: "postgres" });
    await using pool = over(bouncer, 2, { pool: { timeout: 60_000 } });
    const load = asking(pool, 6);
    for (let i = 0; i < 5; i++) {
      await load.more();
      await command(bouncer, `reconnect ${database(bouncer)}`);
    }
    await load.more();
    await load.stop();
    // Whoever waits for a connection that PgBouncer is just opening is sent away: to it that is a login that has failed.
    const others = load.errors.filter((error) =>
      !String((error as Error).cause).includes("server login has been failing")
    );
    assertEquals(others.map(String), []);
  }, options);

  test(`PgBouncer, ${mode} mode: KILL, then RESUME: nobody hangs, all goes on`, async () => {
    await using bouncer = await startPgBouncer(mode, 2, { admin_users: "postgres" });
    await using pool = over(bouncer, 3, { pool: { timeout: 60_000 } });
    const load = asking(pool, 6);
    for (let i = 0; i < 3; i++) {
      await load.more();
      await command(bouncer, `kill ${database(bouncer)}`);
      await command(bouncer, `resume ${database(bouncer)}`);
    }
    await load.more();
    await load.stop();
  }, options);

  test(
    `PgBouncer, ${mode} mode: its sessions at the server end under load; nobody hangs, all goes on`,
    async () => {
      await using bouncer = await startPgBouncer(mode, 2, { admin_users: "postgres" });
      const name = uniqueName();
      await using pool = over(bouncer, 3, {
        connection: { application_name: name },
        pool: { timeout: 60_000 },
      });
      const load = asking(pool, 6);
      for (let i = 0; i < 4; i++) {
        await load.more();
        await endServerSessions(name);
      }
      await load.more();
      await load.stop();
    },
    options,
  );

  test(`PgBouncer, ${mode} mode: of many who cancel, nobody else is hit`, async () => {
    await using bouncer = await startPgBouncer(mode, 2, { admin_users: "postgres" });
    await using pool = over(bouncer, 4, { pool: { timeout: 60_000 } });
    const load = asking(pool, 6);
    const cancelling = Array.from({ length: 4 }, async (_, task) => {
      for (let i = 0; i < 15; i++) {
        const work = async (sql: postgres.Sql) => {
          const query = sql`select pg_sleep(${i % 2 === 0 ? 0.2 : 0})`.execute();
          const settled = query.then(() => null, (error) => error.code as string);
          await new Promise((resolve) => setTimeout(resolve, i % 5));
          query.cancel();
          return await settled;
        };
        const code = await (task % 2 ? pool.use((c) => work(c as never)) : work(pool.sql as never));
        assert(code === null || code === "57014", String(code));
      }
    });
    await within(Promise.all(cancelling));
    await load.stop();
    // It may end by a cancel request of its own accord.
    if (bouncer.crashes.length === 0) assertEquals(load.errors.map(String), []);
  }, options);
}

test(
  "PgBouncer with max_client_conn below maxconn: who waits is served by those there are",
  async () => {
    await using bouncer = await startPgBouncer("transaction", 2, {
      admin_users: "postgres",
      max_client_conn: 4,
    });
    await using pool = over(bouncer, 10, { pool: { timeout: 60_000 } });
    const held = [];
    for (let i = 0; i < 3; i++) held.push(await pool.getconn());
    const more = Array.from({ length: 6 }, () => pool.use((conn) => pidOf(conn)));
    const one = Promise.all(more);
    for (const conn of held) await pool.putconn(conn);
    await within(one);
    const load = asking(pool, 12);
    await load.more();
    await load.stop();
  },
  options,
);

test(
  "PgBouncer's query_wait_timeout is the error of who waited, and the pool goes on",
  async () => {
    await using bouncer = await startPgBouncer("transaction", 1, {
      admin_users: "postgres",
      query_wait_timeout: 1,
    });
    await using pool = over(bouncer, 3, { pool: { timeout: 60_000 } });
    const conn = await pool.getconn();
    await conn`begin`;
    await conn`select 1`;
    const errors = await Promise.all([
      rejection(pool.use((other) => other`select 1`)),
      rejection(pool.sql`select 1`),
      rejection(pool.transaction((other) => other`select 1`)),
    ]);
    await conn`commit`;
    await pool.putconn(conn);
    // Its word stands in the error itself: they never had a connection.
    for (const error of errors) assertStringIncludes(String(error), "query_wait_timeout");
    await within(pool.sql`select 1`.execute());
    await within(pool.use((other) => other`select 1`));
  },
  options,
);
