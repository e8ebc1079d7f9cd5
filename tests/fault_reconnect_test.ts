/** Outages on the real server: what psycopg_pool and HikariCP test of them. */

import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { PoolTimeout } from "../mod.ts";
import { assertLendable, eventuallyStats, faulty, pidOf, timed } from "./support/faults.ts";
import { test } from "./support/harness.ts";
import { eventually, killBackend } from "./support/server.ts";

test("test_reconnect: after an outage the pauses grow, and the pool recovers by itself", async () => {
  await using all = await faulty(2, 4);
  const { pool, proxy } = all;
  await pool.ready();
  const pauses: number[] = [];
  pool.on("connectfailed", ({ detail }) => void pauses.push(detail.retryIn));
  await proxy.set("refuse");
  proxy.cut("reset");
  await eventually(() => assert(pauses.length >= 3));
  const rising = pauses.filter((pause, i) => pause > (pauses[i - 1] ?? 0));
  assert(rising.length >= 2 && pauses[0]! >= 70 && pauses[0]! <= 130, String(pauses));
  await proxy.set("pass");
  await eventuallyStats(pool, { idle: 2 });
  await assertLendable(pool);
});

test("test_reconnect_failure: reconnectfailed once, size 0, and the next getconn begins anew", async () => {
  await using all = await faulty(2, 4, { pool: { reconnectTimeout: 250 } });
  const { pool, proxy } = all;
  await pool.ready();
  let failures = 0;
  pool.on("reconnectfailed", () => void failures++);
  await proxy.set("refuse");
  proxy.cut("reset");
  await eventually(() => assertEquals(failures, 1));
  assertEquals(pool.stats().poolSize, 0);
  await proxy.set("pass");
  const { value } = await timed(pool.getconn());
  await pool.putconn(value!);
  assertEquals(failures, 1);
  await assertLendable(pool);
});

test("test_reconnect_after_grow_failed: a failed growth does not stop later ones", async () => {
  await using all = await faulty(1, 4);
  const { pool, proxy } = all;
  await pool.ready();
  const held = await pool.getconn();
  await proxy.set("refuse");
  assertEquals((await timed(pool.getconn())).error?.code, "CONNECT_FAILED");
  await proxy.set("pass");
  const more = await pool.getconn(null, { timeout: 60_000 });
  await pool.putconn(more);
  await pool.putconn(held);
  await assertLendable(pool);
});

test("test_connect_check, test_getconn_check: a connection that died in silence is replaced within the same call", async () => {
  await using all = await faulty(1, 2, { pool: { checkAfter: 0 } });
  const { pool, proxy } = all;
  await pool.ready();
  const before = await pool.use(pidOf);
  // Half of the proxy's way is dead: nobody has told the pool, and the check finds out.
  proxy.cutAfter(1);
  const { value } = await timed(pool.getconn(null, { timeout: 60_000 }));
  assert(value !== undefined);
  assertNotEquals(await pidOf(value), before);
  await pool.putconn(value);
  assertEquals(pool.stats().connectionsLost, 1);
});

test("test_connect_check_timeout: a check in an outage obeys the timeout", async () => {
  await using all = await faulty(1, 2, { pool: { checkAfter: 0 } });
  const { pool, proxy } = all;
  await pool.ready();
  await proxy.set("stall");
  proxy.cut("reset");
  const { error, took } = await timed(() => pool.getconn(null, { timeout: 200 }));
  assert(error instanceof PoolTimeout);
  assert(took >= 190 && took < 20_000, String(took));
});

test("test_refill_on_check, testBackfill: what the server kills while idle is refilled at once", async () => {
  await using all = await faulty(3, 4);
  const { pool } = all;
  await pool.ready();
  const conns = await Promise.all([1, 2, 3].map(() => pool.getconn()));
  const pids = conns.map((conn) => conn.pid);
  for (const conn of conns) await pool.putconn(conn);
  for (const pid of pids) await killBackend(pid);
  await eventually(() => assertEquals(pool.stats().connectionsLost, 3));
  await eventuallyStats(pool, { idle: 3 });
  await pool.use(async (conn) => assert(!pids.includes(await pidOf(conn))));
});

test("test_setup_no_timeout, testConnectionRetries: a caller waits for a database that comes up late", async () => {
  await using all = await faulty(0, 2);
  const { pool, proxy } = all;
  await proxy.set("refuse");
  const waiting = timed(pool.getconn(null, { timeout: 60_000 }));
  const failed = new Promise((resolve) => pool.on("connectfailed", resolve));
  await failed;
  await proxy.set("pass");
  await pool.putconn((await waiting).value!);
});

test("test_drain, testEvictAllRefill: renew() changes every backend, the leased one at its return", async () => {
  await using all = await faulty(2, 3);
  const { pool } = all;
  await pool.ready();
  const held = await pool.getconn();
  const other = await pool.use(pidOf);
  const first = held.pid;
  await pool.renew();
  assertEquals(await pidOf(held), first, "never while leased");
  await pool.putconn(held);
  await eventuallyStats(pool, { idle: 2 });
  const pids = new Set<number>();
  const conns = await Promise.all([1, 2].map(() => pool.getconn()));
  for (const conn of conns) pids.add(await pidOf(conn));
  for (const conn of conns) await pool.putconn(conn);
  assert(!pids.has(first) && !pids.has(other));
});

test("test_max_lifetime, testMaxLifetime: the backend changes by age, and nobody waits for it", async () => {
  await using all = await faulty(1, 2, { pool: { maxLifetime: 400 } });
  const { pool } = all;
  await pool.ready();
  const first = await pool.use(pidOf);
  const waits: number[] = [];
  await eventually(async () => {
    const begun = performance.now();
    const pid = await pool.use((conn) => conn.pid);
    waits.push(performance.now() - begun);
    assertNotEquals(pid, first);
  });
  assertEquals(pool.stats().connectionsErrors, 0);
});

test("a stampede is none: 200 callers on a dead server that comes back, at most maxconn connects at a time", async () => {
  await using all = await faulty(0, 4, { pool: { timeout: 60_000 } });
  const { pool, proxy } = all;
  await proxy.set("refuse");
  const order: number[] = [];
  const callers = Array.from({ length: 200 }, async (_, i) => {
    const conn = await pool.getconn();
    order.push(i);
    await pool.putconn(conn);
  });
  await new Promise((resolve) => pool.on("connectfailed", resolve));
  const accepted = proxy.accepted;
  await proxy.set("pass");
  await Promise.all(callers);
  assert(proxy.accepted - accepted <= 4, `${proxy.accepted - accepted} connects`);
  assertEquals(order, Array.from({ length: 200 }, (_, i) => i), "first come, first served");
  await assertLendable(pool);
});
