/** `pool.sql` when things end: killed backends, closing, lifetimes, thrown away streams; and that nothing is lost. */

import { assert, assertEquals } from "@std/assert";
import { pipeline } from "node:stream/promises";
import { type PostgresOptions, SimpleConnectionPool } from "@getconn/pool";
import { ArrayTypes } from "../src/postgres/array_types.ts";
import { Language, parseOptions } from "../src/postgres/language.ts";
import { test } from "./support/harness.ts";
import { asAdmin, eventually, killBackend, sessions, testServer } from "./support/server.ts";
import { failure, uniqueName } from "./support/sql.ts";
import { tick, withPool } from "./support/sql_pool.ts";

function assertLost({ code }: { code?: string }): void {
  const codes = ["57P01", "CONNECTION_CLOSED", "CONNECTION_DESTROYED", "ECONNRESET", "EPIPE"];
  assert(codes.includes(code ?? ""), code);
}

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
          assertLost(error as { code: string });
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
    // They may all have been killed between two statements; this one is not.
    const open = failure(sql`insert into ${sql(table)} select -1 from pg_sleep(60)`);
    await eventually(async () => {
      const [row] = await asAdmin((admin) =>
        admin`select pid from pg_stat_activity where query like ${`%${table}% select -1 %`}
          and wait_event = 'PgSleep'`
      );
      assert(await killBackend(row!["pid"]));
    });
    assertLost(await open);
    on = false;
    await Promise.all(work);
    assertEquals(done.length + failed.length, next);
    const rows = await sql`select n, count(*)::int as times from ${sql(table)} group by n`;
    const times = new Map(rows.map(({ n, times }) => [n, times]));
    for (const n of done) assertEquals(times.get(n), 1);
    for (const n of failed) assert((times.get(n) ?? 0) <= 1);
    assertEquals(times.get(-1), undefined);
    await sql`drop table ${sql(table)}`;
  }));

test("array types are fetched once per pool, and debug hears of the user's statements only", async () => {
  const texts: string[] = [];
  const options = { debug: (_id: number, text: string) => void texts.push(text) };
  await withPool(3, options as PostgresOptions, async (pool) => {
    const all = await Promise.all(
      [1, 2, 3].map(() => pool.sql`select array[1] as a, pg_sleep(0.05)`),
    );
    for (const [row] of all) assertEquals(row!["a"], [1]);
    assertEquals(pool.stats().poolSize, 3);
    assertEquals(texts.length, 3);
  });
  const types = new ArrayTypes(new Language(parseOptions({ fetch_types: true })));
  let fetched = 0;
  const session = {
    reason: null,
    async run() {
      fetched++;
      await Promise.resolve();
      return { command: "SELECT", state: { pid: 1, secret: 1 }, row: ["{23}", "{1007}"] };
    },
  };
  await Promise.all([1, 2, 3].map(() => types.ensure(session)));
  assertEquals(fetched, 1);
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
  assertEquals((await failure(pool.sql`select 1`)).code, "CONNECTION_ENDED");
  assertEquals((await failure(pool.sql.begin(() => 1))).code, "CONNECTION_ENDED");
  assertEquals((await failure(pool.sql.reserve())).code, "CONNECTION_ENDED");
  assertEquals((await failure(pool.sql.listen("x", () => {}))).code, "CONNECTION_ENDED");
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
    }, { interval: 0 });
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

test("COPY from stream to stream, beside other statements", () =>
  withPool(4, {}, async ({ sql }) => {
    const table = uniqueName("t");
    await sql`create table ${sql(table)} (id int, name text)`;
    const copies = Promise.all([1, 2].map(async () => {
      await pipeline(
        await sql`copy (select n, 'n' || n from generate_series(1, 20000) n) to stdout`.readable(),
        await sql`copy ${sql(table)} from stdin`.writable(),
      );
    }));
    // The driver's own pool would put these behind the COPYs, where they fail or wait for ever.
    const others = Array.from({ length: 32 }, (_, n) => sql`select ${n}::int as n`);
    assertEquals((await Promise.all(others)).map(([row]) => row!["n"]), others.map((_, n) => n));
    await copies;
    assertEquals([...await sql`select count(*)::int as n from ${sql(table)}`], [{ n: 40000 }]);
    await sql`drop table ${sql(table)}`;
  }));
