/** What events tell, and who hears them. */

import { assert, assertEquals, assertGreaterOrEqual, assertLess } from "@std/assert";
import { AsyncLocalStorage } from "node:async_hooks";
import { type PoolEventDetails, PoolEvents, type PoolEventType, type WaitEnd } from "../mod.ts";
import { outcome, withClock, wordOf } from "./support/checks.ts";
import { FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

/** The details of every event of a type. */
function details<T extends PoolEventType>(pool: FakePool, type: T): PoolEventDetails[T][] {
  const seen: PoolEventDetails[T][] = [];
  pool.on(type, (event) => {
    assertEquals([event.type, event.pool], [type, pool.options.name]);
    seen.push(event.detail);
  });
  return seen;
}

test("wait: told when getconn begins to wait, and its end is told in `ended`", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    const waits = details(pool, "wait");
    const acquires = details(pool, "acquire");
    const conn = await pool.getconn();
    const abort = new AbortController();
    const served = outcome(pool.getconn(null, { timeout: 1_000 }));
    const late = outcome(pool.getconn("key", { timeout: 10 }));
    const aborted = outcome(pool.getconn(null, { timeout: 1_000, signal: abort.signal }));
    const closed = outcome(pool.getconn(null, { timeout: 1_000 }));
    const ends: Partial<WaitEnd>[] = [];
    waits.forEach(({ ended }, i) => void ended.then((end) => ends[i] = end));
    await clock.tickAsync(10);
    abort.abort(new Error("enough"));
    await clock.tickAsync(30);
    await pool.putconn(conn);
    await pool.closeall();
    await settle();
    const words = [served, late, aborted, closed].map((one) => one.word);
    assertEquals(words, ["ok", "POOL_TIMEOUT", "enough", "POOL_CLOSED"]);
    // The first call waited for its connect.
    assertEquals(waits.map(({ key, waiting }) => [key, waiting]), [
      [null, 1],
      [null, 1],
      ["key", 2],
      [null, 3],
      [null, 4],
    ]);
    assertEquals(ends.map((end) => end.served), [true, true, false, false, false]);
    assertEquals(ends.map((end) => end.waited), [0, 40, 10, 10, 40]);
    assertEquals(ends.map((end) => end.error), [
      undefined,
      undefined,
      late.error,
      aborted.error,
      closed.error,
    ]);
    assertEquals(acquires.map(({ waited }) => waited), [0, 40]);
  });
});

test("wait: not told for a call that is served or refused at once", async () => {
  const pool = new FakePool(1, 1);
  await pool.ready();
  const waits = details(pool, "wait");
  const acquires = details(pool, "acquire");
  const conn = await pool.getconn();
  assertEquals(await wordOf(pool.getconn()), "POOL_EXHAUSTED");
  assertEquals(waits, []);
  assertEquals(acquires, [{ conn, key: null, waited: 0 }]);
  await pool.putconn(conn);
  await pool.closeall();
});

test("wait: told in the async context of the caller, before getconn returns", async () => {
  const pool = new FakePool(0, 1);
  const context = new AsyncLocalStorage<string>();
  const conn = await pool.getconn();
  const seen: unknown[] = [];
  pool.on("wait", () => seen.push(context.getStore()));
  const calls = ["one", "two"].map((name) =>
    context.run(name, () => pool.getconn(null, { timeout: 1_000 }))
  );
  assertEquals(seen, ["one", "two"]);
  await pool.putconn(conn);
  for (const one of calls) await pool.putconn(await one);
  await pool.closeall();
});

test("wait: callers that wait for one key have an end each, and one acquire together", async () => {
  const pool = new FakePool(0, 1);
  const conn = await pool.getconn();
  const waits = details(pool, "wait");
  const acquires = details(pool, "acquire");
  const calls = [1, 2].map(() => pool.getconn("key", { timeout: 1_000 }));
  await pool.putconn(conn);
  await Promise.all(calls);
  const ends = await Promise.all(waits.map(({ ended }) => ended));
  assertEquals(ends.map(({ served }) => served), [true, true]);
  assertEquals(acquires.length, 1);
  await pool.putconn(await calls[0] as Thing);
  await pool.closeall();
});

