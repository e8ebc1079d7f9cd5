/** Transactions, savepoints and reservations of one session exclude each other; none is ended unseen. */

import { assert, assertEquals } from "@std/assert";
import { Kysely } from "kysely";
import { PostgresJSDialect } from "kysely-postgres-js";
import { PersistentConnectionPool, SimpleConnectionPool } from "../mod.ts";
import type { Connection } from "../mod.ts";
import { test } from "./support/harness.ts";
import { fakePostgres, message, ready, refusal, welcome } from "./support/fake_postgres.ts";
import { rejection, within } from "./support/postgres.ts";
import { FakeConnector, FakePool, settle, type Thing } from "./support/fake.ts";
import { asAdmin, eventually, testServer } from "./support/server.ts";
import { uniqueName } from "./support/sql.ts";

async function withTable(
  fn: (
    pool: SimpleConnectionPool,
    table: string,
    rows: () => Promise<number[]>,
  ) => Promise<void>,
  maxconn = 3,
): Promise<void> {
  await using pool = new SimpleConnectionPool(0, maxconn, (await testServer()).url, {
    onnotice: () => {},
    pool: { timeout: 60_000 },
  });
  const table = uniqueName("transactions");
  await pool.sql.unsafe(`create table ${table} (n int)`);
  try {
    await fn(
      pool,
      table,
      async () =>
        (await pool.sql.unsafe(`select n from ${table} order by 1`)).map(({ n }) => n as number),
    );
  } finally {
    await pool.sql.unsafe(`drop table ${table}`);
  }
}

test("savepoints begun side by side run one after the other: one that fails takes back nothing of the others", () =>
  withTable(async (pool, table, rows) => {
    const { sql } = pool;
    const gates = [0, 1, 2].map(() => Promise.withResolvers<void>());
    const steps: string[] = [];
    const ended = sql.begin((tx) =>
      Promise.allSettled([0, 1, 2].map((n) =>
        tx.savepoint(async (sp) => {
          steps.push(`begin ${n}`);
          await sp.unsafe(`insert into ${table} values (${n})`);
          await gates[n]!.promise;
          if (n === 0) throw new Error("the first fails");
          await sp.unsafe(`insert into ${table} values (${n * 10})`);
          steps.push(`end ${n}`);
          return n;
        })
      ))
    );
    // The last one could go on first, the failing one last.
    for (const n of [2, 1, 0]) gates[n]!.resolve();
    const outcome = await ended;
    assertEquals(outcome.map(({ status }) => status), ["rejected", "fulfilled", "fulfilled"]);
    assertEquals(steps, ["begin 0", "begin 1", "end 1", "begin 2", "end 2"]);
    assertEquals(await rows(), [1, 2, 10, 20]);
  }));

test("a statement of the transaction beside a savepoint that fails is not taken back with it", () =>
  withTable(async (pool, table, rows) => {
    await pool.sql.begin(async (tx) => {
      const { promise: failed, resolve: fail } = Promise.withResolvers<void>();
      const part = tx.savepoint(async (sp) => {
        await sp.unsafe(`insert into ${table} values (1)`);
        await failed;
        throw new Error("it fails");
      });
      const beside = tx.unsafe(`insert into ${table} values (2)`).then(() => {});
      fail();
      assertEquals((await rejection(part)).message, "it fails");
      await beside;
    });
    assertEquals(await rows(), [2]);
  }));

test("what a savepoint's function asks of an outer handle is a part of the savepoint, and waits for nothing", () =>
  withTable(async (pool, table, rows) => {
    await within(pool.sql.begin(async (tx) => {
      await rejection(tx.savepoint(async (sp) => {
        await sp.unsafe(`insert into ${table} values (1)`);
        await tx.unsafe(`insert into ${table} values (2)`);
        await tx.savepoint((inner) => inner.unsafe(`insert into ${table} values (3)`));
        await sp.savepoint(async (inner) => {
          await tx.savepoint((most) => most.unsafe(`insert into ${table} values (4)`));
          await inner.unsafe(`insert into ${table} values (5)`);
        });
        throw new Error("all of it goes");
      }));
      await tx.unsafe(`insert into ${table} values (6)`);
    }));
    assertEquals(await rows(), [6]);
  }));

