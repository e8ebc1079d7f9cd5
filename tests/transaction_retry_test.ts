/** Transactions that are tried again, their named options, and a commit of which nobody knows the end. */

import { assert, assertEquals, assertInstanceOf, assertRejects } from "@std/assert";
import { isConflict, isLoss, planTransaction, retrying } from "../src/pool/transactions.ts";
import {
  AbstractConnectionPool,
  type Connector,
  PersistentConnectionPool,
  PoolError,
  SimpleConnectionPool,
  type TransactionOptions,
} from "../mod.ts";
import type { Clock } from "../src/clock.ts";
import { mayEndTransaction } from "../src/postgres/lexer.ts";
import { test } from "./support/harness.ts";
import { rejection, uniqueName } from "./support/postgres.ts";
import { asAdmin, killBackend, testServer } from "./support/server.ts";

const bad = (options: unknown) => planTransaction(options as TransactionOptions);

/** `pool.sql.begin` with options, which the driver's types do not have. */
type Begin = (options: unknown, fn: (sql: SqlLike) => Promise<void>) => Promise<void>;

/** A server's word. */
function sqlState(code: string): Error {
  return Object.assign(new Error(code), { code });
}

/** A clock whose timers fire at once; gives what was waited for. */
function quick(random = 1): { readonly clock: Clock; readonly waits: number[] } {
  const waits: number[] = [];
  const clock = {
    now: () => 0,
    wall: () => 0,
    random: () => random,
    hold() {},
    clearTimeout() {},
    setTimeout(fn: () => void, ms: number) {
      waits.push(ms);
      queueMicrotask(fn);
      return 0;
    },
  } as unknown as Clock;
  return { clock, waits };
}

test("transaction: named options say what stands behind begin, and nothing that has no effect", () => {
  const mode = (options: TransactionOptions) => planTransaction(options).mode;
  assertEquals(mode({}), undefined);
  assertEquals(mode({ mode: "read only" }), "read only");
  assertEquals(mode({ isolation: "repeatable read" }), "isolation level repeatable read");
  assertEquals(
    mode({ isolation: "serializable", readOnly: true, deferrable: true }),
    "isolation level serializable read only deferrable",
  );
  assertEquals(mode({ readOnly: false, deferrable: false }), "read write not deferrable");
  const cases: [unknown, RegExp][] = [
    [{ mode: 5 }, /"mode" must be a string/],
    [{ mode: "read only", readOnly: true }, /give one/],
    [{ isolation: "snapshot" }, /"isolation" must be one of serializable, repeatable read/],
    [{ isolation: 1 }, /"isolation" must be one of/],
    [{ readOnly: "yes" }, /"readOnly" must be true or false/],
    [{ deferrable: true }, /only with isolation: "serializable" and readOnly: true/],
    [{ deferrable: true, isolation: "serializable" }, /only with/],
    [{ retry: 3 }, /options of retry must be an object/],
    [{ retry: { times: 3 } }, /Unknown option "times" of retry: it takes attempts, delay/],
    [{ retry: { attempts: 1 } }, /"retry.attempts" must be an integer of at least 2/],
    [{ retry: { attempts: 2.5 } }, /at least 2/],
    [{ retry: { delay: -1 } }, /"retry.delay" must be from 0/],
    [{ retry: { maxDelay: Infinity } }, /"retry.maxDelay" must be a time that ends/],
    [{ retry: { delay: 200, maxDelay: 100 } }, /"retry.delay" must be at most "retry.maxDelay"/],
    [{ retry: { delay: 2_000 } }, /"retry.maxDelay", received 2000 and 1000/],
  ];
  for (const [options, rule] of cases) {
    let said = "";
    try {
      bad(options);
    } catch (error) {
      assert(error instanceof TypeError || error instanceof RangeError);
      said = error.message;
    }
    assert(rule.test(said), `${JSON.stringify(options)}: ${said}`);
  }
});

