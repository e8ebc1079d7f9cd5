import { assert, assertEquals, assertInstanceOf, assertStrictEquals } from "@std/assert";
import { PoolExhausted, PoolTimeout } from "../mod.ts";
import { assertWhole, idOf, outcome, withClock, wordOf } from "./support/checks.ts";
import { FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

const FOREVER = { timeout: Infinity };

test("getconn() aborted in the turn of the hand-off: nobody loses the connection", async () => {
  for (const first of ["put", "abort"]) {
    const pool = new FakePool(0, 1);
    const conn = await pool.getconn();
    const abort = new AbortController();
    const one = outcome(pool.getconn(null, { ...FOREVER, signal: abort.signal }));
    const next = outcome(pool.getconn(null, FOREVER));
    if (first === "abort") abort.abort(new Error("enough"));
    void pool.putconn(conn);
    if (first === "put") abort.abort(new Error("enough"));
    await settle();
    assertEquals([one.word, next.word], first === "put" ? ["ok", "pending"] : ["enough", "ok"]);
    await pool.putconn((first === "put" ? one : next).value as Thing);
    await settle();
    await assertWhole(pool, first === "put" ? [next.value as Thing] : []);
  }
});

test("getconn() aborted by a listener of acquire or release: the queue stays whole", async () => {
  for (const type of ["acquire", "release"] as const) {
    const pool = new FakePool(0, 1);
    const conn = await pool.getconn();
    const abort = new AbortController();
    const calls = [
      outcome(pool.getconn(null, { ...FOREVER, signal: abort.signal })),
      outcome(pool.getconn(null, FOREVER)),
      outcome(pool.getconn(null, FOREVER)),
    ];
    pool.on(type, () => abort.abort(new Error("enough")));
    await pool.putconn(conn);
    await settle();
    const served = type === "acquire" ? 0 : 1;
    assertEquals(calls[served]?.word, "ok");
    assertEquals(pool.stats().requestsWaiting, type === "acquire" ? 2 : 1);
    for (const one of calls.slice(served)) {
      await settle();
      await pool.putconn(one.value as Thing);
    }
    await assertWhole(pool);
  }
});

test("getconn() aborted by the connector's lend(): the connection goes to the next", async () => {
  const pool = new FakePool(0, 1);
  const conn = await pool.getconn();
  const abort = new AbortController();
  const one = outcome(pool.getconn(null, { ...FOREVER, signal: abort.signal }));
  const next = outcome(pool.getconn(null, FOREVER));
  Object.assign(pool.fake, { ref: () => abort.abort(new Error("enough")) });
  await pool.putconn(conn);
  await settle();
  assertEquals([one.word, next.word], ["enough", "ok"]);
  await assertWhole(pool, [next.value as Thing]);
});

test("getconn() whose time is up in the turn of the hand-off settles once and loses nothing", async () => {
  for (const put of [true, false]) {
    await withClock(async (clock) => {
      const pool = new FakePool(0, 1);
      const conn = await pool.getconn();
      // The return comes by a timer of the same instant, before or after the waiter's own.
      if (put) setTimeout(() => void pool.putconn(conn), 100);
      const late = outcome(pool.getconn(null, { timeout: 100 }));
      if (!put) setTimeout(() => void pool.putconn(conn), 100);
      await clock.tickAsync(100);
      await settle();
      assertEquals(late.word, put ? "ok" : "POOL_TIMEOUT");
      assertEquals(pool.stats().idle, put ? 0 : 1);
      await assertWhole(pool, put ? [late.value as Thing] : []);
    });
  }
});

test("getconn() tells how long it waited, and that by a clock that nobody sets", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    const conn = await pool.getconn();
    const waits: number[] = [];
    pool.on("timeout", (event) => waits.push(event.detail.waited));
    const late = outcome(pool.getconn(null, { timeout: 100 }));
    clock.setSystemTime(Date.now() - 3_600_000);
    await clock.tickAsync(100);
    assertInstanceOf(late.error, PoolTimeout);
    assertInstanceOf(late.error, PoolExhausted);
    assertEquals([late.error.waited, ...waits], [100, 100]);
    assert(late.error.message.startsWith("connection pool exhausted: no connection within 100 ms"));
    await assertWhole(pool, [conn]);
  });
});

test("timeout: told of a deadline that is over, and not of a caller that gives up by its signal", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    const conn = await pool.getconn();
    let told = 0;
    pool.on("timeout", () => told++);
    const abort = new AbortController();
    const given = outcome(pool.getconn(null, { timeout: 100, signal: abort.signal }));
    abort.abort(new Error("enough"));
    await settle();
    assertEquals([given.word, told], ["enough", 0]);
    const late = outcome(pool.getconn(null, { timeout: 100 }));
    await clock.tickAsync(100);
    assertEquals([late.word, told], ["POOL_TIMEOUT", 1]);
    await assertWhole(pool, [conn]);
  });
});

