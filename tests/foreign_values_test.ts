/** What a connector, a hook or a listener throws is not ours, and may throw when it is looked at. */

import { assertEquals, assertStringIncludes } from "@std/assert";
import { instrument, type PoolError, type PoolOptions } from "../mod.ts";
import { reasonOf } from "../src/pool/errors.ts";
import { assertWhole, idOf, outcome, withClock } from "./support/checks.ts";
import { FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

function thrower(): never {
  throw new Error("a getter that throws");
}

function revoked(): object {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
}

/** Things that somebody may throw, with what can be said of them. */
const ODD: readonly (readonly [name: string, value: unknown, text: string | null])[] = [
  ["undefined", undefined, "undefined"],
  ["null", null, "null"],
  ["a number", 5, "5"],
  ["a symbol", Symbol("s"), "Symbol(s)"],
  ["an object without a prototype", Object.create(null), null],
  ["a revoked proxy", revoked(), null],
  [
    "an error whose message throws",
    Object.defineProperty(new Error(), "message", { get: thrower }),
    null,
  ],
  [
    "an error whose message is an object that throws",
    Object.assign(new Error(), {
      message: { toString: thrower },
    }),
    null,
  ],
  [
    "an error whose name is a symbol",
    Object.assign(new Error(""), { name: Symbol("n") }),
    "Symbol(n)",
  ],
  ["an object whose toString throws", { toString: thrower }, null],
  ["an object that turns into an object", { toString: () => ({}), valueOf: () => ({}) }, null],
  [
    "an aggregate whose errors throw",
    Object.defineProperty(new AggregateError([]), "errors", {
      get: thrower,
    }),
    null,
  ],
  ["an aggregate of such", new AggregateError([Object.create(null), new Error("x")]), null],
  [
    "a proxy that throws whatever it is asked",
    new Proxy({}, {
      get: thrower,
      getPrototypeOf: thrower,
      has: thrower,
      ownKeys: thrower,
    }),
    null,
  ],
];

test("reasonOf() says what anything thrown is, and never throws", () => {
  for (const [name, value, text] of ODD) {
    const said = reasonOf(value);
    assertEquals(typeof said, "string", name);
    if (text === null) assertStringIncludes(said, "cannot be shown", name);
    else assertEquals(said, text, name);
  }
  assertEquals(reasonOf(new AggregateError([new Error("a"), "b"])), "a; b");
});

for (const [name, value] of ODD) {
  test(`whoever waits is told when open() rejects with ${name}`, async () => {
    await withClock(async (clock) => {
      const pool = new FakePool(0, 2, { timeout: 300, leakAfter: 100 });
      const causes: unknown[] = [];
      pool.on("connectfailed", ({ detail }) => causes.push(detail.error));
      const provider = { startSpan: () => ({ setAttribute() {}, setStatus() {}, end() {} }) };
      instrument(pool, { tracerProvider: { getTracer: () => provider } as never, spans: true });
      pool.fake.open = () => Promise.reject(value);
      const calls = [0, 300, 300].map((timeout) => outcome(pool.getconn(null, { timeout })));
      await clock.tickAsync(400);
      for (const { word, error } of calls) {
        assertEquals(["CONNECT_FAILED", "POOL_TIMEOUT"].includes(word), true, word);
        assertEquals(Object.is((error as PoolError).cause, value), true);
      }
      assertEquals(Object.is(causes[0], value), true);
      assertEquals(typeof pool.inspect(), "string");
      await pool.closeall();
      assertEquals([pool.stats().poolSize, pool.stats().requestsWaiting], [0, 0]);
    });
  });

  test(`no slot is lost when hooks, checks, rollbacks, closes and listeners throw ${name}`, async () => {
    await withClock(async (clock) => {
      let odd = true;
      const hook = (): void => {
        if (odd) throw value;
      };
      for (const options of [{ configure: hook }, { reset: hook }] as PoolOptions<Thing>[]) {
        odd = true;
        const pool = new FakePool(0, 1, { ...options, timeout: 1_000, checkAfter: 0 });
        const { error, warn } = console;
        console.error = console.warn = () => {};
        const { close, check, rollback } = pool.fake;
        try {
          for (const type of ["connect", "remove", "release", "lost"] as const) {
            pool.on(type, () => {
              throw value;
            });
            // deno-lint-ignore require-await -- rejects
            pool.on(type, async () => {
              throw value;
            });
          }
          pool.fake.close = async (thing) => {
            await close.call(pool.fake, thing);
            throw value;
          };
          pool.fake.check = pool.fake.rollback = () => Promise.reject(value);
          const first = outcome(pool.getconn());
          await clock.tickAsync(1_000);
          if (first.value !== undefined) await pool.putconn(first.value);
          odd = false;
          const second = outcome(pool.getconn());
          await clock.tickAsync(1_000);
          pool.fake.byId(idOf(second.value)).status = "intrans";
          await pool.putconn(second.value as Thing);
          const third = outcome(pool.getconn());
          await clock.tickAsync(1_000);
          pool.fake.byId(idOf(third.value)).die(value);
          await pool.putconn(third.value as Thing);
          await settle();
          Object.assign(pool.fake, { close, check, rollback });
          await assertWhole(pool);
        } finally {
          Object.assign(console, { error, warn });
        }
      }
    });
  });
}