test("transaction: what is tried again is told by codes, also of what was wrapped", () => {
  for (const code of ["40001", "40P01"]) {
    assert(isConflict(sqlState(code)));
    assert(isConflict(new Error("wrapped", { cause: new Error("x", { cause: sqlState(code) }) })));
  }
  for (const code of ["57P01", "08006", "CONNECTION_LOST", "CONNECTION_CLOSED", "ECONNRESET"]) {
    assert(isLoss(sqlState(code)), code);
    assert(!isConflict(sqlState(code)));
  }
  for (
    const other of [sqlState("23505"), sqlState("OUTCOME_UNKNOWN"), sqlState("POOL_CLOSED"), 5]
  ) {
    assert(!isLoss(other) && !isConflict(other));
  }
  const ring = new Error("ring");
  ring.cause = ring;
  assert(!isConflict(ring));
});

test("transaction: pauses grow up to maxDelay, by chance; attempts and the signal end them", async () => {
  const retry = { attempts: 6, delay: 20, maxDelay: 100 };
  const fail = () => Promise.reject(sqlState("40001"));
  const { clock, waits } = quick();
  await assertRejects(() => retrying(clock, retry, null, fail, isConflict), Error, "40001");
  assertEquals(waits, [20, 40, 80, 100, 100]);
  const half = quick(0.5);
  await assertRejects(() => retrying(half.clock, retry, null, fail, isConflict));
  assertEquals(half.waits, [10, 20, 40, 50, 50]);
  const never = quick();
  const other = () => Promise.reject(sqlState("23505"));
  await assertRejects(() => retrying(never.clock, retry, null, other, isConflict), Error, "23505");
  assertEquals(never.waits, []);
  const abort = new AbortController();
  const still = { ...quick().clock, setTimeout: () => 0 } as unknown as Clock;
  const waiting = retrying(still, retry, abort.signal, fail, isConflict);
  queueMicrotask(() =>
    queueMicrotask(() => queueMicrotask(() => abort.abort(new Error("enough"))))
  );
  await assertRejects(() => waiting, Error, "enough");
  await assertRejects(() => retrying(still, retry, abort.signal, fail, isConflict), Error, "40001");
});

/** Two transactions that read both rows and write one each: under `serializable` one of them fails. */
async function writeSkew(
  table: string,
  run: (fn: (sql: SqlLike, n: number) => Promise<void>) => Promise<number>,
): Promise<void> {
  const calls: number[] = [];
  const bothRead = Promise.withResolvers<void>();
  let reading = 0;
  const total = await run(async (sql, n) => {
    calls.push(n);
    await sql.unsafe(`select sum(v) from ${table}`);
    if (++reading === 2) bothRead.resolve();
    await bothRead.promise;
    await sql.unsafe(`update ${table} set v = v + 1 where n = ${n}`);
  });
  assertEquals(total, 2, "both are done, each once");
  assertEquals(calls.length, 3, `one was done twice: ${calls}`);
}

type SqlLike = { unsafe(text: string): PromiseLike<readonly Record<string, unknown>[]> };

async function withTable(fn: (table: string) => Promise<void>): Promise<void> {
  const table = `retry_${uniqueName().replace(/\W/g, "_")}`;
  await asAdmin((sql) =>
    sql.unsafe(`create table ${table} (n int primary key, v int);
      insert into ${table} values (1, 0), (2, 0)`)
  );
  try {
    await fn(table);
  } finally {
    await asAdmin((sql) => sql.unsafe(`drop table ${table}`));
  }
}

const SERIALIZABLE = { isolation: "serializable", retry: { attempts: 9, delay: 5 } } as const;

async function sum(table: string): Promise<number> {
  return await asAdmin(async (sql) =>
    (await sql.unsafe(`select sum(v)::int as n from ${table}`))[0]!["n"]
  );
}

