/** What a probe says, for each reason that examples/health names. */

import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { health, probe, prometheus } from "../examples/health/health.ts";
import { SimpleConnectionPool } from "../mod.ts";
import { test } from "./support/harness.ts";
import { eventually, killBackend, testServer } from "./support/server.ts";

/** A pool whose logins fail from the moment when `lock` is called, until `unlock` is. */
async function lockable(minconn: number, maxconn: number) {
  const url = new URL((await testServer()).url);
  const password = url.password;
  url.password = "";
  let told = password;
  const pool = new SimpleConnectionPool(minconn, maxconn, url.href, {
    password: () => told,
    pool: { name: "shop", timeout: 60_000 },
  });
  return {
    pool,
    lock: () => void (told = "wrong"),
    unlock: () => void (told = password),
  };
}

const REFUSED = /^no connection can be opened: .*password authentication failed/;

test("health: open, also before the first connection and while all are lent", async () => {
  const { pool } = await lockable(0, 1);
  assertEquals(health(pool), { status: "open" });
  const held = await pool.getconn();
  assertEquals(health(pool), { status: "open" });
  // A queue of a round is no reason yet.
  const waiting = pool.use((conn) => conn`select 1`);
  assertEquals(health(pool), { status: "open" });
  await pool.putconn(held);
  await waiting;
  await pool.close();
});

test("health: degraded while more wait than a full round of the connections, callers and statements alike", async () => {
  const { pool } = await lockable(0, 1);
  const held = await pool.getconn();
  const calls = [
    pool.use((conn) => conn`select 1`).then(() => {}),
    pool.sql`select 1`.then(() => {}),
  ];
  // A statement begins some microtasks after it was called.
  await eventually(() => {
    assertEquals(health(pool), { status: "degraded", reason: "2 wait for 1 connections" });
  });
  await pool.putconn(held);
  await Promise.all(calls);
  assertEquals(health(pool), { status: "open" });
  await pool.close();
});

test("health: degraded while what stands serves and nothing more can be opened, and its reason is why", async () => {
  const { pool, lock, unlock } = await lockable(1, 2);
  await pool.ready();
  lock();
  const held = await pool.getconn();
  await assertRejects(() => pool.getconn());
  const { status, reason = "" } = health(pool);
  assertEquals(status, "degraded");
  assertMatch(reason, REFUSED);
  // It still answers.
  const ready = probe(pool, new Request("http://localhost/readyz"))!;
  assertEquals([ready.status, (await ready.json()).status], [200, "degraded"]);
  assertMatch(prometheus(pool), /^pool_up\{pool="shop"\} 1$/m);
  unlock();
  await pool.putconn(await pool.getconn());
  assertEquals(health(pool), { status: "open" });
  await pool.putconn(held);
  await pool.close();
});

test("health: down with the last failure while there is no connection and none can be opened, until one can", async () => {
  const { pool, lock, unlock } = await lockable(1, 2);
  lock();
  await assertRejects(() => pool.ready());
  let found = health(pool);
  assertEquals(found.status, "down");
  assertMatch(found.reason ?? "", REFUSED);
  unlock();
  // The background tries on.
  await eventually(() => assertEquals(health(pool), { status: "open" }));

  // What stood is lost.
  lock();
  await killBackend(await pool.use((conn) => conn.pid));
  await eventually(() => assertEquals(health(pool).status, "down"));
  found = health(pool);
  assertMatch(found.reason ?? "", REFUSED);
  const ready = probe(pool, new Request("http://localhost/readyz"))!;
  assertEquals([ready.status, await ready.json()], [503, found]);
  assertMatch(prometheus(pool), /^pool_up\{pool="shop"\} 0$/m);
  // A database that is away is no reason to end the process.
  assertEquals(probe(pool, new Request("http://localhost/livez"))!.status, 200);
  await pool.close();
});

test("health: a pool that nobody asks any more comes back by its probes alone", async () => {
  // Without connections to keep, nothing is tried in the background.
  const { pool, lock, unlock } = await lockable(0, 2);
  const ready = () => probe(pool, new Request("http://localhost/readyz"))!.status;
  lock();
  await assertRejects(() => pool.getconn());
  assertEquals(ready(), 503);
  unlock();
  await eventually(() => assertEquals(ready(), 200));
  await pool.close();
});

test("health: down when the pool is closed, whatever else there was", async () => {
  const { pool, lock } = await lockable(0, 1);
  lock();
  await assertRejects(() => pool.getconn());
  await pool.close();
  assertEquals(health(pool), { status: "down", reason: "the pool is closed" });
  assertEquals(probe(pool, new Request("http://localhost/other")), null);
});
