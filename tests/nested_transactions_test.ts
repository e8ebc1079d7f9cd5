/** `nested: "savepoint"`: a transaction that is called in another one of the same connection is a part of it. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type Connection,
  PersistentConnectionPool,
  SimpleConnectionPool,
  type TransactionOptions,
} from "../mod.ts";
import { FakeConnector, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { rejection, within } from "./support/postgres.ts";
import { asAdmin, testServer } from "./support/server.ts";
import { uniqueName } from "./support/sql.ts";

const nested = { nested: "savepoint" } as const;

/** One pool of one connection at most, and a table. */
async function withTable<P extends SimpleConnectionPool | PersistentConnectionPool>(
  make: (url: string) => P,
  fn: (pool: P, add: (n: number) => string, rows: () => Promise<number[]>) => Promise<void>,
): Promise<void> {
  await using pool = make((await testServer()).url);
  const table = uniqueName("nested");
  await pool.sql.unsafe(`create table ${table} (n int)`);
  try {
    await within(fn(
      pool,
      (n) => `insert into ${table} values (${n})`,
      async () =>
        (await pool.sql.unsafe(`select n from ${table} order by 1`)).map(({ n }) => n as number),
    ));
    assertEquals(pool.stats().leased, 0);
  } finally {
    await pool.sql.unsafe(`drop table ${table}`);
  }
}

const simple = (url: string) => new SimpleConnectionPool(0, 2, url, { pool: { timeout: 60_000 } });

test("begin with nested within begin is a savepoint, by the connection's handle and by the transaction's", () =>
  withTable(simple, (pool, add, rows) =>
    pool.use(async (conn) => {
      const mine = new Error("mine");
      await conn.begin({ isolation: "serializable" }, async (tx) => {
        await tx.unsafe(add(1));
        for (const sql of [tx, conn]) {
          const error = await rejection(sql.begin(nested, async (inner) => {
            await inner.unsafe(add(2));
            await inner.begin(nested, (most) => most.unsafe(add(3)));
            throw mine;
          }));
          assertEquals(error, mine);
          await sql.begin(nested, () => [conn.unsafe("select 1"), tx.unsafe("select 1")]);
          await sql.begin(nested, () => tx.unsafe("select 1"));
          const result = await sql.begin(nested, async (inner) => {
            await assertRejects(() =>
              inner.begin(nested, async (most) => {
                await most.unsafe(add(4));
                throw mine;
              })
            );
            await inner.unsafe(add(5));
            return "inner";
          });
          assertEquals(result, "inner");
          // A failed statement fails the part, though its function caught it; and only the part.
          const failed = await rejection(sql.begin(nested, async (inner) => {
            await inner.unsafe(add(6));
            await inner`select 1 / 0`.catch(() => {});
          }));
          assertEquals(failed.code, "22012");
          // Without the option it is refused as ever.
          const refused = await rejection(sql.begin({}, () => {}));
          assertEquals(refused.code, "IN_TRANSACTION");
        }
      });
      assertEquals(conn.transactionStatus, "idle");
      assertEquals(await rows(), [1, 5, 5]);
    })));

test("begin with nested within pool.transaction is a savepoint; what is executed beside it waits for its end", () =>
  withTable(simple, async (pool, add, rows) => {
    const steps: string[] = [];
    await pool.transaction(async (conn) => {
      const inside = Promise.withResolvers<void>();
      const fail = Promise.withResolvers<void>();
      const part = rejection(conn.begin(nested, async (sql) => {
        await sql.unsafe(add(1));
        // By the outer handle, but a part of it all the same.
        await conn.unsafe(add(2));
        inside.resolve();
        await fail.promise;
        steps.push("part fails");
        throw new Error("no");
      }));
      await inside.promise;
      const beside = conn.unsafe(add(3)).then(() => steps.push("beside"));
      const sibling = conn.begin(nested, async (sql) => {
        steps.push("sibling");
        await sql.unsafe(add(4));
      });
      assertEquals((await rejection(conn.reserve())).code, "IN_TRANSACTION");
      fail.resolve();
      await Promise.all([part, beside, sibling]);
      await conn.unsafe(add(5));
    });
    assertEquals([steps[0], steps.length], ["part fails", 3]);
    assertEquals(await rows(), [3, 4, 5]);
  }));

