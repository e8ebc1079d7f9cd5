/** Values as the server writes and reads them, where the driver is wrong. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { Buffer } from "node:buffer";
import postgres from "postgres";
import { test } from "./support/harness.ts";
import { lent } from "./support/postgres.ts";

test("years before 1000 and above 9999, BC, infinity and odd offsets are what they are", async () => {
  await using it = await lent();
  const { conn } = it;
  const cases: [string, number][] = [
    ["0044-03-15 12:00:00+00 BC", Date.UTC(-43, 2, 15, 12)],
    ["0001-01-01 00:00:00+00", new Date("0001-01-01T00:00:00Z").getTime()],
    ["0099-12-31 23:59:59.123+00", new Date("0099-12-31T23:59:59.123Z").getTime()],
    ["20000-02-29 00:00:00+00", Date.UTC(20000, 1, 29)],
    ["2020-01-01 00:00:00+00", Date.UTC(2020, 0, 1)],
  ];
  for (const [text, time] of cases) {
    const [row] = await conn`select ${text}::text::timestamptz as t`;
    assertEquals((row!["t"] as Date).getTime(), time, text);
    // And back.
    const [back] = await conn`select ${new Date(
      time,
    )}::timestamptz = ${text}::text::timestamptz as same`;
    assertEquals(back, { same: true }, text);
  }
  await conn`set timezone = 'Asia/Kolkata'`;
  const [odd] = await conn`select '1800-01-01 00:00:00+00'::timestamptz as t`;
  assertEquals((odd!["t"] as Date).getTime(), Date.UTC(1800, 0, 1));
  const [days] = await conn`select '0044-03-15 BC'::date as bc, '0999-01-01'::date as old`;
  assertEquals((days!["bc"] as Date).getTime(), Date.UTC(-43, 2, 15));
  assertEquals((days!["old"] as Date).toISOString(), "0999-01-01T00:00:00.000Z");
  const [ends] = await conn`
    select 'infinity'::timestamptz as a, '-infinity'::date as b,
      ${Infinity as never}::timestamptz = 'infinity' as c`;
  assertEquals(ends, { a: Infinity, b: -Infinity, c: true });
});

test("a DateStyle that was changed in the session is an error and not another date", async () => {
  await using it = await lent();
  await it.conn`set datestyle = 'SQL, DMY'`;
  await assertRejects(async () => await it.conn`select now() as t`, Error, "DateStyle");
  await it.conn`set datestyle = 'ISO'`;
  assert((await it.conn`select now() as t`)[0]!["t"] instanceof Date);
});

test("DateStyle, IntervalStyle and bytea_output of a role do not change values", async () => {
  await using admin = await lent();
  await admin.conn.unsafe(`
    drop role if exists odd_styles;
    create role odd_styles superuser login password 'x';
    alter role odd_styles set datestyle = 'German';
    alter role odd_styles set intervalstyle = 'iso_8601';
    alter role odd_styles set bytea_output = 'escape'`);
  await using it = await lent({ user: "odd_styles", password: "x" });
  const bytes = Buffer.from([0, 1, 92, 127, 128, 255, 65]);
  const [row] = await it.conn`
    select '2020-02-03'::date as d, '1 day 2 hours'::interval as i, ${bytes}::bytea as b,
      array[${bytes}::bytea, null] as bs`;
  assertEquals((row!["d"] as Date).toISOString(), "2020-02-03T00:00:00.000Z");
  assertEquals(row!["i"], "1 day 02:00:00");
  assertEquals(row!["b"], bytes);
  assertEquals(row!["bs"], [bytes, null]);
  await it[Symbol.asyncDispose]();
  await admin.conn`drop role odd_styles`;
});

test("a session whose client_encoding is changed is left", async () => {
  await using it = await lent();
  await it.conn`set client_encoding = 'LATIN1'`.catch(() => {});
  assertEquals(it.conn.closed, true);
  assertEquals(
    String((it.session.reason?.cause as Error).message).includes("client_encoding"),
    true,
  );
});

test("arrays of booleans, dates, bigints and bytea are plain parameters; NULL in arrays is null", async () => {
  await using it = await lent();
  const { conn } = it;
  await conn`create temporary table t (b bool[], d timestamptz[], n int8[], y bytea[], j jsonb)`;
  const row = {
    b: [true, null, false],
    d: [new Date(0), null],
    n: [1n, null, 2n ** 62n],
    y: [Buffer.from([1, 255]), null],
    j: [true, false],
  };
  await conn`insert into t values (${row.b}, ${row.d}, ${row.n as never}, ${row.y}, ${row.j})`;
  await conn`insert into t ${conn(row as never)}`;
  for (const got of await conn`select * from t`) {
    assertEquals(got, { ...row, n: ["1", null, String(2n ** 62n)] } as never);
  }
  assertEquals([...await conn`select 1 as a where 2 = any(${[1n, 2n] as never})`], [{ a: 1 }]);
  const [nulls] = await conn`
    select array[1, null] as i, array['NULL', null] as t, array[true, null] as b,
      array[now(), null] is not null as d, '{{1,NULL},{NULL,2}}'::int[] as m, '[0:1]={1,2}'::int[] as s`;
  assertEquals(nulls, {
    i: [1, null],
    t: ["NULL", null],
    b: [true, null],
    d: true,
    m: [[1, null], [null, 2]],
    s: [1, 2],
  });
});

test("elements of json[] that look like a value with a type are stored whole", async () => {
  await using it = await lent();
  const { conn } = it;
  const elements = [{ type: "circle", value: 5 }, { type: 114, value: null }, { type: "x" }];
  for (const given of [elements, conn.array(elements as never, 3807)]) {
    const [row] = await conn`select ${given as never}::jsonb[] as a`;
    assertEquals(row!["a"], elements);
  }
  const typed = [conn.typed({ a: 1 } as never, 114), conn.json({ type: 1, value: 2 })];
  const [row] = await conn`select ${typed as never}::jsonb[] as a`;
  assertEquals(row!["a"], [{ a: 1 }, { type: 1, value: 2 }]);
});

test("transform takes the driver's functions that carry one", async () => {
  for (const transform of [postgres.toCamel, postgres.camel]) {
    await using it = await lent({ transform });
    assertEquals([...await it.conn`select 1 as a_b`], [{ aB: 1 }]);
  }
});

test("every view of a buffer is written as its bytes", async () => {
  await using it = await lent();
  const bytes = Uint8Array.from([9, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  const { buffer } = bytes;
  const views: [ArrayBufferView | ArrayBuffer, number[]][] = [
    [bytes.subarray(1, 3), [1, 2]],
    [new DataView(buffer, 1, 3), [1, 2, 3]],
    [new Uint16Array(buffer, 2, 2), [2, 3, 4, 5]],
    [new BigInt64Array(buffer, 0, 1), [9, 1, 2, 3, 4, 5, 6, 7]],
    [Uint8ClampedArray.from([1, 255]), [1, 255]],
    [buffer, [...bytes]],
  ];
  for (const [view, expected] of views) {
    const [row] = await it.conn`select ${view as never}::bytea as a, ${[
      view,
    ] as never}::bytea[] as b`;
    assertEquals([...row!["a"]], expected);
    assertEquals([...row!["b"][0]], expected);
  }
});