test("getconn() from a listener of timeout finds the queue without who has left", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    const conn = await pool.getconn();
    const late = outcome(pool.getconn(null, { timeout: 100 }));
    pool.on("timeout", () => void pool.putconn(conn));
    await clock.tickAsync(100);
    assertEquals([late.word, pool.stats().idle], ["POOL_TIMEOUT", 1]);
    await assertWhole(pool);
  });
});

test("getconn() that gave up hears of it before a listener of timeout serves the next", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    const conn = await pool.getconn();
    const heard: string[] = [];
    pool.getconn(null, { timeout: 100 }).catch(() => heard.push("late"));
    const next = pool.getconn(null, { timeout: 200 });
    next.then(() => heard.push("served"));
    pool.on("timeout", () => void pool.putconn(conn));
    await clock.tickAsync(100);
    assertEquals(heard, ["late", "served"]);
    await assertWhole(pool, [await next]);
  });
});

test("getconn() abandoned while its connect goes on: the connection becomes idle", async () => {
  const pool = new FakePool(0, 1);
  pool.fake.hold.add("open");
  const abort = new AbortController();
  const one = outcome(pool.getconn(null, { signal: abort.signal }));
  abort.abort(new Error("enough"));
  await settle();
  assertEquals([one.word, pool.stats().connecting], ["enough", 1]);
  pool.fake.next("open").go();
  await settle();
  assertEquals(pool.stats().idle, 1);
  assertEquals(idOf(await pool.getconn()), 1);
  assertEquals(pool.fake.made, 1);
  await pool.closeall();
});

test("getconn() abandoned while its connect goes on: the connection serves the next waiter", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    pool.fake.hold.add("open");
    const one = outcome(pool.getconn(null, { timeout: 50 }));
    const next = outcome(pool.getconn(null, { timeout: 500 }));
    await clock.tickAsync(50);
    pool.fake.next("open").go();
    await settle();
    assertEquals([one.word, next.word, pool.fake.made], ["POOL_TIMEOUT", "ok", 1]);
    await assertWhole(pool, [next.value as Thing]);
  });
});

test("getconn() with an aborted signal rejects with its reason and opens nothing", async () => {
  const pool = new FakePool(0, 1);
  const reason = new Error("before");
  const one = outcome(pool.getconn(null, { signal: AbortSignal.abort(reason) }));
  await settle();
  assertStrictEquals(one.error, reason);
  assertEquals(pool.fake.opening + pool.fake.made, 0);
  await assertWhole(pool);
});

test("getconn() with timeout 0 keeps its own connect when a patient caller comes after it", async () => {
  const pool = new FakePool(0, 1);
  pool.fake.hold.add("open");
  const hasty = outcome(pool.getconn(null, { timeout: 0 }));
  const patient = outcome(pool.getconn(null, FOREVER));
  await settle();
  assertEquals([hasty.word, patient.word], ["pending", "pending"]);
  pool.fake.next("open").go();
  await settle();
  assertEquals(hasty.word, "ok");
  await pool.putconn(hasty.value as Thing);
  await settle();
  await assertWhole(pool, [patient.value as Thing]);
});

test("getconn() with timeout 0 is refused at once when all are lent, also behind a patient one of its key", async () => {
  const pool = new FakePool(0, 1);
  const conn = await pool.getconn();
  const patient = outcome(pool.getconn("k", FOREVER));
  const hasty = outcome(pool.getconn("k", { timeout: 0 }));
  await settle();
  assertEquals([hasty.word, patient.word], ["POOL_EXHAUSTED", "pending"]);
  assert((hasty.error as Error).message.startsWith("connection pool exhausted"));
  await pool.putconn(conn);
  await settle();
  await assertWhole(pool, [patient.value as Thing]);
});

test("getconn() with timeout 0 waits for what was put back without await: clean, dirty, or closed", async () => {
  for (const how of ["clean", "dirty", "close"]) {
    const pool = new FakePool(0, 1, { reset: () => Promise.resolve() });
    const conn = await pool.getconn();
    if (how === "dirty") conn.status = "intrans";
    void pool.putconn(conn, null, how === "close");
    assertEquals(idOf(await pool.getconn()), how === "close" ? 2 : 1);
    await pool.closeall();
  }
});

test("getconn() with timeout 0 does not wait for a closing connection that leaves no permit", async () => {
  const pool = new FakePool(0, 2);
  pool.fake.hold.add("close");
  const conns = [await pool.getconn(), await pool.getconn()];
  await pool.resize(0, 1);
  void pool.putconn(conns[0] as Thing);
  assertEquals(await wordOf(pool.getconn()), "POOL_EXHAUSTED");
  await assertWhole(pool, [conns[1] as Thing]);
});

test("getconn() is served in order of arrival, with aborts and timeouts in between", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    const conn = await pool.getconn();
    const aborts = Array.from({ length: 9 }, () => new AbortController());
    const order: number[] = [];
    aborts.forEach(({ signal }, i) => {
      pool.getconn(null, { timeout: i % 3 === 1 ? 10 : Infinity, signal }).then(
        (next) => {
          order.push(i);
          return pool.putconn(next);
        },
        () => {},
      );
    });
    for (const i of [0, 5, 8]) aborts[i]?.abort();
    await clock.tickAsync(10);
    await pool.putconn(conn);
    await settle();
    assertEquals(order, [2, 3, 6]);
    await assertWhole(pool);
  });
});