test("transaction: a serialization failure is tried again, by pools, by leases and by pool.sql", async () => {
  const { url } = await testServer();
  await withTable((table) =>
    writeSkew(table, async (fn) => {
      await using pool = new SimpleConnectionPool(0, 2, url, { pool: { timeout: 60_000 } });
      await Promise.all([1, 2].map((n) => pool.transaction((sql) => fn(sql, n), SERIALIZABLE)));
      return await sum(table);
    })
  );
  await withTable((table) =>
    writeSkew(table, async (fn) => {
      await using pool = new SimpleConnectionPool(0, 2, url, { pool: { timeout: 60_000 } });
      await Promise.all(
        [1, 2].map((n) => pool.use((conn) => conn.begin(SERIALIZABLE, (sql) => fn(sql, n)))),
      );
      return await sum(table);
    })
  );
  await withTable((table) =>
    writeSkew(table, async (fn) => {
      await using pool = new PersistentConnectionPool(0, 2, url, {
        pool: { timeout: 60_000, scope: "context" },
      });
      await Promise.all(
        [1, 2].map((n) => pool.run(() => pool.transaction((sql) => fn(sql, n), SERIALIZABLE))),
      );
      return await sum(table);
    })
  );
  await withTable((table) =>
    writeSkew(table, async (fn) => {
      await using pool = new SimpleConnectionPool(0, 2, url, { pool: { timeout: 60_000 } });
      const begin = pool.sql.begin as unknown as Begin;
      await Promise.all([1, 2].map((n) => begin(SERIALIZABLE, (sql) => fn(sql, n))));
      return await sum(table);
    })
  );
});

test("transaction: a serialization failure that its function has caught is tried again, and else it is the cause", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 1, url);
  const fails = (sql: SqlLike) =>
    Promise.resolve(sql.unsafe("do $$ begin raise sqlstate '40001'; end $$")).catch(() => {});
  for (const awaited of [true, false]) {
    let calls = 0;
    const done = await pool.transaction(async (conn) => {
      const failing = calls++ === 0 ? fails(conn) : null;
      if (awaited) await failing;
      return calls;
    }, { retry: { attempts: 2, delay: 1 } });
    assertEquals(done, 2);
    const error = await rejection(pool.transaction(async (conn) => {
      const failing = fails(conn);
      if (awaited) await failing;
    }));
    assertEquals([error.code, (error.cause as { code: string }).code], [
      "TRANSACTION_FAILED",
      "40001",
    ]);
  }
});

test("transaction: a deadlock is tried again, and without retry it is not", async () => {
  const { url } = await testServer();
  await withTable(async (table) => {
    await using pool = new SimpleConnectionPool(0, 2, url, { pool: { timeout: 60_000 } });
    let locked = 0;
    let calls = 0;
    const both = Promise.withResolvers<void>();
    const lock = (first: number, second: number) =>
      pool.transaction(async (sql) => {
        calls++;
        await sql.unsafe(`update ${table} set v = v + 1 where n = ${first}`);
        if (++locked === 2) both.resolve();
        await both.promise;
        await sql.unsafe(`update ${table} set v = v + 1 where n = ${second}`);
      }, { retry: { attempts: 5 } });
    await Promise.all([lock(1, 2), lock(2, 1)]);
    assertEquals([await sum(table), calls], [4, 3]);
    calls = 0;
    await assertRejects(
      () =>
        pool.transaction(() => {
          calls++;
          throw sqlState("40001");
        }),
      Error,
      "40001",
    );
    assertEquals(calls, 1);
  });
});

test("transaction: a session lost before the commit is replaced and the transaction tried again", async () => {
  const { url } = await testServer();
  await withTable(async (table) => {
    await using pool = new SimpleConnectionPool(0, 1, url, { pool: { timeout: 60_000 } });
    const pids = new Set<number>();
    const result = await pool.transaction(async (conn) => {
      pids.add(conn.pid);
      await conn.unsafe(`update ${table} set v = v + 1 where n = 1`);
      if (pids.size === 1) await killBackend(conn.pid);
      await conn`select 1`;
      return "done";
    }, { retry: { delay: 0 } });
    assertEquals([result, pids.size, await sum(table)], ["done", 2, 1]);
  });
});

/** Something that commits as it is told. */
class Committer {
  static opened = 0;
  lose: (reason: unknown) => void = () => {};
  lost = false;
  commit: () => Promise<boolean> = () => Promise.resolve(true);
}

