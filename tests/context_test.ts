/** In which async context (AsyncLocalStorage) callbacks run: that of the call that gave them. */

import { assertEquals } from "@std/assert";
import { AsyncLocalStorage } from "node:async_hooks";
import type { postgres } from "../mod.ts";
import { PersistentConnectionPool, SimpleConnectionPool } from "../mod.ts";
import { test } from "./support/harness.ts";
import { eventually, testServer } from "./support/server.ts";

const caller = new AsyncLocalStorage<string>();

/** One session, opened by somebody else than those who use it. */
async function opened(options: Record<string, unknown> = {}): Promise<SimpleConnectionPool> {
  const { url } = await testServer();
  const pool = new SimpleConnectionPool(0, 2, url, { onnotice: () => {}, ...options });
  await caller.run("opener", () => pool.use((conn) => conn`select 1`));
  return pool;
}

/** What reads rows by callbacks: a lease, its parts, and the client of the whole pool. */
type Client = Pick<postgres.Sql, "unsafe">;

async function callbacks(sql: Client, seen: (where: string) => void): Promise<void> {
  const text = "select * from generate_series(1, 4)";
  await sql.unsafe(text).forEach(() => seen("forEach"));
  await sql.unsafe(text).cursor(2, () => seen("cursor"));
  await sql.unsafe(text).cursor(2, async () => {
    seen("cursor, async");
    await Promise.resolve();
    seen("cursor, async, later");
  });
  for await (const _ of sql.unsafe(text).cursor(2)) seen("cursor, iterated");
}

test("forEach and cursors call back in the context of the call, whoever opened the session", async () => {
  await using pool = await opened();
  const wrong: unknown[] = [];
  let calls = 0;
  const as = (name: string, fn: (seen: (where: string) => void) => Promise<unknown>) =>
    caller.run(name, () =>
      fn((where) => {
        calls++;
        if (caller.getStore() !== name) wrong.push([name, where, caller.getStore()]);
      }));
  await Promise.all(["a", "b", "c", "d"].flatMap((name) => [
    as(name, (seen) => callbacks(pool.sql, seen)),
    as(name, (seen) => pool.sql.begin((tx) => callbacks(tx, seen))),
    as(name, (seen) =>
      pool.sql.begin(async (tx) => {
        await Promise.all([1, 2].map((n) =>
          caller.run(`${name}${n}`, () =>
            tx.savepoint(async (sp) => {
              if (caller.getStore() !== `${name}${n}`) wrong.push(["savepoint", name, n]);
              await caller.run(name, () => callbacks(sp, seen));
            }))
        ));
      })),
    as(name, (seen) =>
      pool.sql.reserve().then(async (conn) => {
        await callbacks(conn, seen);
        conn.release();
      })),
  ]));
  assertEquals(wrong, []);
  // Twelve calls of each of the five.
  assertEquals(calls, 4 * 5 * 12);
});

test("listeners call back in the context of their listen(), on a lease and on pool.sql", async () => {
  await using pool = await opened();
  const seen: unknown[] = [];
  const note = (what: string) => () => void seen.push(`${what} ${caller.getStore()}`);
  await pool.use(async (conn) => {
    const { unlisten } = await caller.run(
      "a",
      () => conn.listen("context", note("lease"), note("lease, onlisten")),
    );
    await caller.run("b", () => conn.notify("context", "x"));
    await eventually(() => assertEquals(seen, ["lease, onlisten a", "lease a"]));
    await unlisten();
  });
  seen.length = 0;
  const first = await caller.run(
    "c",
    () => pool.sql.listen("context", note("first"), note("first, onlisten")),
  );
  const second = await caller.run("d", () => pool.sql.listen("context", note("second")));
  await caller.run("e", () => pool.sql.notify("context", "x"));
  await eventually(() => assertEquals(seen, ["first, onlisten c", "first c", "second d"]));
  await first.unlisten();
  await second.unlisten();
});

test("callbacks of the options and hooks run in the context of the constructor", async () => {
  const { url } = await testServer();
  const seen = new Set<string>();
  const note = (what: string) => () => void seen.add(`${what} ${caller.getStore()}`);
  const pool = caller.run("maker", () =>
    new SimpleConnectionPool(0, 1, url, {
      onnotice: note("onnotice"),
      // The driver's own, which its types do not tell of.
      ...{ onnotify: note("onnotify") },
      onparameter: note("onparameter"),
      onclose: note("onclose"),
      pool: { configure: note("configure"), reset: note("reset") },
    }));
  await caller.run("user", () =>
    pool.use(async (conn) => {
      await conn`do $$ begin raise notice 'hello'; end $$`;
      const { unlisten } = await conn.listen("options", () => {});
      await conn.notify("options", "x");
      await unlisten();
    }));
  await caller.run("closer", () => pool.close());
  const names = ["configure", "onclose", "onnotice", "onnotify", "onparameter", "reset"];
  await eventually(() => assertEquals([...seen].sort(), names.map((name) => `${name} maker`)));
});

test('with scope "context" a callback gets the connection of its own run()', async () => {
  const { url } = await testServer();
  await using pool = new PersistentConnectionPool(0, 2, url, {
    pool: { scope: "context", timeout: 60_000 },
  });
  const request = () =>
    pool.run(async () => {
      const conn = await pool.getconn();
      const got: boolean[] = [];
      const check = async () => void got.push(await pool.getconn() === conn);
      const pending: Promise<void>[] = [];
      await conn`select * from generate_series(1, 2)`.forEach(() => void pending.push(check()));
      await conn`select * from generate_series(1, 2)`.cursor(1, check);
      await Promise.all(pending);
      const channel = `own ${conn.pid}`;
      const { unlisten } = await conn.listen(channel, () => void pending.push(check()));
      await conn.notify(channel, "x");
      await eventually(() => assertEquals(pending.length, 3));
      await Promise.all(pending);
      await unlisten();
      return got;
    });
  for (const got of await Promise.all([request(), request(), request()])) {
    assertEquals(got, [true, true, true, true, true]);
  }
  assertEquals(pool.stats().leased, 0);
});
