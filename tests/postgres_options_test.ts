import { assert, assertEquals, assertThrows } from "@std/assert";
import process from "node:process";
import type postgres from "postgres";
import type { Connection } from "../src/postgres/connection.ts";
import { parseSettings } from "../src/postgres/options.ts";
import type { ConnectSettings } from "../src/postgres/wire/settings.ts";
import { test } from "./support/harness.ts";
import { connectorFor } from "./support/postgres.ts";

const SECRET = "s3cr3t";

function hosts(...args: unknown[]): unknown {
  return connectorFor(...args).describe()["hosts"];
}

function connectOf(...args: unknown[]): ConnectSettings {
  return parseSettings(args).fixed!;
}

async function loginOf({ user, auth, targets, database }: ConnectSettings): Promise<unknown[]> {
  return [user, await auth.password(targets[0]!), database];
}

test("hosts come from options, url, query and environment, as one or as several", () => {
  const user = { user: "u" };
  assertEquals(hosts(user), ["localhost:5432"]);
  assertEquals(hosts("postgres://u@h"), ["h:5432"]);
  assertEquals(hosts("postgresql://u@h:1/db"), ["h:1"]);
  assertEquals(hosts("postgres://u@a:1,b,c:3/db"), ["a:1", "b:5432", "c:3"]);
  assertEquals(hosts("postgres://u@[::1]:5/db"), ["[::1]:5"]);
  assertEquals(hosts("postgres://u@[::1],[::2]:6/db"), ["[::1]:5432", "[::2]:6"]);
  assertEquals(hosts("postgres://u@%2Ftmp:7/db"), ["/tmp/.s.PGSQL.7"]);
  assertEquals(hosts("postgres:///db?host=/tmp&port=8&user=u"), ["/tmp/.s.PGSQL.8"]);
  assertEquals(hosts("postgres://u@/db?host=a,b&port=1,2"), ["a:1", "b:2"]);
  assertEquals(hosts({ ...user, host: "::1" }), ["[::1]:5432"]);
  assertEquals(hosts({ ...user, host: "a,b:2" }), ["a:5432", "b:2"]);
  assertEquals(hosts({ ...user, host: ["a", "b"], port: [1, 2] }), ["a:1", "b:2"]);
  assertEquals(hosts({ ...user, host: ["a", "b"], port: 3 }), ["a:3", "b:3"]);
  assertEquals(hosts({ ...user, hostname: "a" }), ["a:5432"]);
  assertEquals(hosts({ ...user, path: "/x/.s.PGSQL.1" }), ["/x/.s.PGSQL.1"]);
  assertEquals(hosts("postgres://u@a:9/db", { host: "b" }), ["b:9"]);
  process.env["PGHOST"] = "env1,env2";
  process.env["PGPORT"] = "11";
  try {
    assertEquals(hosts(user), ["env1:11", "env2:11"]);
    assertEquals(hosts("postgres://u@h"), ["h:11"]);
  } finally {
    delete process.env["PGHOST"];
    delete process.env["PGPORT"];
  }
});

test("url parts are decoded, options win over the url", async () => {
  const connect = connectOf("postgres://us%40er:p%3A%2Fss@h/my%20db?application_name=x");
  assertEquals(await loginOf(connect), ["us@er", "p:/ss", "my db"]);
  assertEquals(connect.parameters["application_name"], "x");
  const other = connectOf("postgres://a:b@h/c", { user: "d", password: "e", database: "f" });
  assertEquals(await loginOf(other), ["d", "e", "f"]);
});

test("the caller's options are left as they are", () => {
  const options = Object.freeze({ no_prepare: true, host: Object.freeze(["a"]), user: "u" });
  const settings = parseSettings([options]);
  assertEquals(settings.driver["prepare"], false);
});

