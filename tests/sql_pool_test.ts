/** What `pool.sql` holds beyond the driver: the cap, fairness, no state that leaks. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { SimpleConnectionPool } from "@getconn/pool";
import { deadline } from "@std/async/deadline";
import { insideOf } from "../src/abstract_pool.ts";
import { test } from "./support/harness.ts";
import { asAdmin, eventually, killBackend, testServer } from "./support/server.ts";
import { failure, uniqueName } from "./support/sql.ts";
import { tick, withPool } from "./support/sql_pool.ts";

test("sql is one client per pool, and none for another connector", () =>
  withPool(1, {}, (pool) => {
    assert(pool.sql === pool.sql);
    const other = new SimpleConnectionPool(0, 1, {
      pool: { connector: { open: () => Promise.reject(), close: () => Promise.resolve() } },
    });
    assertThrows(() => other.sql, TypeError);
    return other.close();
  }));

test("many statements share few connections, and give them back", () =>
  withPool(3, {}, async (pool) => {
    const { sql } = pool;
    const table = uniqueName("t");
    await sql`create table ${sql(table)} ()`;
    // None ends before all three connections are there.
    const pids = await asAdmin(async (admin) => {
      await admin.unsafe(`begin; lock table ${table}`);
      const running = Promise.all(
        Array.from(
          { length: 60 },
          () => sql`select pg_backend_pid() as pid, pg_sleep(0.005), count(*) from ${sql(table)}`,
        ),
      );
      await eventually(() => assertEquals(pool.stats().shared, 3));
      await admin`commit`;
      return new Set((await running).map(([row]) => row!["pid"]));
    });
    assertEquals(pids.size, 3);
    await tick();
    assertEquals(pool.stats().idle, 3);
    await sql`drop table ${sql(table)}`;
  }));

for (
  const [what, change, look, clean] of [
    ["SET", "set work_mem = '9MB'", "select current_setting('work_mem') as x", "4MB"],
    [
      "set_config",
      "select set_config('a.b', 'c', false)",
      "select current_setting('a.b', true) as x",
      null,
    ],
    [
      "a temporary table",
      "create temp table tt (n int)",
      "select to_regclass('pg_temp.tt')::text as x",
      null,
    ],
    [
      "PREPARE",
      "prepare pp as select 1",
      "select count(*)::int as x from pg_prepared_statements where name = 'pp'",
      0,
    ],
    [
      "an advisory lock",
      "select pg_advisory_lock(4711)",
      "select count(*)::int as x from pg_locks where locktype = 'advisory' and objid = 4711",
      0,
    ],
    ["LISTEN", "listen somewhere", "select count(*)::int as x from pg_listening_channels()", 0],
    [
      "a comment before SET",
      "/* x */ -- y\n set work_mem = '9MB'",
      "select current_setting('work_mem') as x",
      "4MB",
    ],
    [
      "a do block",
      "do $$ begin set work_mem = '9MB'; end $$",
      "select current_setting('work_mem') as x",
      "4MB",
    ],
    [
      "a temporary replication slot",
      "select pg_create_physical_replication_slot('sql_pool_test', false, true)",
      "select count(*)::int as x from pg_replication_slots where slot_name = 'sql_pool_test'",
      0,
    ],
    [
      "a script",
      "select 1; set work_mem = '9MB'; select 2",
      "select current_setting('work_mem') as x",
      "4MB",
    ],
    [
      "a session's transaction mode",
      "set session characteristics as transaction read only",
      "select current_setting('transaction_read_only') as x",
      "off",
    ],
  ] as const
) {
  test(`${what} does not reach other statements`, () =>
    withPool(1, {}, async (pool) => {
      const { sql } = pool;
      const all = [sql`select 1`.execute(), sql.unsafe(change).execute()];
      const after = Array.from({ length: 5 }, () => sql.unsafe(look));
      await Promise.all(all);
      for (const rows of await Promise.all(after)) {
        assertEquals((rows as unknown as { x: unknown }[])[0]!.x, clean);
      }
    }));
}

test("what a fragment hides is seen, too", () =>
  withPool(1, {}, async (pool) => {
    const { sql } = pool;
    await sql`${sql.unsafe("set")} work_mem = '9MB'`;
    assertEquals((await sql`show work_mem`)[0]!["work_mem"], "4MB");
    assertEquals((await failure(sql`${sql.unsafe("begin")}`)).code, "UNSAFE_TRANSACTION");
    assertEquals((await failure(sql`${sql`begin`} read only`)).code, "UNSAFE_TRANSACTION");
    assertEquals((await sql`show transaction_read_only`)[0]!["transaction_read_only"], "off");
  }));

test("a raw begin is rolled back, a whole transaction in one text is not", () =>
  withPool(1, {}, async (pool) => {
    const { sql } = pool;
    const table = uniqueName("t");
    await sql`create table ${sql(table)} (n int)`;
    const error = await failure(sql.unsafe(`begin; insert into ${table} values (1)`));
    assertEquals(error.code, "UNSAFE_TRANSACTION");
    await sql.unsafe(`begin; insert into ${table} values (2); commit`);
    assertEquals([...await sql`select n from ${sql(table)}`], [{ n: 2 }]);
    await sql`drop table ${sql(table)}`;
  }));