test("getconn() never overtakes a waiter, also when something fit is at hand while another is checked", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 2, { checkAfter: 1_000 });
    await pool.putconn(await pool.getconn());
    // The second one comes while the wall clock is wrong, so that it looks idle for longer.
    clock.setSystemTime(Date.now() - 5_000);
    await pool.resize(2, 2);
    await settle();
    clock.setSystemTime(Date.now() + 5_000);
    await clock.tickAsync(1);
    pool.fake.hold.add("check");
    const first = outcome(pool.getconn("k", FOREVER));
    const second = outcome(pool.getconn("k", FOREVER));
    await settle();
    pool.fake.next("check").go();
    await settle();
    assertStrictEquals(first.value, second.value);
    assertEquals(pool.stats().leased, 1);
    await assertWhole(pool, [first.value as Thing]);
  });
});

test("getconn(key) by two callers at once gives one lease, also when one of them leaves", async () => {
  for (const leaver of [0, 1, null]) {
    const pool = new FakePool(0, 2);
    pool.fake.hold.add("open");
    const aborts = [new AbortController(), new AbortController()];
    const calls = aborts.map(({ signal }) => outcome(pool.getconn("k", { signal })));
    await settle();
    assertEquals([pool.fake.opening, pool.stats().requestsWaiting], [1, 2]);
    if (leaver !== null) aborts[leaver]?.abort(new Error("left"));
    pool.fake.next("open").go();
    await settle();
    assertEquals(calls.map((one) => one.word), [0, 1].map((i) => i === leaver ? "left" : "ok"));
    const [lease] = calls.flatMap((one) => one.value ?? []);
    for (const { value } of calls) if (value !== undefined) assertStrictEquals(value, lease);
    assertStrictEquals(await pool.getconn("k"), lease);
    assertEquals(pool.stats().leased, 1);
    await assertWhole(pool, [lease as Thing]);
  }
});

test("getconn(key): who follows a leader that leaves inherits its place, not the end of the queue", async () => {
  const pool = new FakePool(0, 1);
  const conn = await pool.getconn();
  const abort = new AbortController();
  const leader = outcome(pool.getconn("k", { ...FOREVER, signal: abort.signal }));
  const other = outcome(pool.getconn(null, FOREVER));
  const heir = outcome(pool.getconn("k", FOREVER));
  abort.abort(new Error("left"));
  await pool.putconn(conn);
  await settle();
  assertEquals([leader.word, other.word, heir.word], ["left", "pending", "ok"]);
  await pool.putconn(heir.value as Thing, "k");
  await settle();
  await assertWhole(pool, [other.value as Thing]);
});

test("getconn(key) replaces a lost connection, and the old lease is dead", async () => {
  const pool = new FakePool(0, 1);
  const old = await pool.getconn("k");
  pool.fake.things[0]?.die();
  const fresh = await pool.getconn("k");
  assertEquals([idOf(fresh), pool.stats().leased], [2, 1]);
  assertEquals(await wordOf(pool.putconn(old)), "UNKEYED_CONNECTION");
  await assertWhole(pool, [fresh]);
});

test("getconn(key) and putconn(key) take any value as a key, compared as in a Map", async () => {
  const keys = [0, "", "0", NaN, false, Symbol("s"), {}, {}, [], () => {}, 1n];
  const pool = new FakePool(0, keys.length);
  const leases: Thing[] = [];
  for (const key of keys) leases.push(await pool.getconn(key));
  assertEquals(new Set(leases).size, keys.length);
  for (const [i, key] of keys.entries()) assertStrictEquals(await pool.getconn(key), leases[i]);
  assertStrictEquals(await pool.getconn(-0), leases[0]);
  for (const [i, key] of keys.entries()) await pool.putconn(leases[i] as Thing, key);
  await assertWhole(pool);
});

test("getconn() refuses more than maxWaiting callers, whose places become free when one leaves", async () => {
  const pool = new FakePool(0, 1, { maxWaiting: 2 });
  const conn = await pool.getconn();
  const abort = new AbortController();
  const one = outcome(pool.getconn(null, { ...FOREVER, signal: abort.signal }));
  const two = outcome(pool.getconn(null, FOREVER));
  const three = outcome(pool.getconn(null, FOREVER));
  await settle();
  assertEquals([one.word, two.word, three.word], ["pending", "pending", "TOO_MANY_WAITING"]);
  assert((three.error as Error).message.includes("2 callers wait already, which is maxWaiting"));
  abort.abort(new Error("left"));
  const four = outcome(pool.getconn(null, FOREVER));
  for (const call of [conn, two, four]) {
    await pool.putconn("value" in call ? call.value as Thing : call);
    await settle();
  }
  await assertWhole(pool);
});
