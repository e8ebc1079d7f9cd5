/** The fifteen commonest mistakes: each error says first what has happened, then what to do. */

import { assert, assertMatch } from "@std/assert";
import { test } from "./support/harness.ts";
import { asAdmin, testServer } from "./support/server.ts";
import { SimpleConnectionPool } from "../mod.ts";
import { freePort } from "./support/embedded_postgres.ts";

const SECRET = "s3cr3t";

/** What `fn` fails with, as a program would print it: the message and the hint. */
async function said(fn: () => unknown): Promise<string> {
  try {
    await fn();
  } catch (error) {
    assert(error instanceof Error, String(error));
    const { hint } = error as { hint?: string };
    const text = hint === undefined ? error.message : `${error.message}; ${hint}`;
    assert(!text.includes(SECRET), text);
    return text;
  }
  throw new Error("there was no error");
}

/** One statement of a pool with these arguments. */
async function once(...args: unknown[]): Promise<unknown> {
  const Pool = SimpleConnectionPool as unknown as new (...args: unknown[]) => SimpleConnectionPool;
  await using pool = new Pool(0, 1, ...args);
  return await pool.use((conn) => conn`select 1`);
}

test("the fifteen commonest mistakes: what has happened, then what to do", async () => {
  const { url } = await testServer();
  const { hostname: host, port, username: user, password } = new URL(url);
  const place = { host, port, user, password, dbname: "postgres" };
  const nobody = await freePort();
  await using pool = new SimpleConnectionPool(0, 2, url);
  await using one = new SimpleConnectionPool(0, 1, url);
  const table = `mistakes_${crypto.randomUUID().replaceAll("-", "")}`;
  const returned = await pool.getconn();
  await pool.putconn(returned);
  const closed = new SimpleConnectionPool(0, 1, url);
  await closed.close();
  const role = `role_${table}`;
  await asAdmin(async (sql) => {
    await sql.unsafe(`create role ${role} login password '${SECRET}' connection limit 0`);
    await sql.unsafe(`create table ${table} (n int primary key, v int)`);
    await sql.unsafe(`insert into ${table} values (1, 0), (2, 0)`);
  });
  const deadlock = async () => {
    const both = Promise.withResolvers<void>();
    let locked = 0;
    const lock = (first: number, second: number) =>
      pool.transaction(async (conn) => {
        await conn`update ${conn(table)} set v = 1 where n = ${first}`;
        if (++locked === 2) both.resolve();
        await both.promise;
        await conn`update ${conn(table)} set v = 1 where n = ${second}`;
      });
    const ends = await Promise.allSettled([lock(1, 2), lock(2, 1)]);
    throw ends.find((end) => end.status === "rejected")?.reason;
  };
  const mistakes: [string, () => unknown, RegExp][] = [
    ["server down", () => once({ ...place, port: nobody }), /REFUSED.*; is the server running/],
    [
      "wrong password",
      () => once({ ...place, password: SECRET }),
      /password authentication failed.*; are user and password right/,
    ],
    [
      "unknown database",
      () => once({ ...place, dbname: "nowhere" }),
      /"nowhere" does not exist.*; create it, or name another/,
    ],
    [
      "too many connections",
      () => once({ ...place, user: role, password: SECRET }),
      /too many connections.*; give the pool a smaller maxconn/,
    ],
    [
      "no TLS",
      () => once({ ...place, sslmode: "require" }),
      /does not offer TLS.*; turn TLS on.*sslmode=disable/,
    ],
    [
      "wrong option",
      () => once({ ...place, conect_timeout: 3 }),
      /unknown option conect_timeout: did you mean connect_timeout/,
    ],
    [
      "wrong url",
      () => once(`postgres://${user}:${SECRET}/@${host}/db`),
      /url cannot be read: a password .* must be percent-encoded/,
    ],
    [
      "exhausted",
      () => one.use(() => one.getconn()),
      /^connection pool exhausted: put connections back/,
    ],
    [
      "forgotten putconn",
      () => one.use(() => one.getconn(null, { timeout: 20 })),
      /^connection pool exhausted: no connection within.* leased.*; the option leakAfter/,
    ],
    [
      "double put",
      () => pool.putconn(returned),
      /^trying to put unkeyed connection: it is back already/,
    ],
    [
      "use after put",
      () => returned`select 1`,
      /was put back.*: borrow one with getconn or use/,
    ],
    ["closed pool", () => closed.getconn(), /^connection pool is closed: make a new one/],
    [
      "statement timeout",
      () =>
        pool.transaction(async (conn) => {
          await conn`set local statement_timeout = 30`;
          await conn`select pg_sleep(60)`;
        }),
      /due to statement timeout; .*set local statement_timeout/,
    ],
    ["syntax error", () => pool.sql.unsafe("selec 1"), /syntax error at or near "selec"; .*query/],
    ["deadlock", deadlock, /deadlock detected; run the transaction again/],
  ];
  try {
    for (const [name, fn, rule] of mistakes) {
      const text = await said(fn);
      console.log(`${name}: ${text}`);
      assertMatch(text, rule, name);
    }
  } finally {
    await asAdmin((sql) => sql.unsafe(`drop table ${table}; drop role ${role}`));
  }
});

test("an option in the wrong place is told where it belongs", async () => {
  const { url } = await testServer();
  assertMatch(await said(() => once(url, { maxIdle: 5 })), /pool's own: .*pool: \{ maxIdle: … \}/);
  assertMatch(
    await said(() => once(url, { pool: { host: "h" } })),
    /"pool.host".* goes beside "pool", not into it/,
  );
  assertMatch(await said(() => once(url, { timeout: 5 })), /pool: \{ timeout \}/);
});

test("a raw begin on pool.sql is told of transaction", async () => {
  await using pool = new SimpleConnectionPool(0, 1, (await testServer()).url);
  const text = await said(() => pool.sql`begin`);
  assertMatch(text, /needs a connection of its own: use pool\.transaction/);
});
