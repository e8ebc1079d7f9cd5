/** The contract over all classes: in one isolate, and over ThreadedConnectionPool in a worker. */

import { PersistentConnectionPool, SimpleConnectionPool, ThreadedConnectionPool } from "../mod.ts";
import { type AnyPool, type Rule, rules, rulesOfMany } from "./support/contract.ts";
import { test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";
import { TestWorker } from "./support/workers.ts";

type Factory = (minconn: number, maxconn: number, url: string) => AnyPool;

const classes: Record<string, readonly [Factory, readonly Rule[]]> = {
  SimpleConnectionPool: [
    (least, most, url) => new SimpleConnectionPool(least, most, url),
    [...rules, ...rulesOfMany],
  ],
  ThreadedConnectionPool: [
    (least, most, url) => new ThreadedConnectionPool(least, most, url),
    [...rules, ...rulesOfMany],
  ],
  PersistentConnectionPool: [
    (least, most, url) => new PersistentConnectionPool(least, most, url),
    rules,
  ],
};

for (const [name, [factory, itsRules]] of Object.entries(classes)) {
  for (const rule of itsRules) {
    test(`${name}: ${rule.name}`, async () => {
      const pool = factory(...rule.sizes, (await testServer()).url);
      try {
        await rule.run(pool);
      } finally {
        await pool.close({ timeout: 0 });
      }
    });
  }
}

test("ThreadedConnectionPool in a worker keeps the contract", async () => {
  const { url } = await testServer();
  using worker = await TestWorker.start();
  for (const rule of [...rules, ...rulesOfMany]) {
    const pool = new ThreadedConnectionPool(...rule.sizes, url);
    try {
      await pool.ready();
      await worker.tell("join", pool.share(worker.worker), "threaded", {});
      await worker.tell("rule", rule.name).catch((error) => {
        throw new Error(`${rule.name}: ${error.message}`);
      });
    } finally {
      await pool.close({ timeout: 0 });
    }
  }
  // Deno takes the worker for a leak of the test.
}, { sanitize: false });
