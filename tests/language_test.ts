/** What is relied upon of the driver, held against the one that is installed; and what the language makes of queries. */

import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { readFile } from "node:fs/promises";
import { type Connection, limited, SimpleConnectionPool } from "@getconn/pool";
import { check, Language, parseOptions, RELIED_UPON } from "../src/postgres/language.ts";
import { test } from "./support/harness.ts";
import { lent, rejection, within } from "./support/postgres.ts";
import { testServer } from "./support/server.ts";

const driver = new URL("../node_modules/postgres/", import.meta.url);

async function withConnection(
  fn: (conn: Connection) => Promise<void>,
  options: Record<string, unknown> = {},
): Promise<void> {
  await using it = await lent(options);
  await fn(it.conn);
}

test("all that is relied upon stands in the installed driver", async () => {
  const { version } = JSON.parse(await readFile(new URL("package.json", driver), "utf8"));
  assertMatch(version, /^3\.4\.(9|\d\d)$/);
  const { dependencies } = JSON.parse(
    await readFile(new URL("../package.json", import.meta.url), "utf8"),
  );
  assertEquals(dependencies.postgres, "~3.4.9");
  for (const build of ["src", "cjs/src"]) {
    const source = await readFile(new URL(`${build}/query.js`, driver), "utf8") +
      await readFile(new URL(`${build}/types.js`, driver), "utf8");
    for (const [name, fields] of Object.entries(RELIED_UPON)) {
      for (const field of fields) {
        assert(new RegExp(`\\b${field}\\b`).test(source), `${name}.${field} in ${build}`);
      }
    }
  }
});

test("a driver that lacks what is relied upon is refused with a clear error", () => {
  const { sql } = new Language(parseOptions({}));
  const inside = sql as unknown as (...args: unknown[]) => unknown;
  const lacking = Object.assign((...args: unknown[]) => inside(...args), sql, {
    unsafe: () => ({ strings: [""], args: [] }),
  });
  assertThrows(() => check(lacking as never), Error, "its Query has no tagged");
  assertStringIncludes(
    assertThrows(() => check(lacking as never), Error).message,
    "install postgres 3.4.9",
  );
});

test("helpers of a second copy of the driver are known by their shape", () =>
  withConnection(async (conn) => {
    const other = (await import(new URL("cjs/src/index.js", driver).href)).default({
      max: 1,
      host: "localhost",
      user: "nobody",
    });
    assert(other.json(1).constructor !== conn.json(1).constructor);
    const [row] = await conn`
      select ${other.json({ a: [1] })}::jsonb as j, ${other("a")} from (select 7 as a) t
      where ${other`a = ${7}`} and a in ${other([7, 8])}`;
    assertEquals(row, { j: { a: [1] }, a: 7 });
    assertEquals([...await conn`select ${other.array(["x"], 1009)} as a`], [{ a: ["x"] }]);
  }));

test("what cannot be sent is refused, touches no neighbour and leaves the session idle", () =>
  withConnection(async (conn) => {
    const bad = [
      () => conn`select ${undefined as never}`,
      () => conn`select ${Promise.resolve(1) as never}`,
      () => conn.unsafe(7 as never),
      () => conn.unsafe(undefined as never),
      () => conn.unsafe("select '\0'"),
      () => conn.unsafe("select $1", [undefined as never]),
      () => conn`insert into t ${conn({ a: undefined } as never)}`,
    ];
    const all = await Promise.allSettled(
      bad.flatMap((make, i) => [conn`select ${i}::int as i`, make()]),
    );
    for (const [i, one] of all.entries()) {
      if (i % 2 === 1) assertEquals(one.status, "rejected", `${(i - 1) / 2}`);
      else assertEquals(one.status === "fulfilled" && one.value[0]!["i"], i / 2);
    }
    assertEquals(conn.transactionStatus, "idle");
  }));

test("an error of the server has the caller's line, and costs no Error where all goes well", () =>
  withConnection(async (conn) => {
    const error = await rejection((async () => await conn`select nothing`)());
    assertMatch(String(error.stack), /language_test\.ts/);
    assertEquals((error as { query?: string }).query, "select nothing");
    assertEquals(Object.keys(error).includes("query"), false);
  }));

test("65,535 parameters are sent, one more is refused", () =>
  withConnection(async (conn) => {
    const values = Array.from({ length: 65_535 }, (_, i) => i);
    const text = `select count(*)::int as n from (values ${
      values.map((_, i) => `($${i + 1}::int)`).join(",")
    }) t`;
    assertEquals((await conn.unsafe(text, values))[0]!["n"], 65_535);
    const error = await rejection(conn.unsafe("select 1", [...values, 1]));
    assertEquals(error.code, "MAX_PARAMETERS_EXCEEDED");
  }));

test("a column named __proto__ is a column", () =>
  withConnection(async (conn) => {
    const [row] = await conn.unsafe(`select 1 as "__proto__", 2 as b`);
    assertEquals(Object.entries(row!), [["__proto__", 1], ["b", 2]]);
    assertEquals(Object.getPrototypeOf(row), Object.prototype);
  }));

