/** What is on its way and gives no sign: nobody waits for it for longer than a patience. */

import { assert, assertEquals, assertGreaterOrEqual, assertLessOrEqual } from "@std/assert";
import type { ConnectAttempt, PoolOptions } from "../mod.ts";
import { assertWhole, type Clock, idOf, outcome, withClock, wordOf } from "./support/checks.ts";
import { FakeConnector, FakePool, type Held, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { Growth } from "../src/pool/growth.ts";

const FOREVER = { timeout: Infinity };
/** 3 times a connect that takes no time, and 50 ms more. */
const PATIENCE = 50;
/** For the first connect of all. */
const FIRST_PATIENCE = 500;

/** A connector that notes when each connect began. */
class Noting extends FakeConnector {
  readonly begun: number[] = [];
  /** Set while connects hang. */
  hangs = false;
  /** Milliseconds that a connect takes. */
  takes = 0;
  readonly hanging: Set<() => void> = new Set();

  override async open(attempt: ConnectAttempt): Promise<Thing> {
    this.begun.push(performance.now());
    if (this.hangs) {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      this.hanging.add(resolve);
      attempt.signal.addEventListener("abort", () => reject(attempt.signal.reason));
      await promise.finally(() => this.hanging.delete(resolve));
    }
    if (this.takes > 0) {
      await new Promise<void>((resolve, reject) => {
        const timer = setTimeout(resolve, this.takes);
        attempt.signal.addEventListener("abort", () => {
          clearTimeout(timer);
          reject(attempt.signal.reason);
        });
      });
    }
    return await super.open(attempt);
  }

  /** Those that hang come through after all. */
  async letGo(): Promise<void> {
    this.hangs = false;
    for (const go of this.hanging) go();
    await settle();
  }
}

/** A pool with one idle connection, which has been lent once. */
async function warm(
  clock: Clock,
  maxconn: number,
  options: PoolOptions<Thing> = {},
): Promise<{ pool: FakePool; fake: Noting }> {
  const fake = new Noting();
  const pool = new FakePool(0, maxconn, options, fake);
  await pool.putconn(await pool.getconn());
  await clock.tickAsync(1);
  return { pool, fake };
}

for (const timeout of [0, 1_000, Infinity]) {
  test(`a check without an answer holds a caller with timeout ${timeout} up for a patience, not longer`, async () => {
    await withClock(async (clock) => {
      const { pool } = await warm(clock, 10, { checkAfter: 0 });
      pool.fake.hold.add("check");
      const call = outcome(pool.getconn(null, { timeout }));
      await clock.tickAsync(PATIENCE - 2);
      assertEquals([call.word, pool.fake.made], ["pending", 1]);
      await clock.tickAsync(3);
      assertEquals([call.word, idOf(call.value)], ["ok", 2]);
      // Late, it is as good as any other.
      pool.fake.next("check").go();
      await settle();
      assertEquals(pool.stats().idle, 1);
      await assertWhole(pool, [call.value as Thing]);
    });
  });
}

test("a rollback or a reset without an end holds nobody up: another connection is opened beside it", async () => {
  for (const what of ["rollback", "reset"] as const) {
    for (const timeout of [0, 1_000, Infinity]) {
      await withClock(async (clock) => {
        const never = new Promise<void>(() => {});
        let hook = Promise.resolve();
        const { pool } = await warm(clock, 10, what === "reset" ? { reset: () => hook } : {});
        const lease = await pool.getconn();
        if (what === "rollback") lease.status = "intrans";
        pool.fake.hold.add("rollback");
        hook = never;
        void pool.putconn(lease);
        const call = outcome(pool.getconn(null, { timeout }));
        await clock.tickAsync(PATIENCE - 2);
        assertEquals([call.word, pool.fake.made], ["pending", 1]);
        await clock.tickAsync(3);
        assertEquals([call.word, idOf(call.value)], ["ok", 2]);
        await pool.closeall();
        await clock.tickAsync(60_000);
      });
    }
  }
});

test("a caller with timeout 0 does not wait for a return that gives no sign when no permit is free", async () => {
  await withClock(async (clock) => {
    const { pool } = await warm(clock, 1);
    const lease = await pool.getconn();
    lease.status = "intrans";
    pool.fake.hold.add("rollback");
    void pool.putconn(lease);
    const call = outcome(pool.getconn());
    await clock.tickAsync(PATIENCE + 1);
    assertEquals(call.word, "POOL_EXHAUSTED");
    await assertWhole(pool);
  });
});

test("a caller with timeout 0 gets what its check or its connect brings late when no permit is free", async () => {
  for (const what of ["check", "open"] as const) {
    await withClock(async (clock) => {
      const { pool } = await warm(clock, 1, { checkAfter: 0 });
      if (what === "open") await pool.renew();
      pool.fake.hold.add(what);
      const call = outcome(pool.getconn());
      await clock.tickAsync(2_000);
      assertEquals(call.word, "pending");
      pool.fake.next(what).go();
      await settle();
      assertEquals(call.word, "ok");
      await assertWhole(pool, [call.value as Thing]);
    });
  }
});

for (const cold of [true, false]) {
  test(`after a connect that hangs, in a ${cold ? "new" : "used"} pool, the next callers are served at once`, async () => {
    for (const timeout of [0, 1_000]) {
      await withClock(async (clock) => {
        const fake = new Noting();
        const pool = new FakePool(0, 10, {}, fake);
        if (!cold) {
          await pool.putconn(await pool.getconn());
          await pool.renew();
        }
        fake.hangs = true;
        const first = outcome(pool.getconn(null, { timeout: 550 }));
        await clock.tickAsync(550);
        assertEquals(first.word, "POOL_TIMEOUT");
        fake.hangs = false;
        await clock.tickAsync(100);
        const before = fake.hanging.size;
        assertGreaterOrEqual(before, 1);
        for (let i = 0; i < 3; i++) {
          const next = outcome(pool.getconn(null, { timeout }));
          // A hundred milliseconds lie between attempts.
          await clock.tickAsync(i === 0 ? 126 : 1);
          assertEquals(next.word, "ok");
          await pool.putconn(next.value as Thing, null, true);
        }
        assertEquals(fake.hanging.size, before);
        await fake.letGo();
        await assertWhole(pool);
      });
    }
  });
}

test("a configure hook that hangs holds nobody up", async () => {
  await withClock(async (clock) => {
    let hangs = true;
    const configure = (): Promise<void> | undefined => hangs ? new Promise(() => {}) : undefined;
    const pool = new FakePool(0, 2, { configure });
    const call = outcome(pool.getconn());
    await clock.tickAsync(FIRST_PATIENCE - 1);
    hangs = false;
    await clock.tickAsync(2);
    assertEquals([call.word, idOf(call.value)], ["ok", 2]);
    void pool.closeall();
    await clock.tickAsync(60_000);
  });
});

test("minconn stand although one of the first connects hangs", async () => {
  await withClock(async (clock) => {
    const fake = new Noting();
    fake.hangs = true;
    const pool = new FakePool(1, 2, {}, fake);
    const ready = outcome(pool.ready());
    await settle();
    fake.hangs = false;
    await clock.tickAsync(FIRST_PATIENCE + 1);
    assertEquals([ready.word, pool.stats().idle, pool.stats().connecting], ["ok", 1, 1]);
    await pool.closeall();
    assertEquals(clock.countTimers(), 0);
  });
});

test("all idle connections are dead but one, and no permit is free: it is found in a few patiences", async () => {
  await withClock(async (clock) => {
    const fake = new Noting();
    const pool = new FakePool(0, 8, { checkAfter: 0 }, fake);
    const leases = await Promise.all(Array.from({ length: 8 }, () => pool.getconn()));
    const first = idOf(leases[0]);
    for (const lease of leases) {
      await pool.putconn(lease);
      await clock.tickAsync(1);
    }
    fake.hold.add("check");
    // The first that came back is the last that is asked.
    const living = (one: Held): boolean => one.thing?.id === first;
    const call = outcome(pool.getconn(null, FOREVER));
    for (let i = 0; i < 4 * PATIENCE && !call.settled; i++) {
      await clock.tickAsync(1);
      fake.held.find(living)?.go();
    }
    assertEquals([call.word, pool.stats().connectionsNum], ["ok", 8]);
    await assertWhole(pool, [call.value as Thing]);
  });
});

test("one idle connection is dead: those that came back since are checked, those idle for longer are not", async () => {
  await withClock(async (clock) => {
    const { pool, fake } = await warm(clock, 10, { checkAfter: 0 });
    const [old, dead] = await Promise.all([pool.getconn(), pool.getconn()]);
    const [oldThing, deadThing] = [fake.byId(idOf(old)), fake.byId(idOf(dead))];
    await pool.putconn(old);
    await clock.tickAsync(1);
    await pool.putconn(dead);
    fake.hold.add("check");
    oldThing.checks = deadThing.checks = 0;
    const call = outcome(pool.getconn());
    await clock.tickAsync(PATIENCE + 1);
    assertEquals([idOf(call.value), deadThing.checks, oldThing.checks], [3, 1, 0]);
    // This one came back later than the one that gives no sign.
    await pool.putconn(call.value as Thing);
    fake.hold.clear();
    const next = await pool.getconn();
    assertEquals(idOf(next), 3);
    await assertWhole(pool, [next]);
  });
});

test("in a network that swallows connects there is one attempt at a time, and the pauses grow", async () => {
  await withClock(async (clock) => {
    const { pool, fake } = await warm(clock, 50);
    await pool.renew();
    fake.hangs = true;
    const calls = Array.from({ length: 3 }, () => outcome(pool.getconn(null, FOREVER)));
    await settle();
    const first = fake.begun.length;
    await clock.tickAsync(20_000);
    assert(calls.every((one) => one.word === "pending"));
    const pauses = fake.begun.slice(first).map((at, i) =>
      at - (fake.begun[first + i - 1] as number)
    );
    assertLessOrEqual(pauses.length, 12);
    for (const pause of pauses) assertGreaterOrEqual(pause, PATIENCE);
    assert((pauses.at(-1) as number) > 2_000, String(pauses));
    // One that comes through makes it known to all.
    fake.hangs = false;
    const late = outcome(pool.getconn(null, { timeout: 1_000 }));
    await clock.tickAsync(200);
    assertEquals([...calls, late].map((one) => one.word), ["ok", "ok", "ok", "ok"]);
    await fake.letGo();
    await assertWhole(pool, [...calls, late].map((one) => one.value as Thing));
  });
});

test("connects that hang do not use up the permits: the next caller is served when the network is well", async () => {
  for (const maxconn of [2, 10]) {
    await withClock(async (clock) => {
      const { pool, fake } = await warm(clock, maxconn);
      await pool.renew();
      fake.hangs = true;
      for (let i = 0; i < 40; i++) {
        const call = outcome(pool.getconn(null, { timeout: 1_000 }));
        await clock.tickAsync(1_000);
        assertEquals(call.word, "POOL_TIMEOUT");
      }
      assertLessOrEqual(fake.most, maxconn);
      fake.hangs = false;
      const call = outcome(pool.getconn(null, { timeout: maxconn === 2 ? 1_500 : 1_000 }));
      await clock.tickAsync(1_500);
      assertEquals(call.word, "ok");
      await fake.letGo();
      await assertWhole(pool, [call.value as Thing]);
    });
  }
});

test("where every connect takes far longer than before, the oldest attempt is left alone and comes through", async () => {
  for (const maxconn of [1, 2, 4]) {
    await withClock(async (clock) => {
      const { pool, fake } = await warm(clock, maxconn);
      await pool.renew();
      fake.takes = 8_000;
      const call = outcome(pool.getconn(null, FOREVER));
      await clock.tickAsync(8_001);
      assertEquals(call.word, "ok");
      assertLessOrEqual(fake.most, maxconn);
      fake.takes = 0;
      await pool.putconn(call.value as Thing);
      await clock.tickAsync(20_000);
      await assertWhole(pool);
    });
  }
});

test("one connect that took a minute makes nobody wait for longer than five seconds for the next that hangs", () => {
  const growth = new Growth();
  assertEquals(growth.patience, 500);
  growth.connected(100, 0, 0);
  assertEquals(growth.patience, 350);
  growth.connected(60_000, 0, 0);
  assertEquals(growth.patience, 5_000);
});

test("a connect that fails after one that was begun later has come up is old news for those who wait", async () => {
  await withClock(async (clock) => {
    const { pool, fake } = await warm(clock, 3);
    await pool.renew();
    fake.hold.add("open");
    const first = outcome(pool.getconn());
    await clock.tickAsync(PATIENCE + 1);
    const [hung, fresh] = fake.held.splice(0) as [Held, Held];
    fresh.go();
    await settle();
    assertEquals(first.word, "ok");
    const second = outcome(pool.getconn());
    await settle();
    hung.fail();
    await settle();
    assertEquals(second.word, "pending");
    fake.next("open").go();
    await settle();
    assertEquals([second.word, pool.stats().connectionsErrors], ["ok", 1]);
    await assertWhole(pool, [first.value as Thing, second.value as Thing]);
  });
});

/** Callers with this `timeout` come every 50 ms in an outage of 20 s; then the server is back. */
async function outage(clock: Clock, timeout: number): Promise<{ served: number; begun: number[] }> {
  const fake = new Noting();
  const pool = new FakePool(0, 10, {}, fake);
  fake.failure = new Error("away");
  for (let at = 0; at < 20_000; at += 50) {
    void pool.getconn(null, { timeout }).then((conn) => pool.putconn(conn), () => {});
    await clock.tickAsync(50);
  }
  const begun = [...fake.begun];
  fake.failure = null;
  const last = outcome(pool.getconn(null, { timeout: 30_000 }));
  let served = 0;
  for (; !last.settled && served < 30_000; served++) await clock.tickAsync(1);
  assertEquals(last.word, "ok");
  await pool.closeall();
  return { served, begun };
}

test("after an outage whoever waits is served within an eighth of its time, and there was no storm", async () => {
  for (const timeout of [500, 2_000, 8_000]) {
    await withClock(async (clock) => {
      const { served, begun } = await outage(clock, timeout);
      assertLessOrEqual(served, 1.25 * Math.max(100, timeout / 8));
      for (const [i, at] of begun.entries()) {
        if (i > 0) assertGreaterOrEqual(at - (begun[i - 1] as number), 75);
      }
    });
  }
});

test("who comes in a long pause of the background has an attempt at once, whatever its timeout", async () => {
  for (const timeout of [0, 500, 60_000, Infinity]) {
    await withClock(async (clock) => {
      const fake = new Noting();
      fake.failure = new Error("away");
      const pool = new FakePool(1, 2, {}, fake);
      await clock.tickAsync(60_000);
      // In the middle of a pause of 10 s.
      const { length } = fake.begun;
      while (fake.begun.length === length) await clock.tickAsync(100);
      await clock.tickAsync(1_100);
      fake.failure = null;
      const call = outcome(pool.getconn(null, { timeout }));
      await clock.tickAsync(1);
      assertEquals(call.word, "ok");
      await assertWhole(pool, [call.value as Thing]);
    });
  }
});

test("a caller with timeout 0 behind others in an outage stays while an attempt is under way", async () => {
  await withClock(async (clock) => {
    const fake = new Noting();
    fake.failure = new Error("away");
    const pool = new FakePool(0, 4, {}, fake);
    const patient = outcome(pool.getconn(null, FOREVER));
    await clock.tickAsync(60_000);
    // Just after an attempt nothing is tried: it hears of the last failure.
    const { length } = fake.begun;
    while (fake.begun.length === length) await clock.tickAsync(1);
    assertEquals(await wordOf(pool.getconn()), "CONNECT_FAILED");
    await clock.tickAsync(500);
    fake.hold.add("open");
    fake.failure = null;
    const calls = [1, 2].map(() => outcome(pool.getconn()));
    await settle();
    assertEquals([fake.held.length, ...calls.map((one) => one.word)], [1, "pending", "pending"]);
    fake.hold.clear();
    fake.next("open").go();
    await settle();
    assertEquals([patient, ...calls].map((one) => one.word), ["ok", "ok", "ok"]);
    await assertWhole(pool, [patient, ...calls].map((one) => one.value as Thing));
  });
});

test("a frozen process that wakes: who waits has a chance before its time is up, once", async () => {
  for (const [frozen, chance] of [[10_000, 1_000], [300, 250]] as const) {
    await withClock(async (clock) => {
      const pool = new FakePool(0, 1, { timeout: 1_000 });
      const lease = await pool.getconn();
      const calls = [1, 2].map(() => outcome(pool.getconn()));
      await clock.tickAsync(950);
      clock.stall(frozen);
      // The timer is late. What has come meanwhile is heard after it.
      await clock.tickAsync(51);
      assertEquals(calls.map((one) => one.word), ["pending", "pending"]);
      await pool.putconn(lease);
      assertEquals(await wordOf(Promise.resolve()), "ok");
      assertEquals(calls.map((one) => one.word), ["ok", "pending"]);
      await clock.tickAsync(chance - 2);
      assertEquals(calls[1]?.word, "pending");
      await clock.tickAsync(100);
      assertEquals(calls[1]?.word, "POOL_TIMEOUT");
      // In the next one the same holds.
      const next = outcome(pool.getconn());
      await clock.tickAsync(999);
      assertEquals(next.word, "pending");
      await clock.tickAsync(2);
      assertEquals(next.word, "POOL_TIMEOUT");
      await assertWhole(pool, [calls[0]?.value as Thing]);
    });
  }
});

test("a frozen process that wakes: a check, a rollback and a connect have a chance, too", async () => {
  for (const what of ["check", "rollback", "open"] as const) {
    await withClock(async (clock) => {
      const { pool } = await warm(clock, 1, { checkAfter: 0 });
      pool.fake.hold.add(what);
      if (what === "open") await pool.renew();
      if (what === "rollback") {
        const lease = await pool.getconn();
        lease.status = "intrans";
        void pool.putconn(lease);
      }
      const call = outcome(pool.getconn(null, FOREVER));
      await clock.tickAsync(10);
      clock.stall(60_000);
      await clock.tickAsync(4_995);
      assertEquals([call.word, pool.stats().closing], ["pending", 0]);
      pool.fake.next(what).go();
      await settle();
      assertEquals([call.word, pool.stats().connectionsLost], ["ok", 0]);
      await assertWhole(pool, [call.value as Thing]);
    });
  }
});

test("a busy event loop makes nothing silent: what has come meanwhile is heard first", async () => {
  await withClock(async (clock) => {
    const { pool } = await warm(clock, 10);
    await pool.renew();
    pool.fake.hold.add("open");
    const call = outcome(pool.getconn());
    await settle();
    clock.stall(10 * PATIENCE);
    await clock.tickAsync(2 * PATIENCE - 2);
    assertEquals(pool.fake.held.length, 1);
    pool.fake.next("open").go();
    await settle();
    assertEquals([call.word, pool.stats().connectionsNum], ["ok", 2]);
    await assertWhole(pool, [call.value as Thing]);
  });
});