class CommitterPool extends AbstractConnectionPool<Committer> {
  constructor() {
    const connector: Connector<Committer> = {
      open({ onlost }) {
        const one = new Committer();
        one.lose = (reason) => {
          one.lost = true;
          onlost(reason);
        };
        return Promise.resolve(one);
      },
      close: () => Promise.resolve(),
      status: (one) => one.lost ? "unknown" : "idle",
      begin: () => Promise.resolve(),
      commit: (one) => one.commit(),
      rollback: () => Promise.resolve(),
    };
    super(0, 1, { pool: { connector } });
  }
}

test("transaction: what was lost after the commit was sent is OUTCOME_UNKNOWN, and never tried again", async () => {
  for (const retry of [null, { delay: 0 }]) {
    await using pool = new CommitterPool();
    let calls = 0;
    const error = await assertRejects(() =>
      pool.transaction((one) => {
        calls++;
        one.commit = () => {
          one.lose(new Error("the wire was cut"));
          return new Promise(() => {});
        };
      }, { retry })
    );
    assertInstanceOf(error, PoolError);
    assertEquals([error.code, calls], ["OUTCOME_UNKNOWN", 1]);
    assertEquals((error.cause as PoolError).code, "CONNECTION_LOST");
  }
  // An answer that says no is an answer.
  await using pool = new CommitterPool();
  let calls = 0;
  await pool.transaction((one) => {
    one.commit = () => calls === 1 ? Promise.reject(sqlState("40001")) : Promise.resolve(true);
    calls++;
  }, { retry: { delay: 0 } });
  assertEquals(calls, 2);
});

test("retry: what the function has committed by hand is never done again", async () => {
  const { url } = await testServer();
  const retry = { attempts: 3, delay: 0 };
  /** What the function does behind its first update, and what the caller is told. */
  const ends: [string, (conn: SqlLike, calls: number) => Promise<unknown>, string][] = [
    ["commit, a conflict", async (conn) => {
      await conn.unsafe("commit");
      throw sqlState("40001");
    }, "TRANSACTION_ENDED"],
    ["commit and begin, a conflict", async (conn) => {
      await conn.unsafe("commit; begin");
      throw sqlState("40P01");
    }, "TRANSACTION_ENDED"],
    ["commit and chain, a wrapped conflict", async (conn) => {
      await conn.unsafe("commit and chain");
      throw new Error("failed query", { cause: sqlState("40001") });
    }, "TRANSACTION_ENDED"],
    ["commit, a conflict in the last attempt alone", async (conn, calls) => {
      if (calls === 3) await conn.unsafe("commit");
      throw sqlState("40001");
    }, "TRANSACTION_ENDED"],
    ["commit that nobody waits for, a conflict", async (conn) => {
      const done = conn.unsafe("select pg_sleep(0.05); commit").then(() => {}, () => {});
      await Promise.resolve();
      void done;
      throw sqlState("40001");
    }, "OUTCOME_UNKNOWN"],
    ["commit, another failure", async (conn) => {
      await conn.unsafe("commit");
      throw sqlState("23505");
    }, "23505"],
    ["a savepoint by hand, a conflict in the first attempt", async (conn, calls) => {
      await conn.unsafe("savepoint a");
      await conn.unsafe("rollback to savepoint a");
      if (calls < 2) throw sqlState("40001");
    }, "2 calls"],
  ];
  for (const [name, end, told] of ends) {
    for (const kind of ["pool", "lease", "sql"] as const) {
      await withTable(async (table) => {
        await using pool = new SimpleConnectionPool(0, 1, url, { pool: { timeout: 60_000 } });
        let calls = 0;
        const body = async (conn: SqlLike): Promise<void> => {
          await conn.unsafe(`update ${table} set v = v + 1 where n = 1`);
          await end(conn, ++calls);
        };
        const run = kind === "pool"
          ? pool.transaction((conn) => body(conn), { retry })
          : kind === "lease"
          ? pool.use((conn) => conn.begin({ retry }, (sql) => body(sql)))
          : (pool.sql.begin as unknown as Begin)({ retry }, body);
        const error = await run.then(() => null, (reason) => reason);
        const [one, what] = [name.includes("last attempt") ? 3 : 1, `${kind}: ${name}`];
        if (error === null) {
          assertEquals([what, `${calls} calls`, await sum(table)], [what, told, 1]);
        } else {
          assertEquals([what, error.code, calls], [what, told, one]);
          // A caller's own loop is told why, and no pool takes it for a conflict.
          if (told !== "23505") assertEquals([isConflict(error), isLoss(error)], [false, false]);
          if (told === "TRANSACTION_ENDED") assertEquals(await sum(table), 1);
        }
      });
    }
  }
});

