import { insideOf } from "../src/abstract_pool.ts";
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { PoolOptions } from "../mod.ts";
import { assertWhole, type Clock, idOf, outcome, withClock } from "./support/checks.ts";
import { FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

/** A pool of which `count` connections are idle. */
async function idle(count: number, min: number, options: PoolOptions<Thing>): Promise<FakePool> {
  const pool = new FakePool(min, count, options);
  const conns = await Promise.all(Array.from({ length: count }, () => pool.getconn()));
  for (const conn of conns) await pool.putconn(conn);
  return pool;
}

function alive(pool: FakePool): number[] {
  return pool.fake.things.filter((one) => !one.closed).map((one) => one.id);
}

test("maxIdle closes what is idle above minconn, the longest idle first, then needs no timer", async () => {
  await withClock(async (clock) => {
    const pool = await idle(4, 2, { maxIdle: 1_000, maxLifetime: 0 });
    await clock.tickAsync(999);
    assertEquals(alive(pool), [1, 2, 3, 4]);
    await clock.tickAsync(1);
    assertEquals([alive(pool), clock.countTimers()], [[3, 4], 0]);
    await assertWhole(pool);
  });
});

test("maxIdle counts from the last return", async () => {
  await withClock(async (clock) => {
    const pool = await idle(2, 0, { maxIdle: 1_000, maxLifetime: 0 });
    await clock.tickAsync(600);
    await pool.putconn(await pool.getconn());
    await clock.tickAsync(400);
    assertEquals(alive(pool), [2]);
    await clock.tickAsync(600);
    assertEquals([alive(pool), clock.countTimers()], [[], 0]);
    await pool.closeall();
  });
});

test("maxIdle 0 keeps minconn idle, however many are lent, and closes the others on return", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 3, { maxIdle: 0, maxLifetime: 0 });
    const conns = await Promise.all([1, 2, 3].map(() => pool.getconn()));
    await pool.putconn(conns[0] as Thing);
    await clock.tickAsync(60_000);
    assertEquals([pool.stats().idle, clock.countTimers()], [1, 0]);
    await pool.putconn(conns[1] as Thing);
    await pool.putconn(conns[2] as Thing);
    assertEquals(alive(pool), [1]);
    await assertWhole(pool);
  });
});

test("maxIdle Infinity closes nothing and has no timer", async () => {
  await withClock(async (clock) => {
    const pool = await idle(3, 0, { maxIdle: Infinity, maxLifetime: 0 });
    await clock.tickAsync(10_000_000);
    assertEquals([alive(pool).length, clock.countTimers()], [3, 0]);
    await pool.closeall();
  });
});

test("resize() to a smaller minconn makes idle connections subject to maxIdle", async () => {
  for (const [maxIdle, after] of [[1_000, 1_000], [0, 0]] as const) {
    await withClock(async (clock) => {
      const pool = await idle(3, 3, { maxIdle, maxLifetime: 0 });
      await pool.resize(1, 3);
      await clock.tickAsync(after);
      assertEquals([pool.stats().idle, clock.countTimers()], [1, 0]);
      await pool.closeall();
    });
  }
});

test("maxLifetime replaces idle connections between 95 and 100 % of it, and minconn stays", async () => {
  await withClock(async (clock) => {
    const pool = await idle(3, 3, { maxLifetime: 10_000 });
    await clock.tickAsync(9_499);
    assertEquals(alive(pool), [1, 2, 3]);
    await clock.tickAsync(501);
    assertEquals(alive(pool), [4, 5, 6]);
    await assertWhole(pool);
  });
});

test("maxLifetime never ends a lease; the connection is replaced when it comes back", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 1, { maxLifetime: 10_000 });
    const conn = await pool.getconn();
    await clock.tickAsync(50_000);
    assertEquals(idOf(conn), 1);
    await pool.putconn(conn);
    await settle();
    assertEquals(alive(pool), [2]);
    await assertWhole(pool);
  });
});

