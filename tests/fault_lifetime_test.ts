/** The end of connections by age, by idleness, and by clocks that jump. */

import { assert, assertEquals, assertLessOrEqual, assertNotEquals } from "@std/assert";
import { idOf, outcome, withClock } from "./support/checks.ts";
import { FakePool, settle } from "./support/fake.ts";
import { test } from "./support/harness.ts";

test("maxLifetime: the successor stands before the old connection goes", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(2, 4, { maxLifetime: 10_000 });
    await settle();
    pool.fake.hold.add("open");
    await clock.tickAsync(9_750);
    assertEquals([pool.stats().idle, pool.stats().connecting], [2, 2], "old ones serve meanwhile");
    const conn = await pool.getconn();
    assertLessOrEqual(idOf(conn), 2);
    await pool.putconn(conn);
    for (let i = 0; i < 2; i++) pool.fake.next("open").go();
    await settle();
    assertEquals(pool.fake.things.filter((thing) => !thing.closed).map(({ id }) => id), [3, 4]);
    assertEquals(pool.stats().idle, 2);
    await pool.closeall();
  });
});

test("maxLifetime: a connection is never older than that, even when no successor comes up", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 2, { maxLifetime: 10_000 });
    await settle();
    pool.fake.hold.add("open");
    await clock.tickAsync(10_000);
    assertEquals(pool.fake.things.map(({ closed }) => closed), [true]);
    await pool.closeall();
  });
});

test("maxLifetime: without a free permit the old one goes first, and the cap holds", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(2, 2, { maxLifetime: 10_000 });
    await settle();
    await clock.tickAsync(10_000);
    assertEquals(pool.fake.most, 2);
    assertEquals(pool.stats().idle, 2);
    assert(pool.fake.made >= 4);
    await pool.closeall();
  });
});

test("maxLifetime: above minconn an old idle connection goes without a successor", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 2, { maxLifetime: 10_000, maxIdle: Infinity });
    await pool.putconn(await pool.getconn());
    await clock.tickAsync(10_000);
    assertEquals([pool.fake.made, pool.stats().poolSize], [1, 0]);
    await pool.closeall();
  });
});

test("maxLifetime: never while leased; under load the successor is there when it comes back", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 2, { maxLifetime: 10_000 });
    await settle();
    const held = await pool.getconn();
    await clock.tickAsync(9_760);
    assertEquals(pool.fake.things.map(({ closed }) => closed), [false]);
    pool.fake.hold.add("open");
    void pool.putconn(held);
    const next = outcome(pool.getconn(null, { timeout: 60_000 }));
    await settle();
    assertEquals([next.word, idOf(next.value)], ["ok", 1], "it serves until the successor stands");
    assertEquals(pool.stats().connecting, 1);
    pool.fake.next("open").go();
    await settle();
    await pool.putconn(next.value!);
    assertEquals(pool.fake.things.map(({ closed }) => closed), [true, false]);
    await pool.closeall();
  });
});

test("test_jitter: lives end between 95 % and 97.5 % of maxLifetime, not all at once", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 100, { maxLifetime: 100_000, maxIdle: Infinity });
    const conns = await Promise.all(Array.from({ length: 100 }, () => pool.getconn()));
    for (const conn of conns) await pool.putconn(conn);
    await clock.tickAsync(94_999);
    assertEquals(pool.stats().idle, 100);
    await clock.tickAsync(1_250);
    const left = pool.stats().idle;
    assert(left > 20 && left < 80, `${left} are left`);
    await clock.tickAsync(1_251);
    assertEquals(pool.stats().idle, 0);
    await pool.closeall();
  });
});

test("freeze: after an hour without a turn, what is idle is checked, what is old is replaced", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 2, { maxLifetime: 10_000_000, checkAfter: 1_000 });
    await settle();
    // An hour that only the wall clock has seen, as on a machine that was suspended.
    clock.setSystemTime(Date.now() + 3_600_000);
    await clock.tickAsync(1);
    await pool.putconn(await pool.getconn());
    assertEquals(pool.fake.things.map(({ checks }) => checks), [1]);
    // SIGSTOP: both clocks go on.
    clock.stall(20_000_000);
    const conn = await pool.getconn();
    assertEquals(idOf(conn), 2, "too old by far to serve on");
    await pool.putconn(conn);
    await pool.closeall();
  });
});

test("the clock set back by a day: nothing waits for a day, nothing lives longer", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 2, { maxLifetime: 10_000, maxIdle: 1_000 });
    const [one, two] = [await pool.getconn(), await pool.getconn()];
    await pool.putconn(one);
    await pool.putconn(two);
    clock.setSystemTime(Date.now() - 86_400_000);
    await pool.putconn(await pool.getconn());
    await clock.tickAsync(11_000);
    assertEquals(pool.stats().idle, 1);
    assertNotEquals(pool.fake.things.find((thing) => !thing.closed)?.id, 1);
    await pool.closeall();
  });
});

test("an idle connection that gives no answer condemns those idle for longer: one check, not one for each", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 4, { checkAfter: 1_000, maxIdle: Infinity });
    const conns = await Promise.all(Array.from({ length: 3 }, () => pool.getconn()));
    for (const conn of conns) await pool.putconn(conn);
    await clock.tickAsync(10_000);
    pool.fake.hold.add("check");
    const late = outcome(pool.getconn(null, { timeout: 6_000 }));
    await clock.tickAsync(5_001);
    assertEquals([late.word, idOf(late.value)], ["ok", 4]);
    await pool.putconn(late.value!);
    await pool.closeall();
  });
});

test("no timer while there is nothing to do, one at most otherwise", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 4, { maxLifetime: 0, maxIdle: 500 });
    assertEquals(clock.countTimers(), 0);
    const [one, two] = [await pool.getconn(), await pool.getconn()];
    assertEquals(clock.countTimers(), 1);
    await clock.tickAsync(3_000);
    assertEquals(clock.countTimers(), 0, "the leases are watched, and that needs no clock");
    await pool.putconn(one);
    await pool.putconn(two);
    assertEquals(clock.countTimers(), 1);
    await clock.tickAsync(3_000);
    assertEquals([clock.countTimers(), pool.stats().poolSize], [0, 0]);
    await pool.closeall();
  });
});