test("what is asked of an outer handle within another connection's savepoint is a part of its own savepoint", () =>
  withTable(async (pool, table, rows) => {
    const add = (n: number) => `insert into ${table} values (${n})`;
    await within(pool.sql.begin((a) =>
      a.savepoint(async (part) => {
        await part.unsafe(add(1));
        await pool.sql.begin((b) =>
          b.savepoint(async (other) => {
            await other.unsafe(add(2));
            await a.unsafe(add(3));
            await rejection(a.savepoint(async (inner) => {
              await inner.unsafe(add(4));
              await other.unsafe(add(5));
              await b.savepoint((deep) => deep.unsafe(add(6)));
              throw new Error("taken back on its own connection alone");
            }));
            await part.unsafe(add(7));
          })
        );
      })
    ));
    assertEquals(await rows(), [1, 2, 3, 5, 6, 7]);
  }));

test("a savepoint that waits for a sibling, which waits for it, does not hang: the sibling is refused", () =>
  withTable(async (pool, table, rows) => {
    const error = await rejection(pool.sql.begin(async (tx) => {
      let second: Promise<unknown> = Promise.resolve();
      const first = tx.savepoint(async (sp) => {
        await sp.unsafe(`insert into ${table} values (1)`);
        await second;
      });
      second = tx.savepoint((sp) => sp.unsafe(`insert into ${table} values (2)`));
      await Promise.all([first, second]);
    }));
    assertEquals(error.code, "IN_TRANSACTION");
    assertEquals([await rows(), pool.stats().leased], [[], 0]);
  }));

test("what waits for a savepoint's end is refused when the transaction is over", () =>
  withTable(async (pool) => {
    let second: Promise<Error & { code?: string }> | undefined;
    const begun = pool.sql.begin(async (tx) => {
      const first = tx.savepoint(async (sp) => {
        const [row] = await sp`select pg_backend_pid() as pid`;
        await asAdmin((admin) => admin`select pg_terminate_backend(${row!["pid"]})`);
        await new Promise(() => {});
      });
      second = rejection(tx.savepoint(() => {}));
      await first;
    });
    await rejection(begun);
    assert((await within(second!)) instanceof Error);
    assertEquals(pool.stats().leased, 0);
  }));

test("a savepoint that was begun beside what has failed writes nothing behind the transaction's end", () =>
  withTable(async (pool, table, rows) => {
    let late: Promise<unknown> = Promise.resolve();
    const ended = rejection(pool.sql.begin((tx) => {
      late = tx.savepoint(async (sp) => {
        await sp.unsafe(`insert into ${table} values (1)`);
        await sp.unsafe(`insert into ${table} values (2)`);
      });
      late.catch(() => {});
      return Promise.reject(new Error("no"));
    }));
    assertEquals((await ended).message, "no");
    await late.catch(() => {});
    assertEquals(await rows(), []);
  }));

test("a savepoint that outlives its transaction takes nothing back of the session's next borrower", () =>
  withTable(async (pool, table, rows) => {
    const gate = Promise.withResolvers<void>();
    let late: Promise<unknown> = Promise.resolve();
    let pid = 0;
    await rejection(pool.use((conn) => {
      ({ pid } = conn);
      return conn.begin(async (tx) => {
        const begun = Promise.withResolvers<void>();
        late = tx.savepoint(async () => {
          begun.resolve();
          await gate.promise;
          throw new Error("much too late");
        });
        late.catch(() => {});
        await begun.promise;
        throw new Error("no");
      });
    }));
    await pool.use((conn) => {
      assertEquals(conn.pid, pid);
      return conn.begin((tx) =>
        tx.savepoint(async (sp) => {
          await sp.unsafe(`insert into ${table} values (1)`);
          gate.resolve();
          await late.catch(() => {});
          await sp.unsafe(`insert into ${table} values (2)`);
        })
      );
    });
    assertEquals(await rows(), [1, 2]);
  }));