test("maxLifetime ends a connection that was lent at every tick and is idle at its end", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 1, { maxLifetime: 10_000, leakAfter: 1_000 });
    const conn = await pool.getconn();
    await clock.tickAsync(5_000);
    await pool.putconn(conn);
    await clock.tickAsync(5_000);
    assertEquals(alive(pool), [2]);
    await pool.closeall();
  });
});

test("maxLifetime: a waiter of an old connection that comes back gets a new one", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1, { maxLifetime: 10_000 });
    const conn = await pool.getconn();
    const next = outcome(pool.getconn(null, { timeout: Infinity }));
    await clock.tickAsync(10_000);
    await pool.putconn(conn);
    await settle();
    assertEquals(idOf(next.value), 2);
    await assertWhole(pool, [next.value as Thing]);
  });
});

test("checkAfter checks what was idle for longer, by a clock that counts frozen time, and nothing else", async () => {
  const cases: readonly (readonly [number, number, number, number])[] = [
    // checkAfter, time that passes, jump of the wall clock, checks
    [1_000, 1_000, 0, 0],
    [1_000, 1_001, 0, 1],
    [1_000, 1, 3_600_000, 1],
    [1_000, 10, -1, 0],
    [1_000, 10, -3_600_000, 1],
    [0, 0, 0, 1],
    [Infinity, 1_000, 3_600_000, 0],
  ];
  for (const [checkAfter, passes, jump, checks] of cases) {
    await withClock(async (clock) => {
      const pool = await idle(1, 1, { checkAfter, maxLifetime: 0 });
      await clock.tickAsync(passes);
      clock.setSystemTime(Date.now() + jump);
      await pool.getconn();
      assertEquals(pool.fake.things[0]?.checks, checks, `${checkAfter} ${passes} ${jump}`);
      await pool.closeall();
    });
  }
});

test("a check that hangs gives up after 5 s and its borrower gets another connection", async () => {
  await withClock(async (clock) => {
    const pool = await idle(1, 1, { checkAfter: 0 });
    pool.fake.hold.add("check");
    const call = outcome(pool.getconn());
    await clock.tickAsync(5_000);
    await settle();
    assertEquals([idOf(call.value), alive(pool)], [2, [2]]);
    await assertWhole(pool, [call.value as Thing]);
  });
});

test("a check goes on when its borrower leaves, and the connection becomes idle", async () => {
  const pool = await idle(1, 1, { checkAfter: 0 });
  pool.fake.hold.add("check");
  const abort = new AbortController();
  const call = outcome(pool.getconn(null, { signal: abort.signal }));
  abort.abort(new Error("left"));
  await settle();
  assertEquals([call.word, pool.stats().leased], ["left", 1]);
  pool.fake.next("check").go();
  await settle();
  assertEquals(pool.stats().idle, 1);
  await assertWhole(pool);
});

test("a wall clock that is set back keeps neither idle nor old connections for longer", async () => {
  await withClock(async (clock) => {
    const pool = await idle(3, 0, { maxIdle: 1_000, maxLifetime: 0 });
    clock.setSystemTime(Date.now() - 3_600_000);
    await clock.tickAsync(1_000);
    assertEquals([alive(pool), clock.countTimers()], [[], 0]);
    await pool.closeall();
  });
  await withClock(async (clock) => {
    const pool = await idle(1, 1, { maxLifetime: 10_000 });
    clock.setSystemTime(Date.now() - 3_600_000);
    await clock.tickAsync(20_000);
    assertEquals(alive(pool).includes(1), false);
    await pool.closeall();
  });
});

test("a wall clock that is set forth makes nothing older: what is idle is checked, and serves on", async () => {
  await withClock(async (clock) => {
    const pool = await idle(3, 0, { maxLifetime: 10_000, maxIdle: 5_000 });
    clock.setSystemTime(Date.now() + 3_600_000);
    await clock.tickAsync(1_000);
    assertEquals(idOf(await pool.getconn()), 3);
    assertEquals(alive(pool), [1, 2, 3]);
    assertEquals(pool.fake.things.map(({ checks }) => checks), [0, 0, 1]);
    await pool.closeall();
  });
});