test("transform.row and debug see the user's statements only", async () => {
  const told: string[] = [];
  await withConnection(async (conn) => {
    await conn.begin((sql) => sql`select 1 as a`);
    await conn.rollback();
    assertEquals([...await conn`select 1 as a`], [{ a: 1, seen: true }] as never);
  }, {
    debug: (_id: number, text: string) => void told.push(text),
    transform: { row: (row: object) => ({ ...row, seen: true }) },
  });
  assertEquals(told, ["select 1 as a", "select 1 as a"]);
});

test("queryTimeout and a signal cancel at the server, for all statements or one", async () => {
  await withConnection(async (conn) => {
    const error = await rejection(conn`select pg_sleep(30)`);
    assertEquals(error.code, "QUERY_TIMEOUT");
    assertEquals((error.cause as { code?: string }).code, "57014");
    // The session is fine.
    assertEquals([...await conn`select 1 as a`], [{ a: 1 }]);
    const own = await rejection(
      conn.unsafe("select pg_sleep(30)", [], { queryTimeout: 50 } as never),
    );
    assertStringIncludes(own.message, "50 ms");
    assertEquals(
      [
        ...await conn.unsafe("select 1 as a, pg_sleep(2)", [], {
          queryTimeout: 0,
        } as never),
      ].length,
      1,
    );
  }, { queryTimeout: 1_500 });
  await withConnection(async (conn) => {
    const giveUp = new AbortController();
    const running = rejection(
      conn.unsafe("select pg_sleep(30)", [], { signal: giveUp.signal } as never),
    );
    setTimeout(() => giveUp.abort(new Error("no longer wanted")), 100);
    assertEquals((await running).message, "no longer wanted");
    const never = await rejection(
      limited(conn.unsafe("select pg_sleep(30)"), { signal: giveUp.signal }),
    );
    assertEquals(never.message, "no longer wanted");
    assertEquals(conn.transactionStatus, "idle");
    for (const queryTimeout of [-1, NaN, "1", Infinity]) {
      assertThrows(() => conn.unsafe("select 1", [], { queryTimeout } as never), RangeError);
    }
    assertThrows(() => conn.unsafe("select 1", [], { signal: {} } as never), TypeError);
    assertEquals([...await conn.unsafe("select 1 as a", [], { signal: null } as never)], [{
      a: 1,
    }]);
    assertEquals([...await limited(conn`select 1 as a`, { signal: null })], [{ a: 1 }]);
    assertThrows(() => limited(Promise.resolve(1), {}), TypeError, "a statement of a pool");
  });
});

test("limited() refuses limits that would have no effect: misspelt, of no kind, or too late", () =>
  withConnection(async (conn) => {
    const misspelt = { queryTimout: 5 } as never;
    assertThrows(() => limited(conn`select 1`, misspelt), TypeError, '"queryTimout" of limited');
    for (const limits of [undefined, null, 5, "5", [], AbortSignal.timeout(5)]) {
      assertThrows(() => limited(conn`select 1`, limits as never), TypeError, "limited");
    }
    const running = conn`select 1 as a`;
    const answer = running.execute();
    assertEquals([...await limited(running, { queryTimeout: 10_000 })], [{ a: 1 }], "in its turn");
    assertThrows(() => limited(running, { queryTimeout: 5 }), TypeError, "too late");
    await answer;
  }));

test("a statement in the loop over a cursor of the same session works, and a cursor left is closed", () =>
  withConnection(async (conn) => {
    const seen: number[] = [];
    const all = (async () => {
      for await (const rows of conn`select n::int from generate_series(1, 25) n`.cursor(10)) {
        const [row] = await conn`select count(*)::int as open from pg_cursors where name <> ''`;
        assertEquals(row!["open"], 1);
        seen.push(rows.length);
      }
    })();
    await within(all);
    assertEquals(seen, [10, 10, 5]);
    assertEquals(conn.transactionStatus, "idle");
    await conn.begin(async (sql) => {
      for await (const rows of sql`select * from generate_series(1, 25)`.cursor(10)) {
        assertEquals(rows.length, 10);
        for await (const inner of sql`select * from generate_series(1, 3)`.cursor(2)) {
          assert(inner.length > 0);
        }
        break;
      }
      assertEquals([...await sql`select * from pg_cursors where name <> ''`], []);
    });
    const error = await rejection((async () => {
      for await (const _ of conn`select 1 / (3 - n) from generate_series(1, 25) n`.cursor(2));
    })());
    assertEquals(error.code, "22012");
    assertEquals(conn.transactionStatus, "idle");
  }));

test("a server's error ends with the caller's line, on a lease and through pool.sql, and with no caller's caller", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 1, url);
  async function onLease(conn: Connection): Promise<void> {
    await conn`select nope`;
  }
  async function inTransaction(conn: Connection): Promise<void> {
    await conn.begin(async (sql) => await sql`select nope`);
  }
  async function onPool(): Promise<void> {
    await pool.sql`select nope`;
  }
  const works: [RegExp, () => Promise<unknown>][] = [
    [/onLease.*language_test/, () => pool.use(onLease)],
    [/language_test/, () => pool.use(inTransaction)],
    [/onPool.*language_test/, onPool],
  ];
  for (const [expected, work] of works) {
    for (let i = 0; i < 2; i++) {
      const error = await work().then(() => null, (error) => error as Error);
      const stack = String(error?.stack).split("\n");
      assertMatch(stack.at(-1)!, expected);
      assertEquals(stack.filter((line) => line.includes("language_test")).length, 1, error?.stack);
    }
  }
});
