import { assert, assertEquals, assertLessOrEqual, assertStrictEquals } from "@std/assert";
import { type PoolOptions, PoolTimeout } from "../mod.ts";
import { assertEnded, assertWhole, idOf, outcome, withClock, wordOf } from "./support/checks.ts";
import { FakeConnector, FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { type Clock, currentClock, setCurrentClock } from "../src/clock.ts";

const FOREVER = { timeout: Infinity };
const AWAY = new Error("away");

/** A pool whose server is away from the start. */
function lost(min: number, max: number, options: PoolOptions<Thing> = {}, held = false): FakePool {
  const fake = new FakeConnector();
  fake.failure = AWAY;
  if (held) fake.hold.add("open");
  return new FakePool(min, max, options, fake);
}

test("getconn() with timeout 0 tells why no connection could be opened, and each call tries once", async () => {
  const pool = lost(0, 2);
  let attempts = 0;
  pool.on("connectfailed", () => attempts++);
  for (let i = 1; i <= 3; i++) {
    const call = outcome(pool.getconn());
    await settle();
    assertEquals(call.word, "CONNECT_FAILED");
    assertStrictEquals((call.error as Error).cause, AWAY);
    assertEquals([attempts, pool.stats().connectionsNum], [i, i]);
  }
  await assertWhole(pool);
});

test("getconn() with timeout 0 does not try again and again while another connection is closing", async () => {
  const pool = new FakePool(0, 3);
  const conn = await pool.getconn();
  pool.fake.hold.add("close");
  void pool.putconn(conn, null, true);
  pool.fake.failure = AWAY;
  const call = outcome(pool.getconn());
  await settle();
  assertEquals([call.word, pool.stats().connectionsNum], ["CONNECT_FAILED", 2]);
  await assertWhole(pool);
});

test("getconn() with timeout 0 in an outage that others wait out fails at once with the last cause", async () => {
  const pool = lost(0, 2);
  const patient = outcome(pool.getconn(null, FOREVER));
  await settle();
  const hasty = outcome(pool.getconn());
  await settle();
  assertEquals([hasty.word, patient.word], ["CONNECT_FAILED", "pending"]);
  assertStrictEquals((hasty.error as Error).cause, AWAY);
  assertEquals(pool.stats().connectionsNum, 1);
  await pool.closeall();
});

test("a connect that fails gives the next waiter its chance", async () => {
  const pool = new FakePool(0, 1);
  pool.fake.hold.add("open");
  const calls = [1, 2].map(() => outcome(pool.getconn(null, FOREVER)));
  pool.fake.next("open").fail();
  await settle();
  const hasty = outcome(pool.getconn());
  await settle();
  assertEquals(hasty.word, "CONNECT_FAILED");
  // The pause before the next attempt ends when somebody asks by ready().
  await pool.resize(1, 1);
  const ready = outcome(pool.ready());
  await settle();
  pool.fake.next("open").go();
  await settle();
  assertEquals([ready.word, ...calls.map((one) => one.word)], ["ok", "ok", "pending"]);
  pool.fake.hold.clear();
  await pool.putconn(calls[0]?.value as Thing);
  await settle();
  await assertWhole(pool, [calls[1]?.value as Thing]);
});

test("100 waiters on a dead server: at most maxconn connects at a time, one probe later, order kept", async () => {
  await withClock(async (clock) => {
    const pool = lost(0, 4);
    const order: number[] = [];
    const calls = Array.from({ length: 100 }, (_, i) => {
      const promise = pool.getconn(null, FOREVER);
      promise.then((conn) => (order.push(i), pool.putconn(conn)));
      return outcome(promise);
    });
    await settle();
    assertLessOrEqual(pool.fake.mostOpening, 4);
    assertEquals(pool.stats().connectionsNum, 4);
    pool.fake.mostOpening = 0;
    // Four failures of one round make one pause of the first length.
    await clock.tickAsync(126);
    assertEquals([pool.stats().connectionsNum, pool.fake.mostOpening], [5, 1]);
    await clock.tickAsync(60_000);
    assertEquals([pool.fake.mostOpening, calls.filter((one) => one.settled).length], [1, 0]);
    assertLessOrEqual(pool.stats().connectionsNum, 20);
    assertEquals(clock.countTimers(), 1);
    pool.fake.failure = null;
    await clock.tickAsync(12_600);
    assertEquals(order, Array.from({ length: 100 }, (_, i) => i));
    assertLessOrEqual(pool.fake.most, 4);
    await assertWhole(pool);
  });
});

test("the pauses of reconnecting double up to 10 s, each with up to a quarter of jitter", async () => {
  await withClock(async (clock) => {
    const pool = lost(1, 3);
    const pauses: number[] = [];
    pool.on("connectfailed", (event) => pauses.push(event.detail.retryIn));
    await clock.tickAsync(60_000);
    assert(pauses.length >= 9);
    for (const [i, pause] of pauses.entries()) {
      const middle = Math.min(100 * 2 ** i, 10_000);
      assert(pause >= 0.75 * middle && pause <= 1.25 * middle, `pause ${i}: ${pause}`);
    }
    assert(pauses.some((pause, i) => pause !== Math.min(100 * 2 ** i, 10_000)), "no jitter");
    await pool.closeall();
    assertEquals(clock.countTimers(), 0);
  });
});

test("reconnecting heeds no wall clock: it goes on at its pace when that is set back or forth", async () => {
  for (const jump of [-3_600_000, 3_600_000]) {
    await withClock(async (clock) => {
      const pool = lost(1, 1);
      await settle();
      clock.setSystemTime(Date.now() + jump);
      pool.fake.failure = null;
      await clock.tickAsync(126);
      assertEquals(pool.stats().idle, 1);
      await pool.closeall();
    });
  }
});

test("a timer left far away by a jump of the wall clock delays no reconnecting", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 2);
    await settle();
    clock.setSystemTime(Date.now() + 7_200_000);
    pool.fake.failure = AWAY;
    pool.fake.things[0]?.die();
    await settle();
    pool.fake.failure = null;
    await clock.tickAsync(126);
    assertEquals(pool.stats().idle, 1);
    await pool.closeall();
  });
});

