/** ThreadedConnectionPool over several workers, on a real server. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { deadline } from "@std/async/deadline";
import { delay } from "@std/async/delay";
import {
  PoolClosed,
  PoolError,
  PoolExhausted,
  type PoolStats,
  PoolTimeout,
  SimpleConnectionPool,
  ThreadedConnectionPool,
} from "../mod.ts";
import { HEAD } from "../src/workers/layout.ts";
import { found, reserve, wordsFor } from "../src/workers/members.ts";
import { PATIENCE } from "../src/workers/permit_table.ts";
import { AtomicWords, SharedPermits } from "../src/workers/shared_permits.ts";
import { test } from "./support/harness.ts";
import { admin, asAdmin, eventually, testServer } from "./support/server.ts";
import { TestWorker } from "./support/workers.ts";
import { bench, most, options } from "./support/workers_bench.ts";

test(
  "ThreadedConnectionPool.join() gives a worker the same pool; closeall reaches all",
  async () => {
    await bench([0, 2, 2], async ({ pool, workers, sessions }) => {
      const [one, two] = workers as [TestWorker, TestWorker];
      assertEquals(await Promise.all([one.tell("query"), two.tell("query")]), [1, 1]);
      assertEquals(await sessions(), 2);
      await one.tell("closeall");
      assertEquals(await sessions(), 0);
      await eventually(() => assert(pool.closed));
      await assertRejects(() => two.tell("query"), Error, "connection pool is closed");
      await assertRejects(() => pool.getconn(), PoolClosed);
    });
  },
  options,
);

test("ThreadedConnectionPool.close() waits for the leases of other workers", async () => {
  await bench([0, 2, 1], async ({ pool, workers: [worker], sessions }) => {
    await worker!.tell("get");
    const closing = pool.close({ timeout: 60_000 });
    await eventually(async () => assert(await worker!.tell("closed")));
    assertEquals(await sessions(), 1);
    await worker!.tell("put");
    await deadline(closing, 60_000);
    assertEquals(await sessions(), 0);
  });
}, options);

test(
  "ThreadedConnectionPool.close() closes leases of other workers after its timeout",
  async () => {
    await bench([0, 2, 1], async ({ pool, workers: [worker], sessions }) => {
      await worker!.tell("get");
      await deadline(pool.close({ timeout: 100 }), 60_000);
      assertEquals(await sessions(), 0);
    });
  },
  options,
);

test(
  "getconn() gets a permit that another worker's idle connection holds, also with timeout 0",
  async () => {
    await bench([0, 1, 2], async ({ pool, workers, sessions }) => {
      const [one, two] = workers as [TestWorker, TestWorker];
      for (const worker of [one, two, one]) {
        // A worker has 100 ms to answer: on a busy machine it does not at each call.
        await eventually(() => worker.tell("get", { timeout: 0 }));
        assertEquals(await sessions(), 1);
        await worker.tell("put");
      }
      const conn = await eventually(() => pool.getconn(null, { timeout: 0 }));
      await assertRejects(() => two.tell("get", { timeout: 0 }), Error, "exhausted");
      await pool.putconn(conn);
    });
  },
  options,
);

/** How many of so many calls are refused before a timer comes that would come before anything for which they wait. */
async function refusedAtOnce(pool: ThreadedConnectionPool, calls = 20): Promise<number> {
  let count = 0;
  for (let i = 0; i < calls; i++) if (await isRefusedAtOnce(pool)) count++;
  return count;
}

async function isRefusedAtOnce(pool: ThreadedConnectionPool): Promise<boolean> {
  const refused = pool.getconn(null, { timeout: 0 }).then(
    () => "lent",
    (error) => error instanceof PoolExhausted ? "refused" : error,
  );
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE - 10, "late"));
  const first = await Promise.race([refused, late]);
  assertEquals(await refused, "refused");
  return first === "refused";
}