const BY_HAND: readonly [string, (conn: Connection) => Promise<unknown>][] = [
  ["commit", (conn) => conn.unsafe("commit")],
  ["rollback", (conn) => conn.unsafe("rollback")],
  ["end", (conn) => conn.unsafe("end")],
  ["rollback()", (conn) => conn.rollback()],
  ["commit, begin", async (conn) => {
    await conn.unsafe("commit");
    await conn.unsafe("begin");
  }],
  ["commit and chain", (conn) => conn.unsafe("commit and chain")],
  ["commit; begin", (conn) => conn.unsafe("commit; begin").simple()],
  ["not awaited", (conn) => {
    conn.unsafe("commit").catch(() => {});
    return Promise.resolve();
  }],
];

for (const [name, end] of BY_HAND) {
  test(`a transaction that its function ends by hand says so: ${name}`, () =>
    withTable(async (pool, table) => {
      const insert = `insert into ${table} values (1)`;
      const ways: Record<string, () => Promise<unknown>> = {
        "pool.transaction": () =>
          pool.transaction(async (conn) => {
            await conn.unsafe(insert);
            await end(conn);
          }),
        "conn.begin": () =>
          pool.use((conn) =>
            conn.begin(async (tx) => {
              await tx.unsafe(insert);
              await end(conn);
            })
          ),
      };
      for (const [way, run] of Object.entries(ways)) {
        const error = await rejection(run());
        assertEquals([way, error.code], [way, "TRANSACTION_ENDED"]);
        const { idle, leased } = pool.stats();
        assertEquals([way, idle, leased], [way, 1, 0]);
        await pool.use((conn) => assertEquals([way, conn.transactionStatus], [way, "idle"]));
      }
    }, 1));
}

test("a transaction whose function ends it by hand and then fails gives the function's error", () =>
  withTable(async (pool) => {
    const mine = new Error("mine");
    const error = await rejection(pool.transaction(async (conn) => {
      await conn`commit`;
      throw mine;
    }));
    assert(error === mine);
    assertEquals(pool.stats().idle, 1);
  }, 1));

test("conn.begin and pool.transaction on one session refuse each other, whichever comes first", () =>
  withTable(async (pool, table, rows) => {
    await pool.transaction(async (conn) => {
      assertEquals((await rejection(conn.begin(() => 1))).code, "IN_TRANSACTION");
      await conn.unsafe(`insert into ${table} values (1)`);
    });
    const { url } = await testServer();
    await using one = new PersistentConnectionPool(0, 1, url);
    const conn = await one.getconn();
    // The transaction that is opening has the session from the turn in which it was asked for.
    const begun = conn.begin((tx) => tx.unsafe(`insert into ${table} values (2)`).then(() => {}));
    assertEquals((await rejection(one.transaction(() => 1))).code, "IN_TRANSACTION");
    await begun;
    const other = one.transaction((held) => held.unsafe(`insert into ${table} values (3)`));
    await Promise.resolve();
    await Promise.resolve();
    const refused = await Promise.allSettled([other, conn.begin(() => 1), conn.begin(() => 1)]);
    assertEquals(refused.filter(({ status }) => status === "fulfilled").length, 1);
    await one.putconn();
    assert((await rows()).join().startsWith("1,2"));
  }));

test("reservations of one lease come one after the other, and the lease waits for none", () =>
  withTable(async (pool, table, rows) => {
    for (const reserved of [false, true]) {
      const conn = reserved ? await pool.sql.reserve() : await pool.getconn();
      const order: string[] = [];
      const first = await conn.reserve();
      order.push("first");
      const second = conn.reserve().then((one) => {
        order.push("second");
        return one;
      });
      await first.unsafe("begin");
      await first.unsafe(`insert into ${table} values (1)`);
      for (const refused of [conn`select 1`, conn.begin(() => 1)]) {
        assertEquals((await rejection(refused)).code, "IN_TRANSACTION");
      }
      order.push("release");
      // In a transaction: the next one does not inherit it.
      first.release();
      first.release();
      const next = await second;
      assertEquals(order, ["first", "release", "second"]);
      const [row] = await next.unsafe(`select count(*)::int as n from ${table}`);
      assertEquals(row!["n"], 0);
      const inner = await (next as unknown as Connection).reserve();
      assertEquals((await rejection(next`select 1`)).code, "IN_TRANSACTION");
      inner.release();
      await next`select 1`;
      next.release();
      await conn`select 1`;
      // With the lease ends what waits for a reservation of it.
      const third = await conn.reserve();
      const waiting = rejection(conn.reserve());
      if (reserved) (conn as unknown as { release(): void }).release();
      else await pool.putconn(conn as Connection);
      assertEquals((await within(waiting)).code, "CONNECTION_RETURNED");
      third.release();
      assertEquals((await rejection(third`select 1`)).code, "CONNECTION_RETURNED");
    }
    assertEquals(await rows(), []);
    assertEquals(pool.stats().leased, 0);
  }));

