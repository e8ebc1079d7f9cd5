/** Prepared statements that a change of the schema has made stale. */

import { assertEquals } from "@std/assert";
import { SimpleConnectionPool } from "@getconn/pool";
import type { Connection } from "../src/postgres/connection.ts";
import { Descriptions } from "../src/postgres/wire/statements.ts";
import { test } from "./support/harness.ts";
import { FakeLease, lent, openWith, rejection, within } from "./support/postgres.ts";
import { asAdmin, testServer } from "./support/server.ts";

/** Gives a new table's name, and what makes statements that give its rows stale. */
async function withTable(
  fn: (table: string, alter: () => Promise<unknown>) => Promise<void>,
): Promise<void> {
  const table = `stale_${crypto.randomUUID().replaceAll("-", "")}`;
  let columns = 0;
  await asAdmin(async (sql) => {
    await sql.unsafe(`create table ${table} (a int, j jsonb)`);
    try {
      await fn(table, () => sql.unsafe(`alter table ${table} add column c${columns++} int`));
    } finally {
      await sql.unsafe(`drop table ${table}`);
    }
  });
}

test("stale prepared statements are executed anew, however many are in flight", async () => {
  await withTable(async (table, alter) => {
    await using it = await lent();
    const { conn } = it;
    const count = async (n: number) => {
      const rows = await conn`select * from ${conn(table)} where a = ${n}`;
      return rows.length;
    };
    const both = async () => (await conn`select * from ${conn(table)}`).length;
    await conn`insert into ${conn(table)} (a) values (1), (2), (2)`;
    for (let round = 0; round < 5; round++) {
      assertEquals(
        await within(Promise.all([count(1), both(), count(2), both(), count(1), count(3)])),
        [1, 3, 2, 3, 1, 0],
      );
      assertEquals(conn.transactionStatus, "idle");
      await alter();
    }
  });
});

test("a stale prepared statement keeps its values as they were given", async () => {
  await withTable(async (table, alter) => {
    await using it = await lent();
    const { conn } = it;
    for (const value of [{ x: 1 }, conn.json({ x: 1 })]) {
      for (let round = 0; round < 2; round++) {
        const rows = await conn`
          insert into ${conn(table)} (a, j) values (${round}, ${value as never}) returning *`;
        assertEquals(rows[0]!["j"], { x: 1 });
        await alter();
      }
    }
  });
});

test("a parameter whose type has gone is of the type that has its name now", async () => {
  await withTable(async (table) => {
    await using pool = new SimpleConnectionPool(0, 2, (await testServer()).url);
    const { sql } = pool;
    const type = `${table}_type`;
    const store = (...values: string[]) =>
      Promise.all(values.map((value) => sql`insert into ${sql(table)} (k) values (${value})`));
    const list = (value: string) => sql`select ${[value]}::${sql(type)}[]::text[] as list`;
    const inserted = async () => {
      const rows = await sql`select k::text as k from ${sql(table)}`;
      return rows.map(({ k }) => k).sort().join();
    };
    await asAdmin((admin) =>
      admin.unsafe(
        `create type ${type} as enum ('a'); alter table ${table} add column k ${type}`,
      )
    );
    try {
      await store("a", "a");
      await list("a");
      for (const value of ["b", "c"]) {
        // As tools for migrations take a value out of an enum.
        await asAdmin((admin) =>
          admin.unsafe(
            `alter type ${type} rename to ${type}_old; create type ${type} as enum ('a', 'b', 'c');
             alter table ${table} alter k type ${type} using k::text::${type}; drop type ${type}_old`,
          )
        );
        // With the sessions that knew the old one, then with others.
        await store(value, value, value);
        assertEquals((await list(value))[0]!["list"], [value]);
        await pool.renew();
      }
      assertEquals(await inserted(), "a,a,b,b,b,c,c,c");
    } finally {
      await asAdmin((admin) =>
        admin.unsafe(`alter table ${table} drop column k; drop type ${type}`)
      );
    }
  });
});

test("a stale prepared statement fails its transaction, and not the next one", async () => {
  await withTable(async (table, alter) => {
    await using it = await lent();
    const { conn } = it;
    const work = () => conn.begin((sql) => sql`select * from ${sql(table)} where a = ${1}`);
    await work();
    await alter();
    const error = await rejection(work());
    assertEquals([error.code, error.message], ["0A000", "cached plan must not change result type"]);
    assertEquals((await work()).length, 0);
  });
});

test("a session is active until a stale statement has had its second answer", async () => {
  await withTable(async (table, alter) => {
    await using it = await lent();
    const { conn } = it;
    const work = (sql: Connection) => sql`select * from ${sql(table)} where a = ${1}`;
    await work(conn);
    await alter();
    let answered = false;
    const working = work(conn).then(() => answered = true);
    await Promise.resolve();
    while (it.connector.status(it.session) === "active") {
      await new Promise((resolve) => setImmediate(resolve));
    }
    assertEquals(answered, true);
    await working;
  });
});