test(
  "getconn() with timeout 0 fails at once when the whole pool is lent, and an idle one goes to one of two",
  async () => {
    await bench([0, 2, 2], async ({ pool, workers }) => {
      const [one, two] = workers as [TestWorker, TestWorker];
      await one.tell("get");
      await two.tell("get");
      // On a busy machine not each one is; if they waited, none would be.
      assert(await refusedAtOnce(pool) > 0);
      await two.tell("put");
      let most = 0;
      // A worker has 100 ms to answer: on a busy machine it does not at each call.
      await eventually(async () => {
        const results = await Promise.allSettled([
          pool.getconn(null, { timeout: 0 }),
          pool.getconn(null, { timeout: 0 }),
        ]);
        const lent = results.filter((result) => result.status === "fulfilled");
        for (const { value } of lent) await pool.putconn(value);
        most = Math.max(most, lent.length);
        assertEquals(lent.length, 1);
      });
      assertEquals(most, 1);
    });
  },
  options,
);

test(
  "the cap holds under load with a worker that dies, backends that are killed, and give-ups",
  async () => {
    await bench([0, 5, 4], async (bench) => {
      const { pool, workers, name } = bench;
      const sql = await admin();
      const seen = await most(bench, async () => {
        const load = (worker: TestWorker, think: number) =>
          worker.tell("load", { tasks: 4, ms: 3_000, think });
        const loads = workers.slice(1).map((worker, at) => load(worker, at * 3));
        load(workers[0]!, 0).catch(() => {});
        for (let i = 0; i < 8; i++) {
          await new Promise((resolve) => setTimeout(resolve, 250));
          await sql`select pg_terminate_backend(pid) from pg_stat_activity
          where application_name = ${name} limit 1`;
          if (i === 3) workers[0]![Symbol.dispose]();
          if (i === 4) loads.push(load(await bench.join(), 0));
        }
        await Promise.all(loads);
      });
      await sql.end();
      assert(seen <= 5, `${seen} sessions`);
      const conns = await Promise.all(
        Array.from({ length: 5 }, () => pool.getconn(null, { timeout: 60_000 })),
      );
      assertEquals(await bench.sessions(), 5);
      for (const conn of conns) await pool.putconn(conn);
    });
  },
  options,
);

test("resize() and renew() work for all workers", async () => {
  await bench([0, 4, 2], async ({ pool, workers, sessions }) => {
    const [one, two] = workers as [TestWorker, TestWorker];
    for (const worker of [one, two]) for (let i = 0; i < 2; i++) await worker.tell("get");
    for (const worker of [one, two]) for (let i = 0; i < 2; i++) await worker.tell("put");
    assertEquals(await sessions(), 4);
    await one.tell("renew");
    assertEquals(await sessions(), 0);
    for (const worker of [one, two]) for (let i = 0; i < 2; i++) await worker.tell("get");
    await two.tell("resize", 0, 2);
    assertEquals(pool.maxconn, 2);
    for (const worker of [one, two]) for (let i = 0; i < 2; i++) await worker.tell("put");
    await eventually(async () => assertEquals(await sessions(), 2));
    await pool.resize(0, 3);
    const conns = await Promise.all([1, 2, 3].map(() => pool.getconn(null, { timeout: 60_000 })));
    assertEquals(await sessions(), 3);
    for (const conn of conns) await pool.putconn(conn);
  });
}, options);

test("workers of workers share too, and end with their creator", async () => {
  await bench([0, 2, 1], async ({ pool, workers: [worker] }) => {
    assertEquals(await worker!.tell("nest"), 1);
    await worker!.tell("nested", "get");
    assertEquals(pool.stats().workers.length, 3);
    worker![Symbol.dispose]();
    await eventually(() => assertEquals(pool.stats().workers.length, 1));
    const conns = await Promise.all([1, 2].map(() => pool.getconn(null, { timeout: 60_000 })));
    for (const conn of conns) await pool.putconn(conn);
  });
}, options);