test("reconnectfailed comes once; then nothing is tried and no timer runs until the next getconn", async () => {
  await withClock(async (clock) => {
    const pool = lost(2, 2, { reconnectTimeout: 1_000 });
    const after: number[] = [];
    pool.on("reconnectfailed", (event) => after.push(event.detail.after));
    await clock.tickAsync(30_000);
    const tried = pool.stats().connectionsNum;
    assertEquals([after.length, clock.countTimers()], [1, 0]);
    assert((after[0] as number) >= 1_000);
    await clock.tickAsync(600_000);
    assertEquals(pool.stats().connectionsNum, tried);
    pool.fake.failure = null;
    assertEquals(await wordOf(pool.getconn()), "ok");
    assertEquals(pool.stats().poolSize, 2);
    await pool.closeall();
  });
});

for (const asks of ["getconn", "ready"] as const) {
  test(`after reconnectTimeout each ${asks}() tries anew, but one attempt at a time: no storm`, async () => {
    await withClock(async (clock) => {
      const pool = lost(asks === "ready" ? 8 : 0, 8, { reconnectTimeout: 0 });
      await settle();
      const before = pool.stats().connectionsNum;
      const calls = [];
      let most = 0;
      for (let i = 0; i < 100; i++) {
        const call = asks === "getconn" ? pool.getconn(null, { timeout: 50 }) : pool.ready();
        calls.push(outcome<unknown>(call));
        most = Math.max(most, pool.stats().connecting);
        await clock.tickAsync(10);
      }
      const attempts = pool.stats().connectionsNum - before;
      // In a second: ten for those who wait; one for each ready(), whose caller wants to know now.
      assertLessOrEqual(attempts, asks === "getconn" ? 12 : 115);
      assertEquals(most, 1);
      // And the first that succeeds brings all.
      pool.fake.failure = null;
      const last = outcome(pool.getconn(null, { timeout: 1_000 }));
      await clock.tickAsync(1_000);
      assertEquals(last.word, "ok");
      await pool.closeall();
      assert(calls.every((call) => call.settled));
    });
  });
}

test("reconnecting does not give up on somebody who waits", async () => {
  await withClock(async (clock) => {
    const pool = lost(0, 2, { reconnectTimeout: 0 });
    const call = outcome(pool.getconn(null, { timeout: 100_000 }));
    await clock.tickAsync(30_000);
    pool.fake.failure = null;
    await clock.tickAsync(13_000);
    assertEquals(call.word, "ok");
    await assertWhole(pool, [call.value as Thing]);
  });
});

test("PoolTimeout in an outage carries the last failure as its cause", async () => {
  await withClock(async (clock) => {
    const pool = lost(0, 1);
    const call = outcome(pool.getconn(null, { timeout: 1_000 }));
    await clock.tickAsync(1_000);
    assert(call.error instanceof PoolTimeout);
    assertStrictEquals(call.error.cause, AWAY);
    assert(call.error.message.includes("the last attempt to connect failed: away"));
    await clock.tickAsync(20_000);
    assertEquals(clock.countTimers(), 0, "nobody waits and minconn is 0");
    await assertWhole(pool);
  });
});

test("ready() resolves when minconn stand, before and after, and at once when minconn is 0", async () => {
  const pool = new FakePool(2, 3);
  const before = outcome(pool.ready());
  assertEquals(before.settled, false);
  await settle();
  assertEquals([before.word, await wordOf(pool.ready()), pool.stats().idle], ["ok", "ok", 2]);
  const none = new FakePool(0, 1);
  assertEquals([await wordOf(none.ready()), none.fake.made], ["ok", 0]);
  await Promise.all([pool.closeall(), none.closeall()]);
});

