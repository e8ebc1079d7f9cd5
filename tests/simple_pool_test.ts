/** SimpleConnectionPool on a real server: what borrowers do wrong, and what the next one finds. */

import { assert, assertEquals, assertLessOrEqual, assertStringIncludes } from "@std/assert";
import { type Connection, PoolClosed, PoolError, SimpleConnectionPool } from "../mod.ts";
import { test } from "./support/harness.ts";
import { promptly, rejection, timeOf, uniqueName, within } from "./support/postgres.ts";
import { admin, asAdmin, eventually, killBackend, sessions, testServer } from "./support/server.ts";

/** A pool of at most `maxconn`, whose sessions have the pool's name at the server. */
async function makePool(maxconn: number, pool: object = {}): Promise<SimpleConnectionPool> {
  const name = uniqueName();
  const { url } = await testServer();
  return new SimpleConnectionPool(0, maxconn, url, {
    connection: { application_name: name },
    onnotice: () => {},
    pool: { name, timeout: 60_000, ...pool },
  });
}

/** Every connection can be lent, each to one borrower, idle and working; then the pool closes for good. */
async function assertWhole(pool: SimpleConnectionPool): Promise<void> {
  const all = await Promise.all(Array.from({ length: pool.maxconn }, () => pool.getconn()));
  assertEquals(new Set(all.map((conn) => conn.pid)).size, pool.maxconn);
  for (const conn of all) {
    assertEquals(conn.transactionStatus, "idle");
    assertEquals([...await conn`select 1 as n`], [{ n: 1 }]);
    await pool.putconn(conn);
  }
  await pool.closeall();
  assertEquals(await sessions(pool.options.name), 0);
}

test("a transaction left open is rolled back on return, on the same session", async () => {
  const pool = await makePool(1);
  let pid = 0;
  for (const last of ["select 1", "select 1 / 0"]) {
    await pool.use(async (conn) => {
      await conn`begin`;
      await conn`create temporary table left_open (n int)`;
      await conn.unsafe(last).catch(() => {});
      pid = conn.pid;
    });
    await pool.use(async (conn) => {
      assertEquals([conn.pid, conn.transactionStatus], [pid, "idle"]);
      assertEquals([...await conn`select to_regclass('left_open') as t`], [{ t: null }]);
    });
  }
  await assertWhole(pool);
});

test("what is put back in the middle of a statement or COPY is closed, and its slot is free", async () => {
  const pool = await makePool(1);
  const many = "select * from generate_series(1, 1000000)";
  const ways: Record<string, (conn: Connection) => Promise<unknown>> = {
    statement: async (conn) => {
      conn`select pg_sleep(60)`.execute().catch(() => {});
      await eventually(() => assertEquals(conn.transactionStatus, "active"));
    },
    "statement that is not written yet": async (conn) => {
      conn`select pg_sleep(60)`.catch(() => {});
      for (let turn = 0; turn < 3; turn++) await Promise.resolve();
    },
    "copy from": async (conn) => {
      await conn`create temporary table t (a text)`;
      (await conn`copy t from stdin`.writable()).on("error", () => {}).write("a\n");
    },
    "copy to": async (conn) => {
      (await conn.unsafe(`copy (${many}) to stdout`).readable()).on("error", () => {});
    },
  };
  for (const [way, leave] of Object.entries(ways)) {
    await promptly(3_000, async () => {
      const conn = await pool.getconn();
      const { pid } = conn;
      await leave(conn);
      assertEquals(conn.transactionStatus, "active", way);
      const took = await timeOf(() => pool.putconn(conn));
      assertEquals(await sessions(pool.options.name), 0, way);
      await pool.use((next) => assert(next.pid !== pid, way));
      return took;
    });
  }
  await assertWhole(pool);
});

