/** The demo as a user runs it. */

import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { deadline } from "@std/async/deadline";
import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { auditTasks } from "../examples/demo/audit.ts";
import { Crew } from "../examples/demo/crew.ts";
import { readOptions, UsageError } from "../examples/demo/options.ts";
import { runner, test } from "./support/harness.ts";
import { asAdmin, testServer } from "./support/server.ts";

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

test("the demo with workers and chaos passes its audit on a server of its own", async () => {
  const args = ["--seconds", "4", "--workers", "3", "--tasks", "20"];
  const ended = await demo(args, { DATABASE_URL: "" });
  assertAudited(ended, 10);
  assertStringIncludes(ended.output, "starting 3 workers");
  assertMatch(ended.output, /\n {2}1 s \| sessions [0-4] \(most [1-4] of 4\)/);
  assertStringIncludes(ended.output, "by 20 tasks in 3 workers");
  // Four seconds are enough for three strikes at least, which go by turns.
  assertMatch(ended.output, /backends killed: [1-9]/);
  assertMatch(ended.output, /workers terminated: [1-9]/);
  assertMatch(ended.output, /every task ended +20 of 20, [1-9]\d* terminated\n/);
});

test("the demo in one isolate passes its audit, and has no workers to terminate", async () => {
  const ended = await demo(["--seconds", "3", "--workers", "0"], { DATABASE_URL: "" });
  assertAudited(ended, 10);
  assertMatch(ended.output, /backends killed: [1-9]/);
  assertEquals(ended.output.includes("workers"), false, ended.output);
});

test("the demo runs on the server of DATABASE_URL and leaves nothing behind", async () => {
  const { url } = await testServer();
  const args = ["--seconds", "1", "--tasks", "9", "--maxconn", "2", "--no-chaos"];
  const ended = await demo(args, { DATABASE_URL: url });
  assertAudited(ended, 10);
  assertMatch(ended.output, /every task ended +9 of 9\n/);
  assertStringIncludes(ended.output, "Chaos: none.");
  assertMatch(ended.output, /unknown outcomes: there once or not at all +0 of 0 there/);
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

test(
  "the demo's tasks have not ended when a worker failed that nobody terminated",
  async () => {
    const sizes = { seconds: 1, tasks: 5, workers: 2, maxconn: 2, scale: 1, chaos: false };
    const place = {
      url: "postgres://127.0.0.1:1/none",
      connection: { application_name: "none", search_path: "none" },
    };
    const script = new URL("./fixtures/broken_worker.ts", import.meta.url);
    await using crew = new Crew(place, sizes, script);
    await assertRejects(() => crew.prepare(), Error, "this worker fails on purpose");
    assertEquals(await crew.mischiefs[0]!.strike(), false, "there is nobody left to terminate");
    // It does not wait for those who will never tell anything.
    await deadline(crew.stop(), 20_000);
    const { passed, found } = auditTasks(crew.tasks());
    assertEquals(passed, false);
    assertMatch(found, /^0 of 5, worker 1: .*fails on purpose.*, worker 2: .*fails on purpose/);
  },
  // The runtimes end a worker in their own time, which the sanitizers take for a leak of the test.
  { sanitize: false },
);

test("the demo tells which server cannot be reached, and no password", async () => {
  const ended = await demo([], { DATABASE_URL: "postgres://me:hushhush@127.0.0.1:1/none" });
  assertEquals(ended.code, 1);
  assertMatch(ended.output, /ECONNREFUSED/);
  assertEquals(ended.output.includes("hushhush"), false);
});

test("the demo's options: defaults, help, and clear words for bad ones", () => {
  const defaults = { seconds: 15, tasks: 64, workers: 4, maxconn: 4, scale: 1, chaos: true };
  assertEquals(readOptions([]), defaults);
  assertEquals(readOptions(["--help"]), "help");
  assertEquals(readOptions(["--workers", "0"]), { ...defaults, workers: 0 });
  assertEquals(readOptions(["--seconds=2.5", "--no-chaos", "--maxconn", "8"]), {
    ...defaults,
    seconds: 2.5,
    chaos: false,
    maxconn: 8,
  });
  const bad = ["--seconds 0", "--seconds -3", "--tasks 1.5", "--tasks", "--maxconn=", "--nope"];
  bad.push("--workers -1", "--workers=65", "--workers two", "--workers=");
  for (const line of [...bad, "--scale 101", "--maxconn 1e2", "more", "--no-chaos=1"]) {
    let thrown: unknown;
    try {
      readOptions(line.split(" "));
    } catch (error) {
      thrown = error;
    }
    assert(thrown instanceof UsageError, line);
    assertMatch(thrown.message, /--(seconds|tasks|workers|maxconn|scale|nope|no-chaos)|'more'/);
  }
});