test("leases and statements never meet on one session", () =>
  withPool(3, {}, async (pool) => {
    const { sql } = pool;
    let on = true;
    const statements = Array.from({ length: 24 }, async () => {
      while (on) {
        const [row] = await sql`select current_setting('application_name') as name`;
        assert(row!["name"] !== "leased");
      }
    });
    const leases = Array.from({ length: 6 }, async () => {
      for (let i = 0; i < 15; i++) {
        await pool.use(async (conn) => {
          await conn.begin(async (tx) => {
            await tx`set local application_name = 'leased'`;
            await tx`select pg_sleep(0.001)`;
            const [row] = await tx`select current_setting('application_name') as name`;
            assertEquals(row!["name"], "leased");
          });
        }, { timeout: 60_000 });
      }
    });
    await Promise.all(leases);
    on = false;
    await Promise.all(statements);
  }));

test("neither leases nor statements starve", () =>
  withPool(1, {}, async (pool) => {
    const { sql } = pool;
    let on = true;
    // Leases one after the other, always some of them waiting, and statements all the time.
    let [leases, statements] = [0, 0];
    const work = [
      ...Array.from({ length: 4 }, async () => {
        while (on) {
          await pool.use((conn) => conn`select pg_sleep(0.002)`, { timeout: 60_000 });
          leases++;
        }
      }),
      ...Array.from({ length: 16 }, async () => {
        while (on) {
          await sql`select 1`;
          statements++;
        }
      }),
    ];
    await eventually(() => assert(leases >= 20 && statements >= 20));
    on = false;
    await Promise.all(work);
  }));

test("getconn with timeout 0 waits for statements, but not for leases", () =>
  withPool(1, {}, async (pool) => {
    await pool.sql`select 1`;
    const slow = pool.sql`select pg_sleep(0.05)`.execute();
    // It goes out within this turn of the event loop, and nothing comes in.
    for (let i = 0; i < 50 && pool.stats().shared === 0; i++) await Promise.resolve();
    assertEquals(pool.stats().shared, 1);
    const conn = await pool.getconn();
    await slow;
    const error = await failure(pool.getconn());
    assertEquals(error.code, "POOL_EXHAUSTED");
    await pool.putconn(conn);
  }));

test("statements wait without limit when timeout is 0, and no longer than timeout else", async () => {
  await withPool(1, {}, async (pool) => {
    const conn = await pool.getconn();
    const waiting = pool.sql`select 1 as x`.execute();
    await tick();
    assertEquals(pool.stats().requestsWaiting, 1);
    await pool.putconn(conn);
    assertEquals([...await waiting], [{ x: 1 }]);
  });
  await withPool(1, { pool: { timeout: 30 } }, async (pool) => {
    const conn = await pool.getconn(null, { timeout: 60_000 });
    assertEquals((await failure(pool.sql`select 1`)).code, "POOL_TIMEOUT");
    assertEquals((await failure(pool.sql.begin(() => 1))).code, "POOL_TIMEOUT");
    await pool.putconn(conn);
  });
});

test("maxWaiting counts for statements", () =>
  withPool(1, { pool: { maxWaiting: 2 } }, async (pool) => {
    const conn = await pool.getconn();
    const waiting = [1, 2].map(() => pool.sql`select 1`.execute());
    await tick();
    assertEquals((await failure(pool.sql`select 1`)).code, "TOO_MANY_WAITING");
    await pool.putconn(conn);
    await Promise.all(waiting);
  }));

test("max_pipeline is the most that one connection has in flight", () =>
  withPool(1, { max_pipeline: 2 }, async (pool) => {
    let most = 0;
    for (let round = 0; round < 20; round++) {
      const running = Array.from({ length: 6 }, () => pool.sql`select 1`.execute());
      await tick();
      for (const { inFlight } of insideOf(pool).state.entries) most = Math.max(most, inFlight);
      for (const one of running) {
        await one;
        for (const { inFlight } of insideOf(pool).state.entries) most = Math.max(most, inFlight);
      }
    }
    assertEquals(most, 2);
  }));

test("a statement that waits can be cancelled", () =>
  withPool(1, {}, async (pool) => {
    const conn = await pool.getconn();
    const waiting = pool.sql`select 1`.execute();
    const never = pool.sql`select 1`;
    await tick();
    waiting.cancel();
    never.cancel();
    assertEquals((await failure(waiting)).code, "57014");
    assertEquals((await failure(never)).code, "57014");
    assertEquals(pool.stats().requestsWaiting, 0);
    await pool.putconn(conn);
  }));

test("a statement that cannot be built harms no other", () =>
  withPool(2, {}, async (pool) => {
    const { sql } = pool;
    const all = await Promise.allSettled(
      Array.from({ length: 40 }, (_, n) =>
        sql`select ${n % 5 === 4 ? undefined as unknown as number : n}::int as n`),
    );
    for (const [n, one] of all.entries()) {
      if (n % 5 === 4) {
        assert(one.status === "rejected");
        assertEquals(one.reason.code, "UNDEFINED_VALUE");
      } else {
        assert(one.status === "fulfilled");
        assertEquals([...one.value], [{ n }]);
      }
    }
  }));

