import { assert, assertEquals, assertRejects } from "@std/assert";
import { PoolError, type PoolOptions } from "../mod.ts";
import { assertWhole, idOf, outcome, withClock, wordOf } from "./support/checks.ts";
import { FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";

const FOREVER = { timeout: Infinity };

async function returned(
  options: PoolOptions<Thing>,
  dirty: Thing["status"] = "idle",
): Promise<{ pool: FakePool; reasons: string[] }> {
  const pool = new FakePool(0, 1, options);
  const reasons: string[] = [];
  pool.on("remove", (event) => reasons.push(event.detail.reason));
  const conn = await pool.getconn();
  conn.status = dirty;
  await pool.putconn(conn);
  return { pool, reasons };
}

test("putconn() rolls back what is intrans or inerror and keeps it; what is active is closed", async () => {
  for (const status of ["intrans", "inerror", "active", "unknown"] as const) {
    const { pool, reasons } = await returned({}, status);
    const kept = status === "intrans" || status === "inerror";
    assertEquals(idOf(await pool.getconn()), kept ? 1 : 2);
    assertEquals(reasons, kept ? [] : [status === "active" ? "dirty" : "lost"]);
    assertEquals(pool.stats().returnsBad, 1);
    await pool.closeall();
  }
});

test("putconn() whose rollback fails closes the connection; its waiter gets a new one", async () => {
  const pool = new FakePool(0, 1);
  const conn = await pool.getconn();
  conn.status = "intrans";
  pool.fake.hold.add("rollback");
  const back = outcome(pool.putconn(conn));
  const next = outcome(pool.getconn());
  pool.fake.next("rollback").fail();
  await settle();
  assertEquals([back.word, idOf(next.value)], ["ok", 2]);
  await assertWhole(pool, [next.value as Thing]);
});

test("putconn() whose rollback hangs gives up after 5 s, and a late answer changes nothing", async () => {
  for (const how of ["go", "fail"] as const) {
    await withClock(async (clock) => {
      const pool = new FakePool(0, 1);
      const conn = await pool.getconn();
      conn.status = "inerror";
      pool.fake.hold.add("rollback");
      const back = outcome(pool.putconn(conn));
      const next = outcome(pool.getconn(null, FOREVER));
      await clock.tickAsync(4_999);
      assertEquals([back.word, next.word], ["pending", "pending"]);
      await clock.tickAsync(1);
      await settle();
      assertEquals([back.word, idOf(next.value)], ["ok", 2]);
      pool.fake.next("rollback")[how]();
      await settle();
      await assertWhole(pool, [next.value as Thing]);
    });
  }
});

test("reset that throws, rejects, or leaves a transaction discards the connection", async () => {
  const bad: NonNullable<PoolOptions<Thing>["reset"]>[] = [
    () => {
      throw new Error("broken");
    },
    () => Promise.reject(new Error("broken")),
    (conn) => void (conn.status = "intrans"),
    (conn) => void (conn.status = "active"),
  ];
  for (const reset of bad) {
    const { pool, reasons } = await returned({ reset });
    assertEquals(reasons, ["dirty"]);
    await assertWhole(pool);
  }
});

test("reset runs after the rollback, and not for what is closed anyway", async () => {
  const seen: string[] = [];
  const reset = (conn: Thing) => void seen.push(conn.status);
  for (const status of ["idle", "intrans", "active", "unknown"] as const) {
    const { pool } = await returned({ reset }, status);
    await pool.closeall();
  }
  assertEquals(seen, ["idle", "idle"]);
});

test("reset that hangs gives up after 30 s, and a free permit is used meanwhile", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1, { reset: () => new Promise(() => {}) });
    const back = outcome(pool.putconn(await pool.getconn()));
    const next = outcome(pool.getconn(null, FOREVER));
    await clock.tickAsync(30_000);
    await settle();
    assertEquals([back.word, idOf(next.value)], ["ok", 2]);
    await pool.closeall();
  });
});

test("reset that fails while the close is slow: its waiter takes a permit that is free", async () => {
  const hook = Promise.withResolvers<void>();
  const pool = new FakePool(0, 2, { reset: () => hook.promise });
  const conn = await pool.getconn();
  pool.fake.hold.add("close");
  void pool.putconn(conn);
  const next = outcome(pool.getconn(null, FOREVER));
  hook.reject(new Error("broken"));
  await settle();
  assertEquals([idOf(next.value), pool.stats().closing], [2, 1]);
  await assertWhole(pool, [next.value as Thing]);
});