test("bad arguments are refused at once, by name and rule", () => {
  const cases: [unknown[], typeof TypeError | typeof RangeError, string][] = [
    [["mysql://h/db"], TypeError, "postgres://user:password@host"],
    [["not a url"], TypeError, "postgres://user:password@host"],
    [["postgres://u@h/%zz"], TypeError, "percent-encoded"],
    [["postgres://u@h:99999/db"], RangeError, "port must be an integer"],
    [["postgres://u@h", 5], TypeError, "options must be an object"],
    [[5], TypeError, "options must be an object"],
    [[new URL("postgres://h")], TypeError, "write url.href"],
    [[Promise.resolve({ host: "h" })], TypeError, "a promise: await it"],
    [[new Map([["host", "h"]])], TypeError, "without any property of its own"],
    [[{ host: `/${"x".repeat(100)}` }], RangeError, "may have 107 bytes, and this one has 115"],
    [["postgres://u@h", {}, 1], TypeError, "too many arguments"],
    [[{ max: 5 }], TypeError, "maxconn"],
    [[{ idle_timeout: 5 }], TypeError, "maxIdle"],
    [[{ timeout: 5 }], TypeError, "maxIdle"],
    [[{ max_lifetime: 5 }], TypeError, "maxLifetime"],
    [[{ backoff: true }], TypeError, "reconnectTimeout"],
    [[{ publications: "x" }], TypeError, "publications"],
    [["postgres://u@h/db?max=5"], TypeError, "maxconn"],
    [[{ hots: "h" }], TypeError, "unknown option hots: did you mean host?"],
    [[{ port: 0 }], RangeError, "port must be an integer from 1 to 65535, not 0"],
    [[{ host: ["a", "b"], port: [1, 2, 3] }], RangeError, "3 ports for 2 hosts"],
    [[{ host: 5 }], TypeError, "host must be a string or a list of strings, not 5"],
    [[{ connect_timeout: -1 }], RangeError, "connect_timeout must be a number of seconds"],
    [["postgres://u@h/db?connect_timeout=x"], RangeError, "connect_timeout"],
    [[{ max_pipeline: 0.5 }], RangeError, "max_pipeline must be an integer above 0, not 0.5"],
    [[{ ssl: "yes" }], RangeError, "require, allow, prefer, verify-full, verify-ca"],
    [["postgres://u@h/db?sslmode=yes"], RangeError, "allow, prefer, require"],
    [[{ sslnegotiation: "direct" }], TypeError, "needs sslmode=require"],
    [[{ target_session_attrs: "master" }], RangeError, "prefer-standby"],
    [[{ prepare: "no" }], TypeError, "prepare must be true or false"],
    [[{ onnotice: 5 }], TypeError, "onnotice must be a function"],
    [[{ password: 5 }], TypeError, "password must be a string or a function"],
  ];
  for (const [args, type, text] of cases) {
    const error = assertThrows(() => connectorFor(...args), type, text);
    assert(error instanceof Error);
  }
});

test("a Connection is a client of the driver, with typed rows", () => {
  // Checked by the compiler; never called.
  async function types(conn: Connection): Promise<number> {
    const client: postgres.Sql = conn;
    const rows = await conn<{ id: number }[]>`select 1 as id`;
    // @ts-expect-error there is no such column
    rows[0]?.name;
    await conn.begin((sql) => sql<{ id: number }[]>`select 1 as id`);
    return rows[0]!.id + client.options.port.length + conn.pid;
  }
  assertEquals(typeof types, "function");
});

test("no error and no description shows a password", () => {
  const bad = [
    [`postgres://u:${SECRET}@h:x/db`],
    [`postgres://u:${SECRET}/more@h/db`],
    [`http://u:${SECRET}@h/db`],
    [`postgres://u:${SECRET}%zz@h/db`],
    [{ password: [SECRET] }],
    [`postgres://u:${SECRET}@h/db`, { max: 1 }],
  ];
  for (const args of bad) {
    const error = assertThrows(() => connectorFor(...args)) as Error;
    assert(!String(error.stack).includes(SECRET), error.message);
  }
  const shown = connectorFor(`postgres://u:${SECRET}@h/db`, { ssl: true }).describe();
  assert(!JSON.stringify(shown).includes(SECRET));
  assertEquals(shown, {
    hosts: ["h:5432"],
    database: "db",
    user: "u",
    ssl: true,
    applicationName: "postgres.js",
  });
});
