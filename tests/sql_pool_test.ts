/** What `pool.sql` holds beyond the driver: the cap, fairness, no state that leaks, nothing lost. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { type PostgresOptions, SimpleConnectionPool } from "@getconn/pool";
import { test } from "./_harness.ts";
import { asAdmin, eventually, killBackend, sessions, testServer } from "./_server.ts";
import { failure, uniqueName } from "./_sql.ts";

async function withPool(
  maxconn: number,
  options: PostgresOptions,
  fn: (pool: SimpleConnectionPool) => Promise<void>,
): Promise<void> {
  const { url } = await testServer();
  const pool = new SimpleConnectionPool(0, maxconn, url, { onnotice: () => {}, ...options });
  try {
    await fn(pool);
    const { leased, shared, requestsWaiting, poolSize, connecting, idle } = pool.stats();
    assertEquals(poolSize, connecting + idle + leased + shared);
    if (!pool.closed) assertEquals([leased, shared, requestsWaiting], [0, 0, 0]);
  } finally {
    await pool.close({ timeout: 5_000 });
  }
}

function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve));
}

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
    const running = Promise.all(
      Array.from({ length: 60 }, () => sql`select pg_backend_pid() as pid, pg_sleep(0.005)`),
    );
    await eventually(() => assertEquals(pool.stats().shared, 3));
    const pids = new Set((await running).map(([row]) => row!["pid"]));
    assertEquals(pids.size, 3);
    await tick();
    assertEquals(pool.stats().idle, 3);
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
        }, { timeout: 20_000 });
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
          await pool.use((conn) => conn`select pg_sleep(0.002)`, { timeout: 20_000 });
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
    await eventually(() => assert(leases >= 20 && statements >= 20), { timeout: 20_000 });
    on = false;
    await Promise.all(work);
  }));

test("getconn with timeout 0 waits for statements, but not for leases", () =>
  withPool(1, {}, async (pool) => {
    const slow = pool.sql`select pg_sleep(0.05)`.execute();
    await eventually(() => assertEquals(pool.stats().shared, 1));
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
    const conn = await pool.getconn();
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
    const running = Array.from({ length: 6 }, () => pool.sql`select pg_sleep(0.02)`.execute());
    await eventually(() => assertEquals(pool.stats().requestsWaiting, 4));
    await Promise.all(running);
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

test("killed backends fail what was on them, once, and nothing is run twice", () =>
  withPool(4, {}, async (pool) => {
    const { sql } = pool;
    const table = uniqueName("t");
    await sql`create table ${sql(table)} (n int)`;
    let on = true;
    let next = 0;
    const done: number[] = [];
    const failed: number[] = [];
    const work = Array.from({ length: 64 }, async () => {
      while (on) {
        const n = next++;
        try {
          await sql`insert into ${sql(table)} select ${n}::int from pg_sleep(0.002)`;
          done.push(n);
        } catch (error) {
          const { code } = error as { code: string };
          assert(
            ["57P01", "CONNECTION_CLOSED", "CONNECTION_DESTROYED", "ECONNRESET", "EPIPE"].includes(
              code,
            ),
            code,
          );
          failed.push(n);
        }
      }
    });
    for (let i = 0; i < 5; i++) {
      await eventually(() => assert(done.length > (i + 1) * 40));
      const [row] = await asAdmin((admin) =>
        admin`select pid from pg_stat_activity where query like ${`%${table}%`}
          and pid <> pg_backend_pid() limit 1`
      );
      if (row !== undefined) await killBackend(row["pid"]);
    }
    on = false;
    await Promise.all(work);
    assertEquals(done.length + failed.length, next);
    assert(failed.length > 0);
    const rows = await sql`select n, count(*)::int as times from ${sql(table)} group by n`;
    const times = new Map(rows.map(({ n, times }) => [n, times]));
    for (const n of done) assertEquals(times.get(n), 1);
    for (const n of failed) assert((times.get(n) ?? 0) <= 1);
    await sql`drop table ${sql(table)}`;
  }));

test("array types are fetched once per pool", async () => {
  const texts: string[] = [];
  const options = { debug: (_id: number, text: string) => void texts.push(text) };
  await withPool(3, options as PostgresOptions, async (pool) => {
    await Promise.all([1, 2, 3].map(() => pool.sql`select array[1] as a, pg_sleep(0.05)`));
    assertEquals(pool.stats().poolSize, 3);
    assertEquals(texts.filter((text) => text.includes("typarray")).length, 1);
  });
});

test("listen is within the cap, alone and freed after the last unlisten", () =>
  withPool(2, { connection: { application_name: uniqueName("app") } }, async (pool) => {
    const { sql } = pool;
    const channels = ["a", "b", "c"].map((x) => uniqueName(x));
    const got: string[] = [];
    const all = await Promise.all(channels.map((c) => sql.listen(c, (x) => void got.push(x))));
    assertEquals(pool.stats().leased, 1);
    await Promise.all(channels.map((c, i) => sql.notify(c, String(i))));
    await eventually(() => assertEquals(got.sort(), ["0", "1", "2"]));
    await Promise.all(all.map(({ unlisten }) => unlisten()));
    await eventually(() => assertEquals(pool.stats().leased, 0));
    const [row] = await sql`select count(*)::int as n from pg_listening_channels()`;
    assertEquals(row!["n"], 0);
    const name = String((sql.options.connection as Record<string, unknown>)["application_name"]);
    assert(await sessions(name) <= 2);
  }));

test("listen needs more than one connection; subscribe is refused", () =>
  withPool(1, {}, async (pool) => {
    assertEquals((await failure(pool.sql.listen("x", () => {}))).code, "UNSUPPORTED");
    assertEquals((await failure(pool.sql.subscribe("*", () => {}))).code, "UNSUPPORTED");
    await pool.sql`select 1`;
  }));

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

test("a COPY that is thrown away frees its connection", () =>
  withPool(1, {}, async (pool) => {
    const { sql } = pool;
    const out = await sql`copy (select repeat('x', 1000) from generate_series(1, 100000)) to stdout`
      .readable();
    out.once("data", () => out.destroy());
    assertEquals([...await sql`select 1 as x`], [{ x: 1 }]);
    const table = uniqueName("t");
    await sql`create table ${sql(table)} (n int)`;
    const into = await sql`copy ${sql(table)} from stdin`.writable();
    into.write("1\n");
    into.destroy(new Error("changed my mind"));
    assertEquals([...await sql`select count(*)::int as n from ${sql(table)}`], [{ n: 0 }]);
    await sql`drop table ${sql(table)}`;
  }));

test("close waits for statements that have no connection yet", async () => {
  const { url } = await testServer();
  const pool = new SimpleConnectionPool(0, 2, url);
  const results = Promise.all(
    Array.from({ length: 10 }, (_, n) => pool.sql`select ${n}::int as n`),
  );
  await tick();
  await pool.sql.end();
  assertEquals((await results).map(([row]) => row!["n"]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assertEquals((await failure(pool.sql`select 1`)).code, "POOL_CLOSED");
  assertEquals((await failure(pool.sql.begin(() => 1))).code, "POOL_CLOSED");
  assertEquals((await failure(pool.sql.reserve())).code, "POOL_CLOSED");
  assertEquals((await failure(pool.sql.listen("x", () => {}))).code, "POOL_CLOSED");
});

test("closeall in the midst of everything: all settle, no session is left", async () => {
  const { url } = await testServer();
  const name = uniqueName("app");
  const pool = new SimpleConnectionPool(0, 4, url, { connection: { application_name: name } });
  const { sql } = pool;
  await sql.listen("x", () => {});
  const all = [
    ...Array.from({ length: 10 }, () => sql`select pg_sleep(20)`.execute()),
    sql.begin((tx) => tx`select pg_sleep(20)`),
    sql.begin(() => {}),
    sql.reserve(),
    (async () => {
      for await (const _ of sql`select pg_sleep(20)`.cursor(1));
    })(),
    sql`copy (select pg_sleep(20)) to stdout`.readable(),
  ];
  const settled = Promise.allSettled(all);
  await eventually(() => assert(pool.stats().poolSize === 4 && pool.stats().connecting === 0));
  await pool.closeall();
  await settled;
  assertEquals(await sessions(name), 0);
  await sql.end();
});

test("close() replaces the connections and leaves the pool open", () =>
  withPool(2, {}, async (pool) => {
    const pid = async () => (await pool.sql`select pg_backend_pid() as pid`)[0]!["pid"];
    const before = await pid();
    await pool.sql.close();
    assert(await pid() !== before);
  }));

test("a lifetime that ends under constant load replaces the connection", () =>
  withPool(1, { pool: { maxLifetime: 100 } }, async (pool) => {
    const pids = new Set<number>();
    await eventually(async () => {
      const rows = await Promise.all(
        [1, 2, 3, 4].map(() => pool.sql`select pg_backend_pid() as pid`),
      );
      for (const [row] of rows) pids.add(row!["pid"]);
      assert(pids.size >= 3);
    }, { timeout: 10_000, interval: 0 });
    await tick();
  }));

test("a failure to grow does not fail what a standing connection can do", async () => {
  const { url } = await testServer();
  let opened = 0;
  const { connect } = await import("node:net");
  const target = new URL(url);
  const socket = () => {
    if (opened++ > 0) throw Object.assign(new Error("no more"), { code: "ENOMORE" });
    return connect(Number(target.port || 5432), target.hostname);
  };
  await withPool(3, { socket, pool: { checkAfter: Infinity } }, async (pool) => {
    await pool.sql`select 1`;
    const rows = await Promise.all(
      Array.from({ length: 20 }, (_, n) => pool.sql`select ${n}::int as n`),
    );
    assertEquals(rows.map(([row]) => row!["n"]), rows.map((_, n) => n));
    assert(opened > 1);
  });
});

test("TPC-B on pool.sql: the sums agree", () =>
  withPool(4, {}, async (pool) => {
    const { sql } = pool;
    const name = uniqueName("tpcb");
    await sql.unsafe(`
      create table ${name}_accounts (id int primary key, balance int not null default 0);
      create table ${name}_tellers (id int primary key, balance int not null default 0);
      create table ${name}_branches (id int primary key, balance int not null default 0);
      create table ${name}_history (delta int);
      insert into ${name}_accounts select n from generate_series(1, 100) n;
      insert into ${name}_tellers select n from generate_series(1, 10) n;
      insert into ${name}_branches values (1)`);
    await Promise.all(Array.from({ length: 12 }, async (_, task) => {
      for (let i = 0; i < 10; i++) {
        const [account, teller, delta] = [
          1 + (task * 31 + i * 7) % 100,
          1 + (task + i) % 10,
          i - 3,
        ];
        await sql.begin(async (tx) => {
          await tx`update ${
            tx(`${name}_accounts`)
          } set balance = balance + ${delta} where id = ${account}`;
          await tx`update ${
            tx(`${name}_tellers`)
          } set balance = balance + ${delta} where id = ${teller}`;
          await tx`update ${tx(`${name}_branches`)} set balance = balance + ${delta} where id = 1`;
          await tx`insert into ${tx(`${name}_history`)} values (${delta})`;
        });
        await sql`select balance from ${sql(`${name}_accounts`)} where id = ${account}`;
      }
    }));
    const sums = await Promise.all(
      ["accounts", "tellers", "branches", "history"].map(async (part) => {
        const column = part === "history" ? "delta" : "balance";
        const [row] = await sql`select sum(${sql(column)})::int as sum from ${
          sql(`${name}_${part}`)
        }`;
        return row!["sum"];
      }),
    );
    assertEquals(sums, [180, 180, 180, 180]);
    await sql.unsafe(
      ["accounts", "tellers", "branches", "history"].map((x) => `drop table ${name}_${x}`).join(
        ";",
      ),
    );
  }));

test("begin takes only a function, and options only a string", () =>
  withPool(1, {}, async (pool) => {
    await assertRejects(() => pool.sql.begin(1 as never), TypeError);
    await assertRejects(() => pool.sql.begin(1 as never, () => 1), TypeError);
  }));
