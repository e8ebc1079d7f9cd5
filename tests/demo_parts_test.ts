/** The parts of the demo by themselves: its audit finds what is wrong, its picture fits. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import postgres from "postgres";
import { auditBalances, auditCap, auditLedger, auditTasks } from "../examples/demo/audit.ts";
import { count, duration } from "../examples/demo/format.ts";
import { Ledger } from "../examples/demo/ledger.ts";
import { mergeMetrics, newMetrics, quantile, record } from "../examples/demo/metrics.ts";
import { Sampler } from "../examples/demo/sampler.ts";
import type { Scene } from "../examples/demo/scene.ts";
import { idsOf, newCounter } from "../examples/demo/tasks.ts";
import { createTables, randomTransfer, runTransfer } from "../examples/demo/tpcb.ts";
import { picture } from "../examples/demo/view.ts";
import { test } from "./support/harness.ts";
import { asAdmin, testServer } from "./support/server.ts";

/** Runs `fn` on small books in a schema of their own. */
async function withBooks(fn: (sql: postgres.Sql, ledger: Ledger) => Promise<void>): Promise<void> {
  const { url } = await testServer();
  const schema = `demo_test_${crypto.randomUUID().replaceAll("-", "")}`;
  const sql = postgres(url, {
    max: 1,
    max_lifetime: null,
    onnotice: () => {},
    connection: { search_path: schema },
  });
  try {
    await sql`create schema ${sql(schema)}`;
    await createTables(sql, 1);
    const ledger = new Ledger();
    for (const id of [1, 2, 3]) {
      await sql.begin((sql) => runTransfer(sql, { ...randomTransfer(id, 1), delta: 7 }));
      ledger.set(id, "acknowledged");
    }
    ledger.set(4, "failed");
    ledger.set(5, "unknown");
    await fn(sql, ledger);
  } finally {
    await sql`drop schema ${sql(schema)} cascade`;
    await sql.end();
  }
}

/** The names of the checks that fail. */
async function failing(sql: postgres.Sql, ledger: Ledger): Promise<string[]> {
  const checks = [...await auditBalances(sql), ...await auditLedger(sql, ledger)];
  return checks.filter(({ passed }) => !passed).map(({ name }) => name);
}

const ONE_SUM = "accounts, tellers, branches, history: one sum";
const OWN_HISTORY = "each balance is the sum of its own history";
const ALL_THERE = "every acknowledged commit is there, once";

test("the audit passes honest books and knows the unknown", async () => {
  await withBooks(async (sql, ledger) => {
    assertEquals(await failing(sql, ledger), []);
    await sql.begin((sql) => runTransfer(sql, randomTransfer(5, 1)));
    assertEquals(await failing(sql, ledger), []);
  });
});

test("the audit knows what a terminated worker may have done, and that it did nothing more", async () => {
  await withBooks(async (sql, ledger) => {
    const plan = { source: 7, tasks: 1, scale: 1, begun: newCounter() };
    plan.begun[0] = 4;
    const ids = [...idsOf(plan)];
    const begun = async (id: number): Promise<void> => {
      await sql.begin((sql) => runTransfer(sql, randomTransfer(id, 1)));
    };
    // Told; on its way when last heard of; never heard of.
    for (const id of [ids[0]!, ids[1]!, ids[2]!]) await begun(id);
    ledger.add([[ids[0]!, "acknowledged"], [ids[1]!, "sent"]]);
    assertEquals(await failing(sql, ledger), ["nothing is there that nobody sent"]);
    assertEquals([ledger.close(ids), ledger.close(ids)], [3, 0]);
    assertEquals(await failing(sql, ledger), []);
    await begun(ids[3]! + 1);
    assertEquals(await failing(sql, ledger), ["nothing is there that nobody sent"]);
  });
});

test("the audit finds each kind of tampering", async () => {
  await withBooks(async (sql, ledger) => {
    await sql`update accounts set abalance = abalance + 1 where aid = 77`;
    assertEquals(await failing(sql, ledger), [ONE_SUM, OWN_HISTORY]);
    await sql`update accounts set abalance = abalance - 1 where aid = 78`;
    assertEquals(await failing(sql, ledger), [OWN_HISTORY], "the sums agree again");
    await sql`update accounts set abalance = abalance - 1 where aid = 77`;
    await sql`update accounts set abalance = abalance + 1 where aid = 78`;
    assertEquals(await failing(sql, ledger), []);

    await sql`update history set id = 4 where id = 1`;
    assertEquals(await failing(sql, ledger), [ALL_THERE, "none of the failed ones is"]);
    await sql`update history set id = 6 where id = 4`;
    assertEquals(await failing(sql, ledger), [ALL_THERE, "nothing is there that nobody sent"]);
    await sql`update history set id = 1 where id = 6`;
    await sql`alter table history drop constraint history_pkey`;
    await sql`insert into history select * from history where id = 2`;
    assertEquals(await failing(sql, ledger), [ONE_SUM, OWN_HISTORY, ALL_THERE]);
    await sql`update history set id = 5 where id = 2`;
    const unanswered = "unknown outcomes: there once or not at all";
    assertEquals(await failing(sql, ledger), [ONE_SUM, OWN_HISTORY, ALL_THERE, unanswered]);
    await sql`truncate history`;
    assertEquals((await failing(sql, ledger)).includes(ALL_THERE), true);
  });
});

