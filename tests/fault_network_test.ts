/** The pool on a network that breaks in every way we know; the server is real. */

import { assert, assertEquals, assertLess, assertNotEquals, assertRejects } from "@std/assert";
import { readFileSync } from "node:fs";
import process from "node:process";
import { PoolTimeout } from "../mod.ts";
import { assertLendable, eventuallyStats, faulty, pidOf, textOf, timed } from "./support/faults.ts";
import { test } from "./support/harness.ts";
import { asAdmin, eventually, sessions } from "./support/server.ts";

test("refuse: a caller that waits gets through when the network is back, a hasty one learns the cause", async () => {
  await using all = await faulty(0, 2, { pool: { timeout: 60_000 } });
  const { pool, proxy, password } = all;
  await proxy.set("refuse");
  const waiting = timed(pool.getconn());
  const hasty = await timed(pool.getconn(null, { timeout: 0 }));
  assertEquals(hasty.error?.code, "CONNECT_FAILED");
  assert(!textOf(hasty.error).includes(`:${password}@`));
  const late = await timed(pool.getconn(null, { timeout: 300 }));
  assert(late.error instanceof PoolTimeout && late.error.cause !== undefined);
  assertLess(late.took, 20_000);
  await proxy.set("pass");
  const { value } = await waiting;
  await pool.putconn(value!);
  await assertLendable(pool);
});

test("reset: what is idle is noticed at once and refilled; what is lent fails its statement, not the pool", async () => {
  await using all = await faulty(3, 4);
  const { pool, proxy } = all;
  await pool.ready();
  const lost: unknown[] = [];
  pool.on("lost", ({ detail }) => void lost.push(detail.error));
  const conn = await pool.getconn();
  const statement = timed(conn`select pg_sleep(60)`.execute());
  await eventually(() => assertEquals(conn.transactionStatus, "active"));
  proxy.cut("reset");
  const { error, took } = await statement;
  assert(["CONNECTION_CLOSED", "ECONNRESET"].includes(error?.code ?? ""), String(error));
  assertLess(took, 20_000);
  await pool.putconn(conn);
  await eventually(() => assertEquals(lost.length, 3));
  await eventuallyStats(pool, { idle: 3, leased: 0, closing: 0 });
  await assertLendable(pool);
});

test("stall: a server that accepts and never answers holds a getconn no longer than its timeout", async () => {
  await using all = await faulty(0, 2);
  const { pool, proxy } = all;
  await proxy.set("stall");
  const { took, error } = await timed(pool.getconn(null, { timeout: 250 }));
  assert(error instanceof PoolTimeout);
  assertLess(took, 15_000);
  const ending = await timed(pool.closeall());
  assertLess(ending.took, 15_000);
  assertEquals(ending.error, undefined);
});

test("stall: connect_timeout ends the attempt, and the next finds the server that is back", async () => {
  await using all = await faulty(0, 2, { connect_timeout: 0.5, pool: { timeout: 60_000 } });
  const { pool, proxy } = all;
  await proxy.set("stall");
  const failed = new Promise((resolve) => pool.on("connectfailed", resolve));
  const waiting = timed(pool.getconn());
  await failed;
  await proxy.set("pass");
  const { value } = await waiting;
  await pool.putconn(value!);
});

test("blackhole: the check of an idle connection counts into the timeout; one check tells of all", async () => {
  await using all = await faulty(0, 4, { connect_timeout: 1, pool: { checkAfter: 0 } });
  const { pool, proxy } = all;
  const conns = await Promise.all([1, 2, 3].map(() => pool.getconn(null, { timeout: 60_000 })));
  for (const conn of conns) await pool.putconn(conn);
  let removed = 0;
  pool.on("remove", () => void removed++);
  await proxy.set("blackhole");
  const { error } = await timed(pool.getconn(null, { timeout: 300 }));
  assert(error instanceof PoolTimeout);
  assertEquals(removed, 0, "the check had ended");
  const waiting = timed(pool.getconn(null, { timeout: 60_000 }));
  // New ones go through, as where a firewall has forgotten the old ones.
  await eventually(() => assertEquals(pool.stats().idle, 0));
  await proxy.set("pass");
  const { value } = await waiting;
  assert(value !== undefined);
  await pool.putconn(value);
  await eventuallyStats(pool, { closing: 0 });
  await assertLendable(pool);
});

