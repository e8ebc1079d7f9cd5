/** What the types promise; the test is that this file compiles, and that the values are so. */
import type postgres from "postgres";
import { assertEquals } from "@std/assert";
import {
  AbstractConnectionPool,
  type Connection,
  type PoolSettings,
  type PoolStats,
  SimpleConnectionPool,
} from "../mod.ts";
import { FakePool, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true
  : false;

/** Compiles only when the two types are the same. */
function same<A, B>(_: Equal<A, B>): void {}

test("getconn gives a Connection with postgres.js's typed templates", async () => {
  await using pool = new SimpleConnectionPool(0, 1, (await testServer()).url);
  await using conn = await pool.getconn();
  same<typeof conn, Connection>(true);
  const rows = await conn<{ id: number }[]>`select 1 as id`;
  const row: { id: number } | undefined = rows[0];
  assertEquals(row?.id, 1);
  // @ts-expect-error -- no such column
  assertEquals(rows[0]?.name, undefined);
  const values = await conn<{ id: number }[]>`select 2 as id`.values();
  const first: number[] | undefined = values[0];
  assertEquals(first, [2]);
  const plain: postgres.Sql = conn;
  assertEquals((await plain`select 3 as id`)[0]?.["id"], 3);
});

test("use and transaction give what their function gives", async () => {
  await using pool = new SimpleConnectionPool(0, 1, (await testServer()).url);
  const one = await pool.use(() => 1);
  same<typeof one, number>(true);
  const two = await pool.transaction(async (conn) => {
    same<typeof conn, Connection>(true);
    const [row] = await conn<{ n: string }[]>`select 'two' as n`;
    return row?.n;
  });
  same<typeof two, string | undefined>(true);
  assertEquals([one, two], [1, "two"]);
});

test("a pool of something else gives that", async () => {
  await using pool = new FakePool(0, 1);
  const thing = await pool.getconn();
  same<typeof thing, Thing>(true);
  const base: AbstractConnectionPool<Thing> = pool;
  await base.putconn(thing);
  same<ReturnType<typeof base.stats>, PoolStats>(true);
  same<typeof base.options, PoolSettings>(true);
});

test("bad types do not compile", () => {
  const never = (): void => {
    // @ts-expect-error -- sizes are numbers
    new SimpleConnectionPool("1", 2);
    // @ts-expect-error -- the pool owns max
    new SimpleConnectionPool(1, 2, { max: 3 });
    // @ts-expect-error -- an option that does not exist
    new SimpleConnectionPool(1, 2, { pool: { maxIdel: 3 } });
    // @ts-expect-error -- there is no such kind of server
    new SimpleConnectionPool(1, 2, { target_session_attrs: "any-thing" });
    // @ts-expect-error -- abstract
    new AbstractConnectionPool(1, 2);
  };
  assertEquals(typeof never, "function");
});
