/** How fast a pool grows: HikariCP's spike, and what must not be slowed down by it. */

import { assert, assertEquals, assertLess, assertLessOrEqual } from "@std/assert";
import { outcome, withClock } from "./support/checks.ts";
import { FakeConnector, FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

/** A connector whose connects take a while. */
function slow(took: number): FakeConnector {
  const fake = new FakeConnector();
  const open = fake.open.bind(fake);
  fake.open = async (attempt) => {
    await new Promise<void>((resolve, reject) => {
      setTimeout(resolve, took);
      attempt.signal.addEventListener("abort", () => reject(attempt.signal.reason));
    });
    return await open(attempt);
  };
  return fake;
}

interface Rush {
  readonly waits: number[];
  readonly size: number;
  readonly opened: number;
}

/** `requests` at once, each of which holds its connection for `use` milliseconds. */
async function rush(
  clock: { tickAsync(ms: number): Promise<number> },
  pool: FakePool,
  requests: number,
  use: number,
): Promise<Rush> {
  const waits: number[] = [];
  const begun = performance.now();
  const before = pool.fake.made;
  const all = outcome(Promise.all(Array.from({ length: requests }, async () => {
    const conn: Thing = await pool.getconn(null, { timeout: 60_000 });
    waits.push(performance.now() - begun);
    await new Promise((resolve) => setTimeout(resolve, use));
    await pool.putconn(conn);
  })));
  for (let i = 0; i < 20_000 && !all.settled; i++) await clock.tickAsync(1);
  assertEquals(all.word, "ok");
  const size = pool.stats().poolSize;
  return { waits, size, opened: pool.fake.made - before };
}

test("HikariCP's spike: 50 requests at once leave fewer than 10 connections, and none waits longer than a connect", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(5, 50, {}, slow(150));
    const ready = outcome(pool.ready());
    await clock.tickAsync(200);
    assertEquals(ready.word, "ok");
    const { waits, size } = await rush(clock, pool, 50, 2);
    assertLess(size, 10);
    assertLessOrEqual(Math.max(...waits), 150);
    await pool.closeall();
  });
});

test("psycopg_pool's test_spike: 50 requests of 2 ms, connect 150 ms, leave fewer than 7 of 10", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(5, 10, {}, slow(150));
    await clock.tickAsync(200);
    const { size } = await rush(clock, pool, 50, 2);
    assertLess(size, 7);
    await pool.closeall();
  });
});

test("a second spike is answered as the first, with what is known of the leases by then", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(5, 50, {}, slow(150));
    await clock.tickAsync(200);
    for (let i = 0; i < 3; i++) {
      const { size, waits } = await rush(clock, pool, 50, 2);
      assertLess(size, 10);
      assertLessOrEqual(Math.max(...waits), 150);
    }
    await pool.closeall();
  });
});

test("long leases that nobody could foresee: one connect tells, then all that wait get theirs", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(5, 50, {}, slow(150));
    await clock.tickAsync(200);
    const { waits } = await rush(clock, pool, 50, 5_000);
    assertLessOrEqual(Math.max(...waits), 2 * 150 + 5);
    await pool.closeall();
  });
});

test("leases known to be long: the pool opens for everybody at once", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(5, 50, { maxIdle: 100 }, slow(150));
    await clock.tickAsync(200);
    await rush(clock, pool, 5, 5_000);
    const { waits } = await rush(clock, pool, 50, 5_000);
    assertLessOrEqual(Math.max(...waits), 155);
    await pool.closeall();
  });
});

test("while no connection stands, the pool opens for everybody who waits", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 50, {}, slow(150));
    const { waits } = await rush(clock, pool, 50, 5_000);
    assertLessOrEqual(Math.max(...waits), 155);
    await pool.closeall();
  });
});

test("a caller with timeout 0 gets an attempt of its own, whoever waits before it", async () => {
  const pool = new FakePool(0, 10);
  const held = await pool.getconn();
  pool.fake.hold.add("open");
  const patient = Array.from(
    { length: 3 },
    () => outcome(pool.getconn(null, { timeout: 60_000 })),
  );
  assertEquals(pool.stats().connecting, 1, "for those who can wait, one at a time");
  const impatient = outcome(pool.getconn());
  await settle();
  assertEquals([impatient.word, pool.stats().connecting], ["pending", 4]);
  for (let i = 0; i < 4; i++) pool.fake.next("open").go();
  await settle();
  assertEquals([...patient, impatient].map((one) => one.word), ["ok", "ok", "ok", "ok"]);
  await pool.putconn(held);
  await pool.closeall();
});

test("a steady queue still grows the pool to what the load needs", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 20, {}, slow(10));
    await clock.tickAsync(20);
    const { size } = await rush(clock, pool, 1_000, 5);
    assertEquals(size, 20);
    await pool.closeall();
  });
});

test("a connect for the rush that fails leaves nobody behind", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 4);
    await settle();
    const held = await pool.getconn();
    pool.fake.hold.add("open");
    const waiting = Array.from(
      { length: 3 },
      () => outcome(pool.getconn(null, { timeout: 60_000 })),
    );
    pool.fake.next("open").fail();
    pool.fake.hold.clear();
    for (let i = 0; i < 1_000 && !waiting.every((one) => one.settled); i++) {
      await clock.tickAsync(1);
    }
    assertEquals(waiting.map((one) => one.word), ["ok", "ok", "ok"]);
    assert(pool.fake.mostOpening <= 3);
    await pool.putconn(held);
    await pool.closeall();
  });
});

test("a connect that hangs holds nobody up: one more is begun when it takes suspiciously long", async () => {
  await withClock(async (clock) => {
    const fake = slow(10);
    const pool = new FakePool(1, 4, { timeout: 60_000 }, fake);
    await clock.tickAsync(20);
    // Short leases until now: those who wait are left to what comes back.
    for (let i = 0; i < 20; i++) await pool.putconn(await pool.getconn());
    const held = await pool.getconn();
    const { open } = fake;
    let hanging = 0;
    fake.open = ({ signal }) => {
      hanging++;
      return new Promise((_, reject) =>
        signal.addEventListener("abort", () => reject(signal.reason))
      );
    };
    const first = outcome(pool.getconn());
    const second = outcome(pool.getconn());
    await settle();
    assertEquals(hanging, 1);
    fake.open = open;
    await clock.tickAsync(79);
    assertEquals([first.word, second.word], ["pending", "pending"]);
    // 3 times 10 ms and 50 more, then a connect.
    await clock.tickAsync(12);
    assertEquals([first.word, second.word], ["ok", "pending"]);
    await pool.putconn(held);
    await settle();
    assertEquals([second.word, fake.made, hanging], ["ok", 2, 1]);
    // One more was begun for the second, too.
    await clock.tickAsync(10);
    assertEquals(fake.made, 3);
    await pool.closeall();
    assertEquals(clock.countTimers(), 0);
  });
});