test("what is put back with a cursor left in the middle is rolled back, and whoever reads on hears of it", async () => {
  const pool = await makePool(1);
  await promptly(3_000, async () => {
    const conn = await pool.getconn();
    const { pid } = conn;
    const cursor = conn`select * from generate_series(1, 1000000)`.cursor(10)
      [Symbol.asyncIterator]();
    assertEquals((await cursor.next()).value.length, 10);
    assertEquals(conn.transactionStatus, "intrans");
    const took = await timeOf(() => pool.putconn(conn));
    assertStringIncludes((await rejection(cursor.next())).message, "CURSOR_CLOSED");
    await pool.use(async (next) => {
      assertEquals(next.pid, pid);
      assertEquals(next.transactionStatus, "idle");
      assertEquals([...await next`select * from pg_cursors where name <> ''`], []);
    });
    return took;
  });
  await assertWhole(pool);
});

test("a second putconn is refused and takes nothing from the next borrower", async () => {
  const pool = await makePool(1);
  const conn = await pool.getconn();
  const made = conn`select 1`;
  const both = await Promise.allSettled([pool.putconn(conn), pool.putconn(conn)]);
  assertEquals(both.map((one) => one.status), ["fulfilled", "rejected"]);
  const next = await pool.getconn();
  const error = await rejection(pool.putconn(conn));
  assertStringIncludes(error.message, "trying to put unkeyed connection");
  await conn[Symbol.asyncDispose]();
  for (const use of [made, conn`select 1`, conn.begin(() => {}), conn.close(), conn.rollback()]) {
    assertEquals((await rejection(use)).code, "CONNECTION_RETURNED");
  }
  const slow = next`select pg_sleep(0.1), 7 as n`.execute();
  made.cancel();
  assertEquals((await slow)[0]!["n"], 7);
  assertEquals(pool.stats().leased, 1);
  await pool.putconn(next);
  await assertWhole(pool);
});

test("a backend that dies under use, transaction and begin: the server's reason, and a slot that works", async () => {
  const pool = await makePool(1);
  const ways:
    ((work: (sql: Pick<Connection, "unsafe">) => Promise<unknown>) => Promise<unknown>)[] = [
      (work) => pool.use(work),
      (work) => pool.transaction(work),
      (work) => pool.use((conn) => conn.begin(work)),
    ];
  for (const way of ways) {
    const error = await rejection(way(async (sql) => {
      const [row] = await sql.unsafe("select pg_backend_pid() as pid");
      const slow = sql.unsafe("select pg_sleep(60)").execute();
      await Promise.all([slow, killBackend(row!["pid"])]);
    }));
    assertEquals((error.cause as { code: string }).code, "57P01");
  }
  await assertWhole(pool);
});

test("transaction() resolves only when the server has committed", async () => {
  const pool = await makePool(1);
  const table = `committed_${crypto.randomUUID().replaceAll("-", "")}`;
  await asAdmin((sql) =>
    sql.unsafe(`create table ${table} (n int primary key deferrable initially deferred)`)
  );
  const insert = (conn: Connection, n: number) => conn`insert into ${conn(table)} values (${n})`;
  const swallowed = pool.transaction(async (conn) => {
    await insert(conn, 1);
    await conn`select 1 / 0`.catch(() => {});
  });
  assertEquals((await rejection(swallowed)).code, "TRANSACTION_FAILED");
  const notAwaited = pool.transaction(async (conn) => {
    await insert(conn, 2);
    conn`select 1 / 0`.catch(() => {});
  });
  const error = await rejection(notAwaited);
  assert(error instanceof PoolError);
  assertEquals(error.code, "TRANSACTION_FAILED");
  const begun = pool.use((conn) =>
    conn.begin((sql) => {
      sql`select 1 / 0`.catch(() => {});
    })
  );
  const failed = await rejection(begun);
  assertEquals([failed.code, (failed.cause as { code: string }).code], [error.code, "22012"]);
  const deferred = pool.transaction((conn) => Promise.all([insert(conn, 3), insert(conn, 3)]));
  assertEquals((await rejection(deferred)).code, "23505");
  const returned = pool.transaction(async (conn) => {
    await insert(conn, 4);
    await pool.putconn(conn);
  });
  assertEquals((await rejection(returned)).code, "CONNECTION_RETURNED");
  await pool.transaction((conn) => insert(conn, 5), { mode: "isolation level serializable" });
  assertEquals(
    (await rejection(pool.transaction(() => {}, { mode: 5 as never }))).name,
    "TypeError",
  );
  assertEquals(await pool.use(async (conn) => [...await conn`select * from ${conn(table)}`]), [
    { n: 5 },
  ]);
  await asAdmin((sql) => sql.unsafe(`drop table ${table}`));
  await assertWhole(pool);
});

