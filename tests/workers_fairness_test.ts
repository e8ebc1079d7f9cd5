/** Who gets how much when workers want more than there is. */

import { assert, assertEquals } from "@std/assert";
import type { PoolStats } from "../mod.ts";
import { test } from "./support/harness.ts";
import { bench, options } from "./support/workers_bench.ts";

// A worker's share is the time for which it had connections: how many statements fit into that is up to the
// machine, which gave one worker up to 16 times as many as another in the same time. Of the time, on a machine
// with four times as much to do as it could, the luckiest had at most 1.3 times as much as the unluckiest.
for (
  const [connections, workers, what, load] of [
    [2, 4, "sleeping", { tasks: 2, sleep: 3 }],
    [2, 5, "busy", { tasks: 2 }],
    [1, 4, "busy", { tasks: 2 }],
    // So many tasks that a worker is never without somebody who waits.
    [2, 4, "crowded", { tasks: 8 }],
  ] as const
) {
  test(`nobody starves: ${workers} ${what} workers, connections: ${connections}`, async () => {
    await bench([0, connections, workers], async ({ workers }) => {
      await Promise.all(workers.map((worker) => worker.tell("query")));
      await Promise.all(workers.map((w) => w.tell("load", { ms: 5_000, ...load })));
      const times = await Promise.all(workers.map(async (worker) => {
        const stats = await worker.tell<PoolStats>("stats");
        return stats.workers.find(({ self }) => self)!.usageMs;
      }));
      assert(Math.max(...times) <= 2 * Math.min(...times), `milliseconds: ${times}`);
    });
  }, options);
}

test("nothing thrashes: as many connections as workers, and even load", async () => {
  await bench([0, 4, 4], async ({ pool, workers }) => {
    const delay = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
    const run = Promise.all(workers.map((w) => w.tell("load", { tasks: 3, ms: 3_500 })));
    await delay(1_500);
    const before = pool.stats();
    await delay(1_500);
    const after = pool.stats();
    await run;
    assertEquals(after.connectionsNum, before.connectionsNum);
    assert(after.requestsNum > before.requestsNum);
  });
}, options);