test("leases, ages and waits are measured by the clock that nobody sets", async () => {
  for (const jump of [7_200_000, -7_200_000]) {
    await withClock(async (clock) => {
      const pool = new FakePool(0, 1, { leakAfter: 1_000, timeout: 800 });
      const leaks: number[] = [];
      const used: number[] = [];
      pool.on("leak", ({ detail }) => leaks.push(detail.held));
      pool.on("release", ({ detail }) => used.push(detail.used));
      const conn = await pool.getconn();
      const late = outcome(pool.getconn());
      clock.setSystemTime(Date.now() + jump);
      await clock.tickAsync(799);
      assertEquals([late.word, leaks], ["pending", []]);
      assertStringIncludes(pool.inspect(), "leased for 799 ms");
      await clock.tickAsync(1);
      assertStringIncludes((late.error as Error).message, "has been for 800 ms");
      await clock.tickAsync(200);
      assertEquals(leaks, [1_000]);
      await pool.putconn(conn);
      assertEquals([used, pool.stats().usageMs], [[1_000], 1_000]);
      await pool.closeall();
    });
  }
});

test("leak tells once of a lease held too long, with the stack of its getconn, and of its return", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1, { leakAfter: 1_000 });
    const seen: [number, boolean][] = [];
    const stacks: string[] = [];
    pool.on("leak", ({ detail }) => {
      seen.push([detail.held, detail.returned]);
      stacks.push(detail.stack);
    });
    // Work after the call: JavaScriptCore keeps no frame of a function that ends in a call.
    function theForgetfulOne(): Promise<Thing> {
      const call = pool.getconn();
      stacks.length = 0;
      return call;
    }
    function theOneThatWaits(): Promise<Thing> {
      const call = pool.getconn(null, { timeout: Infinity });
      stacks.length = 0;
      return call;
    }
    const conn = await theForgetfulOne();
    const next = outcome(theOneThatWaits());
    await clock.tickAsync(999);
    assertEquals(seen, []);
    await clock.tickAsync(4_001);
    assertEquals(seen, [[1_000, false]]);
    await pool.putconn(conn);
    assertEquals(seen, [[1_000, false], [5_000, true]]);
    await clock.tickAsync(1_000);
    assertEquals(seen.length, 3);
    for (const stack of stacks.slice(0, 2)) assertStringIncludes(stack, "theForgetfulOne");
    assertStringIncludes(stacks[2] as string, "theOneThatWaits");
    await assertWhole(pool, [next.value as Thing]);
  });
});

test("leak says nothing of leases that come back in time, and leaves no timer behind", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 2, { leakAfter: 1_000, maxIdle: Infinity, maxLifetime: 0 });
    let leaks = 0;
    pool.on("leak", () => leaks++);
    for (let i = 0; i < 20; i++) {
      await pool.putconn(await pool.getconn());
      assert(clock.countTimers() <= 1);
      await clock.tickAsync(100);
    }
    await clock.tickAsync(2_000);
    assertEquals([leaks, clock.countTimers()], [0, 0]);
    await pool.closeall();
  });
});

test("stats() counts the time of leases and waits whatever the wall clock does", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    const conn = await pool.getconn();
    const next = outcome(pool.getconn(null, { timeout: Infinity }));
    clock.setSystemTime(Date.now() - 3_600_000);
    await clock.tickAsync(50);
    await pool.putconn(conn);
    await settle();
    const { usageMs, requestsWaitMs, connectionsMs } = pool.stats();
    assertEquals([usageMs, requestsWaitMs, connectionsMs], [50, 50, 0]);
    await assertWhole(pool, [next.value as Thing]);
  });
});