test(
  "join() refuses what is no handle, a handle used twice, and one of a closed pool",
  async () => {
    await bench([0, 2, 1], async ({ pool, workers: [worker] }) => {
      for (const bad of [null, 1, {}, { kind: "@getconn/pool" }]) {
        await assertRejects(() => ThreadedConnectionPool.join(bad as never), TypeError, "handle");
      }
      assertThrows(() => pool.share({} as never), TypeError, "Worker");
      const handle = pool.share(worker!.worker);
      await worker!.tell("join", handle, "threaded", {});
      const again = await assertRejects(() => worker!.tell("join", handle, "threaded", {}), Error);
      assertEquals((again as { code?: string }).code, "BAD_HANDLE");
      const persistent = await assertRejects(
        () => worker!.tell("join", handle, "persistent", {}),
        Error,
      );
      assert(persistent.message.includes("PersistentConnectionPool was given a handle of"));
      assert(!JSON.stringify(handle).includes("postgres:postgres"));
      const late = pool.share(worker!.worker);
      await pool.closeall();
      await assertRejects(() => ThreadedConnectionPool.join(late), PoolClosed);
      assertThrows(() => pool.share(worker!.worker), PoolError, "connection pool is closed");
    });
  },
  options,
);

test("join() demands the functions that could not be sent", async () => {
  const { url } = await testServer();
  const pool = new ThreadedConnectionPool(0, 1, url, { pool: { configure: () => {} } });
  using worker = await TestWorker.start();
  const handle = pool.share(worker.worker);
  await assertRejects(
    () => worker.tell("join", handle, "threaded", {}),
    Error,
    "join() must be given pool.configure",
  );
  await pool.closeall();
}, options);

test(
  "a pool that cannot be made, or joined, hands its permits and its place to no other",
  async () => {
    const { url } = await testServer();
    assertThrows(
      () => new ThreadedConnectionPool(0, 9, url, { pool: { timeout: -1 } }),
      RangeError,
    );
    const simple = new SimpleConnectionPool(0, 3, url);
    const shared = new ThreadedConnectionPool(0, 5, url);
    using worker = await TestWorker.start();
    const join = (timeout: number) =>
      worker.tell("join", shared.share(worker.worker), "threaded", { pool: { timeout } });
    await assertRejects(() => join(-1), Error, "timeout");
    await join(5_000);
    assertEquals(await worker.tell("query"), 1);
    class Pair extends ThreadedConnectionPool {
      constructor(readonly other = new ThreadedConnectionPool(0, 4, url)) {
        super(0, 6, url);
      }
    }
    const pair = new Pair();
    assertEquals([simple, shared, pair.other, pair].map(({ maxconn }) => maxconn), [3, 5, 4, 6]);
    await simple.resize(0, 1);
    assertEquals([simple, shared, pair.other, pair].map(({ maxconn }) => maxconn), [1, 5, 4, 6]);
    for (const pool of [simple, shared, pair, pair.other]) await pool.close();
  },
  options,
);

test("stats() shows what other workers share for single statements", async () => {
  await bench([0, 4, 1], async ({ pool, name, workers: [worker] }) => {
    const running = Promise.allSettled([worker!.tell("sql", 60), worker!.tell("sql", 60)]);
    await eventually(() => {
      const { shared, leased, poolSize, workers } = pool.stats();
      assertEquals([shared, leased, poolSize], [2, 0, 2]);
      assertEquals(workers.map((one) => [one.self, one.shared]), [[true, 0], [false, 2]]);
    });
    await eventually(async () => {
      const cancelled = await asAdmin((sql) =>
        sql`select pg_cancel_backend(pid) from pg_stat_activity
          where application_name = ${name} and wait_event = 'PgSleep'`
      );
      assertEquals(cancelled.length, 2);
    });
    await running;
    await eventually(() => assertEquals([pool.stats().shared, pool.stats().idle], [0, 2]));
  });
}, options);