test("retry: a session that is lost behind, or in the middle of, a commit by hand is not tried again", async () => {
  const { url } = await testServer();
  for (const told of ["TRANSACTION_ENDED", "OUTCOME_UNKNOWN"]) {
    await withTable(async (table) => {
      await using pool = new SimpleConnectionPool(0, 1, url, { pool: { timeout: 60_000 } });
      let calls = 0;
      const error = await assertRejects(() =>
        pool.transaction(async (conn) => {
          calls++;
          await conn.unsafe(`update ${table} set v = v + 1 where n = 1`);
          if (told === "TRANSACTION_ENDED") {
            await conn.unsafe("commit");
            await killBackend(conn.pid);
            await conn`select 1`;
          } else {
            const commit = conn.unsafe("select pg_sleep(20); commit");
            await Promise.all([commit, killBackend(conn.pid)]);
          }
        }, { retry: { delay: 0 } })
      );
      assertInstanceOf(error, PoolError);
      assertEquals([error.code, calls], [told, 1]);
      assert(isLoss(error.cause), String(error.cause));
    });
  }
});

test("which texts may end a transaction", () => {
  for (
    const text of [
      ...["commit", "COMMIT WORK", "end", "rollback", "abort transaction", "commit and chain"],
      ...["prepare transaction 'a'", "select 1; commit", "/* to */ commit -- to", ";;end;"],
      ...["commit prepared 'a'", "select 'it''s'; rollback", "begin; commit"],
      // Its meaning hangs on standard_conforming_strings.
      "select '\\'; commit; --'",
    ]
  ) assertEquals([text, mayEndTransaction(text)], [text, true]);
  for (
    const text of [
      ...["", "select 1", "begin", "savepoint a", "rollback to a", "rollback work to savepoint a"],
      ...[
        "prepare a as select 1",
        "select 'commit'",
        "select 1 -- ; commit",
        "select $$;commit;$$",
      ],
      ...['select "end" from a', "select case when a then 1 end", "abort to a"],
    ]
  ) assertEquals([text, mayEndTransaction(text)], [text, false]);
});

test("begin: what was lost after the commit was sent is OUTCOME_UNKNOWN", async () => {
  const { url } = await testServer();
  await withTable(async (table) => {
    await asAdmin((sql) =>
      sql.unsafe(`
        create function ${table}_f() returns trigger language plpgsql as
          'begin perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(5); return null; end';
        create constraint trigger late after update on ${table}
          deferrable initially deferred for each row execute function ${table}_f()`)
    );
    await using pool = new SimpleConnectionPool(0, 1, url, { pool: { timeout: 60_000 } });
    const update = async (sql: SqlLike) =>
      await sql.unsafe(`update ${table} set v = 1 where n = 1`);
    for (
      const run of [
        () => pool.use((conn) => conn.begin((sql) => update(sql))),
        () => pool.transaction(update, { retry: { delay: 0 } }),
      ]
    ) {
      const error = await assertRejects(run);
      assertInstanceOf(error, PoolError);
      assertEquals(error.code, "OUTCOME_UNKNOWN");
      assert(isLoss(error.cause), String(error.cause));
    }
    await asAdmin((sql) => sql.unsafe(`drop function ${table}_f cascade`));
  });
});
