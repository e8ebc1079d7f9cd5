/** Who gets how much when workers want more than there is. */

import { assert, assertEquals } from "@std/assert";
import type { PoolStats } from "../mod.ts";
import { test } from "./support/harness.ts";
import { eventually } from "./support/server.ts";
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
      const used = () =>
        Promise.all(workers.map(async (worker) => {
          const stats = await worker.tell<PoolStats>("stats");
          return stats.workers.find(({ self }) => self)!.usageMs;
        }));
      const told: string[] = [];
      // One of them may not run for a while, on a machine that has other things to do; not the same again and again.
      do {
        const before = await used();
        await Promise.all(workers.map((w) => w.tell("load", { ms: 5_000, ...load })));
        const times = (await used()).map((time, at) => time - before[at]!);
        if (Math.max(...times) <= 2 * Math.min(...times)) return;
        told.push(`milliseconds: ${times}`);
      } while (told.length < 3);
      assertEquals(told, []);
    });
  }, options);
}

test("nothing thrashes: as many connections as workers, and even load", async () => {
  await bench([0, 4, 4], async ({ pool, workers }) => {
    const run = Promise.all(workers.map((w) => w.tell("load", { tasks: 3, ms: Infinity })));
    // At first one of them may have more than its share, until the others are there.
    await eventually(async () => {
      const before = pool.stats();
      await new Promise((resolve) => setTimeout(resolve, 1_500));
      const after = pool.stats();
      assertEquals(after.connectionsNum, before.connectionsNum);
      assert(after.requestsNum > before.requestsNum);
    }, { interval: 0 });
    for (const worker of workers) await worker.tell("stop");
    await run;
  });
}, options);
