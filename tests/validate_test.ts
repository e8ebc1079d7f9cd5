/** The hook `validate`: it runs before each loan, and what it refuses is lent to nobody. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { PoolError, SimpleConnectionPool } from "../mod.ts";
import { withClock } from "./support/checks.ts";
import { FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";

/** A pool whose hook does what the test says, and its diary. */
function pooled(
  minconn: number,
  maxconn: number,
  validate: (thing: Thing) => unknown,
  options: Record<string, unknown> = {},
) {
  const asked: number[] = [];
  const removed: [string, string][] = [];
  const pool = new FakePool(minconn, maxconn, {
    timeout: 5_000,
    ...options,
    validate: (thing: Thing) => {
      asked.push(thing.hello());
      return validate(thing);
    },
  });
  pool.on("remove", ({ detail: { reason, error } }) => {
    removed.push([reason, String((error as Error)?.message)]);
  });
  return { pool, asked, removed };
}

test("validate runs before each loan, whether the connection is new, idle, or just put back", async () => {
  const { pool, asked } = pooled(0, 1, () => true);
  const first = await pool.getconn();
  assertEquals(asked, [1], "a new one");
  await pool.putconn(first);
  await settle();
  assertEquals(asked, [1], "nobody wants it");
  const second = await pool.getconn();
  assertEquals(asked, [1, 1], "an idle one");
  const waiting = pool.getconn();
  await pool.putconn(second);
  const third = await waiting;
  assertEquals(asked, [1, 1, 1], "one that somebody has put back");
  // After a rollback, too.
  third.hello();
  pool.fake.byId(1).status = "intrans";
  const fourth = pool.getconn();
  await pool.putconn(third);
  await pool.putconn(await fourth);
  assertEquals(asked, [1, 1, 1, 1]);
  // A key is one loan, however often it is asked for; and no check is made that is not due.
  const key = await pool.getconn("key");
  assertEquals(await pool.getconn("key"), key);
  assertEquals([asked.length, pool.fake.byId(1).checks], [5, 0]);
  await pool.putconn(key);
  assertEquals(pool.stats().leased, 0);
  await pool.closeall();
  assertEquals(pool.fake.standing, 0);
});

for (const how of ["false", "a rejection", "a throw", "an open transaction"] as const) {
  test(`validate that says no by ${how}: that connection is closed, and the next idle one is lent`, async () => {
    const bad = new Set<number>();
    const { pool, asked, removed } = pooled(0, 3, (thing) => {
      if (!bad.has(thing.hello())) return undefined;
      if (how === "false") return Promise.resolve(false);
      if (how === "a rejection") return Promise.reject(new Error("no"));
      if (how === "a throw") throw new Error("no");
      pool.fake.byId(thing.hello()).status = "intrans";
      return true;
    });
    const all = [await pool.getconn(), await pool.getconn(), await pool.getconn()];
    for (const one of all) await pool.putconn(one);
    asked.length = 0;
    bad.add(3).add(2);
    const conn = await pool.getconn();
    assertEquals([asked.slice(0, 3), conn.hello()], [[3, 2, 1], 1]);
    assertEquals(removed.map(([reason]) => reason), ["unhealthy", "unhealthy"]);
    for (const [, message] of removed) assert(message.includes("validate"), message);
    await settle();
    assertEquals([pool.stats().connectionsLost, pool.stats().poolSize], [0, 1]);
    await pool.putconn(conn);
    await pool.closeall();
    assertEquals(pool.fake.standing, 0);
  });
}

test("validate that refuses the last one: a new one is opened for the caller", async () => {
  const { pool, removed } = pooled(1, 1, (thing) => thing.hello() !== 1 || !used, { timeout: 0 });
  let used = false;
  await pool.ready();
  used = true;
  const conn = await pool.getconn();
  assertEquals([conn.hello(), removed.length], [2, 1]);
  await pool.putconn(conn);
  await pool.closeall();
});

test("validate that refuses every new one is a connect that fails, with a pause before the next", () =>
  withClock(async (clock) => {
    const { pool, removed } = pooled(0, 2, () => false, { timeout: 0, reconnectTimeout: 0 });
    const error = await assertRejects(() => pool.getconn(), PoolError);
    assertEquals(error.code, "CONNECT_FAILED");
    assertEquals((error.cause as PoolError).code, "BAD_HOOK");
    const patient = pool.getconn(null, { timeout: 1_000 });
    const refused = assertRejects(() => patient);
    await clock.tickAsync(1_000);
    await refused;
    assert(removed.length < 20, `${removed.length} were opened and closed`);
    assertEquals(pool.stats().requestsWaiting, 0);
    await pool.closeall();
    assertEquals(pool.fake.standing, 0);
  }));

