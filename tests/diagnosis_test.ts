/** What a pool says of itself to whoever looks for the reason of a wait. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { inspect } from "node:util";
import { PersistentConnectionPool, SimpleConnectionPool } from "../mod.ts";
import { duration, foreignFrame } from "../src/pool/describe.ts";
import { outcome, withClock } from "./support/checks.ts";
import { FakeConnector, FakePool, settle, type Thing } from "./support/fake.ts";
import { runner, test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";

/** What console.log prints in this runtime. */
function printed(value: unknown): string {
  if (runner === "deno") return Deno.inspect(value);
  const { Bun } = globalThis as unknown as { Bun: { inspect(value: unknown): string } };
  return Bun.inspect(value);
}

/** Somebody whose name shall be found. */
async function holdsItTooLong(pool: FakePool): Promise<Thing> {
  const conn = await pool.getconn();
  return conn;
}

test("PoolTimeout says how many are leased, and for how long the longest has been", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(2, 2, { name: "orders", timeout: 100, checkAfter: Infinity });
    await pool.ready();
    const one = await pool.getconn();
    await clock.tickAsync(4_000);
    const two = await pool.getconn();
    const waiter = outcome(pool.getconn());
    await clock.tickAsync(100);
    assertEquals(
      (waiter.error as Error).message,
      "connection pool exhausted: no connection within 100 ms; of the 2 that are leased, the " +
        "longest has been for 4.1 s; the option leakAfter reports where a connection that is not " +
        'put back was borrowed (pool "orders": 2 leased, 0 idle, 0 connecting, 1 waiting, ' +
        "maxconn 2)",
    );
    await pool.putconn(one);
    await pool.resize(0, 1);
    const last = outcome(pool.getconn());
    await clock.tickAsync(100);
    assertStringIncludes(
      (last.error as Error).message,
      "within 100 ms; the one that is leased has been for 200 ms; ",
    );
    await pool.putconn(two);
    await pool.closeall();
  });
});

test("PoolTimeout says with leakAfter where the longest lease was taken", async () => {
  const pool = new FakePool(1, 1, { timeout: 5, leakAfter: 60_000 });
  await pool.ready();
  const conn = await holdsItTooLong(pool);
  const error = await pool.getconn().catch((error) => error);
  assertMatch(error.message, /, taken at .*holdsItTooLong.*diagnosis_test\.ts:\d+:\d+/);
  assertMatch(pool.inspect(), /\n {2}leased for \d+ ms, taken at .*diagnosis_test\.ts:\d+:\d+/);
  await pool.putconn(conn);
  await pool.closeall();
});

test("a stack tells who called, however the connection was asked for, waiting or not", async () => {
  const options = { timeout: 60_000, leakAfter: 60_000 };
  await using own = new FakePool(0, 1, options);
  await using keyed = new PersistentConnectionPool<Thing>(0, 1, {
    pool: { ...options, connector: new FakeConnector() },
  });
  const places: (string | undefined)[] = [];
  const look = (): void => {
    for (const pool of [own, keyed]) {
      const [, place] = /leased for .* taken at .*(diagnosis_test\.ts):\d+/.exec(pool.inspect()) ??
        [];
      if (pool.stats().leased > 0) places.push(place);
    }
  };
  // Each first waits for a connect, and then finds a connection.
  for (const pool of [own, keyed]) {
    for (let round = 0; round < 2; round++) await pool.use(look);
    await pool.renew();
    for (let round = 0; round < 2; round++) await pool.transaction(look);
  }
  await own.renew();
  for (let round = 0; round < 2; round++) await own.transaction(look, { retry: { attempts: 2 } });
  assertEquals(places, Array(10).fill("diagnosis_test.ts"));
});

test("PoolTimeout says why no connection could be opened", async () => {
  const pool = new FakePool(0, 1, { timeout: 5 });
  pool.fake.failure = new Error("the server is away");
  const error = await pool.getconn().catch((error) => error);
  assertStringIncludes(error.message, "; the last attempt to connect failed: the server is away (");
  assertEquals(error.cause, pool.fake.failure);
  assertStringIncludes(pool.inspect(), "\n  last failure to connect: the server is away");
  await pool.closeall();
});