for (const scope of ["worker", "context"] as const) {
  const persistent = (url: string) =>
    new PersistentConnectionPool(0, 3, url, { pool: { scope, timeout: 60_000 } });
  const running = <T>(pool: PersistentConnectionPool, fn: () => Promise<T>): Promise<T> =>
    scope === "context" ? pool.run(fn) : fn();

  test(`PersistentConnectionPool.transaction with nested within itself is a savepoint, scope "${scope}"`, () =>
    withTable(persistent, async (pool, add, rows) => {
      const mine = new Error("mine");
      // Neither knows of the other.
      const save = (n: number, failing = false) =>
        pool.transaction(async (conn) => {
          await conn.unsafe(add(n));
          if (failing) throw mine;
          return n;
        }, nested);
      await running(pool, async () => {
        assertEquals(await save(1), 1);
        await assertRejects(() => save(2, true));
        await pool.transaction(async (conn) => {
          await conn.unsafe(add(3));
          assertEquals(await rejection(save(4, true)), mine);
          assertEquals(await save(5), 5);
          const refused = await rejection(pool.transaction(() => {}));
          assertEquals(refused.code, "IN_TRANSACTION");
          await pool.transaction(async (inner) => {
            assertEquals(inner, conn);
            assertEquals(await rejection(save(6, true)), mine);
            assertEquals(await rejection(conn.begin(nested, () => save(7, true))), mine);
            await save(8);
          }, nested);
          const caught = await rejection(
            pool.transaction(async (inner) => {
              await inner`select 1 / 0`.catch(() => {});
            }, nested),
          );
          assertEquals(caught.code, "22012");
        }, { isolation: "serializable", nested: "savepoint" });
        await assertRejects(() =>
          pool.transaction(async () => {
            await save(9);
            throw mine;
          })
        );
        assertEquals((await pool.use((conn) => conn.transactionStatus)) as string, "idle");
      });
      assertEquals(await rows(), [1, 3, 5, 8]);
    }));

  test(`PersistentConnectionPool: nested transactions side by side take turns, scope "${scope}"`, () =>
    withTable(persistent, async (pool, add, rows) => {
      const steps: string[] = [];
      const gates = [0, 1, 2].map(() => Promise.withResolvers<void>());
      await running(pool, () =>
        pool.transaction(async () => {
          const all = Promise.allSettled([0, 1, 2].map((n) =>
            pool.transaction(async (conn) => {
              steps.push(`begin ${n}`);
              await conn.unsafe(add(n));
              await gates[n]!.promise;
              if (n === 0) throw new Error("the first fails");
              await conn.unsafe(add(n * 10));
              steps.push(`end ${n}`);
            }, nested)
          ));
          for (const n of [2, 1, 0]) gates[n]!.resolve();
          assertEquals((await all).map(({ status }) => status), [
            "rejected",
            "fulfilled",
            "fulfilled",
          ]);
        }));
      assertEquals(steps, ["begin 0", "begin 1", "end 1", "begin 2", "end 2"]);
      assertEquals(await rows(), [1, 2, 10, 20]);
    }));

  test(`PersistentConnectionPool: one that is called beside a transaction is no part of it, scope "${scope}"`, () =>
    withTable(persistent, async (pool, add, rows) => {
      await running(pool, async () => {
        const inside = Promise.withResolvers<void>();
        const fail = Promise.withResolvers<void>();
        const outer = rejection(pool.transaction(async (conn) => {
          await conn.unsafe(add(1));
          inside.resolve();
          await fail.promise;
          throw new Error("no");
        }));
        await inside.promise;
        // It would be acknowledged, and taken back with the other.
        const beside = await rejection(pool.transaction((conn) => conn.unsafe(add(2)), nested));
        assertEquals(beside.code, "IN_TRANSACTION");
        fail.resolve();
        await outer;
      });
      assertEquals(await rows(), []);
    }));

  test(`PersistentConnectionPool: a nested transaction that is left behind writes nothing, scope "${scope}"`, () =>
    withTable(persistent, async (pool, add, rows) => {
      for (const failing of [false, true]) {
        let left: Promise<Error & { code?: string }> | undefined;
        let waits: Promise<Error & { code?: string }> | undefined;
        let late: Promise<Error & { code?: string }> | undefined;
        const on = Promise.withResolvers<void>();
        await running(pool, async () => {
          const held = await pool.getconn();
          const outer = pool.transaction(async (conn) => {
            const inside = Promise.withResolvers<void>();
            left = rejection(pool.transaction(async () => {
              await conn.unsafe(add(1));
              inside.resolve();
              await on.promise;
              late = rejection(held.begin(nested, (sql) => sql.unsafe(add(2))));
              await late;
              throw new Error("left behind");
            }, nested));
            waits = rejection(pool.transaction(() => conn.unsafe(add(3)), nested));
            await inside.promise;
            if (failing) throw new Error("no");
          });
          await outer.catch(() => {});
          assertEquals((await waits!).code, "UNSUPPORTED");
          // The next one of the same session is not touched by its end.
          await pool.transaction(async (conn) => {
            await conn.unsafe(add(4));
            on.resolve();
            await left;
            assertEquals((await late!).code, "IN_TRANSACTION");
          });
          await pool.putconn();
        });
      }
      assertEquals(await rows(), [1, 4, 4]);
    }));
}

