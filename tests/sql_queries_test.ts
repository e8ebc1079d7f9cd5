/** The driver's README, from "Queries" to "Advanced query methods", with its own client and with `pool.sql`. */

import { assert, assertEquals, assertInstanceOf } from "@std/assert";
import { Buffer } from "node:buffer";
import { rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import type postgres from "postgres";
import { eventually } from "./support/server.ts";
import { both, failure, uniqueName } from "./support/sql.ts";

async function withTable(
  sql: postgres.Sql,
  columns: string,
  fn: (table: string) => Promise<void>,
): Promise<void> {
  const table = uniqueName("t");
  await sql`create table ${sql(table)} (${sql.unsafe(columns)})`;
  try {
    await fn(table);
  } finally {
    await sql`drop table ${sql(table)}`;
  }
}

function filtersOn(): boolean {
  return Date.now() > 0;
}

async function drain(stream: Readable): Promise<string> {
  let text = "";
  for await (const chunk of stream) text += String(chunk);
  return text;
}

async function feed(stream: Writable, text: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    stream.on("error", reject);
    stream.end(text, () => resolve());
  });
}

both("parameters, their types, and null", async (make) => {
  const sql = make();
  const date = new Date("2020-02-03T04:05:06.789Z");
  const [row] = await sql`
    select ${1}::int as i, ${"x"} as s, ${null}::text as n, ${true} as b, ${date} as d,
      ${Buffer.from("hi")} as bytes, ${1.5}::float8 as f, ${10n as unknown as number} as big`;
  assertEquals(row, {
    i: 1,
    s: "x",
    n: null,
    b: true,
    d: date,
    bytes: row!["bytes"],
    f: 1.5,
    big: "10",
  });
  assertEquals(String(row!["bytes"]), "hi");
});

both("an undefined value is an error of its statement alone", async (make) => {
  const sql = make();
  const good = Array.from({ length: 8 }, (_, n) => sql`select ${n}::int as n`);
  const bad = sql`select ${undefined as unknown as string}`;
  assertEquals((await failure(bad)).code, "UNDEFINED_VALUE");
  // The bare client may mix these up, so only that they settle is common to both.
  assertEquals((await Promise.allSettled(good)).length, 8);
});

both("the result is an array with count, command and columns", async (make) => {
  const sql = make();
  const result = await sql`select n, n::text as t from generate_series(1, 3) n`;
  assertEquals([result.count, result.command, result.length], [3, "SELECT", 3]);
  assertEquals(result.columns.map(({ name, type }) => [name, type]), [["n", 23], ["t", 25]]);
  assertEquals(result.statement.columns.length, 2);
  assert(result.state.pid > 0);
});

both("helpers: insert, update, in, columns, identifiers", async (make) => {
  const sql = make();
  await withTable(sql, "id int, name text, age int", async (table) => {
    const people = [{ id: 1, name: "a", age: 10 }, { id: 2, name: "b", age: 20 }];
    await sql`insert into ${sql(table)} ${sql(people)}`;
    await sql`insert into ${sql(table)} ${sql({ id: 3, name: "c", age: 30 }, "id", "name")}`;
    await sql`update ${sql(table)} set ${sql({ name: "B" }, "name")} where id = 2`;
    const rows = await sql`select ${sql(["id", "name"])} from ${sql(table)}
      where id in ${sql([2, 3])} order by id`;
    assertEquals([...rows], [{ id: 2, name: "B" }, { id: 3, name: "c" }]);
    const values = [[1, "x"], [2, "y"]];
    const joined = await sql`select p.name, v.word from ${sql(table)} p
      join (values ${sql(values)}) as v (id, word) on p.id = v.id::int order by p.id`;
    assertEquals(joined.map(({ word }) => word), ["x", "y"]);
    const [{ t }] = await sql`select ${"x"} as ${sql("t")}` as unknown as [{ t: string }];
    assertEquals(t, "x");
  });
});