test("reset cannot put back its connection, and its view ends with the hook", async () => {
  const views: Thing[] = [];
  let refusal = "";
  const pool: FakePool = new FakePool(0, 1, {
    async reset(conn) {
      views.push(conn);
      refusal = await wordOf(pool.putconn(conn));
      await (conn as unknown as AsyncDisposable)[Symbol.asyncDispose]();
    },
  });
  await pool.putconn(await pool.getconn());
  assertEquals([refusal, pool.stats().idle], ["UNKEYED_CONNECTION", 1]);
  await assertRejects(async () => await views[0]?.hello(), PoolError, "was put back");
  await pool.closeall();
});

test("a connection lost while it is reset is closed, and the next caller is served", async () => {
  const hook = Promise.withResolvers<void>();
  const pool = new FakePool(0, 1, { reset: () => hook.promise });
  const back = outcome(pool.putconn(await pool.getconn()));
  const next = outcome(pool.getconn(null, FOREVER));
  pool.fake.things[0]?.die();
  await settle();
  // The hook need not end for that.
  assertEquals(idOf(next.value), 2);
  hook.resolve();
  await settle();
  assertEquals([back.word, pool.stats().connectionsLost], ["ok", 1]);
  await assertWhole(pool, [next.value as Thing]);
});

test("configure that throws, leaves a transaction or closes: never lent, one attempt for a hasty caller", async () => {
  const bad: NonNullable<PoolOptions<Thing>["configure"]>[] = [
    () => {
      throw new Error("broken");
    },
    () => Promise.reject(new Error("broken")),
    (conn) => void (conn.status = "intrans"),
    (conn) => void (conn.status = "unknown"),
  ];
  for (const configure of bad) {
    const pool = new FakePool(0, 1, { configure });
    const error = await assertRejects(() => pool.getconn(), PoolError);
    assertEquals([error.code, pool.fake.made], ["CONNECT_FAILED", 1]);
    assertEquals((error.cause as PoolError).code, "BAD_HOOK");
    assert((error.cause as Error).message.startsWith("configure"));
    await settle();
    assertEquals([pool.fake.standing, pool.stats().connectionsErrors], [0, 1]);
    await pool.closeall();
  }
});

test("configure that fails for a patient caller is tried again after the pause, not at once", async () => {
  await withClock(async (clock) => {
    let fails = true;
    const configure = () => {
      if (fails) throw new Error("broken");
    };
    const pool = new FakePool(0, 2, { configure });
    const call = outcome(pool.getconn(null, FOREVER));
    await settle();
    assertEquals([pool.fake.made, call.word], [1, "pending"]);
    fails = false;
    await clock.tickAsync(200);
    assertEquals([pool.fake.made, call.word], [2, "ok"]);
    await assertWhole(pool, [call.value as Thing]);
  });
});

test("a connection lost while it is configured counts as a failed attempt", async () => {
  const hook = Promise.withResolvers<void>();
  const pool = new FakePool(0, 1, { configure: () => hook.promise });
  const call = outcome(pool.getconn());
  await settle();
  pool.fake.things[0]?.die(new Error("killed early"));
  hook.resolve();
  await settle();
  assertEquals(call.word, "CONNECT_FAILED");
  assertEquals(((call.error as Error).cause as Error).message, "killed early");
  await pool.closeall();
});

test("use() puts back whatever happens: a throw, a rejection, putconn inside, closeall inside", async () => {
  const pool = new FakePool(0, 1);
  const fail = new Error("mine");
  assertEquals(await pool.use((conn) => conn.hello()), 1);
  assertEquals(await wordOf(pool.use(() => Promise.reject(fail))), "mine");
  assertEquals(
    await wordOf(pool.use(() => {
      throw fail;
    })),
    "mine",
  );
  assertEquals(await pool.use(async (conn) => (await pool.putconn(conn), 7)), 7);
  assertEquals([pool.stats().idle, pool.stats().leased], [1, 0]);
  assertEquals(await pool.use(async () => (await pool.closeall(), 8)), 8);
});

test("transaction() commits, rolls back on a throw, and tells of a statement that had failed", async () => {
  const pool = new FakePool(0, 1);
  const seen: string[] = [];
  assertEquals(await pool.transaction((conn) => (seen.push(conn.status), 5)), 5);
  assertEquals([pool.fake.things[0]?.status, pool.fake.things[0]?.rollbacks], ["idle", 0]);
  assertEquals(await wordOf(pool.transaction(() => Promise.reject(new Error("mine")))), "mine");
  assertEquals(pool.fake.things[0]?.rollbacks, 1);
  const failed = pool.transaction((conn) => void (conn.status = "inerror"));
  assertEquals(await wordOf(failed), "TRANSACTION_FAILED");
  assertEquals([seen, pool.fake.things[0]?.rollbacks], [["intrans"], 2]);
  await assertWhole(pool);
});