test("a transform of names that throws fails its own statement, each time, and no other", async () => {
  let broken = false;
  const column = (name: string): string => {
    if (broken && name === "odd") throw new Error("no such name");
    return name;
  };
  await withPool(1, { transform: { column } }, async (pool) => {
    const { sql } = pool;
    const statement = () => sql`select ${1}::int as odd`;
    const [session] = await sql`select pg_backend_pid() as pid`;
    broken = true;
    for (let round = 0; round < 4; round++) {
      const settled = Promise.allSettled([statement(), statement(), statement()]);
      const others = await Promise.all([1, 2, 3].map((n) => sql`select ${n}::int as n`));
      assertEquals(others.map(([row]) => row!["n"]), [1, 2, 3]);
      for (const one of await settled) {
        assert(one.status === "rejected");
        assertEquals(one.reason.message, "no such name");
      }
    }
    broken = false;
    const rows = await Promise.all([statement(), statement()]);
    assertEquals(rows.map((all) => [...all]), [[{ odd: 1 }], [{ odd: 1 }]]);
    assertEquals([...await sql`select pg_backend_pid() as pid`], [session!]);
  });
});

test("reserve: released twice, used after, put back with an open transaction", () =>
  withPool(1, {}, async (pool) => {
    const { sql } = pool;
    const reserved = await sql.reserve();
    await reserved`begin`;
    await reserved`create table never_here (n int)`;
    reserved.release();
    reserved.release();
    assertEquals((await failure(reserved`select 1`)).code, "CONNECTION_RETURNED");
    assertEquals((await sql`select to_regclass('never_here') as x`)[0]!["x"], null);
    const [a, b] = [sql.reserve(), sql.reserve()];
    const first = await a;
    reserved.release();
    assertEquals(pool.stats().requestsWaiting, 1);
    first.release();
    (await b).release();
  }));

test("begin takes only a function, and options only a string", () =>
  withPool(1, {}, async (pool) => {
    await assertRejects(() => pool.sql.begin(1 as never), TypeError);
    await assertRejects(() => pool.sql.begin(1 as never, () => 1), TypeError);
  }));

test("pool.sql: unsafe and file settle, whatever they are given, and the client goes on", async () => {
  await withPool(2, {}, async ({ sql }) => {
    const thrower = {
      toString() {
        throw new Error("no text");
      },
    };
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    const odd = [undefined, null, 5, true, new String("select 1"), {}, thrower, proxy, [
      "select 1",
    ]];
    const untyped = sql as unknown as Record<
      "unsafe" | "file",
      (...args: unknown[]) => Promise<unknown>
    >;
    for (const value of odd) {
      for (
        const args of [[value], [value, [1]], ["select $1::int", [value]], ["select 1", value]]
      ) {
        // Some are statements after all; what must not be is that nobody is told.
        await deadline(Promise.allSettled([(async () => await untyped.unsafe(...args))()]), 20_000);
      }
      await deadline(Promise.allSettled([(async () => await untyped.file(value))()]), 20_000);
      assertEquals((await sql`select 2 as two`)[0]?.["two"], 2);
    }
    // To Node it is something that is open, such as a socket, which may have nothing to say.
    await assertRejects(() => untyped.file(5), TypeError, "file takes a path, received 5");
  });
});

test("listen is begun again until it stands: also when nobody is let in for a while, or too many wait", async () => {
  const { url } = await testServer();
  const nowhere = new URL(url);
  nowhere.pathname = `/${uniqueName("none")}`;
  let target = url;
  const pool = new SimpleConnectionPool(0, 2, () => target, { pool: { maxWaiting: 1 } });
  const got: string[] = [];
  let begun = 0;
  const channel = uniqueName("c");
  const listening = await pool.sql.listen(channel, (x) => got.push(x), () => begun++);
  const kill = (): Promise<unknown> => killBackend((listening.state as { pid: number }).pid);
  try {
    // What does not heal by itself is told to everybody who waits.
    const failed = new Promise((resolve) => pool.on("connectfailed", resolve));
    target = nowhere.href;
    await kill();
    await failed;
    target = url;
    await eventually(() => assertEquals(begun, 2));
    // One connection is lent and somebody waits: one more is one too many.
    const lent = await pool.getconn();
    const refused = new Promise<void>((resolve) =>
      pool.on("lost", () => queueMicrotask(() => resolve()))
    );
    const waiting = pool.getconn(null, { timeout: Infinity });
    await kill();
    await refused;
    await pool.putconn(lent);
    await pool.putconn(await waiting);
    await eventually(() => assertEquals(begun, 3));
    await pool.sql.notify(channel, "heard");
    await eventually(() => assertEquals(got, ["heard"]));
    assertEquals(pool.stats().connectionsLost, 2);
    await listening.unlisten();
    await eventually(() => assertEquals(pool.stats().leased, 0));
  } finally {
    await pool.close({ timeout: 0 });
  }
});
