import { assertEquals } from "@std/assert";
import type { Connector } from "../mod.ts";
import { assertEnded, assertWhole, idOf, outcome, withClock, wordOf } from "./support/checks.ts";
import { FakeConnector, FakePool, type Held, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

const FOREVER = { timeout: Infinity };

test("closeall() while connecting: the connect is given up, its waiter gets PoolClosed", async () => {
  const fake = new FakeConnector();
  fake.hold.add("open");
  const pool = new FakePool(2, 3, {}, fake);
  const call = outcome(pool.getconn());
  const ready = outcome(pool.ready());
  await settle();
  const end = outcome(pool.closeall());
  await settle();
  assertEquals([call.word, ready.word, end.word], ["POOL_CLOSED", "POOL_CLOSED", "ok"]);
  await assertEnded(pool);
});

test("closeall() while a connector connects that heeds no signal: what it opens late is closed", async () => {
  const fake = new FakeConnector();
  const late = Promise.withResolvers<void>();
  const { open } = fake;
  fake.open = async (attempt) => {
    await late.promise;
    return open.call(fake, { ...attempt, signal: new AbortController().signal });
  };
  const pool = new FakePool(1, 1, {}, fake);
  await settle();
  const end = outcome(pool.closeall());
  await settle();
  assertEquals(end.word, "pending");
  late.resolve();
  await settle();
  assertEquals([end.word, fake.made], ["ok", 1]);
  await assertEnded(pool);
});

test("closeall() while configuring: the hook's connection is closed", async () => {
  const hook = Promise.withResolvers<void>();
  const pool = new FakePool(1, 1, { configure: () => hook.promise });
  await settle();
  const end = outcome(pool.closeall());
  hook.resolve();
  await settle();
  assertEquals(end.word, "ok");
  await assertEnded(pool);
});

test("closeall() while checking, and the check ends well, badly or never", async () => {
  for (const how of ["go", "fail", "never"] as const) {
    await withClock(async (clock) => {
      const pool = new FakePool(1, 1, { checkAfter: 0 });
      await settle();
      pool.fake.hold.add("check");
      const call = outcome(pool.getconn());
      await settle();
      const step = pool.fake.next("check");
      const end = outcome(pool.closeall());
      if (how !== "never") step[how]();
      await settle();
      assertEquals([call.word, end.word], ["POOL_CLOSED", "ok"]);
      await assertEnded(pool);
      await clock.tickAsync(10_000);
    });
  }
});

test("closeall() while a rollback is held: putconn settles, and the connection is gone", async () => {
  for (const how of ["go", "fail"] as const) {
    const pool = new FakePool(0, 1);
    const conn = await pool.getconn();
    conn.status = "intrans";
    pool.fake.hold.add("rollback");
    const back = outcome(pool.putconn(conn));
    const end = outcome(pool.closeall());
    pool.fake.next("rollback")[how]();
    await settle();
    assertEquals([back.word, end.word], ["ok", "ok"]);
    await assertEnded(pool);
  }
});

test("closeall() while reset runs: putconn settles, and the connection is gone", async () => {
  for (const good of [true, false]) {
    const hook = Promise.withResolvers<void>();
    const pool = new FakePool(0, 1, { reset: () => hook.promise });
    const back = outcome(pool.putconn(await pool.getconn()));
    const end = outcome(pool.closeall());
    if (good) hook.resolve();
    else hook.reject(new Error("broken"));
    await settle();
    assertEquals([back.word, end.word], ["ok", "ok"]);
    await assertEnded(pool);
  }
});

test("closeall() while draining ends close() too; close() afterwards resolves", async () => {
  const pool = new FakePool(0, 2);
  const conn = await pool.getconn();
  const gentle = outcome(pool.close());
  await settle();
  assertEquals([gentle.word, await wordOf(pool.getconn())], ["pending", "POOL_CLOSED"]);
  const hard = outcome(pool.closeall());
  await settle();
  assertEquals([gentle.word, hard.word], ["ok", "ok"]);
  assertEquals(await wordOf(pool.putconn(conn)), "POOL_CLOSED");
  assertEquals([await wordOf(pool.closeall()), await wordOf(pool.close())], ["POOL_CLOSED", "ok"]);
  await assertEnded(pool);
});

test("close() waits for leases, then closes; its waiters are refused at once", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    const conn = await pool.getconn();
    const waiter = outcome(pool.getconn(null, FOREVER));
    const end = outcome(pool.close());
    await clock.tickAsync(20_000);
    assertEquals([waiter.word, end.word, idOf(conn)], ["POOL_CLOSED", "pending", 1]);
    conn.status = "intrans";
    assertEquals(await wordOf(pool.putconn(conn)), "ok");
    await settle();
    assertEquals([end.word, clock.countTimers()], ["ok", 0]);
    await assertEnded(pool);
  });
});

