import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertNotStrictEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { AbstractConnectionPool, PoolError, type PoolOptions } from "../mod.ts";
import { type ResolvedOptions, resolveOptions } from "../src/pool/options.ts";
import { idOf, outcome, withClock, wordOf } from "./support/checks.ts";
import { FACTS, FakeConnector, FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

const SECRET = "s3cr3t-pa55word";
type Key = keyof ResolvedOptions<Thing>;

/** Makes a pool as JavaScript would: with anything. */
function make(minconn: unknown, maxconn: unknown, pool?: unknown): FakePool {
  return new FakePool(minconn as number, maxconn as number, pool as PoolOptions<Thing>);
}

function assertRefused(work: () => unknown, kind: typeof RangeError, ...words: string[]): void {
  const error = assertThrows(work);
  assertInstanceOf(error, kind);
  for (const word of words) assertStringIncludes(error.message, word);
  assert(!error.message.includes(SECRET), "the error shows what was passed");
}

test("AbstractConnectionPool refuses sizes of the wrong type with a TypeError that names them", () => {
  for (const bad of [undefined, null, "3", SECRET, true, [1], {}, 2n, () => 1]) {
    assertRefused(() => make(bad, 1), TypeError, "minconn", "integer");
    assertRefused(() => make(0, bad), TypeError, "maxconn", "integer");
  }
});

test("AbstractConnectionPool refuses sizes out of range with a RangeError that names rule and value", () => {
  for (const bad of [-1, 0.5, NaN, Infinity, -Infinity, 2 ** 53]) {
    assertRefused(() => make(bad, 1), RangeError, "minconn", "at least 0", String(bad));
    assertRefused(() => make(0, bad), RangeError, "maxconn", "at least 1", String(bad));
  }
  assertRefused(() => make(0, 0), RangeError, "maxconn", "at least 1", "received 0");
  assertRefused(() => make(3, 2), RangeError, "minconn 3", "maxconn 2");
});

const TIMES: readonly (readonly [unknown, typeof RangeError])[] = [
  ["5", TypeError],
  [SECRET, TypeError],
  [null, TypeError],
  [5n, TypeError],
  [{}, TypeError],
  [-1, RangeError],
  [NaN, RangeError],
  [-Infinity, RangeError],
  [2 ** 31, RangeError],
];
const FUNCTIONS: typeof TIMES = [[null, TypeError], [SECRET, TypeError], [1, TypeError], [
  {},
  TypeError,
]];
const BAD: Readonly<Record<Key, typeof TIMES>> = {
  name: [["", TypeError], [1, TypeError], [null, TypeError], [{}, TypeError]],
  timeout: TIMES,
  maxWaiting: [[1.5, RangeError], [-1, RangeError], [Infinity, RangeError], [SECRET, TypeError]],
  maxIdle: TIMES,
  maxLifetime: TIMES,
  checkAfter: TIMES,
  checkTimeout: [...TIMES, [0, RangeError], [Infinity, RangeError]],
  maxUses: [[1.5, RangeError], [-1, RangeError], [Infinity, RangeError], [SECRET, TypeError]],
  configure: FUNCTIONS,
  reset: FUNCTIONS,
  validate: FUNCTIONS,
  reconnectTimeout: TIMES,
  leakAfter: TIMES,
  reclaimAfter: TIMES,
  slowStatementAfter: TIMES,
  connector: [
    [null, TypeError],
    [SECRET, TypeError],
    [{}, TypeError],
    [{ open() {} }, TypeError],
    [{ open() {}, close() {}, check: SECRET }, TypeError],
    [{ open() {}, close() {}, lend: null }, TypeError],
    [{ open() {}, close() {}, quiet: 5 }, TypeError],
  ],
};

test("resolveOptions() knows exactly the options of the table of bad values", () => {
  assertEquals(Object.keys(BAD).sort(), Object.keys(resolveOptions({})).sort());
});

for (const [key, values] of Object.entries(BAD)) {
  test(`AbstractConnectionPool refuses a bad pool.${key} and names it`, () => {
    for (const [value, kind] of values) {
      assertRefused(() => make(0, 1, { [key]: value }), kind, `pool.${key}`, "must be");
    }
    // undefined is as good as absent.
    assertEquals(make(0, 1, { [key]: undefined, connector: new FakeConnector() }).maxconn, 1);
  });
}

test("AbstractConnectionPool refuses an unknown option and lists those that there are", () => {
  for (const key of ["max", "Timeout", "maxidle", "__proto", "toString", "constructor"]) {
    assertRefused(() => make(0, 1, { [key]: SECRET }), TypeError, `"pool.${key}"`, "maxLifetime");
  }
});

test("AbstractConnectionPool refuses options that make each other void, and says why", () => {
  assertRefused(
    () => make(0, 1, { leakAfter: 20, reclaimAfter: 20 }),
    RangeError,
    '"pool.leakAfter" must be less than "pool.reclaimAfter"',
    "20 and 20",
  );
  const deaf = Object.assign(new FakeConnector(), { observe: undefined });
  assertRefused(
    () => make(0, 1, { slowStatementAfter: 20, connector: deaf as never }),
    TypeError,
    '"pool.slowStatementAfter" needs a connector with observe()',
  );
});

test("AbstractConnectionPool refuses a `pool` that is no object", () => {
  class Bare extends AbstractConnectionPool<Thing> {}
  for (const bad of [null, 5, SECRET, [], true]) {
    assertRefused(() => new Bare(0, 1, { pool: bad }), TypeError, '"pool"', "object");
  }
  assertRefused(() => new Bare(0, 1), TypeError, "pool.connector", "required");
});

test("AbstractConnectionPool leaves the caller's options as they are and passes the rest on", async () => {
  const fake = new FakeConnector();
  let accepted: readonly unknown[] = [];
  Object.assign(fake, { accept: (args: readonly unknown[]) => accepted = args });
  class Bare extends AbstractConnectionPool<Thing> {}
  const pool = Object.freeze({ connector: fake, timeout: 5 });
  const given = Object.freeze({ host: "h", password: SECRET, pool });
  const one = new Bare(0, 1, "url", given);
  assertEquals(accepted, ["url", { host: "h", password: SECRET }]);
  assertEquals(Object.keys(given), ["host", "password", "pool"]);
  assertEquals(one.options.timeout, 5);
  await one.closeall();
});

test("AbstractConnectionPool throws what the connector's accept() throws", () => {
  const fake = Object.assign(new FakeConnector(), {
    accept() {
      throw new RangeError("not so");
    },
  });
  assertThrows(() => make(0, 1, { connector: fake }), RangeError, "not so");
});

test("AbstractConnectionPool.options is frozen, complete and without functions or secrets", async () => {
  const fake = Object.assign(new FakeConnector(), {
    password: SECRET,
    describe: () => ({ host: "h" }),
  });
  const pool = make(0, 1, { connector: fake, reset: () => SECRET, maxIdle: 7 });
  const { options } = pool;
  assert(Object.isFrozen(options) && Object.isFrozen(options.connection));
  assertEquals(options.idleTimeoutMillis, 7);
  assertEquals([options.reset, options.configure], [true, false]);
  assertEquals(options.connection, { host: "h" });
  for (const key of Object.keys(BAD)) assert(key === "connector" || key in options, key);
  assert(!JSON.stringify(options).includes(SECRET));
  assertNotStrictEquals(make(0, 1).options.name, make(0, 1).options.name);
  await pool.closeall();
});

/** What shows that an option has an effect: the same with it and without it. */
const EFFECT: Readonly<
  Record<Key, { value: unknown; look: (pool: FakePool, tick: Tick) => unknown }>
> = {
  name: { value: "orders", look: (pool) => Promise.resolve(pool.stats().name === "orders") },
  timeout: {
    value: 50,
    look: async (pool) => {
      await pool.getconn();
      const late = outcome(pool.getconn());
      await settle();
      return late.word;
    },
  },
  maxWaiting: {
    value: 1,
    look: async (pool) => {
      await pool.getconn();
      outcome(pool.getconn(null, { timeout: 99 }));
      return await wordOf(pool.getconn(null, { timeout: 99 }));
    },
  },
  maxIdle: { value: 10, look: idAfter(20) },
  maxLifetime: { value: 10, look: idAfter(20) },
  checkAfter: {
    value: 10,
    look: async (pool, tick) => {
      await idAfter(20)(pool, tick);
      return pool.fake.things[0]?.checks;
    },
  },
  checkTimeout: {
    value: 10,
    look: async (pool, tick) => {
      await pool.use(() => {});
      pool.fake.hold.add("check");
      await tick(2_000);
      outcome(pool.getconn(null, { timeout: 100 }));
      await tick(20);
      return pool.stats().connectionsLost;
    },
  },
  maxUses: {
    value: 1,
    look: async (pool) => {
      await pool.use(() => {});
      await pool.use(() => {});
      return pool.fake.things.length;
    },
  },
  configure: { value: (conn: Thing) => void (conn.checks = 7), look: checksSeen },
  reset: { value: (conn: Thing) => void (conn.checks = 7), look: checksSeen },
  validate: { value: (conn: Thing) => void (conn.checks = 7), look: checksSeen },
  reconnectTimeout: {
    value: 0,
    look: async (pool) => {
      let gaveUp = false;
      pool.on("reconnectfailed", () => gaveUp = true);
      pool.fake.failure = new Error("away");
      await wordOf(pool.getconn());
      return gaveUp;
    },
  },
  leakAfter: {
    value: 10,
    look: async (pool, tick) => {
      let leaks = 0;
      pool.on("leak", () => leaks++);
      await pool.getconn();
      await tick(20);
      return leaks;
    },
  },
  reclaimAfter: {
    value: 10,
    look: async (pool, tick) => {
      await pool.getconn();
      await tick(20);
      return pool.stats().leased;
    },
  },
  slowStatementAfter: {
    value: 10,
    look: async (pool, tick) => {
      let slow = 0;
      pool.on("slowstatement", () => slow++);
      await pool.getconn();
      const running = pool.fake.observer?.sent(FACTS, pool.fake.byId(1));
      await tick(20);
      running?.ended({ duration: 20, rows: 1, failure: null });
      return slow;
    },
  },
  connector: {
    value: Object.assign(new FakeConnector(), { describe: () => ({ own: true }) }),
    look: (pool) => Promise.resolve(pool.options.connection),
  },
};
type Tick = (ms: number) => Promise<unknown>;

function idAfter(ms: number): (pool: FakePool, tick: Tick) => Promise<number> {
  return async (pool, tick) => {
    await pool.putconn(await pool.getconn());
    await tick(ms);
    return idOf(await pool.getconn());
  };
}

async function checksSeen(pool: FakePool): Promise<number> {
  await pool.putconn(await pool.getconn());
  return (await pool.getconn()).checks;
}

for (const [key, { value, look }] of Object.entries(EFFECT)) {
  test(`AbstractConnectionPool: pool.${key} has an effect`, async () => {
    await withClock(async (clock) => {
      const tick: Tick = (ms) => clock.tickAsync(ms);
      const plain = make(0, 1);
      const changed = make(0, 1, { [key]: value });
      const without = await look(plain, tick);
      const withIt = await look(changed, tick);
      assertNotStrictEquals(JSON.stringify(withIt), JSON.stringify(without));
      await Promise.all([plain.closeall(), changed.closeall()]);
    });
  });
}

test("AbstractConnectionPool.getconn() refuses bad options and loses nothing", async () => {
  const pool = make(0, 1);
  const bad = [
    null,
    5,
    SECRET,
    { timeout: "5" },
    { timeout: -1 },
    { timeout: NaN },
    { timeout: 2 ** 31 },
    { signal: {} },
    { signal: SECRET },
  ];
  for (let i = 0; i < 2; i++) {
    for (const options of bad) {
      const error = await assertRejects(() => pool.getconn(null, options as never), Error);
      assert(error instanceof TypeError || error instanceof RangeError);
      assert(!error.message.includes(SECRET));
    }
    assertEquals([pool.stats().leased, pool.stats().requestsWaiting], [0, 0]);
    // The second round with a connection at hand.
    await pool.putconn(await pool.getconn());
  }
  await pool.closeall();
});

test("AbstractConnectionPool.close() rejects a bad timeout and stays open", async () => {
  const pool = make(0, 1);
  for (const timeout of ["5", -1, NaN, null]) {
    await assertRejects(() => pool.close({ timeout: timeout as number }), Error, '"timeout"');
  }
  assert(!pool.closed);
  await pool.close();
});

test("AbstractConnectionPool.resize() refuses bad sizes and changes nothing", async () => {
  const pool = make(1, 2);
  for (const [min, max] of [[0, 0], [3, 2], [-1, 1], [0, 1.5], ["1", 2], [1]] as number[][]) {
    await assertRejects(() => pool.resize(min as number, max as number));
  }
  assertEquals([pool.minconn, pool.maxconn], [1, 2]);
  await pool.closeall();
  await assertRejects(() => pool.resize(1, 2), PoolError, "connection pool is closed");
});

test("AbstractConnectionPool.putconn() refuses null, primitives, foreign, stale and other pools' connections", async () => {
  const pool = make(0, 2);
  const other = make(0, 1);
  const [mine, theirs] = [await pool.getconn(), await other.getconn()];
  const stale = await pool.getconn();
  await pool.putconn(stale);
  const before = pool.stats();
  const foreign = [null, undefined, 0, SECRET, true, Symbol("x"), {}, [], () => {}, theirs, stale];
  const revoked = Proxy.revocable({}, {});
  revoked.revoke();
  for (const conn of [...foreign, revoked.proxy, pool.fake.things[0], pool]) {
    const error = await assertRejects(() => pool.putconn(conn as Thing), PoolError);
    assert(error.message.startsWith("trying to put unkeyed connection"), error.message);
    assertEquals(error.code, "UNKEYED_CONNECTION");
    assert(!error.message.includes(SECRET));
  }
  assertEquals(pool.stats(), before);
  await pool.putconn(mine);
  await other.putconn(theirs);
  await Promise.all([pool.closeall(), other.closeall()]);
});

test("AbstractConnectionPool.putconn() refuses a wrong key and changes nothing", async () => {
  const pool = make(0, 2);
  const keyed = await pool.getconn("a");
  const plain = await pool.getconn();
  for (const key of ["b", SECRET, 0, NaN, "", {}]) {
    assertEquals(await wordOf(pool.putconn(keyed, key)), "WRONG_KEY");
    assertEquals(await wordOf(pool.putconn(plain, key)), "WRONG_KEY");
  }
  assertEquals([pool.stats().leased, keyed.hello(), plain.hello()], [2, 1, 2]);
  await pool.putconn(keyed, "a");
  await pool.putconn(plain, null);
  await pool.closeall();
});

test("AbstractConnectionPool: a lease refuses every use after putconn, and after closeall", async () => {
  const pool = make(0, 1);
  const stale = await pool.getconn();
  const { hello } = stale;
  await pool.putconn(stale);
  const lease = await pool.getconn();
  assertEquals(idOf(lease), 1);
  assertEquals(assertThrows(() => hello(), PoolError).code, "CONNECTION_RETURNED");
  const uses = [(c: Thing) => c.hello(), (c: Thing) => c.status, (c: Thing) => (c.checks = 1)];
  for (const use of uses) {
    assertEquals(assertThrows(() => use(stale), PoolError).code, "CONNECTION_RETURNED");
  }
  assertEquals(await stale, stale);
  await pool.closeall();
  for (const use of uses) {
    assertEquals(assertThrows(() => use(lease), PoolError).code, "POOL_CLOSED");
  }
  for (const work of [pool.getconn(), pool.putconn(lease), pool.closeall(), pool.ready()]) {
    const error = await assertRejects(() => work, PoolError);
    assert(error.message.startsWith("connection pool is closed"));
  }
  assertEquals(await wordOf(pool.use(() => 1)), "POOL_CLOSED");
  assertEquals(await wordOf(pool.renew()), "POOL_CLOSED");
  assertEquals(await wordOf(pool.close()), "ok");
});

test("maxconn has an upper bound: what no PostgreSQL server takes", async () => {
  for (const maxconn of [262_144, 1e9, Number.MAX_SAFE_INTEGER]) {
    const error = assertThrows(() => new FakePool(0, maxconn), RangeError);
    assertStringIncludes(error.message, "262143");
    assertStringIncludes(error.message, String(maxconn));
  }
  const pool = new FakePool(0, 262_143);
  await pool.putconn(await pool.getconn());
  await assertRejects(() => pool.resize(0, 262_144), RangeError, "262143");
  assertEquals(pool.maxconn, 262_143);
  await pool.closeall();
});
