import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { test } from "./support/harness.ts";
import { lent } from "./support/postgres.ts";

test("assigning a member that a connection does not have throws, and says what to do", async () => {
  await using one = await lent();
  const conn = one.conn as unknown as Record<string, unknown>;
  const cases: [string, string][] = [
    ["autocommit", "there is no implicit transaction"],
    ["isolation_level", "pool.transaction"],
    ["notices", "onnotice"],
    ["myOwn", "WeakMap"],
  ];
  for (const [name, advice] of cases) {
    const error = assertThrows(() => conn[name] = true, TypeError, name);
    assertStringIncludes(error.message, advice);
    assertEquals([conn[name], name in conn], [undefined, false]);
  }
  for (const name of ["pid", "closed", "unsafe"]) {
    assertThrows(() => conn[name] = 1, TypeError);
  }
  // A transaction's handle likewise.
  await one.conn.begin((sql) => {
    assertThrows(() => (sql as unknown as Record<string, unknown>)["autocommit"] = true, TypeError);
  });
});

test("methods of psycopg2 that a connection does not have say what to write", async () => {
  await using one = await lent();
  const conn = one.conn as unknown as Record<string, () => unknown>;
  for (
    const [name, advice] of [
      ["commit", "pool.transaction"],
      ["cursor", "gives the rows"],
      ["copy_expert", "copy … from stdin"],
      ["set_session", "mode"],
    ] as const
  ) {
    assertStringIncludes(assertThrows(() => conn[name]!(), TypeError).message, advice);
  }
  assertEquals(conn["then"], undefined);
});

test("an object that inherits from a connection keeps what is assigned to it", async () => {
  await using one = await lent();
  const own = Object.create(one.conn);
  own.autocommit = true;
  assertEquals([own.autocommit, Object.keys(own)], [true, ["autocommit"]]);
});