test("transaction() in which the user puts back commits nothing, least of all another's work", async () => {
  const pool = new FakePool(0, 1);
  let commits = 0;
  Object.assign(pool.fake, { commit: () => Promise.resolve(void commits++) });
  let other: Thing | undefined;
  const end = await wordOf(pool.transaction(async (conn) => {
    await pool.putconn(conn);
    other = await pool.getconn();
  }));
  assertEquals([end, commits], ["CONNECTION_RETURNED", 0]);
  await assertWhole(pool, [other as Thing]);
});

test("transaction() whose begin or commit fails, or whose connection is lost, loses no slot", async () => {
  for (const step of ["begin", "commit", "lost"]) {
    const pool = new FakePool(0, 1);
    if (step !== "lost") {
      Object.assign(pool.fake, { [step]: () => Promise.reject(new Error(step)) });
    }
    const end = await wordOf(pool.transaction(() => {
      if (step === "lost") pool.fake.things[0]?.die();
    }));
    assertEquals(end, step === "lost" ? "dead" : step);
    await assertWhole(pool);
  }
});

test("getconn in configure or reset that could only wait for itself is refused at once", async () => {
  for (const hook of ["configure", "reset"] as const) {
    for (const timeout of [0, 1_000, Infinity]) {
      await withClock(async (clock) => {
        let inner = "";
        const pool: FakePool = new FakePool(0, 1, {
          [hook]: async () => {
            await Promise.resolve();
            const call = pool.getconn(null, { timeout });
            inner = await call.then(() => "ok", (error) => error.code + " " + error.message);
            await call;
          },
        });
        const call = outcome(pool.getconn());
        await settle();
        const back = call.value === undefined ? call : outcome(pool.putconn(call.value));
        await settle();
        assert(inner.startsWith(`BAD_HOOK getconn() in ${hook} would wait in vain`), inner);
        assertEquals(back.word, hook === "reset" ? "ok" : "CONNECT_FAILED");
        assertEquals([pool.stats().leased, pool.fake.standing], [0, 0]);
        await pool.closeall();
        assertEquals(clock.countTimers(), 0);
      });
    }
  }
});

test("hooks that wait for each other's connections: one is refused, so that the others are served", async () => {
  const refused: string[] = [];
  const pool: FakePool = new FakePool(0, 2, {
    async reset() {
      if (refused.length > 0 || pool.stats().leased < 2) return;
      try {
        await pool.putconn(await pool.getconn(null, FOREVER));
      } catch (error) {
        refused.push((error as PoolError).code);
        throw error;
      }
    },
  });
  const leases = await Promise.all([pool.getconn(), pool.getconn()]);
  const backs = leases.map((lease) => outcome(pool.putconn(lease)));
  await settle();
  assertEquals([backs.map(({ word }) => word), refused], [["ok", "ok"], ["BAD_HOOK"]]);
  await assertWhole(pool);
});

test("getconn in reset waits where there is a chance, and after the hook it is like any other", async () => {
  let inner = outcome<Thing>(new Promise(() => {}));
  let later: (() => Promise<Thing>) | undefined;
  const pool: FakePool = new FakePool(0, 2, {
    async reset() {
      if (later !== undefined) return;
      later = () => go.promise.then(() => pool.getconn(null, FOREVER));
      left = outcome(later());
      const call = pool.getconn(null, FOREVER);
      inner = outcome(call);
      await call;
    },
  });
  const go = Promise.withResolvers<void>();
  let left = outcome<Thing>(new Promise(() => {}));
  const [one, two] = await Promise.all([pool.getconn(), pool.getconn()]);
  const back = outcome(pool.putconn(one!));
  await settle();
  assertEquals([back.word, inner.word], ["pending", "pending"]);
  await pool.putconn(two!);
  await settle();
  assertEquals([back.word, inner.word], ["ok", "ok"]);
  // In the hook's async context, but the hook has ended: it waits for what will come back.
  const last = await pool.getconn();
  go.resolve();
  await settle();
  assertEquals(left.word, "pending");
  await pool.putconn(last);
  await settle();
  assertEquals(left.word, "ok");
  await assertWhole(pool, [inner.value as Thing, left.value as Thing]);
});

test("ready() in configure or reset is refused at once where it would wait, and resolves where it would not", async () => {
  for (const hook of ["configure", "reset"] as const) {
    const words: string[] = [];
    let called = false;
    const pool: FakePool = new FakePool(hook === "configure" ? 1 : 0, 2, {
      [hook]: async () => {
        if (called) return;
        called = true;
        pool.fake.hold.add("open");
        await pool.resize(2, 2);
        words.push(await wordOf(pool.ready()));
        await pool.resize(0, 2);
        words.push(await wordOf(pool.ready()));
      },
    });
    await pool.putconn(await pool.getconn());
    assertEquals(words, ["BAD_HOOK", "ok"]);
    await assertWhole(pool);
  }
});