test("the same text under another search_path is another statement, with types of its own", async () => {
  const id = crypto.randomUUID().replaceAll("-", "");
  const [a, b] = [`a${id}`, `b${id}`];
  await asAdmin((sql) =>
    sql.unsafe(`
      create schema ${a}; create table ${a}.t (n int, j json, list int[]);
      create schema ${b}; create table ${b}.t (n text, j text, list text[])`)
  );
  try {
    await using it = await lent();
    const { connector, conn } = it;
    // Servers before 18 do not tell it.
    if (!("search_path" in conn.parameters)) {
      const [row] = await conn`select current_setting('server_version_num')::int as version`;
      assertEquals(row!["version"] < 180_000, true);
      return;
    }
    const session = await openWith(connector);
    try {
      const other = connector.lend(session, new FakeLease());
      const put = (sql: Connection, n: unknown, j: unknown, list: unknown) =>
        sql`insert into t values (${n as never}, ${j as never}, ${list as never}) returning *`;
      const inA = { n: 5, j: "x", list: [1, 2] };
      const inB = { n: "five", j: "x", list: ["one"] };
      // On one session, by transactions.
      const within = (schema: string, fn: (sql: Connection) => Promise<unknown>) =>
        conn.begin(async (sql) => {
          await sql.unsafe(`set local search_path = ${schema}`);
          return await fn(sql as never);
        });
      for (let round = 0; round < 3; round++) {
        assertEquals([...await within(a, (sql) => put(sql, 5, "x", [1, 2])) as unknown[]], [inA]);
        assertEquals(
          [...await within(b, (sql) => put(sql, "five", "x", ["one"])) as unknown[]],
          [inB],
        );
        const all = (sql: Connection) => sql`select * from t limit 1`;
        assertEquals([...await within(a, all) as unknown[]], [inA]);
        assertEquals([...await within(b, all) as unknown[]], [inB]);
      }
      // On two sessions: what is json here is a text there, and is written as one.
      await conn.unsafe(`set search_path = ${a}`);
      await other.unsafe(`set search_path = ${b}`);
      const text = (sql: Connection) => sql`insert into t (j) values (${"y"}) returning j`;
      for (const sql of [conn, other, conn, other]) {
        assertEquals([...await text(sql)], [{ j: "y" }]);
      }
    } finally {
      await connector.close(session);
    }
  } finally {
    await asAdmin((sql) => sql.unsafe(`drop schema ${a}, ${b} cascade`));
  }
});

test("sessions share what they know of a statement's columns; parsers and settings are their own", async () => {
  await using it = await lent();
  const { connector, conn } = it;
  const session = await openWith(connector);
  try {
    const other = connector.lend(session, new FakeLease());
    const ask = (sql: Connection) => sql`select ${"2026-01-01"}::date as day, 1 as one`;
    const first = await ask(conn);
    assertEquals((await ask(other)).columns, first.columns);
    assertEquals((await ask(other)).statement.name === first.statement.name, false);
    // As with the driver: parsers are those of the moment in which a session learns of the columns.
    const third = await openWith(connector);
    try {
      connector.language.options.parsers[1082] = (text: string) => `on ${text}`;
      const [row] = await ask(connector.lend(third, new FakeLease()));
      assertEquals({ ...row }, { day: "on 2026-01-01", one: 1 });
      assertEquals((await ask(conn))[0], first[0]);
      assertEquals((await ask(other))[0], first[0]);
    } finally {
      await connector.close(third);
    }
    const zone = other.parameters["TimeZone"];
    await conn`set timezone = 'Asia/Tokyo'`;
    assertEquals(conn.parameters["TimeZone"], "Asia/Tokyo");
    assertEquals(other.parameters["TimeZone"], zone);
  } finally {
    await connector.close(session);
  }
});

test("a text has one description for each set of types; what was not used of late is forgotten", () => {
  const known = new Descriptions(4);
  const plain = known.of("a", [0]);
  const typed = known.of("a", [20]);
  assertEquals(plain === typed, false);
  assertEquals(known.of("a", []) === known.of("a", [0]), false);
  for (let round = 0; round < 10; round++) {
    assertEquals(known.of("a", [0]), plain);
    assertEquals(known.of("a", [0]) === plain && known.of("a", [20]) === typed, true);
    // Whatever else comes, one that is used stays.
    for (let i = 0; i < 3; i++) known.of(`other ${round} ${i}`, []);
  }
  for (let i = 0; i < 9; i++) known.of(`another ${i}`, []);
  assertEquals(known.of("a", [0]) === plain, false);
  // However many sets of types one text comes with.
  const first = known.of("b", [0]);
  for (let type = 1; type < 200; type++) known.of("b", [type]);
  assertEquals(known.of("b", [199]) === known.of("b", [199]), true);
  assertEquals(known.of("b", [0]) === first, false);
});