test("close() ends after its timeout although a lease is out, and timeout 0 is closeall", async () => {
  for (const timeout of [0, 500]) {
    await withClock(async (clock) => {
      const pool = new FakePool(0, 1);
      await pool.getconn();
      const end = outcome(pool.close({ timeout }));
      await clock.tickAsync(Math.max(0, timeout - 1));
      if (timeout > 0) assertEquals(end.word, "pending");
      await clock.tickAsync(1);
      await settle();
      assertEquals([end.word, clock.countTimers()], ["ok", 0]);
      await assertEnded(pool);
    });
  }
});

test("close() while connecting: what is opened late is closed", async () => {
  const pool = new FakePool(1, 2);
  const lease = await pool.getconn();
  pool.fake.hold.add("open");
  const call = outcome(pool.getconn(null, FOREVER));
  await settle();
  const end = outcome(pool.close());
  pool.fake.next("open").go();
  await settle();
  assertEquals([call.word, end.word], ["POOL_CLOSED", "pending"]);
  await pool.putconn(lease);
  await settle();
  assertEquals(end.word, "ok");
  await assertEnded(pool);
});

test("putconn() while the connection's close is held resolves only when the server has let go", async () => {
  const pool = new FakePool(0, 1);
  const conn = await pool.getconn();
  pool.fake.hold.add("close");
  const back = outcome(pool.putconn(conn, null, true));
  const next = outcome(pool.getconn(null, FOREVER));
  await settle();
  assertEquals([back.word, next.word, pool.stats().closing], ["pending", "pending", 1]);
  assertEquals(pool.fake.opening, 0);
  pool.fake.next("close").go();
  await settle();
  assertEquals([back.word, next.word, pool.fake.most], ["ok", "ok", 1]);
  await assertWhole(pool, [next.value as Thing]);
});

test("closeall() resolves although open, close, configure or reset never settle", async () => {
  const never = () => new Promise<never>(() => {});
  for (const what of ["open", "close", "configure", "reset"]) {
    await withClock(async (clock) => {
      const fake = new FakeConnector();
      if (what === "open" || what === "close") Object.assign(fake, { [what]: never });
      const hook = what === "configure" || what === "reset" ? { [what]: never } : {};
      const pool = new FakePool(0, 2, hook, fake);
      const call = outcome(pool.getconn());
      await settle();
      const back = call.value === undefined ? null : outcome(pool.putconn(call.value));
      const end = outcome(pool.closeall());
      // A hook is not waited for at all.
      const isHook = what === "configure" || what === "reset";
      await clock.tickAsync(isHook ? 0 : 6_000);
      assertEquals(end.word, "ok");
      assertEquals(await wordOf(pool.closeall()), "POOL_CLOSED");
      await clock.tickAsync(60_000);
      if (what !== "close" && back !== null) assertEquals(back.word, "ok");
      assertEquals(clock.countTimers(), 0);
    });
  }
});

test("closeall() counts a close that rejects or throws as closed", async () => {
  for (const close of [() => Promise.reject(new Error("no")), thrower("no")]) {
    const fake: Connector<Thing> = Object.assign(new FakeConnector(), { close });
    const pool = new FakePool(2, 2, { connector: fake });
    const conn = await pool.getconn();
    assertEquals(await wordOf(pool.putconn(conn, null, true)), "ok");
    await settle();
    assertEquals(pool.stats().poolSize, 2);
    assertEquals(await wordOf(pool.closeall()), "ok");
    assertEquals([pool.stats().poolSize, pool.stats().closing], [0, 0]);
  }
});

test("resize() down with leases and waiters: none above maxconn comes back into the pool", async () => {
  const pool = new FakePool(2, 4);
  const conns = await Promise.all([1, 2, 3, 4].map(() => pool.getconn()));
  const waiters = [1, 2].map(() => outcome(pool.getconn(null, FOREVER)));
  await pool.resize(1, 2);
  assertEquals([pool.maxconn, pool.stats().leased], [2, 4]);
  for (const conn of conns.slice(0, 2)) await pool.putconn(conn);
  await settle();
  assertEquals(waiters.map((one) => one.word), ["pending", "pending"]);
  assertEquals(pool.fake.standing, 2);
  for (const conn of conns.slice(2)) await pool.putconn(conn);
  await settle();
  assertEquals(waiters.map((one) => idOf(one.value)), [3, 4]);
  await assertWhole(pool, waiters.map((one) => one.value as Thing));
});

test("resize() up serves waiters at once and opens up to the new minconn", async () => {
  const pool = new FakePool(0, 1);
  const conns = [await pool.getconn()];
  const waiters = [1, 2].map(() => outcome(pool.getconn(null, FOREVER)));
  pool.fake.mostAllowed = 5;
  await pool.resize(4, 5);
  await settle();
  assertEquals(waiters.map((one) => one.word), ["ok", "ok"]);
  assertEquals([pool.stats().poolSize, pool.stats().idle], [4, 1]);
  await assertWhole(pool, [...conns, ...waiters.map((one) => one.value as Thing)]);
});