test("what waits for a reservation is refused when the session is lost", () =>
  withTable(async (pool) => {
    await rejection(pool.use(async (conn) => {
      await conn.reserve();
      const waiting = rejection(conn.reserve());
      await asAdmin((admin) => admin`select pg_terminate_backend(${conn.pid})`);
      assertEquals((await within(waiting)).code, "CONNECTION_LOST");
      await new Promise(() => {});
    }));
    assertEquals(pool.stats().leased, 0);
  }));

test("kysely on a lease: three transactions at once, each is kept or taken back as a whole", () =>
  withTable(async (pool, table, rows) => {
    const conn = await pool.getconn();
    const db = new Kysely<{ [name: string]: { n: number } }>({
      dialect: new PostgresJSDialect({ postgres: conn }),
    });
    const outcome = await Promise.allSettled(
      [1, 2, 3].map((n) =>
        db.transaction().execute(async (tx) => {
          await tx.insertInto(table).values({ n }).execute();
          await tx.selectFrom(table).selectAll().execute();
          if (n === 2) throw new Error("the second fails");
          await tx.insertInto(table).values({ n: n * 10 }).execute();
        })
      ),
    );
    assertEquals(outcome.map(({ status }) => status), ["fulfilled", "rejected", "fulfilled"]);
    await pool.putconn(conn);
    assertEquals(await rows(), [1, 3, 10, 30]);
  }));

test("a session that dies frees the slot and tells the caller, though the function never returns", async () => {
  const { url } = await testServer();
  const never = async (conn: Connection | { unsafe: Connection["unsafe"] }): Promise<void> => {
    const [row] = await conn.unsafe("select pg_backend_pid() as pid");
    await asAdmin((admin) => admin`select pg_terminate_backend(${row!["pid"]})`);
    await new Promise(() => {});
  };
  await using simple = new SimpleConnectionPool(0, 1, url, { pool: { timeout: 60_000 } });
  await using worker = new PersistentConnectionPool(0, 1, url, { pool: { timeout: 60_000 } });
  await using context = new PersistentConnectionPool(0, 1, url, {
    pool: { timeout: 60_000, scope: "context" },
  });
  for (const pool of [simple, worker, context]) {
    const ways = [
      () => pool.use(never),
      () => pool.transaction(never),
      () => pool.use((conn) => conn.begin(never)),
      () => pool.sql.begin(never),
    ];
    for (const way of ways) {
      const error = await rejection(way());
      assert(error.code === "CONNECTION_LOST" || error.code === "CONNECTION_CLOSED");
      assertEquals((await within(pool.use((conn) => conn`select 1 as n`)))[0]!["n"], 1);
    }
    assertEquals(pool.stats().leased, 0);
  }
});

test("a function that handles the loss of its connection by itself gives what it returns", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 1, url);
  const kill = (conn: Connection) => conn`select pg_terminate_backend(pg_backend_pid())`;
  assertEquals(
    await pool.use((conn) => kill(conn).then(() => "alive", () => "handled")),
    "handled",
  );
  // What it closes itself is no loss.
  assertEquals(
    await pool.use(async (conn) => {
      await conn.close();
      await new Promise((resolve) => setTimeout(resolve, 5));
      return "closed";
    }),
    "closed",
  );
  assertEquals(pool.stats().leased, 0);
});

test("closeall() tells a use() whose function never returns", async () => {
  const fake = new FakeConnector();
  const pool = new FakePool(0, 1, {}, fake);
  const used = pool.use((_: Thing) => new Promise<never>(() => {}));
  await Promise.resolve();
  const error = rejection(used);
  await new Promise((resolve) => setTimeout(resolve));
  await pool.closeall();
  assertEquals((await error).code, "POOL_CLOSED");
});