test("the audit finds tasks that hang and sessions above the cap", async () => {
  const tasks = { all: 64, running: 0, terminated: 0, failures: [] };
  const check = { name: "every task ended", passed: true, found: "64 of 64" };
  assertEquals(auditTasks(tasks), check);
  assertEquals(auditTasks({ ...tasks, terminated: 16 }), {
    ...check,
    found: "64 of 64, 16 terminated",
  });
  assertEquals(auditTasks({ ...tasks, running: 1 }), {
    ...check,
    passed: false,
    found: "63 of 64",
  });
  assertEquals(auditTasks({ ...tasks, failures: ["worker 2: oh"] }), {
    ...check,
    passed: false,
    found: "64 of 64, worker 2: oh",
  });
  const { url } = await testServer();
  const applicationName = `demo test ${crypto.randomUUID()}`;
  const connection = { application_name: applicationName };
  await asAdmin(async (observer) => {
    const sampler = new Sampler(observer, { applicationName });
    assertEquals(auditCap(sampler, 2).passed, false, "who has not looked has not seen");
    assertEquals(await sampler.look(), 0);
    const clients = [1, 2, 3].map(() => postgres(url, { max: 1, max_lifetime: null, connection }));
    try {
      for (const sql of clients) await sql`select 1`;
      assertEquals(await sampler.look(), 3);
    } finally {
      await Promise.all(clients.map((sql) => sql.end()));
    }
    assertEquals(auditCap(sampler, 3).passed, true);
    assertEquals(auditCap(sampler, 2).passed, false);
    sampler.failure = new Error("lost");
    assertEquals(auditCap(sampler, 3).passed, false);
  });
});

test("the demo's picture fits 80 columns, whatever the numbers are", () => {
  const metrics = newMetrics();
  for (let ms = 0.1; ms < 5_000; ms *= 1.3) record(metrics.transaction, ms);
  Object.assign(metrics, {
    committed: 123_456_789,
    failed: 98_765,
    retries: 98_765,
    unknown: 1_234,
  });
  metrics.errors = { CONNECTION_CLOSED: 90_000, "57P01": 8_000, ECONNRESET: 700, EPIPE: 65 };
  const pool = { leased: 450, idle: 30, connecting: 15, closing: 5, waiting: 9_500 };
  const commits = Array.from({ length: 200 }, (_, n) => 50 * n);
  const workers = Array.from({ length: 64 }, (_, n) => ({
    name: `worker ${n + 1}`,
    note: n % 2 ? "starting" : "no. 12345",
    pool,
    commits,
  }));
  const scene: Scene = {
    options: { seconds: 86_400, tasks: 10_000, workers: 64, maxconn: 500, scale: 100, chaos: true },
    platform: "Deno 2.19.16, PostgreSQL 18.14",
    elapsed: 43_200,
    sessions: { now: 500, most: 500, looks: 12_345_678 },
    pool,
    workers,
    metrics,
    commits,
    strikes: { "backends killed": 98_765, "workers terminated": 98_765 },
  };
  const plain = (_style: unknown, text: string): string => text;
  for (
    const each of [scene, { ...scene, workers: [] }, { ...scene, workers: workers.slice(0, 4) }]
  ) {
    const lines = picture(each, plain);
    // The cursor stands in the last of a terminal's 24 lines.
    assert(lines.length <= 23, lines.join("\n"));
    for (const line of lines) assert(line.length <= 79, line);
  }
  assertMatch(picture(scene, plain).join("\n"), /worker 4 .*\n +60 others +27 000 +1 800 /);
  assertEquals(picture(scene, plain, 100).some((line) => line.includes("others")), false);
  const colours = picture(
    { ...scene, commits: [], metrics: newMetrics() },
    (style) => `<${style}>`,
  );
  assertEquals(colours.some((line) => line.includes("NaN")), false);
});

test("the demo's numbers: quantiles, sums of several sources, and how they are written", () => {
  const [one, two] = [newMetrics(), newMetrics()];
  assertEquals(quantile(one.wait, 0.5), undefined);
  for (let ms = 1; ms <= 100; ms++) record(ms % 2 ? one.wait : two.wait, ms);
  Object.assign(one, { committed: 5, errors: { EPIPE: 1 } });
  Object.assign(two, { committed: 6, errors: { EPIPE: 2, ECONNRESET: 1 } });
  const both = mergeMetrics([structuredClone(one), two]);
  const [ledger, other] = [new Ledger(), new Ledger()];
  for (const id of [1, 2]) ledger.set(id, "sent");
  other.set(2, "acknowledged");
  other.set(3, "unknown");
  ledger.add(structuredClone(other.take()));
  assertEquals([...ledger], [[1, "sent"], [2, "acknowledged"], [3, "unknown"]]);
  assertEquals(other.take(), [], "what is told once is not told again");
  assertEquals(both.committed, 11);
  assertEquals(both.errors, { EPIPE: 3, ECONNRESET: 1 });
  for (const [share, ms] of [[0.5, 50], [0.99, 99], [0.01, 1]] as const) {
    assert(Math.abs(quantile(both.wait, share)! / ms - 1) < 0.03, `p${share * 100}`);
  }
  assertEquals([1, 1_000, 1_234_567, -47_154].map(count), ["1", "1 000", "1 234 567", "-47 154"]);
  assertEquals([0.0042, 0.123, 4.2, 250, 1_500, undefined].map(duration), [
    "4 µs",
    "0.12 ms",
    "4.2 ms",
    "250 ms",
    "1.5 s",
    "–",
  ]);
});
