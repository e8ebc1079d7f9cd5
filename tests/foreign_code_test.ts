import { assert, assertEquals } from "@std/assert";
import type { Connector, Lease } from "../mod.ts";
import type { PoolEventType } from "../src/pool/events.ts";
import { assertWhole, idOf, outcome, wordOf } from "./support/checks.ts";
import { FakeConnector, FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

/** Runs `fn` and gives what went to console.error meanwhile. */
async function complaints(fn: () => Promise<void>): Promise<unknown[]> {
  const { error } = console;
  const seen: unknown[] = [];
  console.error = (...args: unknown[]) => seen.push(args.at(-1));
  try {
    await fn();
  } finally {
    console.error = error;
  }
  return seen;
}

const EVERY: readonly PoolEventType[] = [
  "connect",
  "connectfailed",
  "reconnectfailed",
  "acquire",
  "share",
  "release",
  "remove",
  "lost",
  "exhausted",
  "timeout",
];

/** Makes most events happen. */
async function busy(pool: FakePool): Promise<void> {
  const conn = await pool.getconn();
  await wordOf(pool.use(() => {}));
  conn.status = "intrans";
  await pool.putconn(conn);
  pool.fake.things[0]?.die();
  await settle();
  pool.fake.failure = new Error("away");
  await wordOf(pool.use(() => {}));
  pool.fake.failure = null;
}

test("on(): a listener that throws or rejects is reported and harms nothing", async () => {
  for (const bad of [() => Promise.reject(new Error("async")), thrower("sync")]) {
    const seen = await complaints(async () => {
      const pool = new FakePool(0, 1, { reconnectTimeout: 0 });
      for (const type of EVERY) pool.on(type, bad as () => void);
      await busy(pool);
      await assertWhole(pool);
    });
    assert(seen.length >= 7, `${seen.length} complaints`);
    assert(seen.every((one) => one instanceof Error));
  }
});

test("on(): a listener may call getconn, putconn, resize, renew and closeall on the pool", async () => {
  const deeds: ((pool: FakePool) => unknown)[] = [
    (pool) => pool.getconn(null, { timeout: 5 }).then((conn) => pool.putconn(conn)),
    (pool) => pool.resize(0, 1),
    (pool) => pool.renew(),
    (pool) => pool.ready(),
    (pool) => pool.stats(),
  ];
  for (const deed of deeds) {
    for (const type of EVERY) {
      const pool = new FakePool(0, 1, { reconnectTimeout: 0 });
      let depth = 0;
      let done: Promise<unknown> | undefined;
      pool.on(type, () => {
        if (depth++ === 0) done = Promise.allSettled([deed(pool)]);
      });
      await busy(pool);
      // What has not come yet shall not come within the audit.
      depth = 1;
      await done;
      await assertWhole(pool);
    }
  }
});

test("on(connectfailed): a listener that borrows gives nobody a second attempt", async () => {
  const pool = new FakePool(0, 1);
  pool.fake.failure = new Error("away");
  const calls = [outcome(pool.getconn())];
  let once = true;
  pool.on("connectfailed", () => {
    if (once) calls.push(outcome(pool.getconn(null, { timeout: Infinity })));
    once = false;
  });
  await settle();
  assertEquals(calls.map((one) => one.word), ["CONNECT_FAILED", "pending"]);
  assertEquals(pool.stats().connectionsNum, 1);
  await pool.closeall();
});

test("on(): closeall in a listener of any event closes everything", async () => {
  for (const type of EVERY) {
    const pool = new FakePool(0, 1, { reconnectTimeout: 0 });
    const waiter = outcome(pool.getconn(null, { timeout: Infinity }));
    await settle();
    await pool.putconn(waiter.value as Thing);
    pool.on(type, () => outcome(pool.closeall()));
    outcome(busy(pool));
    await settle();
    if (!pool.closed) await pool.closeall();
    await settle();
    assertEquals([pool.fake.standing, pool.stats().poolSize], [0, 0], type);
  }
});

test("on(acquire): a listener that puts the connection back leaves its caller a dead lease, not null", async () => {
  for (const waits of [false, true]) {
    const pool = new FakePool(0, 1);
    if (!waits) await pool.putconn(await pool.getconn());
    pool.on("acquire", (event) => void pool.putconn(event.detail.conn as Thing));
    const conn = await pool.getconn();
    assertEquals([typeof conn, pool.stats().idle], ["object", 1]);
    assertEquals(await wordOf(pool.putconn(conn)), "UNKEYED_CONNECTION");
    await pool.closeall();
  }
});

test("on(release): a listener that asks for the key of a lost connection leaves one lease under it", async () => {
  const pool = new FakePool(3, 3);
  await pool.ready();
  const lost = await pool.getconn("key");
  pool.fake.byId(lost.hello()).die();
  let again: Promise<Thing> | null = null;
  pool.on("release", () => again ??= pool.getconn("key"));
  const conn = await pool.getconn("key");
  assertEquals(await again === conn, true);
  assertEquals(pool.stats().leased, 1);
  await pool.closeall();
});

test("on(lost): a listener that borrows does not get what was just lost", async () => {
  const pool = new FakePool(0, 2);
  const conns = [await pool.getconn(), await pool.getconn()];
  for (const conn of conns) await pool.putconn(conn);
  let got = -1;
  pool.on("lost", () => void pool.getconn().then((conn) => got = idOf(conn)));
  pool.fake.things[1]?.die();
  await settle();
  assertEquals(got, 1);
  await pool.closeall();
});

test("addEventListener(): once, signal, the same listener twice, objects, off and removeEventListener", async () => {
  const pool = new FakePool(0, 1);
  const seen: string[] = [];
  const listener = { handleEvent: (event: Event) => void seen.push(`object ${event.type}`) };
  const twice = () => void seen.push("twice");
  const gone = () => void seen.push("gone");
  const abort = new AbortController();
  pool.addEventListener("release", () => void seen.push("once"), { once: true });
  pool.addEventListener("release", () => void seen.push("signal"), { signal: abort.signal });
  pool.addEventListener("release", listener);
  pool.addEventListener("release", null);
  pool.on("release", twice).on("release", twice).on("release", gone).off("release", gone);
  await pool.putconn(await pool.getconn());
  assertEquals(seen.splice(0), ["once", "signal", "object release", "twice"]);
  abort.abort();
  pool.off("release", twice);
  await pool.putconn(await pool.getconn());
  pool.removeEventListener("release", listener);
  await pool.putconn(await pool.getconn());
  assertEquals(seen, ["object release"]);
  await pool.closeall();
});

/** A connector that has nothing but what it must have. */
function bare(): FakeConnector {
  const whole = new FakeConnector();
  const { status: _, check: __, rollback: ___, ...own } = whole;
  return Object.assign(Object.create(null), own, {
    open: whole.open.bind(whole),
    close: whole.close.bind(whole),
  });
}

test("Connector without status, check and rollback: everything counts as idle, nothing is checked", async () => {
  const pool = new FakePool(1, 2, { checkAfter: 0 }, bare());
  const conn = await pool.getconn();
  conn.status = "intrans";
  await pool.putconn(conn);
  assertEquals([idOf(await pool.getconn()), pool.stats().returnsBad], [1, 0]);
  assertEquals(
    await wordOf(pool.transaction(() => 1)),
    "This pool's connector has no begin() and commit()",
  );
  await pool.closeall();
});

test("Connector with status but without rollback: what comes back dirty is closed", async () => {
  const fake = Object.assign(new FakeConnector(), { rollback: undefined });
  const pool = new FakePool(0, 1, {}, fake as unknown as FakeConnector);
  const conn = await pool.getconn();
  conn.status = "intrans";
  await pool.putconn(conn);
  await assertWhole(pool);
  assertEquals(pool.fake.made, 2);
});

test("Connector whose open(), check(), close() or rollback() throws at once: as if it had rejected", async () => {
  for (const method of ["open", "check", "close", "rollback"] as const) {
    const fake = new FakeConnector();
    const pool = new FakePool(0, 2, { checkAfter: 0 }, fake);
    const original = fake[method];
    fake[method] = thrower(`${method} threw`);
    const first = outcome(pool.getconn());
    await settle();
    assertEquals(first.word, method === "open" ? "CONNECT_FAILED" : "ok");
    if (first.value !== undefined) {
      first.value.status = "intrans";
      assertEquals(await wordOf(pool.putconn(first.value, null, method === "close")), "ok");
      const again = outcome(pool.getconn());
      await settle();
      assertEquals([again.word, idOf(again.value)], ["ok", 2]);
      await pool.putconn(again.value as Thing);
    }
    // What the throwing close() left behind is nothing that the pool could know of.
    if (method === "close") fake.standing = pool.stats().poolSize;
    fake[method] = original as never;
    if (method !== "close") await assertWhole(pool);
    else await pool.closeall();
  }
});

test("Connector whose open() throws at once under a patient crowd: one round, then the pause", async () => {
  const fake = new FakeConnector();
  fake.open = thrower("no");
  const pool = new FakePool(3, 3, {}, fake);
  const calls = Array.from(
    { length: 50 },
    () => outcome(pool.getconn(null, { timeout: Infinity })),
  );
  await settle();
  assertEquals([pool.stats().connectionsNum, calls.filter((one) => one.settled).length], [3, 0]);
  await pool.closeall();
  await settle();
  assert(calls.every((one) => one.word === "POOL_CLOSED"));
});

test("Connector whose status(), ref() or unref() throws loses no slot", async () => {
  for (const method of ["status", "ref", "unref"]) {
    const fake = Object.assign(new FakeConnector(), { [method]: thrower(method) });
    const pool = new FakePool(1, 2, {}, fake);
    assertEquals(await wordOf(pool.use(() => 5)), "ok");
    await pool.putconn(await pool.getconn());
    Object.assign(fake, {
      [method]: (FakeConnector.prototype as Partial<Connector>)[method as "ref"],
    });
    await assertWhole(pool);
  }
});

test("Connector whose open() resolves with no object counts as failed", async () => {
  for (const nothing of [null, undefined, 5]) {
    const fake = Object.assign(new FakeConnector(), { open: () => Promise.resolve(nothing) });
    const pool = new FakePool(0, 1, {}, fake as unknown as FakeConnector);
    assertEquals(await wordOf(pool.getconn()), "CONNECT_FAILED");
    assertEquals(pool.stats().poolSize, 0);
    await pool.closeall();
  }
});

test("Connector whose lend() throws: the caller gets its error, the connection is closed, others are served", async () => {
  const fake = new FakeConnector();
  let fails = true;
  const lend = (thing: Thing, lease: Lease) => {
    if (fails) throw new Error("cannot lend");
    return { hello: () => (lease.assertOpen(), thing.hello()), status: "idle" };
  };
  const pool = new FakePool(1, 1, {}, Object.assign(fake, { lend }) as unknown as FakeConnector);
  await pool.ready();
  const call = outcome(pool.getconn());
  const next = outcome(pool.getconn(null, { timeout: Infinity }));
  fails = false;
  await settle();
  assertEquals([call.word, next.word], ["cannot lend", "ok"]);
  // A handle that the connector made is as good as one of ours.
  await pool.putconn(next.value as Thing);
  assertEquals(await wordOf(pool.putconn(next.value as Thing)), "UNKEYED_CONNECTION");
  assertEquals([await pool.use((conn) => conn.hello()), pool.stats().idle], [2, 1]);
  await assertWhole(pool);
});

test("a lease's method that returns `this` gives the lease, not what is behind it", async () => {
  const pool = new FakePool(0, 1);
  Object.assign(pool.fake, {
    lend: undefined,
    open: wrapOpen(pool.fake, (thing) => Object.assign(thing, { self: () => thing })),
  });
  const conn = await pool.getconn() as Thing & { self(): Thing };
  assert(conn.self() === conn);
  await pool.closeall();
});

function wrapOpen(fake: FakeConnector, change: (thing: Thing) => Thing): FakeConnector["open"] {
  const open = fake.open.bind(fake);
  return async (attempt) => change(await open(attempt));
}

function thrower(message: string): () => never {
  return () => {
    throw new Error(message);
  };
}

test("a subclass whose dispatchEvent throws loses no slot", async () => {
  class Throwing extends FakePool {
    override dispatchEvent(): boolean {
      throw new Error("dispatchEvent");
    }
  }
  const seen = await complaints(async () => {
    const pool = new Throwing(1, 2);
    for (const type of EVERY) pool.on(type, () => {});
    await busy(pool);
    await pool.ready();
    await assertWhole(pool);
  });
  assert(seen.length > 0);
  assertEquals((seen[0] as Error).message, "dispatchEvent");
});
