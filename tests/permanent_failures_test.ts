/** Failures to connect that do not heal by themselves: nobody waits for that. */

import { assert, assertEquals, assertStrictEquals } from "@std/assert";
import type { PoolError, PoolOptions } from "../mod.ts";
import { assertWhole, outcome, withClock } from "./support/checks.ts";
import { FakeConnector, FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

const FOREVER = { timeout: Infinity };
const WRONG = new Error("wrong password");

/** Its failures do not heal, as long as they are the wrong password. */
class Strict extends FakeConnector {
  permanent(error: unknown): boolean {
    return error === WRONG;
  }
}

function strict(min: number, max: number, options: PoolOptions<Thing> = {}): FakePool {
  const fake = new Strict();
  fake.failure = WRONG;
  return new FakePool(min, max, options, fake);
}

test("a permanent failure is told to everybody who waits, at once, with its own cause", async () => {
  const pool = strict(0, 4);
  pool.fake.hold.add("open");
  const calls = [
    pool.getconn(null, FOREVER),
    pool.getconn("key", { timeout: 5_000 }),
    pool.getconn("key", FOREVER),
    pool.getconn(),
    pool.use(() => {}, { timeout: 5_000 }),
  ].map((one) => outcome<unknown>(one));
  await settle();
  pool.fake.next("open").go();
  await settle();
  for (const one of calls) {
    assertEquals(one.word, "CONNECT_FAILED");
    const { cause, message } = one.error as PoolError;
    assertStrictEquals(cause, WRONG);
    assert(message.startsWith("no connection could be opened: wrong password"), message);
  }
  assertEquals([pool.stats().requestsErrors, pool.stats().requestsWaiting], [5, 0]);
  await assertWhole(pool);
});

test("who comes after a permanent failure has an attempt of its own, and is told as soon as that fails", async () => {
  await withClock(async (clock) => {
    const pool = strict(0, 2);
    for (let i = 1; i <= 5; i++) {
      const call = outcome(pool.getconn(null, { timeout: 30_000 }));
      await clock.tickAsync(101);
      assertEquals([call.word, pool.stats().connectionsNum], ["CONNECT_FAILED", i]);
    }
    pool.fake.failure = null;
    const call = outcome(pool.getconn(null, { timeout: 30_000 }));
    await clock.tickAsync(101);
    assertEquals(call.word, "ok");
    await assertWhole(pool, [call.value as Thing]);
  });
});

test("many who come after a permanent failure share one attempt at a time, and these keep a distance", async () => {
  await withClock(async (clock) => {
    const pool = strict(0, 10);
    const calls = [];
    for (let at = 0; at < 1_000; at += 5) {
      calls.push(outcome(pool.getconn(null, { timeout: 30_000 })));
      await clock.tickAsync(5);
    }
    await clock.tickAsync(101);
    assert(calls.every((one) => one.word === "CONNECT_FAILED"));
    assertEquals(pool.fake.mostOpening, 1);
    assert(pool.stats().connectionsNum <= 12);
    await assertWhole(pool);
  });
});

test("the background tries on after a permanent failure", async () => {
  await withClock(async (clock) => {
    const pool = strict(1, 2);
    await clock.tickAsync(5_000);
    assert(pool.stats().connectionsNum > 3);
    pool.fake.failure = null;
    await clock.tickAsync(10_000);
    assertEquals(pool.stats().idle, 1);
    await assertWhole(pool);
  });
});

test("what may heal is waited for, also after a permanent failure, and whatever permanent() throws", async () => {
  await withClock(async (clock) => {
    const pool = strict(0, 1);
    const told = outcome(pool.getconn(null, FOREVER));
    await settle();
    assertEquals(told.word, "CONNECT_FAILED");
    pool.fake.failure = new Error("starting up");
    const call = outcome(pool.getconn(null, { timeout: 60_000 }));
    await clock.tickAsync(1_000);
    Object.assign(pool.fake, {
      permanent(): never {
        throw null;
      },
    });
    await clock.tickAsync(20_000);
    assertEquals(call.word, "pending");
    pool.fake.failure = null;
    await clock.tickAsync(10_000);
    assertEquals(call.word, "ok");
    await assertWhole(pool, [call.value as Thing]);
  });
});

test("a getconn from within a listener of connectfailed waits for an attempt of its own", async () => {
  await withClock(async (clock) => {
    const pool = strict(0, 1);
    let inner: { readonly word: string } | null = null;
    pool.on("connectfailed", () => inner ??= outcome(pool.getconn(null, FOREVER)));
    const call = outcome(pool.getconn(null, FOREVER));
    await settle();
    assertEquals([call.word, (inner as { word: string } | null)?.word], [
      "CONNECT_FAILED",
      "pending",
    ]);
    await clock.tickAsync(200);
    assertEquals((inner as { word: string } | null)?.word, "CONNECT_FAILED");
    await assertWhole(pool);
  });
});