both("fragments, filters, functions and ordering by choice", async (make) => {
  const sql = make();
  const on = filtersOn();
  const above = (n: number): postgres.Fragment => sql`and n > ${n}`;
  const rows = await sql`select n from generate_series(1, 5) n where true ${above(2)}
    ${on ? sql`and n < ${5}` : sql``} order by ${sql`n desc`}`;
  assertEquals(rows.map(({ n }) => n), [4, 3]);
  const filters = [sql`n > 1`, sql`and n < 3`];
  assertEquals((await sql`select n from generate_series(1, 5) n where ${filters}`).length, 1);
  const now = sql`now()`;
  assertEquals((await sql`select ${on ? now : sql`null`} is not null as known`)[0], {
    known: true,
  });
  assertEquals([...await sql`${sql`select`} 1 as x`], [{ x: 1 }]);
});

both("arrays of many types", async (make) => {
  const sql = make();
  // The bare client knows of array types only after its first connection.
  await sql`select 1`;
  const [row] = await sql`select ${sql.array([1, 2, 3])}::int[] as i, ${[
    "a",
    'q"\\,',
  ] as string[]}::text[] as s,
    array[array[1,2],array[3,4]] as nested, ${sql.array([new Date(0)])}::timestamptz[] as d,
    array[true, false] as b`;
  assertEquals(
    row,
    {
      i: [1, 2, 3],
      s: ["a", 'q"\\,'],
      nested: [[1, 2], [3, 4]],
      d: [new Date(0)],
      b: [true, false],
    } as typeof row,
  );
});

both("json", async (make) => {
  const sql = make();
  const value = { a: [1, { b: "x" }], c: null };
  const [row] = await sql`select ${sql.json(value)}::jsonb as j, ${value as never}::json as k`;
  assertEquals(row, { j: value, k: value } as typeof row);
});

both("values, raw, describe, forEach", async (make) => {
  const sql = make();
  assertEquals([...await sql`select 1 as a, 'x' as b`.values()], [[1, "x"]]);
  const [raw] = await sql`select 12 as a`.raw();
  assertEquals(String(raw![0]), "12");
  const described = await sql`select ${1}::int as a, 'x'::text as b`.describe();
  assertEquals([described.types, described.columns.map(({ name }) => name)], [[23], ["a", "b"]]);
  const seen: number[] = [];
  const { count } = await sql<{ n: number }[]>`select n from generate_series(1, 3) n`.forEach(
    ({ n }) => {
      seen.push(n);
    },
  );
  assertEquals([seen, count], [[1, 2, 3], 3]);
});

both("cursor with a callback, ended early by CLOSE", async (make) => {
  const sql = make();
  const seen: number[] = [];
  await sql`select n from generate_series(1, 10) n`.cursor(3, (rows) => {
    seen.push(...rows.map(({ n }) => n as number));
    return (seen.length >= 6 ? sql.CLOSE : undefined) as never;
  });
  assertEquals(seen, [1, 2, 3, 4, 5, 6]);
  assertEquals([...await sql`select 1 as x`], [{ x: 1 }]);
});

both("cursor as an async iterator, ended early by break", async (make) => {
  const sql = make();
  const sizes: number[] = [];
  for await (const rows of sql`select generate_series(1, 10)`.cursor(4)) sizes.push(rows.length);
  assertEquals(sizes, [4, 4, 2]);
  for await (const rows of sql`select generate_series(1, 10)`.cursor(4)) {
    sizes.push(rows.length);
    break;
  }
  assertEquals(sizes, [4, 4, 2, 4]);
  const error = await failure((async () => {
    for await (const _ of sql`select 1 / (3 - n) from generate_series(1, 10) n`.cursor(1));
  })());
  assertEquals(error.code, "22012");
  assertEquals([...await sql`select 1 as x`], [{ x: 1 }]);
});

