/** A real failover: primary and streaming standby, the primary dies under load, the standby is promoted. */

import { assert, assertEquals, assertLess } from "@std/assert";
import postgres from "postgres";
import { type PostgresServer, startPostgres } from "./support/embedded_postgres.ts";
import { PoolError, SimpleConnectionPool } from "../mod.ts";
import { assertLendable, eventuallyStats, timed } from "./support/faults.ts";
import { test } from "./support/harness.ts";
import { eventually } from "./support/server.ts";

interface Pair {
  readonly primary: PostgresServer;
  readonly standby: PostgresServer;
}

/** A primary whose commits are acknowledged when the standby has them. */
async function startPair(stack: AsyncDisposableStack): Promise<Pair> {
  const primary = stack.use(await startPostgres({ config: { synchronous_commit: "on" } }));
  await on(primary, (sql) => sql`create table acknowledged (id int primary key)`);
  await primary.stop("fast");
  // It looks for its primary, which is away as it starts, every five seconds unless told otherwise.
  const config = { synchronous_commit: "on", wal_retrieve_retry_interval: "100ms" };
  const standby = stack.use(await startPostgres({ standbyOf: primary, config }));
  await primary.start();
  await primary.reload({ synchronous_standby_names: "standby" });
  await on(primary, (sql) =>
    eventually(async () => {
      const rows = await sql`select sync_state from pg_stat_replication`;
      assertEquals(rows[0]?.["sync_state"], "sync");
    }));
  return { primary, standby };
}

async function on<T>(server: PostgresServer, fn: (sql: postgres.Sql) => Promise<T>): Promise<T> {
  const sql = postgres(server.url, { max: 1, onnotice: () => {}, max_lifetime: null });
  try {
    return await fn(sql);
  } finally {
    await sql.end();
  }
}

test("failover: the pool finds the promoted standby, and it has every commit that was acknowledged", async () => {
  await using stack = new AsyncDisposableStack();
  const { primary, standby } = await startPair(stack);
  await using pool = new SimpleConnectionPool(2, 4, {
    host: [`127.0.0.1:${primary.port}`, `127.0.0.1:${standby.port}`],
    user: "postgres",
    password: "postgres",
    database: "postgres",
    target_session_attrs: "read-write",
    fetch_types: false,
    onnotice: () => {},
    pool: { timeout: 60_000 },
  });
  await pool.ready();
  const acknowledged: number[] = [];
  let next = 0;
  let stop = false;
  const tasks = Array.from({ length: 8 }, async () => {
    while (!stop) {
      const id = next++;
      try {
        await pool.transaction(async (conn) => {
          await conn`insert into acknowledged values (${id})`;
        });
        acknowledged.push(id);
      } catch {
        // Undecided: it may be there or not; it is not tried again.
      }
    }
  });
  await eventually(() => assert(acknowledged.length > 100));
  // The others may all be between two transactions when it dies; this one never is.
  const inserted = Promise.withResolvers<void>();
  const died = Promise.withResolvers<void>();
  const open = timed(pool.transaction(async (conn) => {
    await conn`insert into acknowledged values (-1)`;
    inserted.resolve();
    await died.promise;
    await conn`insert into acknowledged values (-2)`;
  }));
  await inserted.promise;
  const dead = performance.now();
  await primary.stop("immediate");
  died.resolve();
  assert((await open).error !== undefined);
  const before = acknowledged.length;
  await on(standby, (sql) => sql`select pg_promote()`);
  await eventually(() => assert(acknowledged.length > before));
  const took = performance.now() - dead;
  await eventually(() => assert(acknowledged.length > before + 100));
  stop = true;
  for (const task of tasks) assertEquals((await timed(task)).error, undefined);
  await eventuallyStats(pool, { leased: 0 });
  const rows = await on(standby, (sql) => sql<{ id: number }[]>`select id from acknowledged`);
  const there = new Set(rows.map(({ id }) => id));
  assertEquals(acknowledged.filter((id) => !there.has(id)), [], "acknowledged, and lost");
  assert(!there.has(-1) && !there.has(-2), "a transaction that was open when its server died");
  assertLess(took, 30_000);
  await assertLendable(pool);
  console.log(`failover: the first commit on the new primary after ${Math.round(took)} ms`);
});

test("failover: a pool that wants a standby reads there while the primary is away", async () => {
  await using stack = new AsyncDisposableStack();
  const { primary, standby } = await startPair(stack);
  await using pool = new SimpleConnectionPool(0, 2, {
    host: [`127.0.0.1:${primary.port}`, `127.0.0.1:${standby.port}`],
    user: "postgres",
    password: "postgres",
    database: "postgres",
    target_session_attrs: "prefer-standby",
    fetch_types: false,
    onnotice: () => {},
    pool: { timeout: 60_000 },
  });
  const inRecovery = (): Promise<unknown> =>
    pool.use(async (conn) => (await conn`select pg_is_in_recovery() as r`)[0]!["r"]);
  assertEquals(await inRecovery(), true);
  await primary.stop("immediate");
  await pool.renew();
  assertEquals(await inRecovery(), true);
});