test("ready() rejects with the connector's own error, before it was called or after; a second call tries at once", async () => {
  for (const early of [true, false]) {
    const pool = lost(1, 1);
    if (early) await settle();
    const first = outcome(pool.ready());
    await settle();
    assertStrictEquals(first.error, AWAY);
    const tried = pool.stats().connectionsNum;
    pool.fake.failure = null;
    assertEquals(await wordOf(pool.ready()), "ok");
    assertEquals(pool.stats().connectionsNum, tried + 1);
    await assertWhole(pool);
  }
});

test("ready() does not tell of a failure from the start that has been overcome since", async () => {
  await withClock(async (clock) => {
    const pool = lost(1, 1);
    await settle();
    pool.fake.failure = null;
    await clock.tickAsync(200);
    assertEquals(pool.stats().idle, 1);
    pool.fake.hold.add("close");
    pool.fake.things[0]?.die();
    const again = outcome(pool.ready());
    await settle();
    assertEquals(again.word, "pending");
    pool.fake.next("close").go();
    await settle();
    assertEquals(again.word, "ok");
    await assertWhole(pool);
  });
});

test("ready() rejects with PoolClosed when the pool is closed, before or meanwhile", async () => {
  for (const how of ["closeall", "close"] as const) {
    const pool = lost(1, 1, {}, true);
    const waiting = outcome(pool.ready());
    await pool[how]();
    await settle();
    assertEquals([waiting.word, await wordOf(pool.ready())], ["POOL_CLOSED", "POOL_CLOSED"]);
    await assertEnded(pool);
  }
});

test("a failure to connect that nobody asks for is no unhandled rejection", async () => {
  const pool = lost(3, 3);
  await settle();
  assertEquals(pool.stats().connectionsErrors, 3);
  await pool.closeall();
});

test("a connection lost while idle leaves at once and minconn is restored", async () => {
  const pool = new FakePool(2, 2);
  await settle();
  pool.fake.things[1]?.die();
  await settle();
  assertEquals([pool.stats().idle, pool.fake.made, pool.stats().connectionsLost], [2, 3, 1]);
  await assertWhole(pool);
});

test("a connection lost while checked does not make its borrower wait for the check", async () => {
  const pool = new FakePool(1, 1, { checkAfter: 0 });
  await settle();
  pool.fake.hold.add("check");
  const call = outcome(pool.getconn());
  await settle();
  pool.fake.things[0]?.die();
  await settle();
  assertEquals([idOf(call.value), pool.stats().connectionsLost], [2, 1]);
  await assertWhole(pool, [call.value as Thing]);
});

test("a connection lost while leased is closed on return; the lease stays the borrower's until then", async () => {
  const pool = new FakePool(0, 1);
  const conn = await pool.getconn();
  pool.fake.things[0]?.die();
  pool.fake.things[0]?.die();
  assertEquals([pool.stats().leased, await wordOf(pool.getconn())], [1, "POOL_EXHAUSTED"]);
  await pool.putconn(conn);
  assertEquals([pool.stats().connectionsLost, pool.fake.standing], [1, 0]);
  await assertWhole(pool);
});

test("a check that fails counts one loss, and the next idle connection or a new one serves", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(2, 2);
    await settle();
    await clock.tickAsync(2_000);
    for (const thing of pool.fake.things) thing.closed = true;
    const call = outcome(pool.getconn());
    await settle();
    assertEquals([idOf(call.value) > 2, pool.stats().connectionsLost], [true, 2]);
    await assertWhole(pool, [call.value as Thing]);
  });
});

test("who gives up in an outage, or is served, leaves no timer that keeps the process alive", async () => {
  await withClock(async (clock) => {
    const held = new Set<unknown>();
    const base = currentClock();
    const ours: Clock = {
      ...base,
      setTimeout(fn, ms) {
        const timer = base.setTimeout(() => {
          held.delete(timer);
          fn();
        }, ms);
        held.add(timer);
        return timer;
      },
      clearTimeout(timer) {
        held.delete(timer);
        base.clearTimeout(timer);
      },
      hold: (timer, on) => void (on ? held.add(timer) : held.delete(timer)),
    };
    const restore = setCurrentClock(() => ours);
    const pool = new FakePool(0, 2);
    restore();
    pool.fake.failure = new Error("away");
    const abort = new AbortController();
    const patient = outcome(pool.getconn(null, { timeout: Infinity, signal: abort.signal }));
    const late = outcome(pool.getconn(null, { timeout: 60_000 }));
    await clock.tickAsync(59_000);
    assertEquals(held.size > 0, true);
    abort.abort(new Error("enough"));
    await clock.tickAsync(1_000);
    assertEquals([patient.word, late.word, held.size], ["enough", "POOL_TIMEOUT", 0]);
    // Who waits for what is lent while the pool tries to open another one.
    pool.fake.failure = null;
    const conn = await pool.getconn();
    pool.fake.failure = new Error("away");
    const next = outcome(pool.getconn(null, { timeout: Infinity }));
    await clock.tickAsync(10);
    assertEquals([next.word, held.size > 0], ["pending", true]);
    await pool.putconn(conn);
    await settle();
    assertEquals([next.word, held.size], ["ok", 0]);
    await assertWhole(pool, [next.value as Thing]);
  });
});
