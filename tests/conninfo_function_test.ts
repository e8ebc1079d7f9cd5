import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { SimpleConnectionPool } from "../mod.ts";
import { parseSettings } from "../src/postgres/options.ts";
import { test } from "./support/harness.ts";
import { connectorFor, openWith, rejection, within } from "./support/postgres.ts";
import { testServer } from "./support/server.ts";

test("a function in place of a connection string is asked at each connect", async () => {
  const { url } = await testServer();
  let asked = 0;
  const users: string[] = [];
  const dsn = () => {
    asked++;
    return Promise.resolve(`${url}?application_name=function_${asked}`);
  };
  await using pool = new SimpleConnectionPool(0, 2, dsn);
  assertEquals(asked, 0);
  const [a, b] = await Promise.all([pool.getconn(), pool.getconn()]);
  for (const conn of [a, b]) {
    users.push((await conn`select current_setting('application_name') as name`)[0]!["name"]);
  }
  await Promise.all([pool.putconn(a), pool.putconn(b, null, true)]);
  assertEquals([users.toSorted(), asked], [["function_1", "function_2"], 2]);
  assertStringIncludes(JSON.stringify(pool.options), '"conninfo":"function"');
});

test("options count more than what the function gives, which may be keywords as well", async () => {
  const keywords = () => ({ host: "h", user: "u", dbname: "d", password: "p" });
  const connect = await parseSettings([keywords, { dbname: "other" }]).next();
  assertEquals(
    [connect.targets[0]!.host, connect.user, connect.database],
    ["h", "u", "other"],
  );
  assertEquals(await connect.auth.password(connect.targets[0]!), "p");
  const same = await parseSettings([{ dsn: keywords }]).next();
  assertEquals(same.database, "d");
});

test("what a function must not give fails that connect, and says why", async () => {
  const cases: [() => unknown, string][] = [
    [() => {
      throw new Error("no vault today");
    }, "no vault today"],
    [() => Promise.reject(new Error("no vault at all")), "no vault at all"],
    [() => undefined, "gave none"],
    [() => 5, "gave none"],
    [() => "", "this is an empty one"],
    [() => ({}), "this is an empty one"],
    [() => new URL("postgres://u:p@h/d"), "write url.href"],
    [() => new Map([["host", "h"]]), "without any property of its own"],
    [() => "host='x", "the quote ' has no end"],
    [() => "host=h prepare=false", "give it beside the function"],
    [() => ({ host: "h", types: {} }), "give it beside the function"],
    [() => ({ hots: "h" }), "did you mean host?"],
    [() => ({ dsn: "host=h" }), "give it beside the function"],
  ];
  for (const [dsn, part] of cases) {
    const error = await rejection(openWith(connectorFor(dsn)));
    assertStringIncludes(error.message, part);
  }
  // What does not depend on it is refused at once.
  assertThrows(() => connectorFor(() => "host=h", { sslmode: "bogus" }), RangeError, "sslmode");
  assertThrows(() => connectorFor(() => "host=h", { dsn: "host=h" }), TypeError, "given twice");
});

test("a function that hangs costs one connect, for as long as one may take", async () => {
  const hanging = () => new Promise<string>(() => {});
  const connector = connectorFor(hanging, { connect_timeout: 0.05 });
  assertStringIncludes((await rejection(openWith(connector))).message, "gave none in time");
  const controller = new AbortController();
  const opening = openWith(connectorFor(hanging), undefined, controller.signal);
  controller.abort(new Error("the pool closes"));
  await within(assertRejects(() => opening, Error, "the pool closes"));
});

test("a function has the time of a connect, which a connect_timeout below 0 does not limit", () => {
  const limits = [["-1", 0], ["0", 0], [null, 0], ["2.5", 2_500], ["99999999", 2_147_483_000]];
  for (const [given, milliseconds] of [...limits, [undefined, 30_000]]) {
    const options = { host: "localhost", connect_timeout: given };
    const { fixed } = parseSettings([options]);
    const { patience } = parseSettings([() => "", options]);
    assertEquals([fixed?.connectTimeout, patience], [milliseconds, milliseconds]);
  }
});

test("a pool recovers when its function does", async () => {
  const { url } = await testServer();
  let fails = true;
  await using pool = new SimpleConnectionPool(0, 1, () => {
    if (fails) throw new Error("not yet");
    return url;
  });
  await assertRejects(() => pool.getconn(), Error, "not yet");
  fails = false;
  const conn = await pool.getconn(null, { timeout: 60_000 });
  assert(conn.pid > 0);
  await pool.putconn(conn);
});