test("resize() down closes what is idle above maxconn, the longest idle first, and what connects above it", async () => {
  const pool = new FakePool(0, 4);
  const conns = await Promise.all([1, 2, 3].map(() => pool.getconn()));
  for (const conn of conns) await pool.putconn(conn);
  await pool.resize(0, 1);
  assertEquals([pool.stats().poolSize, idOf(await pool.getconn())], [1, 3]);
  await pool.closeall();
});

test("renew() with leases out: idle ones now, leased and connecting ones when they are ready", async () => {
  const pool = new FakePool(1, 3);
  const lease = await pool.getconn();
  pool.fake.hold.add("open");
  const call = outcome(pool.getconn(null, FOREVER));
  await settle();
  await pool.renew();
  assertEquals(idOf(lease), 1);
  (pool.fake.next("open") as Held).go();
  pool.fake.hold.clear();
  await settle();
  assertEquals(idOf(call.value), 3);
  await pool.putconn(lease);
  await pool.putconn(call.value as Thing);
  assertEquals(pool.fake.things.filter((one) => !one.closed).map((one) => one.id), [3]);
  await assertWhole(pool);
});

function thrower(message: string): () => never {
  return () => {
    throw new Error(message);
  };
}

test("configure or reset that waits for closeall() or close() does not wait for itself", async () => {
  for (const hook of ["configure", "reset"] as const) {
    for (const how of ["closeall", "close"] as const) {
      await withClock(async (clock) => {
        let inner = outcome(new Promise<void>(() => {}));
        const pool: FakePool = new FakePool(0, 1, {
          [hook]: async () => {
            await Promise.resolve();
            const closing = pool[how]();
            inner = outcome(closing);
            await closing;
          },
        });
        const call = outcome(pool.getconn(null, FOREVER));
        await settle();
        const back = call.value === undefined ? null : outcome(pool.putconn(call.value));
        await settle();
        assertEquals([inner.word, back?.word ?? "ok"], ["ok", "ok"]);
        assertEquals(call.word, hook === "reset" ? "ok" : "POOL_CLOSED");
        await assertEnded(pool);
        assertEquals(clock.countTimers(), 0);
      });
    }
  }
});

test("close() does not wait for a rollback or a reset without an end", async () => {
  for (const what of ["rollback", "reset"] as const) {
    await withClock(async (clock) => {
      const pool = new FakePool(
        0,
        2,
        what === "reset" ? { reset: () => new Promise(() => {}) } : {},
      );
      const lease = await pool.getconn();
      lease.status = what === "reset" ? "idle" : "intrans";
      pool.fake.hold.add("rollback");
      void pool.putconn(lease);
      const end = outcome(pool.close());
      await settle();
      assertEquals(end.word, "ok");
      await assertEnded(pool);
      await clock.tickAsync(60_000);
      assertEquals(clock.countTimers(), 0);
    });
  }
});

test("ready() settles when a resize makes it true", async () => {
  for (const minconn of [0, 1]) {
    const fake = new FakeConnector();
    fake.hold.add("open");
    const pool = new FakePool(2, 2, {}, fake);
    const ready = outcome(pool.ready());
    await settle();
    if (minconn === 1) pool.fake.next("open").go();
    await settle();
    assertEquals(ready.word, "pending");
    await pool.resize(minconn, 2);
    await settle();
    assertEquals(ready.word, "ok");
    await pool.closeall();
  }
});

test("ready() has a timeout and a signal, and leaves nothing behind", async () => {
  await withClock(async (clock) => {
    const fake = new FakeConnector();
    fake.hold.add("open");
    const pool = new FakePool(1, 1, {}, fake);
    const abort = new AbortController();
    const timed = outcome(pool.ready({ timeout: 300 }));
    const aborted = outcome(pool.ready({ signal: abort.signal }));
    const patient = outcome(pool.ready());
    assertEquals(await wordOf(pool.ready({ timeout: 0 })), "POOL_TIMEOUT");
    abort.abort(new Error("enough"));
    await clock.tickAsync(299);
    assertEquals([timed, aborted, patient].map((one) => one.word), [
      "pending",
      "enough",
      "pending",
    ]);
    await clock.tickAsync(1);
    assertEquals(timed.word, "POOL_TIMEOUT");
    assertEquals(await wordOf(pool.ready({ signal: abort.signal })), "enough");
    for (const bad of [{ timeout: -1 }, { signal: 1 }, null]) {
      const word = await wordOf(pool.ready(bad as never));
      assertEquals(/timeout|signal|object/.test(word), true, word);
    }
    pool.fake.next("open").go();
    await settle();
    assertEquals([patient.word, await wordOf(pool.ready({ timeout: 0 }))], ["ok", "ok"]);
    pool.fake.hold.clear();
    await assertEnded(pool);
    assertEquals(clock.countTimers(), 0);
  });
});