both("several cursors and statements at once", async (make) => {
  const sql = make();
  const sums = await Promise.all(Array.from({ length: 12 }, async (_, i) => {
    if (i % 2 === 0) return (await sql<{ s: number }[]>`select ${i}::int as s`)[0]!.s;
    let sum = 0;
    for await (
      const rows of sql<{ n: number }[]>`select n from generate_series(1, 9) n`.cursor(2)
    ) {
      for (const { n } of rows) sum += n;
    }
    return sum;
  }));
  assertEquals(sums, [0, 45, 2, 45, 4, 45, 6, 45, 8, 45, 10, 45]);
});

both("unsafe, with parameters, and several statements in one", async (make) => {
  const sql = make();
  assertEquals([...await sql.unsafe("select $1::int + 1 as n", [41])], [{ n: 42 }]);
  const results = await sql.unsafe("select 1 as a; select 2 as b");
  assertEquals(results.map((rows) => [...rows as unknown as Iterable<unknown>]), [
    [{ a: 1 }],
    [{ b: 2 }],
  ]);
  const simple = await sql`select 1 as a; select 2 as b`.simple();
  assertEquals(simple.length, 2);
  assertEquals([...await sql`select ${sql.unsafe("1 + 1")} as n`], [{ n: 2 }]);
});

both("file, with and without parameters", async (make) => {
  const sql = make();
  const path = join(tmpdir(), `${uniqueName("q")}.sql`);
  await writeFile(path, "select $1::int * 2 as n");
  try {
    assertEquals([...await sql.file(path, [21])], [{ n: 42 }]);
    await writeFile(path, "select 1 as a; select 2 as b;");
    assertEquals((await sql.file(path)).length, 2);
    assertEquals((await failure(sql.file(`${path}.none`))).code, "ENOENT");
  } finally {
    await rm(path);
  }
});

both("COPY out and in", async (make) => {
  const sql = make();
  await withTable(sql, "id int, name text", async (table) => {
    const into = await sql`copy ${sql(table)} from stdin`.writable();
    await feed(into, "1\tone\n2\ttwo\n");
    // The driver's own stream may finish before the server has taken the rows.
    await eventually(async () => {
      const out = await sql`copy (select * from ${sql(table)} order by id) to stdout`.readable();
      assertEquals(await drain(out), "1\tone\n2\ttwo\n");
    });
  });
});

both("cancel", async (make) => {
  const sql = make();
  const slow = sql`select pg_sleep(50)`.execute();
  const others = [1, 2, 3].map((n) => sql`select ${n}::int as n, pg_sleep(0.1)`.execute());
  setTimeout(() => slow.cancel(), 50);
  const started = Date.now();
  const error = await failure(slow);
  assertEquals(error.code, "57014");
  assert(Date.now() - started < 30_000);
  assertEquals((await Promise.all(others)).map(([row]) => row!["n"]), [1, 2, 3]);
});

both("errors: fields of the server, name, query", async (make) => {
  const sql = make({ debug: true });
  const error = await failure(sql`select * from no_such_table_anywhere where x = ${1}`);
  assertEquals([error.name, error.code], ["PostgresError", "42P01"]);
  assertInstanceOf(error, sql.PostgresError);
  assertEquals(error.query, "select * from no_such_table_anywhere where x = $1");
});

both("not tagged", async (make) => {
  const sql = make();
  const error = await failure((async () => await (sql("x") as unknown as Promise<void>))());
  assertEquals(error.code, "NOT_TAGGED_CALL");
});

both("more parameters than the protocol takes", async (make) => {
  const sql = make();
  const error = await failure(sql`select ${sql(Array.from({ length: 65534 }, () => 1) as never)}`);
  assert(error.message !== "");
  assertEquals([...await sql`select 1 as x`], [{ x: 1 }]);
});

both("statements without prepared statements", async (make) => {
  const sql = make({ prepare: false });
  const rows = await Promise.all(Array.from({ length: 20 }, (_, n) => sql`select ${n}::int as n`));
  assertEquals(rows.map(([row]) => row!["n"]), rows.map((_, n) => n));
});