test("remove: tells why a connection was unfit", async () => {
  const bad = new Error("bad hook");
  const pool = new FakePool(0, 1, { checkAfter: 0, reset: () => undefined });
  const removed = details(pool, "remove");
  const { fake } = pool;
  const messages = () =>
    removed.splice(0).map(({ reason, error }) => [reason, (error as Error | undefined)?.message]);

  fake.hold.add("rollback");
  const one = await pool.getconn();
  one.status = "intrans";
  const back = pool.putconn(one);
  fake.next("rollback").fail(new Error("no rollback"));
  await back;
  assertEquals(messages(), [["dirty", "no rollback"]]);
  fake.hold.clear();

  await pool.putconn(await pool.getconn());
  fake.hold.add("check");
  const checked = pool.getconn();
  fake.next("check").fail(new Error("no answer"));
  await settle();
  assertEquals(messages(), [["unhealthy", "no answer"]]);
  fake.hold.clear();

  const lost = await checked;
  fake.byId(lost.hello()).die(new Error("killed"));
  await pool.putconn(lost);
  await pool.putconn(await pool.getconn(), undefined, true);
  assertEquals(messages(), [["lost", "killed"], ["discarded", undefined]]);
  await pool.closeall();

  for (const hook of ["reset", "configure"] as const) {
    const hooked = new FakePool(0, 1, {
      [hook]: () => {
        throw bad;
      },
    });
    const gone = details(hooked, "remove");
    const failed = details(hooked, "connectfailed");
    await hooked.getconn().then((conn) => hooked.putconn(conn), () => {});
    await settle();
    assertEquals(gone[0]?.reason, "dirty");
    assertEquals((gone[0]?.error as Error).cause, bad);
    assert((gone[0]?.error as Error).message.startsWith(`${hook} failed: bad hook`));
    assertEquals(failed.length, hook === "configure" ? 1 : 0);
    await hooked.closeall();
  }
});

test("remove: a connection that stays dirty after its rollback says so", async () => {
  const pool = new FakePool(0, 1);
  const removed = details(pool, "remove");
  pool.fake.rollback = () => Promise.resolve();
  const conn = await pool.getconn();
  conn.status = "inerror";
  await pool.putconn(conn);
  assertEquals(
    (removed[0]?.error as Error).message,
    "the connection is inerror after its rollback",
  );
  await pool.closeall();
});

test("connectfailed: tells how long the attempt took", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    const failed = details(pool, "connectfailed");
    pool.fake.hold.add("open");
    const call = outcome(pool.getconn());
    await clock.tickAsync(25);
    pool.fake.next("open").fail(new Error("away"));
    await settle();
    assertEquals(call.word, "CONNECT_FAILED");
    const [detail] = failed;
    assertEquals([detail?.took, detail?.attempt], [25, 1]);
    assertGreaterOrEqual(detail?.retryIn ?? 0, 75);
    assertLess(detail?.retryIn ?? Infinity, 126);
    await pool.closeall();
  });
});

/** Shows what pools ask themselves. */
class Ears extends PoolEvents {
  hears(type: PoolEventType): boolean {
    return this.heard(type);
  }
}

test("PoolEvents makes no event when the last listener has gone", () => {
  const ears = new Ears();
  const fn = (): void => {};
  assert(!ears.hears("acquire"));
  ears.on("acquire", fn).on("acquire", fn);
  ears.addEventListener("acquire", fn, { capture: true });
  assert(ears.hears("acquire"));
  assert(!ears.hears("release"));
  ears.off("acquire", fn);
  assert(ears.hears("acquire"));
  ears.removeEventListener("acquire", fn, true);
  assert(!ears.hears("acquire"));
  ears.addEventListener("acquire", fn, { once: true });
  ears.dispatchEvent(new Event("acquire"));
  assert(!ears.hears("acquire"));
  const abort = new AbortController();
  ears.addEventListener("acquire", fn, { signal: abort.signal });
  assert(ears.hears("acquire"));
  abort.abort();
  assert(!ears.hears("acquire"));
  ears.addEventListener("acquire", fn, { signal: abort.signal });
  assert(!ears.hears("acquire"));
});

test("PoolEvents calls listeners as EventTarget does", () => {
  const run = (target: EventTarget): string[] => {
    const log: string[] = [];
    const fn = (): void => void log.push("fn");
    const object = { handleEvent: (event: Event): void => void log.push(`object ${event.type}`) };
    const abort = new AbortController();
    target.addEventListener("a", fn);
    target.addEventListener("a", fn);
    target.addEventListener("a", fn, { once: true });
    target.addEventListener("a", object, { once: true });
    target.addEventListener("a", fn, true);
    target.addEventListener("b", fn, { signal: abort.signal });
    target.addEventListener("b", null);
    for (let i = 0; i < 2; i++) target.dispatchEvent(new Event("a"));
    target.dispatchEvent(new Event("b"));
    abort.abort();
    target.dispatchEvent(new Event("b"));
    target.removeEventListener("a", fn);
    target.removeEventListener("a", object);
    target.removeEventListener("a", null);
    target.dispatchEvent(new Event("a"));
    // An old signal does not end a new registration.
    target.addEventListener("b", fn);
    target.dispatchEvent(new Event("b"));
    return log;
  };
  assertEquals(run(new Ears()), run(new EventTarget()));
});