test("the state of a session stays from lease to lease, unless reset clears it", async () => {
  for (const reset of [undefined, (conn: Connection) => conn.unsafe("discard all")]) {
    const pool = await makePool(1, reset === undefined ? {} : { reset });
    await pool.use(async (conn) => {
      await conn`set work_mem = '77MB'`;
      await conn`create temporary table mine (n int)`;
      assertEquals([...await conn`select ${1}::int as n`], [{ n: 1 }]);
    });
    await pool.use(async (conn) => {
      // The statement's preparation is gone, too; that is not the borrower's business.
      assertEquals([...await conn`select ${1}::int as n`], [{ n: 1 }]);
      const [row] = await conn`
        select current_setting('work_mem') = '77MB' and to_regclass('mine') is not null as stays`;
      assertEquals(row!["stays"], reset === undefined);
    });
    await assertWhole(pool);
  }
});

test("closeall in the middle of everything leaves no session and nobody waiting", async () => {
  const pool = await makePool(4, { reset: (conn: Connection) => conn`select pg_sleep(20)` });
  const lent = await Promise.all([1, 2, 3, 4].map(() => pool.getconn()));
  const running = [
    rejection(lent[0]!`select pg_sleep(60)`.execute()),
    rejection(lent[1]!.begin((sql) => sql`select pg_sleep(60)`)),
  ];
  const returning = pool.putconn(lent[3]!);
  await eventually(() => assertEquals(lent[0]!.transactionStatus, "active"));
  (await lent[2]!`copy (select * from generate_series(1, 10000000)) to stdout`.readable())
    .on("error", () => {});
  const waiting = Array.from({ length: 10 }, () => rejection(pool.getconn()));
  await within(pool.closeall());
  for (const error of await within(Promise.all(waiting))) assert(error instanceof PoolClosed);
  await within(Promise.all([...running, returning]));
  assertEquals((await rejection(lent[0]!`select 1`)).code, "POOL_CLOSED");
  assertEquals(await sessions(pool.options.name), 0);
});

test("the server never sees more than maxconn sessions, whatever borrowers do", async () => {
  const pool = await makePool(4, { maxIdle: 20, maxLifetime: 150, checkAfter: 10 });
  const watch = await admin();
  let most = 0;
  let over = false;
  const sampling = (async () => {
    while (!over) {
      // A session that is just starting up has no name yet, and one that is newer than this
      // statement may stand in the place of one that has gone since.
      const [row] = await watch<{ n: number }[]>`
        select count(*)::int as n from pg_stat_activity
        where application_name = ${pool.options.name} and backend_type = 'client backend'
          and backend_start < statement_timestamp()`;
      most = Math.max(most, row!.n);
    }
  })();
  const acts: ((conn: Connection) => unknown)[] = [
    (conn) => conn`select 1`,
    (conn) => conn`begin`,
    (conn) => conn`select pg_terminate_backend(pg_backend_pid())`,
    (conn) => void conn`select pg_sleep(9)`.catch(() => {}),
    (conn) => conn.close(),
    (conn) => conn.begin(() => Promise.reject(new Error("mine"))),
    (conn) => pool.putconn(conn, null, true),
    () => pool.renew(),
  ];
  // It sees what is there.
  const two = [await pool.getconn(), await pool.getconn()];
  await eventually(() => assertEquals(most, 2));
  for (const conn of two) await pool.putconn(conn);
  const end = Date.now() + 2_000;
  await Promise.all(Array.from({ length: 20 }, async (_, i) => {
    while (Date.now() < end) {
      const signal = i % 5 === 0 ? AbortSignal.timeout(5) : undefined;
      const act = acts[i++ % acts.length]!;
      await pool.use(async (conn) => void await act(conn), { signal }).catch(() => {});
    }
  }));
  over = true;
  await sampling;
  await watch.end();
  assertLessOrEqual(most, 4);
  await assertWhole(pool);
});
