/** What a user's callback throws or rejects with ends neither a statement of others nor the process. */

import { assert, assertEquals } from "@std/assert";
import { SimpleConnectionPool } from "../mod.ts";
import { test } from "./support/harness.ts";
import { rejection } from "./support/postgres.ts";
import { eventually, testServer } from "./support/server.ts";
import { startProgram } from "./support/program.ts";

/** Runs `fn` and gives what went to console.error meanwhile. */
async function reported(fn: () => Promise<void>): Promise<unknown[]> {
  const { error } = console;
  const seen: unknown[] = [];
  console.error = (...args: unknown[]) => void seen.push(args.at(-1));
  try {
    await fn();
    // An unhandled rejection is found after the microtasks of its turn, and would fail the test.
    await new Promise((resolve) => setTimeout(resolve, 5));
  } finally {
    console.error = error;
  }
  return seen;
}

function failing(seen: unknown[]): readonly (() => unknown)[] {
  const fail = (): Error => {
    const error = new Error(`callback ${seen.length}`);
    seen.push(error);
    return error;
  };
  return [
    () => {
      throw fail();
    },
    () => Promise.reject(fail()),
    // deno-lint-ignore require-await
    async () => {
      throw fail();
    },
    // What is no promise of this realm rejects as well.
    () => ({ then: (_: unknown, reject: (reason: unknown) => void) => reject(fail()) }),
  ];
}

test("a listener that throws or rejects harms nobody, on a lease and on pool.sql", async () => {
  await using pool = new SimpleConnectionPool(0, 3, (await testServer()).url);
  const thrown: unknown[] = [];
  const seen = await reported(async () => {
    const got: string[] = [];
    for (const fn of failing(thrown) as (() => void)[]) {
      await pool.sql.listen("callbacks", fn, fn);
    }
    await pool.sql.listen("callbacks", (payload) => got.push(payload));
    await pool.sql.notify("callbacks", "x");
    await eventually(() => assertEquals(got, ["x"]));
    await pool.use(async (conn) => {
      for (const fn of failing(thrown) as (() => void)[]) await conn.listen("lease", fn, fn);
      await conn.listen("lease", (payload) => got.push(payload));
      await conn.notify("lease", "y");
      await eventually(() => assertEquals(got, ["x", "y"]));
      assertEquals((await conn`select 1 as n`)[0]!["n"], 1);
    });
  });
  assertEquals(thrown.length, 16);
  assertEquals(new Set(seen), new Set(thrown));
});

test("what is no function is refused as a listener", async () => {
  await using pool = new SimpleConnectionPool(0, 2, (await testServer()).url);
  assert(await rejection(pool.sql.listen("callbacks", undefined as never)) instanceof TypeError);
  await pool.use(async (conn) => {
    assert(await rejection(conn.listen("callbacks", "fn" as never)) instanceof TypeError);
    assertEquals(conn.transactionStatus, "idle");
  });
  assertEquals([pool.stats().leased, pool.stats().idle], [0, 1]);
});

test("callbacks of the options may throw or reject", async () => {
  const { url } = await testServer();
  for (let way = 0; way < 4; way++) {
    const thrown: unknown[] = [];
    const fn = failing(thrown)[way] as () => void;
    const seen = await reported(async () => {
      const pool = new SimpleConnectionPool(0, 1, url, {
        onnotice: fn,
        // The driver's own, which its types do not tell of.
        ...{ onnotify: fn },
        onparameter: fn,
        onclose: fn,
      });
      await pool.use(async (conn) => {
        await conn`do $$ begin raise notice 'hello'; end $$`;
        const { unlisten } = await conn.listen("options", () => {});
        await conn.notify("options", "x");
        await unlisten();
        assertEquals((await conn`select 1 as n`)[0]!["n"], 1);
      });
      await pool.close();
    });
    assert(thrown.length >= 4);
    assertEquals(new Set(seen), new Set(thrown));
  }
});

test("a callback of rows that throws or rejects fails its own statement, and no other", async () => {
  await using pool = new SimpleConnectionPool(0, 2, (await testServer()).url);
  for (let way = 0; way < 4; way++) {
    const thrown: unknown[] = [];
    const told: unknown[] = [];
    const fn = failing(thrown)[way] as () => void;
    const seen = await reported(() =>
      pool.use(async (conn) => {
        for (const one of [pool.sql, conn]) {
          const cursor = one`select * from generate_series(1, 3)`.cursor(1, fn);
          const error = await rejection(cursor);
          assert(thrown.includes(error));
          told.push(error);
          // Nobody waits for a callback of single rows: one that rejects may come after the statement's end.
          const rows = one`select * from generate_series(1, 3)`.forEach(fn);
          if (way === 0) told.push(await rejection(rows));
          else await rows.then(() => {}, (reason) => void told.push(reason));
          assertEquals((await one`select 1 as n`)[0]!["n"], 1);
        }
      })
    );
    const all = new Set([...told, ...seen]);
    if (way > 0) assertEquals(all, new Set(thrown));
    else for (const error of all) assert(thrown.includes(error));
  }
  assertEquals(pool.stats().leased, 0);
});

test("a callback of rows that rejects after its statement's end is reported", async () => {
  await using pool = new SimpleConnectionPool(0, 1, (await testServer()).url);
  const mine = new Error("late");
  const gate = Promise.withResolvers<never>();
  const seen = await reported(async () => {
    await pool.sql`select 1`.forEach((() => gate.promise) as () => void);
    gate.reject(mine);
  });
  assertEquals(seen, [mine]);
});

test("what a listener of a stream throws is uncaught, as everywhere, and the session goes on", async () => {
  await using program = startProgram("throwing_listener", (await testServer()).url);
  assertEquals(JSON.parse(await program.line()), [["of the listener"], { one: 1 }]);
});