test("the pool has one timer at most, whatever it has to do, and none when there is nothing to do", async () => {
  await withClock(async (clock: Clock) => {
    const pool = new FakePool(1, 5, { leakAfter: 700, maxIdle: 900, maxLifetime: 5_000 });
    const conns: Thing[] = [];
    for (let i = 0; i < 60; i++) {
      if (i % 3 === 0 && conns.length < 5) conns.push(await pool.getconn());
      else if (conns.length > 0 && i % 4 === 1) await pool.putconn(conns.pop() as Thing);
      assert(clock.countTimers() <= 1, `${clock.countTimers()} timers`);
      await clock.tickAsync(130);
    }
    await pool.closeall();
    assertEquals(clock.countTimers(), 0);
  });
});

/** The event loop was too busy for `ms`, and leases go on before a timer that is due gets its turn. */
async function overdue(clock: Clock, pool: FakePool, ms: number): Promise<void> {
  clock.stall(ms);
  for (let i = 0; i < 3; i++) {
    await pool.putconn(await pool.getconn());
    clock.stall(1);
  }
  await clock.tickAsync(0);
}

test("maxIdle is kept under load: a tick that is due comes, whatever is asked for later", async () => {
  await withClock(async (clock) => {
    const pool = await idle(4, 0, { maxIdle: 500, maxLifetime: 0 });
    await clock.tickAsync(490);
    await overdue(clock, pool, 20);
    // The timer fires 10 ms later by its own clock.
    await clock.tickAsync(10);
    assertEquals(alive(pool), [4]);
    await assertWhole(pool);
  });
});

test("maxLifetime is kept under load", async () => {
  await withClock(async (clock) => {
    const pool = await idle(4, 4, { maxIdle: Infinity, maxLifetime: 10_000 });
    await clock.tickAsync(9_400);
    await overdue(clock, pool, 600);
    await clock.tickAsync(350);
    assertEquals(alive(pool).filter((id) => id <= 4), []);
    await assertWhole(pool);
  });
});

test("leakAfter is kept under load", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 2, { leakAfter: 300 });
    const told: number[] = [];
    const leaked = await pool.getconn();
    pool.on("leak", ({ detail }) => told.push(Math.floor(detail.held)));
    await clock.tickAsync(290);
    await overdue(clock, pool, 20);
    await clock.tickAsync(10);
    assertEquals(told, [323]);
    await assertWhole(pool, [leaked]);
  });
});

test("a timer that the host has dropped is set anew", async () => {
  await withClock(async (clock) => {
    const pool = await idle(2, 0, { maxIdle: 500, maxLifetime: 0 });
    clock.loseTimers();
    await clock.tickAsync(1_000);
    await pool.putconn(await pool.getconn());
    await clock.tickAsync(10);
    assertEquals(alive(pool).length, 2, "it may only be late");
    await clock.tickAsync(600);
    await pool.putconn(await pool.getconn());
    await clock.tickAsync(1);
    assertEquals(alive(pool).length, 1);
    await assertWhole(pool);
  });
});

test("a deadline whose timer the host has dropped is set anew by the next waiter", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1, { timeout: 500 });
    const conn = await pool.getconn();
    const first = outcome(pool.getconn());
    clock.loseTimers();
    await clock.tickAsync(1_600);
    const second = outcome(pool.getconn());
    await clock.tickAsync(0);
    // It may be that nobody lived meanwhile: the first has one more chance.
    assertEquals([first.word, second.word], ["pending", "pending"]);
    await clock.tickAsync(500);
    assertEquals([first.word, second.word], ["POOL_TIMEOUT", "POOL_TIMEOUT"]);
    await assertWhole(pool, [conn]);
  });
});

test("a tick with many idle connections counts what others have once, and looks at the next one only", async () => {
  await withClock(async (clock) => {
    const pool = await idle(400, 0, { maxIdle: 1_000, maxLifetime: 0 });
    const { state } = insideOf(pool);
    let counted = 0;
    Object.defineProperty(state, "elsewhere", { get: () => (counted++, 0) });
    await clock.tickAsync(1_000);
    assertEquals(alive(pool), []);
    assertEquals(counted < 10, true, `${counted} counts in one tick`);
    await pool.closeall();
  });
});