test("stats() shows every worker", async () => {
  await bench([0, 3, 2], async ({ pool, workers }) => {
    const [one, two] = workers as [TestWorker, TestWorker];
    await one.tell("get");
    await two.tell("query");
    await eventually(() => {
      const { workers, poolSize, leased, idle } = pool.stats();
      // Beside a connect that takes long another one may be opened, which is idle then.
      const seen = workers.map((w) => [w.permits - w.idle, w.leased, w.requestsNum]);
      assertEquals(seen, [[0, 0, 0], [1, 1, 1], [0, 0, 1]]);
      assert(workers[2]!.idle > 0);
      assertEquals([poolSize - idle, leased], [1, 1]);
    });
    await one.tell("put");
  });
}, options);

test("with maxIdle 0, minconn stay idle in all workers together", async () => {
  await bench([1, 3, 2], async ({ pool, workers, sessions }) => {
    await pool.ready();
    for (const worker of workers) await worker.tell("get");
    for (const worker of workers) await worker.tell("put");
    await eventually(async () => assertEquals(await sessions(), 1));
    assertEquals(pool.stats().idle, 1);
  }, { maxIdle: 0 });
}, options);

/** Freezes a worker while `fn` runs. */
async function frozen(worker: TestWorker, fn: () => Promise<void>): Promise<void> {
  const gate = new Int32Array(new SharedArrayBuffer(8));
  await worker.tell("freeze", gate);
  await eventually(() => assertEquals(Atomics.load(gate, 1), 1));
  try {
    await fn();
  } finally {
    Atomics.store(gate, 0, 1);
    Atomics.notify(gate, 0);
  }
}

test(
  "getconn() with timeout 0 does not wait for a worker that computes: what it has idle counts for a moment",
  async () => {
    await bench([0, 1, 1], async ({ pool, workers: [worker] }) => {
      await worker!.tell("query");
      await frozen(worker!, async () => {
        const failed = assertRejects(() => pool.getconn(null, { timeout: 0 }), PoolExhausted);
        await deadline(failed, 60_000);
        // It is known now: nobody else has to find that out.
        assert(await refusedAtOnce(pool) > 0);
      });
      await eventually(async () => await pool.putconn(await pool.getconn(null, { timeout: 0 })));
    });
  },
  options,
);

test(
  "a handle is for one worker: another one's death frees nothing that was got by it",
  async () => {
    await bench([0, 1, 0], async ({ pool, sessions }) => {
      using one = await TestWorker.start();
      using two = await TestWorker.start();
      const handle = pool.share(one.worker);
      const joined = two.tell("join", handle, "threaded", {});
      // A web worker of Deno is known by its lock, whichever it is; all others by their creator.
      if ("Deno" in globalThis) await joined;
      else {
        const refused = await assertRejects(() => joined, Error, "for another worker");
        assertEquals((refused as { code?: string }).code, "BAD_HANDLE");
        await assertRejects(() => ThreadedConnectionPool.join(handle), PoolError, "another worker");
        await one.tell("join", handle, "threaded", {});
        await two.tell("join", pool.share(two.worker), "threaded", {});
      }
      await two.tell("get");
      one[Symbol.dispose]();
      // Longer than what a dead worker held rests.
      await assertRejects(() => pool.getconn(null, { timeout: 1_500 }), PoolTimeout);
      assertEquals(await sessions(), 1);
    });
  },
  options,
);

