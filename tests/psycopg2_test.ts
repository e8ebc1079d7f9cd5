/** The rows of docs/psycopg2.md, each run; and each row has its test. */

import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { readFileSync } from "node:fs";
import process from "node:process";
import { pipeline } from "node:stream/promises";
import { Readable } from "node:stream";
import {
  type Connection,
  PersistentConnectionPool,
  type PostgresOptions,
  SimpleConnectionPool,
  ThreadedConnectionPool,
} from "../mod.ts";
import { runner, test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";

const rows = new Set<string>();

function row(name: string, fn: (pool: SimpleConnectionPool) => Promise<unknown>): void {
  rows.add(name);
  test(`psycopg2: ${name}`, async () => {
    await using pool = await open();
    await fn(pool);
  });
}

async function open(options: PostgresOptions = {}): Promise<SimpleConnectionPool> {
  return new SimpleConnectionPool(0, 2, (await testServer()).url, options);
}

/** The parts of the test server's URL. */
async function parts(): Promise<
  { host: string; port: string; user: string; password: string; dbname: string }
> {
  const { hostname, port, username, password, pathname } = new URL((await testServer()).url);
  return { host: hostname, port, user: username, password, dbname: pathname.slice(1) };
}

async function one(pool: SimpleConnectionPool): Promise<number> {
  return await pool.use(async (conn) => (await conn`select 1 as n`)[0]!["n"]);
}

row('SimpleConnectionPool(1, 20, "dbname=…")', async () => {
  const { host, port, user, password, dbname } = await parts();
  await using pool = new SimpleConnectionPool(
    1,
    20,
    `dbname=${dbname} user=${user} password='${password}' host=${host} port=${port}`,
  );
  assertEquals(await one(pool), 1);
});

row("SimpleConnectionPool(1, 20, dbname=…)", async () => {
  await using pool = new SimpleConnectionPool(1, 20, await parts());
  assertEquals(await one(pool), 1);
});

row("PGHOST, PGSSLMODE, ~/.pgpass, services", async () => {
  const { host, port, user, password, dbname } = await parts();
  const env = { PGHOST: host, PGPORT: port, PGUSER: user, PGPASSWORD: password };
  const kept = { ...process.env };
  Object.assign(process.env, env, { PGDATABASE: dbname, PGSSLMODE: "require" });
  try {
    await using secure = new SimpleConnectionPool(0, 1);
    await assertRejects(() => secure.getconn(), Error, "TLS");
    await using pool = new SimpleConnectionPool(0, 1, { sslmode: "disable" });
    assertEquals(await one(pool), 1);
  } finally {
    for (const name of Object.keys(process.env)) if (!(name in kept)) delete process.env[name];
    Object.assign(process.env, kept);
  }
});

row("ThreadedConnectionPool", async () => {
  await using pool = new ThreadedConnectionPool(0, 2, (await testServer()).url);
  const conn = await pool.getconn();
  await pool.putconn(conn);
});

row("PersistentConnectionPool", async () => {
  await using pool = new PersistentConnectionPool(0, 2, (await testServer()).url);
  const conn = await pool.getconn();
  assert(await pool.getconn() === conn);
  await pool.putconn();
});

row("getconn(key), putconn(conn, key, close)", async (pool) => {
  const conn = await pool.getconn("key");
  assert(await pool.getconn("key") === conn);
  await pool.putconn(conn, "key", true);
  assertEquals(pool.stats().poolSize, 0);
});

row("PoolError", async (pool) => {
  const [a, b] = [await pool.getconn(), await pool.getconn()];
  await assertRejects(() => pool.getconn(), Error, "connection pool exhausted");
  await Promise.all([pool.putconn(a), pool.putconn(b)]);
  await assertRejects(() => pool.putconn(a), Error, "trying to put unkeyed connection");
  await pool.closeall();
  await assertRejects(() => pool.getconn(), Error, "connection pool is closed");
});

row("closeall()", async (pool) => {
  const conn = await pool.getconn();
  await pool.closeall();
  assert(conn.closed);
});

row("putconn rolls back", async (pool) => {
  const conn = await pool.getconn();
  await conn`begin`;
  const { pid } = conn;
  await pool.putconn(conn);
  await pool.use((next) => assertEquals([next.pid, next.transactionStatus], [pid, "idle"]));
});

row("conn.rollback()", (pool) =>
  pool.use(async (conn) => {
    await conn`create temporary table t (n int)`;
    await conn`insert into t values (1)`;
    await conn.rollback();
    assertEquals((await conn`select n from t`).length, 1);
    await conn`begin`;
    await conn`insert into t values (2)`;
    await conn.rollback();
    assertEquals((await conn`select n from t`).length, 1);
    await conn`drop table t`;
  }));

row("conn.closed, conn.close()", async (pool) => {
  const conn = await pool.getconn();
  assert(!conn.closed);
  await conn.close();
  assert(conn.closed);
  await pool.putconn(conn);
});

row("conn.info.transaction_status", (pool) =>
  pool.use(async (conn) => {
    assertEquals(conn.transactionStatus, "idle");
    await conn`begin`;
    assertEquals(conn.transactionStatus, "intrans");
    await assertRejects(() => conn`select 1/0`);
    assertEquals(conn.transactionStatus, "inerror");
  }));

row("conn.info.backend_pid", (pool) =>
  pool.use(async (conn) => {
    assertEquals((await conn`select pg_backend_pid() as pid`)[0]!["pid"], conn.pid);
  }));

row("the implicit transaction", (pool) =>
  pool.use(async (conn) => {
    await conn`select 1`;
    assertEquals(conn.transactionStatus, "idle");
  }));

row("conn.commit()", async (pool) => {
  const ok = await pool.transaction(async (conn) => (await conn`select 1 as n`)[0]!["n"]);
  assertEquals(ok, 1);
  await pool.use(async (conn) => {
    assertEquals(await conn.begin(async (sql) => (await sql`select 2 as n`)[0]!["n"]), 2);
    const psycopg = conn as unknown as { commit(): void };
    assertThrows(() => psycopg.commit(), TypeError, "pool.transaction");
  });
});

row("conn.autocommit = True", (pool) =>
  pool.use((conn) => {
    const psycopg = conn as unknown as { autocommit: boolean; typo: number };
    assertThrows(() => psycopg.autocommit = true, TypeError, "no implicit transaction");
    assertThrows(() => psycopg.typo = 1, TypeError, "no typo");
  }));

row("conn.set_session(isolation_level)", async (pool) => {
  const level = await pool.transaction(
    async (conn) => (await conn`show transaction_isolation`)[0]!["transaction_isolation"],
    { isolation: "serializable" },
  );
  assertEquals(level, "serializable");
});

row("savepoints", (pool) =>
  pool.use((conn) =>
    conn.begin(async (sql) => {
      await assertRejects(() => sql.savepoint((sql) => sql`select 1/0`));
      assertEquals((await sql`select 1 as n`)[0]!["n"], 1);
    })
  ));

row("with pool.getconn() …", async (pool) => {
  assertEquals(await one(pool), 1);
  {
    await using conn = await pool.getconn();
    await conn`select 1`;
  }
  assertEquals(pool.stats().leased, 0);
});

row("with conn: …", async (pool) => {
  await assertRejects(
    () =>
      pool.transaction(async (conn) => {
        await conn`select 1`;
        throw new Error("no");
      }),
    Error,
    "no",
  );
  assertEquals(pool.stats().leased, 0);
});

row("conn.cursor(), cur.fetchall()", async ({ sql }) => {
  assertEquals([...await sql`select 1 as a, 'x' as b`], [{ a: 1, b: "x" }]);
});

row("named cursors, itersize", async ({ sql }) => {
  const sizes: number[] = [];
  for await (const rows of sql`select * from generate_series(1, 25)`.cursor(10)) {
    sizes.push(rows.length);
  }
  assertEquals(sizes, [10, 10, 5]);
});

row("RealDictCursor", async ({ sql }) => {
  assertEquals((await sql`select 1 as a`)[0], { a: 1 });
  assertEquals([...await sql`select 1 as a, 2 as b`.values()], [[1, 2]]);
});

row("%s", async ({ sql }) => {
  const value = "'; drop table x; --";
  assertEquals((await sql`select ${value}::text as v`)[0]!["v"], value);
});

row("%(name)s", async ({ sql }) => {
  const object = { name: "x" };
  assertEquals((await sql`select ${object.name}::text as v`)[0]!["v"], "x");
});

row("sql.Identifier(name)", async ({ sql }) => {
  const name = 'odd "name';
  assertEquals((await sql`select 1 as ${sql(name)}`)[0], { [name]: 1 });
});

row("cur.rowcount", (pool) =>
  pool.use(async (sql) => {
    await sql`create temporary table counted (n int)`;
    assertEquals((await sql`insert into counted values (1), (2)`).count, 2);
    await sql`drop table counted`;
  }));

row("cur.description", async ({ sql }) => {
  const { columns } = await sql`select 1 as a, 'x' as b`;
  assertEquals(columns.map(({ name }) => name), ["a", "b"]);
});

row("execute_values", (pool) =>
  pool.use(async (sql) => {
    await sql`create temporary table many (a int, b text)`;
    const rows = [{ a: 1, b: "x" }, { a: 2, b: "y" }];
    await sql`insert into many ${sql(rows)}`;
    assertEquals([...await sql`select * from many order by a`], rows);
    await sql`drop table many`;
  }));

row("copy_expert(to)", (pool) =>
  pool.use(async (sql) => {
    let text = "";
    for await (const chunk of await sql`copy (select 1, 'x') to stdout`.readable()) text += chunk;
    assertEquals(text, "1\tx\n");
  }));

row("copy_expert(from)", (pool) =>
  pool.use(async (sql) => {
    await sql`create temporary table copied (a int, b text)`;
    await pipeline(
      Readable.from(["1\tx\n", "2\ty\n"]),
      await sql`copy copied from stdin`.writable(),
    );
    assertEquals((await sql`select * from copied`).length, 2);
    await sql`drop table copied`;
  }));

row("conn.poll(), conn.notifies", (pool) =>
  pool.use(async (conn) => {
    const heard = Promise.withResolvers<string>();
    await conn.listen("psycopg2_row", heard.resolve);
    await conn.notify("psycopg2_row", "hello");
    assertEquals(await heard.promise, "hello");
  }));

row("conn.cancel()", ({ sql }) => {
  const query = sql`select pg_sleep(60)`;
  const failed = assertRejects(() => query, Error, "canceling statement");
  setTimeout(() => query.cancel(), 50);
  return failed;
});

row("errors.UniqueViolation", (pool) =>
  pool.use(async (sql) => {
    await sql`create temporary table keyed (n int constraint only_one primary key)`;
    await sql`insert into keyed values (1)`;
    const error = await assertRejects(() => sql`insert into keyed values (1)`);
    const { code, constraint_name } = error as unknown as Record<string, string>;
    assertEquals([code, constraint_name], ["23505", "only_one"]);
    await sql`drop table keyed`;
  }));

row("the pool is exhausted", async () => {
  await using pool = await open({ pool: { timeout: 60_000 } });
  const [a, b] = [await pool.getconn(), await pool.getconn()];
  const waiting = pool.getconn();
  await pool.putconn(a);
  await pool.putconn(await waiting);
  await pool.putconn(b);
});

/** What a worker of this source answers to `message`. Node's workers are not the web's. */
async function askWorker(
  source: string,
  message: (worker: Worker) => unknown,
): Promise<unknown> {
  if (runner === "node") {
    const { Worker } = await import("node:worker_threads");
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`));
    const { promise, resolve, reject } = Promise.withResolvers();
    worker.once("message", resolve).once("error", reject);
    worker.postMessage(message(worker as unknown as Worker));
    return await promise.finally(() => worker.terminate());
  }
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const worker = new Worker(url, { type: "module" });
  const { promise, resolve, reject } = Promise.withResolvers();
  worker.onmessage = ({ data }) => resolve(data);
  worker.onerror = ({ message }) => reject(new Error(message));
  worker.postMessage(message(worker));
  return await promise.finally(() => {
    worker.terminate();
    URL.revokeObjectURL(url);
  });
}

row("a thread", async () => {
  const url = (await testServer()).url;
  await using pool = new ThreadedConnectionPool(0, 1, url, { pool: { timeout: 60_000 } });
  const mod = JSON.stringify(new URL("../mod.ts", import.meta.url).href);
  const answer = runner === "node"
    ? 'import { parentPort } from "node:worker_threads";' +
      'parentPort.once("message", async (data) => parentPort.postMessage(await work(data)));'
    : "self.onmessage = async ({ data }) => self.postMessage(await work(data));";
  const source = `
    import { ThreadedConnectionPool } from ${mod};
    ${answer}
    async function work(handle) {
      const pool = await ThreadedConnectionPool.join(handle);
      const [row] = await pool.use((conn) => conn\`select 1 as n\`);
      await pool.leave?.();
      return row.n;
    }`;
  assertEquals(await askWorker(source, (worker) => pool.share(worker)), 1);
});

row("password that changes", async () => {
  const { password, ...rest } = await parts();
  let asked = 0;
  const secret = () => Promise.resolve((asked++, password));
  await using first = new SimpleConnectionPool(0, 1, { ...rest, password: secret });
  assertEquals(await one(first), 1);
  const { url } = await testServer();
  const dsn = () => Promise.resolve((asked++, url));
  await using second = new SimpleConnectionPool(0, 1, dsn);
  assertEquals([await one(second), asked], [1, 2]);
});

/** Values of one expression, as a pool with these options reads them. */
async function read(
  expression: string,
  options?: Pick<PostgresOptions, "types">,
): Promise<unknown> {
  await using pool = await open(options);
  const [row] = await pool.use((conn: Connection) => conn.unsafe(`select ${expression} as v`));
  return row!["v"];
}

row("int2, int4, float8, bool", async () => {
  assertEquals(await read("1::int2"), 1);
  assertEquals(await read("1.5::float8"), 1.5);
  assertEquals(await read("true"), true);
});

row("int8", async () => {
  assertEquals(await read("9007199254740993"), "9007199254740993");
  const types = {
    bigint: { to: 20, from: [20], parse: BigInt, serialize: String },
  };
  assertEquals(await read("9007199254740993", { types }), 9007199254740993n);
});

row("numeric", async () => {
  assertEquals(await read("1.50::numeric"), "1.50");
  const types = { n: { to: 1700, from: [1700], parse: Number, serialize: String } };
  assertEquals(await read("1.50::numeric", { types }), 1.5);
});

row("date, timestamp", async () => {
  assertEquals(await read("'2026-01-02T03:04:05Z'::timestamptz"), new Date("2026-01-02T03:04:05Z"));
  const types = { d: { to: 1082, from: [1082], parse: String, serialize: String } };
  assertEquals(await read("date '2026-01-02'", { types }), "2026-01-02");
});

row("json, jsonb", async ({ sql }) => {
  assertEquals(await read(`'{"a": [1]}'::jsonb`), { a: [1] });
  assertEquals((await sql`select ${sql.json({ a: 1 })} as v`)[0]!["v"], { a: 1 });
});

row("bytea", async () => {
  const bytes = await read("'\\x0102'::bytea");
  assertInstanceOf(bytes, Uint8Array);
  assertEquals([...bytes], [1, 2]);
});

row("arrays", async ({ sql }) => {
  assertEquals(await read("array[1, 2]"), [1, 2]);
  assertEquals((await sql`select ${[1, 2]}::int[] as v`)[0]!["v"], [1, 2]);
});

row("interval", async () => assertEquals(await read("interval '1 day'"), "1 day"));

test("each row of the page has its test, and each test its row", () => {
  const page = readFileSync(new URL("../docs/psycopg2.md", import.meta.url), "utf8");
  const listed = [...page.matchAll(/^\| (?!-)(.+?) +\|/gm)].map(([, name]) => name!)
    .filter((name) => name !== "psycopg2" && name !== "of the server");
  assertEquals(listed.toSorted(), [...rows].toSorted());
  assertStringIncludes(page, "conninfo.md");
});
