/** Checks of idle connections on demand, and the end of those that were lent often. */

import { assertEquals, assertRejects } from "@std/assert";
import { PoolClosed, SimpleConnectionPool } from "../mod.ts";
import { withClock } from "./support/checks.ts";
import { FakePool, settle } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { killBackend, testServer } from "./support/server.ts";

test("check() asks every idle connection, closes the dead, and refills to minconn", async () => {
  const pool = new FakePool(3, 4, { checkAfter: Infinity });
  await pool.ready();
  const [lent] = [await pool.getconn()];
  const [first, second] = pool.fake.things;
  Object.assign(pool.fake, {
    check: (thing: unknown) => {
      checked.push(thing);
      return thing === second ? Promise.reject(new Error("dead")) : Promise.resolve();
    },
  });
  const checked: unknown[] = [];
  const reasons: string[] = [];
  pool.on("remove", ({ detail }) => reasons.push(detail.reason));
  await pool.check();
  await settle();
  assertEquals(checked, [first, second], "what is lent is not asked");
  assertEquals([reasons, pool.stats().connectionsLost], [["unhealthy"], 1]);
  assertEquals([pool.stats().idle, pool.stats().leased], [2, 1]);
  await pool.putconn(lent);
  await pool.closeall();
  await assertRejects(() => pool.check(), PoolClosed);
});

test("check() of connections that give no answer ends after checkTimeout", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(2, 2, { checkAfter: Infinity, checkTimeout: 100 });
    await pool.ready();
    pool.fake.hold.add("check");
    let over = false;
    const checking = pool.check().then(() => over = true);
    await clock.tickAsync(99);
    assertEquals([over, pool.stats().connectionsLost], [false, 0]);
    await clock.tickAsync(1);
    await checking;
    assertEquals(pool.stats().connectionsLost, 2);
    await pool.closeall();
  });
});

test("maxUses: a connection that was lent so often is closed when it comes back, and no sooner", async () => {
  const pool = new FakePool(1, 1, { maxUses: 3 });
  const reasons: string[] = [];
  pool.on("remove", ({ detail }) => reasons.push(detail.reason));
  const ids: number[] = [];
  for (let i = 0; i < 7; i++) ids.push(await pool.use((thing) => thing.hello()));
  assertEquals(ids.map((id) => id - ids[0]!), [0, 0, 0, 1, 1, 1, 2]);
  await settle();
  assertEquals(reasons, ["uses", "uses"]);
  // A key is one lease, however often it is asked for.
  const key = await pool.getconn("key");
  for (let i = 0; i < 9; i++) assertEquals(await pool.getconn("key"), key);
  await pool.putconn(key);
  await pool.closeall();
});

test("check() finds what was killed on a real server, whatever checkAfter says", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(1, 2, url, {
    pool: { timeout: 60_000, checkAfter: Infinity, maxUses: 2 },
  });
  const pid = await pool.use((conn) => conn.pid);
  await pool.check();
  assertEquals(await pool.use((conn) => conn.pid), pid);
  const next = await pool.use((conn) => conn.pid);
  assertEquals(next === pid, false);
  await killBackend(next);
  await pool.check();
  assertEquals(await pool.use((conn) => conn.pid === next), false);
});
