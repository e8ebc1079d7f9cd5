/** Isolates that share a pool while somebody sets the wall clock. */

import { assert, assertEquals } from "@std/assert";
import type { ThreadedConnectionPool } from "../mod.ts";
import { test } from "./support/harness.ts";
import { eventually } from "./support/server.ts";
import { bench, options } from "./support/workers_bench.ts";

const HOUR = 3_600_000;

/** Waits until this isolate has heard of a worker's death. */
function heard(pool: ThreadedConnectionPool): Promise<void> {
  return eventually(
    () => assert(pool.stats().workers.some((one) => !one.alive)),
    { interval: 1 },
  );
}

/** Runs `fn` with the wall clock of this isolate set to another time. */
async function atAnotherTime(by: number, fn: () => Promise<void>): Promise<void> {
  const { now } = Date;
  Date.now = () => now.call(Date) + by;
  try {
    await fn();
  } finally {
    Date.now = now;
  }
}

test(
  "the clock is set back after a worker's death: its permits return as ever",
  async () => {
    await bench([0, 2, 1], async ({ pool, workers: [worker] }) => {
      await worker!.tell("get");
      await worker!.tell("get");
      worker![Symbol.dispose]();
      await heard(pool);
      await atAnotherTime(-HOUR, async () => {
        const conns = await Promise.all([1, 2].map(() => pool.getconn(null, { timeout: 60_000 })));
        for (const conn of conns) await pool.putconn(conn);
        assertEquals(pool.stats().workers.length, 1);
      });
    });
  },
  options,
);

test(
  "the clock is set forward after a worker's death: its permits rest as long as ever",
  async () => {
    await bench([0, 1, 1], async ({ pool, workers: [worker] }) => {
      await worker!.tell("get");
      const died = performance.now();
      worker![Symbol.dispose]();
      await heard(pool);
      await atAnotherTime(HOUR, async () => {
        const conn = await pool.getconn(null, { timeout: 60_000 });
        assert(performance.now() - died > 400);
        await pool.putconn(conn);
      });
    });
  },
  options,
);

test("the clock is set back while this isolate has its turn: the turn ends as ever", async () => {
  await bench([0, 1, 1], async ({ pool, workers: [worker] }) => {
    let over = false;
    const tasks = [1, 2].map(async () => {
      while (!over) await pool.use((sql) => sql`select 1`, { timeout: 60_000 });
    });
    await worker!.tell("query");
    const ours = () => pool.stats().workers.some(({ self, leased }) => self && leased > 0);
    while (!ours()) await new Promise((resolve) => setTimeout(resolve, 1));
    await atAnotherTime(-HOUR, async () => {
      const begun = performance.now();
      for (let i = 0; i < 3; i++) assertEquals(await worker!.tell("query"), 1);
      over = true;
      await Promise.all(tasks);
      assert(performance.now() - begun < 30_000);
    });
  });
}, options);