test("blackhole: closeall ends within its limit, whatever is lent, idle or in the middle of a statement", async () => {
  await using all = await faulty(2, 4);
  const { pool, proxy, name } = all;
  await pool.ready();
  const conn = await pool.getconn();
  const statement = timed(conn`select pg_sleep(60)`.execute());
  await eventually(() => assertEquals(conn.transactionStatus, "active"));
  await proxy.set("blackhole");
  const { took, error } = await timed(pool.closeall());
  assertEquals(error, undefined);
  assertLess(took, 20_000);
  assertNotEquals((await statement).error, undefined);
  // The permits are free, and the sessions may stand beside their successors: the server could not hear of it.
  assertEquals([pool.stats().poolSize, pool.stats().closing, await sessions(name)], [0, 0, 2]);
  await asAdmin((sql) =>
    sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name = ${name}`
  );
});

test("blackhole: putconn in a transaction gives up on the rollback and loses no slot", async () => {
  await using all = await faulty(0, 1);
  const { pool, proxy } = all;
  const conn = await pool.getconn();
  await conn`begin`;
  await proxy.set("blackhole");
  const back = timed(pool.putconn(conn));
  await eventuallyStats(pool, { closing: 1 });
  await proxy.set("pass");
  proxy.cut("reset");
  assertEquals((await back).error, undefined);
  await assertLendable(pool);
});

test("cut in mid-message: at every point of a result the statement fails and the next borrower gets a sound connection", async () => {
  await using all = await faulty(0, 1, { pool: { timeout: 60_000 } });
  const { pool, proxy } = all;
  for (const bytes of [1, 4, 5, 7, 30, 200, 1_000, 9_000]) {
    const conn = await pool.getconn();
    proxy.cutAfter(bytes);
    const { error } = await timed(
      conn`select i, repeat('x', 50) as x from generate_series(1, 200) i`.execute(),
    );
    assertEquals(error?.code, "CONNECTION_CLOSED", `after ${bytes} bytes`);
    await pool.putconn(conn);
    await pool.use(async (next) => assert(await pidOf(next) > 0));
  }
  await assertLendable(pool);
});

test("cut in the start-up: each attempt that breaks is one failure, and the pool gets there", async () => {
  await using all = await faulty(0, 2);
  const { pool, proxy } = all;
  for (const bytes of [1, 10, 60, 300]) {
    proxy.cutAfter(bytes);
    const error = await assertRejects(() => pool.getconn(), Error);
    assertEquals((error as { code?: string }).code, "CONNECT_FAILED", `after ${bytes} bytes`);
  }
  await assertLendable(pool);
});

test("slow: a server that drips is waited for within the timeout and not beyond", async () => {
  await using all = await faulty(0, 2);
  const { pool, proxy } = all;
  await proxy.set("slow", { delay: 60 });
  const { error } = await timed(pool.getconn(null, { timeout: 100 }));
  assert(error instanceof PoolTimeout);
  assertEquals(pool.stats().connecting, 1);
  // Giving up does not abort the connect: it serves the next.
  await eventuallyStats(pool, { idle: 1 });
  const conn = await pool.getconn(null, { timeout: 60_000 });
  assertEquals(pool.stats().connectionsNum, 1);
  await proxy.set("pass");
  await pool.putconn(conn);
  await assertLendable(pool);
});

test("half-open: a server that closes its side while we wait for an answer is a loss, not a hang", async () => {
  await using all = await faulty(0, 1);
  const { pool, proxy } = all;
  const conn = await pool.getconn();
  const statement = timed(conn`select pg_sleep(60)`.execute());
  await eventually(() => assertEquals(conn.transactionStatus, "active"));
  proxy.cut("end");
  const { error, took } = await statement;
  assertEquals(error?.code, "CONNECTION_CLOSED");
  assertLess(took, 20_000);
  await pool.putconn(conn);
  await assertLendable(pool);
});

test("TCP keepalive is on for every connection, also for one that is lent and silent", async () => {
  await using all = await faulty(1, 2, { keep_alive: 30 });
  const { pool, proxy } = all;
  await pool.ready();
  const conn = await pool.getconn();
  // The sixth field of a line is the timer that runs, 02 for keepalive; the third is the far end.
  const timers = readFileSync("/proc/net/tcp", "utf8").split("\n").slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields[2] === `0100007F:${hex(proxy.port)}` && fields[3] === "01")
    .map((fields) => fields[5]!);
  assert(timers.length >= 1);
  for (const timer of timers) assert(timer.startsWith("02:"), timer);
  await pool.putconn(conn);
}, { skip: process.platform !== "linux" && "the kernel's table of sockets is Linux's" });

function hex(port: number): string {
  return port.toString(16).toUpperCase().padStart(4, "0");
}