test(
  "stats() totals only grow: a worker's stay when it ends, and when another takes its place",
  async () => {
    await bench([0, 2, 1], async ({ pool, workers: [worker], join }) => {
      for (let i = 0; i < 3; i++) await worker!.tell("query");
      await eventually(() => assertEquals(pool.stats().requestsNum, 3));
      const { worker: number } = pool.stats().workers.find(({ self }) => !self)!;
      worker![Symbol.dispose]();
      await eventually(() => assertEquals(pool.stats().workers.length, 1));
      assertEquals([pool.stats().requestsNum, pool.stats().connectionsNum], [3, 1]);
      const next = await join();
      const heir = () => pool.stats().workers.find(({ self }) => !self)!;
      assertEquals(heir().worker, number);
      assertEquals([heir().requestsNum, pool.stats().requestsNum], [0, 3]);
      await next.tell("query");
      await eventually(() => assertEquals([heir().requestsNum, pool.stats().requestsNum], [1, 4]));
      const { requestsNum, workers } = await next.tell<PoolStats>("stats");
      assertEquals([requestsNum, workers.find(({ self }) => self)!.requestsNum], [4, 1]);
    });
  },
  options,
);

test("leave() gives up a worker's leases and permits, and the others go on", async () => {
  await bench([0, 2, 2], async ({ pool, workers, sessions }) => {
    const [one, two] = workers as [TestWorker, TestWorker];
    await one.tell("get");
    await one.tell("get");
    // A caller here waits, and one in the worker that leaves.
    const here = pool.getconn(null, { timeout: 60_000 });
    const pending = assertRejects(() => one.tell("get", { timeout: 60_000 }), Error, "closed");
    await eventually(() => assertEquals(pool.stats().requestsWaiting, 2));
    const leaving = one.tell("leave", 60_000);
    await pending;
    await assertRejects(() => one.tell("query"), Error, "connection pool is closed");
    await one.tell("put");
    const conn = await here;
    await one.tell("put");
    await leaving;
    await one.tell("leave");
    assertEquals(pool.stats().workers.length, 2);
    assertEquals(await two.tell("query"), 1);
    assert(!pool.closed);
    await pool.putconn(conn);
    assertEquals(await sessions(), 2);
    // Who has left closes nothing any more, and has nobody to share with.
    await one.tell("close", 0);
    await assertRejects(() => one.tell("closeall"), Error, "connection pool is closed");
    await assertRejects(() => one.tell("resize", 0, 1), Error, "connection pool is closed");
    await assertRejects(() => one.tell("renew"), Error, "connection pool is closed");
    await assertRejects(() => one.tell("nest"), Error, "connection pool is closed");
    assertEquals([pool.maxconn, await two.tell("query")], [2, 1]);
    // The totals of who has left stay, and it can see those of the others.
    const seen = await one.tell<PoolStats>("stats");
    assertEquals(seen.workers.map(({ self }) => self), [false, false]);
    await eventually(() => assertEquals(pool.stats().connectionsNum, seen.connectionsNum));
    for (let i = 0; i < 20; i++) {
      await one.tell("join", pool.share(one.worker), "threaded", {});
      assertEquals([await one.tell("query"), pool.stats().workers.length], [1, 3]);
      await one.tell("leave");
    }
    one[Symbol.dispose]();
    assertEquals(await two.tell("query"), 1);
  });
}, options);

test("leave() closes leases after its timeout, and refuses one that is no time", async () => {
  await bench([0, 1, 1], async ({ pool, workers: [worker], sessions }) => {
    await worker!.tell("get");
    await assertRejects(() => worker!.tell("leave", -1), Error, "timeout");
    assertEquals(await worker!.tell("closed"), false);
    await worker!.tell("leave", 50);
    assertEquals(await sessions(), 0);
    await pool.putconn(await pool.getconn(null, { timeout: 60_000 }));
  });
}, options);

test("leave() leaves minconn to the others", async () => {
  await bench([2, 4, 1], async ({ pool, workers: [worker] }) => {
    await pool.ready();
    for (let i = 0; i < 2; i++) await pool.putconn(await pool.getconn(), null, true);
    for (let i = 0; i < 2; i++) await worker!.tell("get");
    for (let i = 0; i < 2; i++) await worker!.tell("put");
    await worker!.tell("leave");
    await eventually(() => assert(pool.stats().idle >= 2, JSON.stringify(pool.stats())));
  });
}, options);