test(
  "replicas: reads go to the primary while the standby is away, and back to it by renew() or maxLifetime",
  async () => {
    await using stack = new AsyncDisposableStack();
    const { primary, standby } = await startPair(stack);
    const options = {
      host: [`127.0.0.1:${primary.port}`, `127.0.0.1:${standby.port}`],
      user: "postgres",
      password: "postgres",
      database: "postgres",
      load_balance_hosts: "random",
      fetch_types: false,
      onnotice: () => {},
    } as const;
    const pool = (attrs: "read-write" | "prefer-standby", maxLifetime: number) =>
      stack.use(
        new SimpleConnectionPool(0, 2, {
          ...options,
          target_session_attrs: attrs,
          pool: { timeout: 60_000, maxLifetime },
        }),
      );
    const write = pool("read-write", 0);
    const renewed = pool("prefer-standby", 0);
    const aging = pool("prefer-standby", 500);
    const atStandby = (one: SimpleConnectionPool): Promise<boolean> =>
      one.use(async (conn) => (await conn`select pg_is_in_recovery() as r`)[0]!["r"] as boolean);
    const all = async (): Promise<boolean[]> => [
      await atStandby(write),
      await atStandby(renewed),
      await atStandby(aging),
    ];
    assertEquals(await all(), [false, true, true]);
    // What was acknowledged is at the standby, and sooner or later to be seen there.
    await write.sql`insert into acknowledged values (1)`;
    await eventually(async () => {
      assertEquals((await renewed.sql`select id from acknowledged`).length, 1);
    });

    await standby.stop("fast");
    await eventually(async () => assertEquals(await all(), [false, false, false]));
    await standby.start();
    // A session that stands is not left for that one is back …
    assertEquals(await atStandby(renewed), false);
    // … but its successor is looked for anew.
    await renewed.renew();
    assertEquals(await atStandby(renewed), true);
    await eventually(async () => assertEquals(await atStandby(aging), true));

    // A standby that lags can be refused for each loan.
    const fresh = stack.use(
      new SimpleConnectionPool(0, 1, {
        ...options,
        target_session_attrs: "standby",
        pool: {
          timeout: 1_000,
          validate: async (conn) => {
            const [row] = await conn`
            select pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() as fresh`;
            return row!["fresh"];
          },
        },
      }),
    );
    await eventually(() => atStandby(fresh));
    await on(standby, (sql) => sql`select pg_wal_replay_pause()`);
    await write.sql`insert into acknowledged values (3)`;
    const error = await atStandby(fresh).then(() => null, (reason) => reason);
    assert(error instanceof PoolError, String(error));
    await on(standby, (sql) => sql`select pg_wal_replay_resume()`);
    await eventually(async () => assertEquals(await atStandby(fresh), true));

    // Promoted, it serves both, and whoever wanted a standby asks anew.
    const pid = (): Promise<number> => renewed.use((conn) => conn.pid);
    const before = await pid();
    await primary.stop("immediate");
    await on(standby, (sql) => sql`select pg_promote()`);
    await on(standby, (sql) => sql`alter system set synchronous_standby_names = ''`);
    await on(standby, (sql) => sql`select pg_reload_conf()`);
    await eventually(async () => {
      await write.sql`insert into acknowledged values (2) on conflict do nothing`;
      assertEquals(await all(), [false, false, false]);
      assert(await pid() !== before);
    });
    assertEquals((await renewed.sql`select id from acknowledged order by 1`).length, 3);
  },
  { timeout: 300_000 },
);

test(
  "replicas: both pools at the primary are under one cap, the sum of theirs, also while shares move under load",
  async () => {
    await using stack = new AsyncDisposableStack();
    const { primary, standby } = await startPair(stack);
    await primary.reload({ synchronous_standby_names: "" });
    const pool = (attrs: "read-write" | "prefer-standby") =>
      stack.use(
        new SimpleConnectionPool(1, 3, {
          host: [`127.0.0.1:${primary.port}`, `127.0.0.1:${standby.port}`],
          user: "postgres",
          password: "postgres",
          database: "postgres",
          connection: { application_name: "capped" },
          target_session_attrs: attrs,
          fetch_types: false,
          onnotice: () => {},
          pool: { timeout: 60_000 },
        }),
      );
    const [write, read] = [pool("read-write"), pool("prefer-standby")];
    await Promise.all([write.ready(), read.ready()]);
    await standby.stop("fast");

    // As it stands in docs/replicas.md.
    async function move(from: SimpleConnectionPool, to: SimpleConnectionPool, n: number) {
      await from.resize(from.minconn, from.maxconn - n);
      while (from.stats().poolSize + from.stats().closing > from.maxconn) {
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      await to.resize(to.minconn, to.maxconn + n);
    }

    let stop = false;
    let [most, looks] = [0, 0];
    // Two connections each would not be enough for them: each pool wants what it may have.
    const load = [write, read].flatMap((one) =>
      Array.from({ length: 8 }, async () => {
        while (!stop) await one.use((conn) => conn`select pg_sleep(0.005)`);
      })
    );
    const watch = on(primary, async (sql) => {
      for (; !stop; looks++) {
        const [row] = await sql`
          select count(*)::int as n from pg_stat_activity where application_name = 'capped'`;
        most = Math.max(most, row!["n"]);
      }
    });
    const full = (): Promise<void> =>
      eventually(
        () => assertEquals([write, read].map((one) => one.stats().leased).sort(), sizes()),
      );
    const sizes = (): number[] => [write.maxconn, read.maxconn].sort();
    await full();
    for (
      const [from, to] of [[write, read], [read, write], [read, write], [write, read]] as const
    ) {
      await move(from, to, 2);
      await full();
    }
    // What both want at the same time is theirs one after the other.
    await Promise.all([move(write, read, 1), move(read, write, 2)]);
    assertEquals([write.maxconn, read.maxconn], [4, 2]);
    await full();
    // A share that a pool cannot give is refused, and nothing has changed.
    assertEquals(await move(read, write, 2).then(() => null, ({ name }) => name), "RangeError");
    assertEquals([write.maxconn, read.maxconn], [4, 2]);
    stop = true;
    await Promise.all([...load, watch]);
    assertEquals(most, 6, `the most sessions in ${looks} looks`);
  },
  { timeout: 300_000 },
);