test("nested transactions end when their session is lost, also those that wait for their turn", () =>
  withTable((url) => new PersistentConnectionPool(0, 1, url), async (pool, add) => {
    let second: Promise<Error & { code?: string }> | undefined;
    const error = await rejection(pool.transaction(async () => {
      const first = pool.transaction(async (conn) => {
        await conn.unsafe(add(1));
        const { pid } = conn;
        await asAdmin((admin) => admin`select pg_terminate_backend(${pid})`);
        await new Promise(() => {});
      }, nested);
      second = rejection(pool.transaction(() => {}, nested));
      await first;
    }));
    assert(error instanceof Error && (await second!) instanceof Error);
  }));

test("what a savepoint cannot have is refused where the transaction is nested, and there alone", () =>
  withTable((url) => new PersistentConnectionPool(0, 1, url), async (pool, add, rows) => {
    const cases: [TransactionOptions, string][] = [
      [{ isolation: "serializable" }, '"isolation"'],
      [{ readOnly: false }, '"readOnly"'],
      [{ mode: "read write" }, '"mode"'],
      [{ retry: {} }, '"retry"'],
      [{ isolation: "serializable", retry: {} }, '"isolation", "retry"'],
    ];
    for (const [options, names] of cases) {
      const both = { ...options, ...nested };
      await pool.transaction((conn) => conn`select 1`, both);
      await pool.transaction(async (conn) => {
        for (
          const call of [
            () => pool.transaction(() => {}, both),
            () => conn.begin(both, () => {}),
          ]
        ) await assertRejects(call, TypeError, `${names}: this transaction is a savepoint`);
      });
      await pool.use((conn) =>
        conn.begin(both, async (tx) => {
          await assertRejects(() => tx.begin(both, () => {}), TypeError, `${names}: this`);
        })
      );
    }
    // Time and signal are those of the wait for a connection.
    await pool.transaction(async () => {
      await pool.transaction((conn) => conn.unsafe(add(1)), {
        ...nested,
        timeout: 1_000,
        retry: null,
      });
    });
    assertEquals(await rows(), [1]);
  }));

test("nested is refused with the reason where nothing can be nested, and where it is no good", async () => {
  await using pool = new SimpleConnectionPool(0, 1, (await testServer()).url);
  await assertRejects(() => pool.transaction(() => {}, nested), TypeError, "one of its own");
  await assertRejects(
    () => Reflect.apply(pool.sql.begin, null, [nested, () => {}]),
    TypeError,
    "one of its own",
  );
  for (const bad of [true, "transaction", null] as unknown[]) {
    const options = { nested: bad } as TransactionOptions;
    await assertRejects(() => pool.transaction(() => {}, options), Error, '"nested" must be');
    const begun = pool.use((conn: Connection) => conn.begin(options, () => {}));
    await assertRejects(() => begun, Error, '"nested" must be');
  }
  assertEquals(pool.stats().leased, 0);
  const fake = new FakeConnector();
  const things = new PersistentConnectionPool<Thing>(0, 1, { pool: { connector: fake } });
  await assertRejects(() => things.transaction(() => {}, nested), TypeError, "savepoint()");
  await things.close();
});

test("nested in a reservation: a savepoint within its transaction, none of what was reserved by hand", () =>
  withTable(simple, (pool, add, rows) =>
    pool.use(async (conn) => {
      const reserved = await conn.reserve() as unknown as Connection & { release(): void };
      assertEquals((await rejection(conn.begin(nested, () => {}))).code, "IN_TRANSACTION");
      await reserved.begin(nested, async (tx) => {
        await tx.unsafe(add(1));
        await assertRejects(() =>
          reserved.begin(nested, async (inner) => {
            await inner.unsafe(add(2));
            throw new Error("mine");
          })
        );
      });
      reserved.release();
      await conn`begin`;
      assertEquals((await rejection(conn.begin(nested, () => {}))).code, "IN_TRANSACTION");
      await conn.rollback();
      assertEquals(await rows(), [1]);
    })));