test("PoolTimeout says what is being opened when nobody holds a connection, and nothing of leaks", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 4, { name: "orders", timeout: 1_500 });
    pool.fake.hold.add("open");
    const first = outcome(pool.getconn());
    await clock.tickAsync(300);
    const second = outcome(pool.getconn(null, { timeout: 200 }));
    await clock.tickAsync(1_400);
    assertEquals(
      (first.error as Error).message,
      "connection pool exhausted: no connection within 1500 ms; of the 4 that are being opened, the " +
        "first has been for 1.5 s: does the server answer? " +
        '(pool "orders": 0 leased, 0 idle, 4 connecting, 1 waiting, maxconn 4)',
    );
    assertStringIncludes(
      (second.error as Error).message,
      "; of the 2 that are being opened, the first has been for 500 ms: does the server answer? (",
    );
    await pool.closeall();
  });
});

test("foreignFrame() finds who called, in the stacks of every runtime", () => {
  const own = new URL("../src/pool/pool_core.ts", import.meta.url);
  const stack = [
    "Error: getconn was called",
    `    at PoolCore.getconn (${own.href}:1:2)`,
    `    at getconn (${own.pathname}:1:2)`,
    `    at SimpleConnectionPool.getconn (${new URL(
      "../src/abstract_pool.ts",
      import.meta.url,
    )}:1:2)`,
    `    at access (${new URL("../src/sql/access.ts", import.meta.url)}:1:2)`,
    "    at handler (/app/main.ts:3:4)",
    "    at other (/app/main.ts:5:6)",
  ];
  assertEquals(foreignFrame(stack.join("\n")), "handler (/app/main.ts:3:4)");
  assertEquals(foreignFrame("handler@/app/main.ts:3:4"), "handler@/app/main.ts:3:4");
  assertEquals(foreignFrame(stack.slice(0, 5).join("\n")), null);
  assertEquals(foreignFrame(""), null);
});

test("duration() is short at any length", () => {
  const times = [-5, 0, 0.4, 999.4, 1_000, 61_000, 120_000, 3_600_000, 36_000_000];
  assertEquals(times.map(duration), [
    "0 ms",
    "0 ms",
    "0 ms",
    "999 ms",
    "1.0 s",
    "61.0 s",
    "2 min",
    "60 min",
    "10.0 h",
  ]);
});

test("inspect() tells sizes, counts and leases in a few lines, and console.log prints it", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(1, 9, { name: "orders" });
    await settle();
    const conns = await Promise.all(Array.from({ length: 7 }, () => pool.getconn()));
    await clock.tickAsync(2_500);
    await pool.putconn(conns.pop() as Thing);
    const text = [
      'FakePool "orders", open',
      "  connections: 7 of 9: 6 leased, 1 idle, 0 connecting, 0 closing; minconn 1",
      "  getconn: 7 calls, 6 waited (0 ms in all), 0 failed, 0 waiting now",
      "  connects: 7 (0 ms in all), 0 failed, 0 lost",
      ...Array.from({ length: 5 }, () => "  leased for 2.5 s"),
      "  and 1 more leased",
    ].join("\n");
    assertEquals(pool.inspect(), text);
    assertEquals(printed(pool), text);
    assertEquals(inspect(pool), text);
    await pool.closeall();
    assertStringIncludes(pool.inspect(), 'FakePool "orders", closed\n');
  });
});

test("inspect() tells where connections go, and no password", async () => {
  const secret = "s3cr3t-word";
  const pool = new SimpleConnectionPool(0, 2, `postgres://me:${secret}@localhost:1/app`, {
    password: secret,
  });
  await pool.getconn().catch(() => {});
  const [first] = pool.inspect().split("\n");
  assertMatch(
    first ?? "",
    /^SimpleConnectionPool "pool-\d+", open, to localhost:1, database app as me$/,
  );
  const texts = [pool.inspect(), printed(pool), printed({ pool }), inspect({ pool }, { depth: 9 })];
  texts.push(JSON.stringify(pool.options), JSON.stringify(pool.stats()));
  for (const text of texts) assert(!text.includes(secret), text);
  await pool.closeall();
});

test("a Connection can be printed at every moment of its life", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 1, url);
  const conn = await pool.getconn();
  const look = (value: unknown) => [printed(value), inspect(value)];
  const text = ["[Connection]", "[Connection]"];
  assertEquals(look(conn), text);
  await conn.begin((sql) => assertEquals([...look(sql), ...look(conn)], [...text, ...text]));
  await pool.putconn(conn);
  assertEquals(look(conn), text);
  for (const one of look({ conn })) assertStringIncludes(one, "conn: [Connection]");
});

test("a lease without a handle of its own can be printed, before and after its end", async () => {
  const pool = new FakePool(0, 1);
  const conn = await pool.getconn();
  for (const look of [printed, inspect]) assertStringIncludes(look(conn), "Thing");
  await pool.putconn(conn);
  for (const look of [printed, inspect]) assertStringIncludes(look({ conn }), "Thing");
  await pool.closeall();
});