test("a transaction's function is called as a function, not as a method of something of the pool's", async () => {
  const seen: unknown[] = [];
  function look(this: unknown): void {
    seen.push(this);
  }
  await using own = new FakePool(0, 1);
  await own.transaction(look);
  await own.transaction(look, { retry: { attempts: 2 } });
  await own.use(look);
  await using keyed = new PersistentConnectionPool(0, 1, (await testServer()).url);
  await keyed.transaction(async (conn) => {
    look.call(undefined);
    await keyed.transaction(look, { nested: "savepoint" });
    await conn`select 1`;
  });
  assertEquals(seen, Array(5).fill(undefined));
});

test("a connection that is put back in the middle of its commit is closed, not lent again", async () => {
  const gate = Promise.withResolvers<void>();
  class SlowCommit extends FakeConnector {
    override async commit(thing: Thing): Promise<void> {
      // As for connectors that cannot tell that it is under way, the thing stays `intrans`.
      await gate.promise;
      await super.commit(thing);
    }
  }
  const fake = new SlowCommit();
  const pool = new FakePool(0, 1, { timeout: 60_000 }, fake);
  let conn: Thing | undefined;
  const done = pool.transaction((lent) => {
    conn = lent;
  });
  await settle();
  const back = pool.putconn(conn!);
  const next = pool.getconn();
  gate.resolve();
  await done.catch(() => {});
  await back;
  assertEquals((await next).hello(), 2);
  await pool.putconn(await next);
  await pool.close();
});

test("a transaction's first statement is cancelled while it runs: by hand, by its time, by a signal", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 2, url, { pool: { timeout: 60_000 } });
  const sleeps = async (pid: number): Promise<void> => {
    const [row] = await pool.sql<{ wait_event: string }[]>`
      select wait_event from pg_stat_activity where pid = ${pid}`;
    assertEquals(row!.wait_event, "PgSleep");
  };
  type First = (sql: Pick<Connection, "unsafe">, pid: number) => Promise<unknown>;
  const begins: ((first: First) => Promise<unknown>)[] = [
    (first) => pool.transaction((conn) => first(conn, conn.pid)),
    (first) => pool.use((conn) => conn.begin((tx) => first(tx, conn.pid))),
  ];
  for (const begin of begins) {
    for (const [how, code] of [["cancel", "57014"], ["time", "QUERY_TIMEOUT"], ["signal", "20"]]) {
      const given = new AbortController();
      const failed = await rejection(begin(async (sql, pid) => {
        const options =
          { cancel: {}, time: { queryTimeout: 500 }, signal: { signal: given.signal } }[how!];
        const query = sql.unsafe("select pg_sleep($1)", [60], options as never);
        const ended = query.execute();
        if (how !== "time") await eventually(() => sleeps(pid));
        if (how === "cancel") query.cancel();
        if (how === "signal") given.abort();
        return await ended;
      }));
      assertEquals(String(failed.code), code);
      assertEquals([...await pool.sql`select 1 as n`], [{ n: 1 }]);
    }
  }
});

test("a begin that the server refuses is told in the server's words, whatever the function does meanwhile", async () => {
  await using fake = await fakePostgres(async (peer) => {
    await peer.startup();
    peer.send(welcome());
    for (let refused = false;;) {
      const { type, body } = await peer.next();
      if (type === "X") return void peer.socket.end();
      if (type === "Q") peer.send(message("C", "OK\0"), ready());
      if (type === "P" && body.includes("begin")) {
        refused = true;
        peer.send(refusal("25006", "no transactions here", "ERROR"));
      }
      if (type === "S") {
        assert(refused, "something was executed outside of its transaction");
        peer.send(ready());
      }
    }
  });
  const url = `postgres://u:p@127.0.0.1:${fake.port}/d?sslmode=disable`;
  await using pool = new SimpleConnectionPool(0, 1, url, { fetch_types: false });
  type Sql = Pick<Connection, "unsafe">;
  const begins: ((fn: (sql: Sql) => unknown) => Promise<unknown>)[] = [
    (fn) => pool.transaction(fn),
    (fn) => pool.use((conn) => conn.begin(fn)),
    (fn) => pool.sql.begin(fn),
  ];
  const functions: ((sql: Sql) => unknown)[] = [
    (sql) => sql.unsafe("select $1::int", [1]),
    (sql) => sql.unsafe("select 1"),
    (sql) => sql.unsafe("select 1").catch(() => "caught"),
    () => "nothing",
    () => {
      throw new Error("its own");
    },
    () => new Promise(() => {}),
  ];
  for (const begin of begins) {
    for (const fn of functions) {
      const { code, message } = await rejection(begin(fn));
      assertEquals([code, message], ["25006", "no transactions here"]);
      assertEquals(pool.stats().leased, 0);
    }
  }
  assertEquals(fake.failures, []);
});

