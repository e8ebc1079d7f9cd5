import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import postgres from "postgres";
import { auditBalances, auditCap, auditLedger, auditTasks } from "../examples/demo/audit.ts";
import { count, duration } from "../examples/demo/format.ts";
import { Ledger } from "../examples/demo/ledger.ts";
import { mergeMetrics, newMetrics, quantile, record } from "../examples/demo/metrics.ts";
import { readOptions, UsageError } from "../examples/demo/options.ts";
import { Sampler } from "../examples/demo/sampler.ts";
import type { Scene } from "../examples/demo/scene.ts";
import { createTables, randomTransfer, runTransfer } from "../examples/demo/tpcb.ts";
import { picture } from "../examples/demo/view.ts";
import { runner, test } from "./_harness.ts";
import { asAdmin, testServer } from "./_server.ts";

const MAIN = fileURLToPath(new URL("../examples/demo/main.ts", import.meta.url));

interface Ended {
  readonly code: number | null;
  readonly output: string;
}

/** Runs the demo on the runner at hand; `watch` sees the output as it grows. */
function demo(
  args: readonly string[],
  env: Record<string, string> = {},
  watch: (output: string, pid: number) => void = () => {},
): Promise<Ended> {
  const run = runner === "deno" ? ["run", "-A"] : [];
  const child = spawn(process.execPath, [...run, MAIN, ...args], {
    env: { ...process.env, NO_COLOR: "1", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8");
    stream.on("data", (chunk: string) => {
      output += chunk;
      watch(output, child.pid!);
    });
  }
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, output }));
  });
}

function assertAudited({ code, output }: Ended, checks: number): void {
  assertEquals(code, 0, output);
  assertStringIncludes(output, `all ${checks} checks passed`);
  assertEquals(output.match(/^ {2}PASS /gm)?.length, checks);
  assertEquals(output.includes("FAIL"), false, output);
  const table = output.slice(output.indexOf("Audit")).split("\n");
  for (const line of table) assert(line.length < 80, line);
}

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

test("the demo with chaos passes its audit on a server of its own", async () => {
  const ended = await demo(["--seconds", "3"], { DATABASE_URL: "" });
  assertAudited(ended, 10);
  assertMatch(ended.output, /\n {2}1 s \| sessions [1-4] \(most [1-4] of 4\)/);
  // Three seconds are enough for two strikes at least.
  assertMatch(ended.output, /backends killed: [1-9]/);
});

test("the demo runs on the server of DATABASE_URL and leaves nothing behind", async () => {
  const { url } = await testServer();
  const args = ["--seconds", "1", "--tasks", "9", "--maxconn", "2", "--no-chaos"];
  const ended = await demo(args, { DATABASE_URL: url });
  assertAudited(ended, 10);
  assertStringIncludes(ended.output, "9 of 9");
  const left = await asAdmin((sql) =>
    sql`select nspname from pg_namespace where nspname like 'getconn\_demo\_%'`
  );
  assertEquals([...left], []);
});

test("Ctrl-C ends the demo early, with its audit", async () => {
  let interrupted = false;
  const ended = await demo(["--seconds", "600"], { DATABASE_URL: "" }, (output, pid) => {
    if (interrupted || !output.includes("commits/s")) return;
    interrupted = true;
    // Not child.kill: in Deno it makes the exit code null, whatever the child does.
    process.kill(pid, "SIGINT");
  });
  assertAudited(ended, 10);
});

test("the demo refuses what it does not understand", async () => {
  const { code, output } = await demo(["--tasks", "none"]);
  assertEquals(code, 2);
  assertMatch(output, /Option '--tasks' must be a whole number from 1 to 10000, not 'none'/);
  assertEquals(output.includes("starting"), false);
});

test("the demo tells which server cannot be reached, and no password", async () => {
  const ended = await demo([], { DATABASE_URL: "postgres://me:hushhush@127.0.0.1:1/none" });
  assertEquals(ended.code, 1);
  assertMatch(ended.output, /ECONNREFUSED/);
  assertEquals(ended.output.includes("hushhush"), false);
});

test("the demo's options: defaults, help, and clear words for bad ones", () => {
  const defaults = { seconds: 15, tasks: 64, maxconn: 4, scale: 1, chaos: true };
  assertEquals(readOptions([]), defaults);
  assertEquals(readOptions(["--help"]), "help");
  assertEquals(readOptions(["--seconds=2.5", "--no-chaos", "--maxconn", "8"]), {
    ...defaults,
    seconds: 2.5,
    chaos: false,
    maxconn: 8,
  });
  const bad = ["--seconds 0", "--seconds -3", "--tasks 1.5", "--tasks", "--maxconn=", "--nope"];
  for (const line of [...bad, "--scale 101", "--maxconn 1e2", "more", "--no-chaos=1"]) {
    let thrown: unknown;
    try {
      readOptions(line.split(" "));
    } catch (error) {
      thrown = error;
    }
    assert(thrown instanceof UsageError, line);
    assertMatch(thrown.message, /--(seconds|tasks|maxconn|scale|nope|no-chaos)|'more'/);
  }
});

test("the audit passes honest books and knows the unknown", async () => {
  await withBooks(async (sql, ledger) => {
    assertEquals(await failing(sql, ledger), []);
    await sql.begin((sql) => runTransfer(sql, randomTransfer(5, 1)));
    assertEquals(await failing(sql, ledger), []);
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
    const unanswered = "unanswered commits: there once or not at all";
    assertEquals(await failing(sql, ledger), [ONE_SUM, OWN_HISTORY, ALL_THERE, unanswered]);
    await sql`truncate history`;
    assertEquals((await failing(sql, ledger)).includes(ALL_THERE), true);
  });
});

test("the audit finds tasks that hang and sessions above the cap", async () => {
  assertEquals(auditTasks(0, 64).passed, true);
  assertEquals(auditTasks(1, 64), { name: "every task ended", passed: false, found: "63 of 64" });
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
  const scene: Scene = {
    options: { seconds: 86_400, tasks: 10_000, maxconn: 500, scale: 100, chaos: true },
    platform: "Deno 2.19.16, PostgreSQL 18.14",
    elapsed: 43_200,
    sessions: { now: 500, most: 500, looks: 12_345_678 },
    pools: [{ name: "worker 1", ...pool }, { name: "worker 2", ...pool }],
    metrics,
    commits: Array.from({ length: 200 }, (_, n) => n),
    strikes: { "backends killed": 98_765 },
  };
  for (const line of picture(scene, (_style, text) => text)) assert(line.length <= 79, line);
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
  const ledger = new Ledger();
  for (const id of [1, 2]) ledger.set(id, "sent");
  ledger.add(structuredClone([[2, "acknowledged"], [3, "unknown"]]));
  assertEquals([...ledger], [[1, "sent"], [2, "acknowledged"], [3, "unknown"]]);
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