test("validate that hangs has the patience of a check, and then another connection is lent", () =>
  withClock(async (clock) => {
    let hangs = false;
    const { pool, removed } = pooled(2, 2, (thing) => {
      return hangs && thing.hello() === 2 ? new Promise(() => {}) : true;
    }, { checkTimeout: 100 });
    await pool.ready();
    hangs = true;
    // Nobody counts for long on what gives no sign: the caller does not wait for all of it.
    const asking = pool.getconn();
    await clock.tickAsync(99);
    const conn = await asking;
    assertEquals(conn.hello(), 1);
    assertEquals(removed, []);
    await clock.tickAsync(1);
    assertEquals(removed.map(([reason]) => reason), ["unhealthy"]);
    // The others are not suspected for it: it is the hook that gave no answer.
    assertEquals(pool.stats().connectionsLost, 0);
    await pool.closeall();
    await clock.tickAsync(100);
    assertEquals(pool.fake.standing, 0);
  }));

test("validate that outlasts its caller: the connection stays, and is asked for anew", () =>
  withClock(async (clock) => {
    const gate = Promise.withResolvers<boolean>();
    let slow = false;
    const { pool, asked } = pooled(1, 1, () => slow ? gate.promise : true);
    await pool.ready();
    asked.length = 0;
    slow = true;
    const late = assertRejects(() => pool.getconn(null, { timeout: 50 }));
    await clock.tickAsync(50);
    await late;
    gate.resolve(true);
    await settle();
    assertEquals([pool.stats().idle, asked.length], [1, 1]);
    await pool.putconn(await pool.getconn());
    assertEquals(asked.length, 2);
    // The end of the pool does not wait for it.
    const { promise } = Promise.withResolvers<void>();
    Object.assign(gate, { promise });
    const waiting = assertRejects(() => pool.getconn());
    await settle();
    await pool.closeall();
    await waiting;
    assertEquals(pool.fake.standing, 0);
  }));

test("validate: a connection that dies in it is lost, and a getconn in it that waits for itself is refused", async () => {
  let inside: (thing: Thing) => unknown = () => true;
  const { pool, removed } = pooled(1, 1, (thing) => inside(thing));
  await pool.ready();
  inside = (thing) => {
    inside = () => true;
    pool.fake.byId(thing.hello()).die();
    return true;
  };
  const conn = await pool.getconn();
  assertEquals([conn.hello(), removed[0]![0]], [2, "lost"]);
  await pool.putconn(conn);
  let code: string | undefined;
  inside = async () => {
    inside = () => true;
    code = (await assertRejects(() => pool.getconn(), PoolError)).code;
  };
  await pool.putconn(await pool.getconn());
  assertEquals(code, "BAD_HOOK");
  // Its handle is no lease: it ends with the hook.
  let kept: Thing | undefined;
  inside = (thing) => void (kept = thing);
  await pool.putconn(await pool.getconn());
  assertEquals(
    (await assertRejects(() => Promise.resolve().then(() => kept!.hello()))) instanceof PoolError,
    true,
  );
  await pool.closeall();
});

test("validate on a real server: it may prepare a session for its caller, and refuse it; pool.sql is served as well", async () => {
  const { url } = await testServer();
  let standby = false;
  let calls = 0;
  await using pool = new SimpleConnectionPool(0, 2, url, {
    pool: {
      timeout: 20_000,
      validate: async (conn) => {
        calls++;
        await conn`select set_config('app.loan', ${String(calls)}, false)`;
        const refuses = standby;
        standby = false;
        return !refuses;
      },
    },
  });
  const loan = () => pool.use((conn) => conn`select current_setting('app.loan') as n`);
  assertEquals([(await loan())[0]!["n"], (await loan())[0]!["n"]], ["1", "2"]);
  const before = await pool.use((conn) => conn.pid);
  standby = true;
  assert(await pool.use((conn) => conn.pid) !== before);
  const rows = await Promise.all(
    Array.from({ length: 50 }, (_, n) => pool.sql`select ${n}::int as n`),
  );
  assertEquals(rows.map(([row]) => row!["n"]), Array.from({ length: 50 }, (_, n) => n));
  assertEquals(pool.options.validate, true);
});
