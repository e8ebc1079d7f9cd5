/** Where the driver's own suite has found `pool.sql` to differ: failures to connect, odd texts, transforms, parameters. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import postgres from "postgres";
import { limited, SimpleConnectionPool } from "@getconn/pool";
import { asAdmin, testServer } from "./support/server.ts";
import { test } from "./support/harness.ts";
import { both, type ClientOptions, failure } from "./support/sql.ts";
import { tick } from "./support/sql_pool.ts";

both("what a socket function throws reaches the statement as an error", async (make) => {
  for (const thrown of ["wat", null, 7]) {
    const sql = make({
      socket: () => {
        throw thrown;
      },
    } as ClientOptions);
    const error = await failure(sql`select 1 as x`) as unknown;
    assertEquals([error instanceof Error, (error as Error).message], [true, String(thrown)]);
  }
});

both("a statement gets the server's own refusal of a login", async (make) => {
  const sql = make({ user: "nobody_of_this_name", password: "wrong", max: 1 } as ClientOptions);
  const error = await failure(sql`select 1`);
  assertEquals(error.name, "PostgresError");
  assertEquals(error.code?.startsWith("28"), true);
  const begun = await failure(sql.begin(() => 1));
  assertEquals([begun.name, begun.code], [error.name, error.code]);
});

test("with a timeout of the pool, too, a refusal that waiting does not mend is the statement's error", async () => {
  const { url } = await testServer();
  const pool = new SimpleConnectionPool(0, 1, url, {
    dbname: "no_database_of_this_name",
    pool: { timeout: 60_000 },
  });
  const all = [pool.sql`select 1`, pool.sql.begin(() => 1), pool.sql.reserve()];
  const codes = await Promise.all(all.map(async (one) => (await failure(one)).code));
  assertEquals(codes, ["3D000", "3D000", "3D000"]);
  await pool.close();
});

both(
  "an error tells parameters as they were given, where the server knew no types for them",
  async (make) => {
    const sql = make();
    const parametersOf = async (query: PromiseLike<unknown>) =>
      (await failure(query) as unknown as { parameters: unknown[] }).parameters;
    assertEquals(await parametersOf(sql`selec ${1}`), [1]);
    assertEquals(await parametersOf(sql`select ${1}::int / ${0}::int`), ["1", "0"]);
  },
);

for (const name of ["toCamel", "fromCamel", "camel", "toPascal", "kebab"] as const) {
  both(`transform: postgres.${name}`, async (make) => {
    const sql = make({ transform: postgres[name] } as ClientOptions);
    const [row] = await sql`select 1 as a_b, ${sql.json({ c_d: 1 } as never)}::jsonb as j_k`;
    const expected: Record<string, unknown> = {
      toCamel: { aB: 1, jK: { cD: 1 } },
      camel: { aB: 1, jK: { cD: 1 } },
      toPascal: { AB: 1, JK: { CD: 1 } },
      kebab: { "a-b": 1, "j-k": { "c-d": 1 } },
      fromCamel: { a_b: 1, j_k: { c_d: 1 } },
    };
    assertEquals({ ...row }, expected[name] as Record<string, unknown>);
  });
}

both("unsafe() takes what knows to become a text; what that throws rejects", async (make) => {
  const sql = make();
  const text = { toString: () => "select 1 as x" };
  assertEquals([...await sql.unsafe(text as never)], [{ x: 1 }]);
  const bad = {
    toString: () => {
      throw new Error("wat");
    },
  };
  assertEquals((await failure(sql.unsafe(bad as never))).message, "wat");
  await sql`select 1`;
});

test("unsafe() and file() say what they take when they get null, or anything else, for values and options", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 2, url);
  await pool.use(async (conn) => {
    for (const sql of [pool.sql, conn]) {
      for (const fn of [sql.unsafe, sql.file] as ((...args: unknown[]) => unknown)[]) {
        const what = fn === sql.unsafe ? "unsafe takes a text" : "file takes a path";
        const cases: [unknown[], string][] = [
          [[null], "Received null in the place of the values"],
          [["x"], "Received string in the place of the values"],
          [[null, {}], "Received null in the place of the values"],
          [[{}, {}], "Received object in the place of the values"],
          [[[1], null], "Received null in the place of the options"],
          [[[1], 5], "Received number in the place of the options"],
        ];
        for (const [args, words] of cases) {
          const error = assertThrows(() => fn("select 1", ...args), TypeError);
          assert(error.message.startsWith(what) && error.message.endsWith(words), error.message);
        }
      }
      assertEquals([...await sql.unsafe("select 1 as x", undefined, undefined)], [{ x: 1 }]);
      assertEquals([...await sql.unsafe("select 1 as x", { prepare: true } as never)], [{ x: 1 }]);
    }
  });
});

test("unsafe() refuses what is no text, and a transform that has no effect is refused", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 1, url);
  for (const text of [undefined, null, 5, {}, ["select 1"], () => "select 1"]) {
    assertEquals(
      (await failure(pool.sql.unsafe(text as never))).message.startsWith("the text of a statement"),
      true,
    );
  }
  await pool.sql`select 1`;
  let message = "";
  try {
    new SimpleConnectionPool(0, 1, url, { transform: ((x: string) => x) as never });
  } catch (error) {
    message = (error as Error).message;
  }
  assertEquals(message.startsWith("the option transform must be an object"), true);
  await asAdmin((admin) => admin`select 1`);
});

test("the reason of a statement's signal is what it rejects with, whatever it is, while it waits", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 1, url);
  const lease = await pool.getconn();
  for (const text of ["select 1", "vacuum"]) {
    const abort = new AbortController();
    const query = limited(pool.sql.unsafe(text), { signal: abort.signal }).execute();
    const word = Promise.resolve(query).then(() => "ok", (reason: unknown) => reason);
    await tick();
    abort.abort("enough");
    assertEquals(await word, "enough");
  }
  await pool.putconn(lease);
});