test(
  "leave() of who has made the pool: it watches over the workers until the last one is gone",
  async () => {
    await bench([0, 1, 2], async ({ pool, workers, sessions }) => {
      const [one, two] = workers as [TestWorker, TestWorker];
      await pool.leave();
      await pool.close();
      assertThrows(() => pool.share(one.worker), PoolClosed);
      await one.tell("get");
      one[Symbol.dispose]();
      assertEquals(await two.tell("query"), 1);
      assertEquals(await sessions(), 1);
      // Orders and the end of the pool pass it by.
      await deadline(two.tell("resize", 0, 2), 60_000);
      await deadline(two.tell("closeall"), 60_000);
      assertEquals(await sessions(), 0);
    });
  },
  options,
);

test("leave() while the pool is closed, and closing while it leaves", async () => {
  for (const close of ["close", "closeall"]) {
    await bench([0, 3, 3], async ({ pool, workers, sessions }) => {
      const [one, two, three] = workers as [TestWorker, TestWorker, TestWorker];
      for (const worker of workers) await worker.tell("get");
      const leaving = one.tell("leave", 60_000);
      await eventually(async () => assert(await one.tell("closed")));
      const closing = three.tell(close, 300);
      await eventually(async () => assert(await two.tell("closed")));
      const late = two.tell("leave", 60_000);
      await deadline(Promise.all([leaving, closing, late]), 60_000);
      assertEquals(await sessions(), 0);
      await eventually(() => assert(pool.closed));
      await pool.leave();
    });
  }
}, options);

test("two isolates that resize at once: minconn and maxconn are always of the same resize", async () => {
  const words = new AtomicWords(new SharedArrayBuffer(4 * wordsFor(1_000)));
  found(words, 1, 2);
  const permits = new SharedPermits(words, reserve(words, 0));
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const ended = [1, 200].map(async (least) => {
    const url = new URL("./fixtures/resizer.ts", import.meta.url).href;
    const worker = new Worker(url, { type: "module" });
    const said = (): Promise<void> => new Promise((resolve) => worker.onmessage = () => resolve());
    const begun = said();
    worker.postMessage({ buffer: words.array.buffer, id: reserve(words, 0), least, stop });
    await begun;
    await said();
    worker.terminate();
  });
  const seen = new Set<number>();
  // For a second, and until enough sizes have passed: on one processor we seldom run beside them.
  for (const end = performance.now() + 1_000; performance.now() < end || seen.size <= 10;) {
    for (let i = 0; i < 10_000; i++) {
      const { minconn, maxconn } = permits.sizes;
      assertEquals(maxconn, 2 * minconn);
      // In this order: both may grow between the two looks.
      const limit = words.load(HEAD.LIMIT);
      assert(words.load(HEAD.HIGH) >= limit);
      seen.add(maxconn);
    }
    await delay(1);
  }
  Atomics.store(stop, 0, 1);
  await Promise.all(ended);
});

test("resize() by two workers at once ends with the sizes of one of them, the same everywhere", async () => {
  const { url } = await testServer();
  await using pool = new ThreadedConnectionPool(0, 4, url);
  await using one = await TestWorker.join(pool);
  await using two = await TestWorker.join(pool);
  for (let round = 0; round < 20; round++) {
    await Promise.all([one.tell("resize", 0, 1), two.tell("resize", 2, 3)]);
    const sizes = await Promise.all([one.tell("sizes"), two.tell("sizes")]);
    const own = [pool.minconn, pool.maxconn];
    assertEquals(sizes, [own, own]);
    assert(own[0] === 0 ? own[1] === 1 : own[0] === 2 && own[1] === 3, `${own}`);
  }
});