test("a transaction or savepoint whose function leaves a COPY and throws is rolled back at once", async () => {
  await withTable(async (pool, table, rows) => {
    type Leave = (sql: Pick<Connection, "unsafe">) => Promise<unknown>;
    const kept: unknown[] = [];
    const copyIn: Leave = async (sql) => {
      const stream = await sql.unsafe(`copy ${table} from stdin`).writable();
      kept.push(stream);
      stream.write("1\n");
      throw new Error("left");
    };
    const copyOut: Leave = async (sql) => {
      await sql.unsafe(`insert into ${table} values (2)`);
      const text = "copy (select repeat('x', 1000) from generate_series(1, 20000)) to stdout";
      kept.push(await sql.unsafe(text).readable());
      throw new Error("left");
    };
    for (const leave of [copyIn, copyOut]) {
      assertEquals((await rejection(pool.sql.begin(leave))).message, "left");
      assertEquals((await rejection(pool.transaction(leave))).message, "left");
      await within(pool.sql.begin(async (sql) => {
        assertEquals((await rejection(sql.savepoint(leave))).message, "left");
        assertEquals([...await sql`select 1 as n`], [{ n: 1 }]);
      }));
    }
    assertEquals(await rows(), []);
    assertEquals(kept.length, 6);
  }, 1);
});

test("a rollback that comes behind the question whether there was one ends the transaction by hand, too", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 2, url);
  await using other = await pool.getconn();
  const left = async (sql: Connection): Promise<void> => {
    await other`select pg_advisory_lock(7331)`;
    const first = sql`select 1`.then(async () => {
      const sent = sql.unsafe("rollback").execute();
      await other`select pg_advisory_unlock(7331)`;
      await sent;
    });
    first.catch(() => {});
    sql`select pg_advisory_xact_lock(7331)`.catch(() => {});
    // Both go out before the function is over.
    for (let i = 0; i < 10; i++) await Promise.resolve();
  };
  const runs = [
    () => pool.use((conn) => conn.begin(left as never)),
    () => pool.sql.begin(left as never),
    () => pool.transaction(left),
  ];
  for (const run of runs) {
    assertEquals((await rejection(run())).code, "TRANSACTION_ENDED");
  }
});

test("a transaction that says it was committed is there, in whatever microtask a rollback was left behind", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 2, url, { onnotice: () => {} });
  await pool.sql.unsafe("create table if not exists left_behind (id int)");
  await using _ = {
    [Symbol.asyncDispose]: () => pool.sql.unsafe("drop table left_behind").then(() => {}),
  };
  let id = 0;
  let ended = 0;
  const insert = (microtasks: number) => async (sql: Connection): Promise<void> => {
    await sql`insert into left_behind values (${id})`;
    const behind = async (): Promise<void> => {
      for (let i = 0; i < microtasks; i++) await null;
      await sql.unsafe("rollback");
    };
    behind().catch(() => {});
  };
  for (let microtasks = 0; microtasks < 30; microtasks++) {
    const left = insert(microtasks);
    const runs = [
      () => pool.use((conn) => conn.begin(left as never)),
      () => pool.sql.begin(left as never),
      () => pool.transaction(left),
    ];
    for (const run of runs) {
      id++;
      const failure = await run().then(() => null, (error: { code?: string }) => error.code);
      const rows = await pool.sql`select from left_behind where id = ${id}`;
      if (failure === null) assertEquals(rows.length, 1, `after ${microtasks} microtasks`);
      else {
        assertEquals([failure, rows.length], ["TRANSACTION_ENDED", 0]);
        ended++;
      }
    }
  }
  assert(ended > 0);
});
