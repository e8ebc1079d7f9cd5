/** What calls take: an option that a call does not have, or that stands in the wrong place, is said so. */

import { assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import {
  instrument,
  PersistentConnectionPool,
  type PoolEventType,
  ThreadedConnectionPool,
} from "../mod.ts";
import { assertWhole, outcome, withClock } from "./support/checks.ts";
import { FakeConnector, FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

type Loose = Record<string, (...args: unknown[]) => unknown>;

/** The pool as a program without types sees it. */
function loose(pool: object): Loose {
  return pool as unknown as Loose;
}

function nothing(): void {}

/** Calls with options in their last place, and what each call takes. */
const CALLS: readonly (readonly [string, (pool: Loose, options: unknown) => unknown, string[]])[] =
  [
    ["getconn", (pool, options) => pool["getconn"]?.(null, options), ["timeout", "signal"]],
    ["use", (pool, options) => pool["use"]?.(nothing, options), ["timeout", "signal"]],
    [
      "transaction",
      (pool, options) => pool["transaction"]?.(nothing, options),
      ["timeout", "signal", "mode"],
    ],
    ["close", (pool, options) => pool["close"]?.(options), ["timeout"]],
  ];

test("options of a call: an unknown key, or anything but an object, is a TypeError that says what is taken", async () => {
  const pool = new FakePool(0, 1);
  for (const [, call, keys] of CALLS) {
    for (
      const [odd, what] of [[{ timout: 5 }, "timout"], [
        { timeout: 5, maxWait: 1 },
        "maxWait",
      ]] as const
    ) {
      const error = await assertRejects(
        () => call(loose(pool), odd) as Promise<unknown>,
        TypeError,
      );
      assertStringIncludes(error.message, `"${what}"`);
      assertStringIncludes(error.message, keys.join(", "));
    }
    for (const odd of [5, "5", true, null, [], nothing, new AbortController().signal, Symbol()]) {
      const error = await assertRejects(
        () => call(loose(pool), odd) as Promise<unknown>,
        TypeError,
      );
      assertStringIncludes(error.message, "must be an object");
    }
    for (const timeout of ["5", null, {}]) {
      await assertRejects(() => call(loose(pool), { timeout }) as Promise<unknown>, TypeError);
    }
    for (const timeout of [-1, NaN, 2 ** 31]) {
      await assertRejects(() => call(loose(pool), { timeout }) as Promise<unknown>, RangeError);
    }
    const thrower = {
      get timeout(): never {
        throw new Error("a getter of somebody else's");
      },
    };
    assertStringIncludes(
      (await assertRejects(() => call(loose(pool), thrower) as Promise<unknown>, Error)).message,
      "somebody else's",
    );
  }
  await assertRejects(() => pool.transaction(nothing, { mode: 5 as never }), TypeError, "mode");
  assertEquals([pool.closed, pool.fake.made], [false, 0], "nothing was begun");
  await assertWhole(pool);
});

test("options of a call are looked at in the same way by pools that workers share, and in a run()", async () => {
  const shared = () => ({ pool: { connector: new FakeConnector() } });
  const threaded = new ThreadedConnectionPool<Thing>(0, 1, shared());
  const persistent = new PersistentConnectionPool<Thing>(0, 1, shared());
  const inContext = new PersistentConnectionPool<Thing>(0, 1, {
    pool: { connector: new FakeConnector(), scope: "context" },
  });
  const own = [["getconn", (pool: Loose, options: unknown) => pool["getconn"]?.(options), [
    "timeout",
    "signal",
  ]]];
  const leave = [["leave", (pool: Loose, options: unknown) => pool["leave"]?.(options), [
    "timeout",
  ]]];
  const [, ...others] = CALLS;
  const pools = [
    [threaded, [...CALLS, ...leave]],
    [persistent, [...own, ...others, ...leave]],
    [inContext, [...own, ...others, ...leave]],
  ] as unknown as (readonly [ThreadedConnectionPool<Thing>, typeof CALLS])[];
  for (const [pool, calls] of pools) {
    for (const [, call, keys] of calls) {
      const made = (options: unknown): Promise<unknown> =>
        pool === inContext as unknown
          ? inContext.run(() => call(loose(pool), options) as Promise<unknown>)
          : call(loose(pool), options) as Promise<unknown>;
      const unknown = await assertRejects(() => made({ timout: 5 }), TypeError, '"timout"');
      assertStringIncludes(unknown.message, keys.join(", "));
      for (const odd of [5, "5", true, null, [], nothing, new AbortController().signal, Symbol()]) {
        await assertRejects(() => made(odd), TypeError, "must be an object");
      }
      await assertRejects(() => made({ timeout: "5" }), TypeError, '"timeout"');
      if (keys.includes("signal")) {
        await assertRejects(() => made({ signal: {} }), TypeError, "must be an AbortSignal");
      }
    }
    assertEquals([pool.closed, pool.stats().connectionsNum], [false, 0], "nothing was begun");
  }
  for (const pool of [persistent, inContext]) {
    for (const odd of [undefined, null, "select 1", {}]) {
      await assertRejects(() => pool.use(odd as never), TypeError, "use takes a function");
    }
    await pool.use(async (conn) => {
      await assertRejects(() => pool.putconn(conn, "yes" as never), TypeError, "true or false");
      assertEquals(pool.stats().leased, 1);
    });
    assertEquals(pool.stats().idle, 1);
  }
  await assertRejects(() => inContext.run("f" as never), TypeError, "run takes a function");
  for (const [pool] of pools) await pool.closeall();
});

test("signal: null is taken as no signal, as fetch does; what only looks like a signal is refused", async () => {
  const pool = new FakePool(0, 1);
  await pool.putconn(await pool.getconn(null, { signal: null }));
  await pool.use(nothing, { signal: null, timeout: 5 });
  await pool.transaction(nothing, { signal: null });
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  for (const signal of [{}, { aborted: false }, 5, proxy, Object.create(AbortSignal.prototype)]) {
    await assertRejects(() => pool.getconn(null, { signal: signal as never }), TypeError);
  }
  await assertWhole(pool);
});

test("use and transaction take a function, and say so before they take a connection", async () => {
  const pool = new FakePool(0, 1);
  for (const odd of [undefined, null, "select 1", {}, { timeout: 5 }]) {
    await assertRejects(() => pool.use(odd as never), TypeError, "use takes a function");
    await assertRejects(
      () => pool.transaction(odd as never),
      TypeError,
      "transaction takes a function",
    );
  }
  assertEquals(pool.fake.made, 0);
  await assertWhole(pool);
});

test("options in the place of the key are a TypeError that says where they go", async () => {
  await withClock(async () => {
    const pool = new FakePool(0, 1, { timeout: 3_000 });
    const conn = await pool.getconn();
    const { signal } = new AbortController();
    for (const odd of [{ timeout: 100 }, { signal }, { timeout: 1, signal }, { close: true }]) {
      const error = await assertRejects(() => pool.getconn(odd), TypeError);
      assertStringIncludes(error.message, "getconn(null, options)");
      assertStringIncludes(
        (await assertRejects(() => pool.putconn(conn, odd), TypeError)).message,
        "putconn(conn, key, close)",
      );
    }
    await assertRejects(
      () => pool.putconn(conn, null, { close: true } as never),
      TypeError,
      "close",
    );
    assertEquals([pool.stats().leased, pool.stats().requestsWaiting], [1, 0]);
    await assertWhole(pool, [conn]);
  });
});

test("any other object is a key as before", async () => {
  class Timeout {
    timeout = 5;
  }
  const pool = new FakePool(0, 1);
  for (
    const key of [{}, { user: 5 }, { timeout: 5, user: 5 }, new Timeout(), [], new Map(), nothing]
  ) {
    const conn = await pool.getconn(key);
    assertEquals(await pool.getconn(key), conn);
    await pool.putconn(conn, key);
  }
  await pool.putconn(await pool.getconn({ timeout: 5 }, { timeout: 5 }));
  await assertWhole(pool);
});

test("on and off: a type that no pool has, and no function, are TypeErrors that say what there is", async () => {
  const pool = new FakePool(0, 1);
  for (const call of ["on", "off"] as const) {
    for (const odd of ["aquire", "error", "toString", "", 5, undefined]) {
      const error = assertThrows(() => pool[call](odd as PoolEventType, nothing), TypeError);
      assertStringIncludes(error.message, "acquire");
    }
    assertThrows(() => pool[call]("acquire", {} as never), TypeError, "function");
  }
  pool.on("acquire", nothing).off("acquire", nothing);
  await assertWhole(pool);
});

test("instrument refuses an option that it does not have", async () => {
  const pool = new FakePool(0, 1);
  assertThrows(() => instrument(pool, { span: true } as never), TypeError, "spans");
  await assertWhole(pool);
});

test("a persistent pool's transaction takes its options, and refuses others", async () => {
  const connector = new FakeConnector();
  const pool = new PersistentConnectionPool<Thing>(0, 1, { pool: { connector } });
  await pool.transaction(nothing, { timeout: 5, mode: "read only", signal: null });
  await assertRejects(() => pool.transaction(nothing, { mod: "x" } as never), TypeError, "mode");
  const late = outcome(pool.getconn({ timout: 5 } as never));
  await settle();
  assertStringIncludes(late.word, "timout");
  await pool.closeall();
});
