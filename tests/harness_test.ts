import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { runner, test } from "./support/harness.ts";

const FIXTURE = fileURLToPath(new URL("./fixtures/harness_fixture.ts", import.meta.url));

/** Runs the fixture under this same runner: each test's outcome by name, and all that was said. */
async function runFixture(env: Record<string, string>) {
  const folder = await mkdtemp(join(tmpdir(), "getconn-harness-"));
  try {
    const report = join(folder, "report.xml");
    const args = runner === "deno"
      ? ["test", "-A", "--no-check", `--junit-path=${report}`, FIXTURE]
      : ["test", "--reporter=junit", `--reporter-outfile=${report}`, FIXTURE];
    const child = spawn(process.execPath, args, {
      env: { ...process.env, NO_COLOR: "1", GETCONN_NO_SKIP: "", ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream?.on("data", (data: unknown) => output += String(data));
    }
    const code = await new Promise<number | null>((resolve) => child.once("close", resolve));
    const outcomes: Record<string, string> = {};
    for (const text of (await readFile(report, "utf8")).split("<testcase ").slice(1)) {
      const name = /name="([^"]*)"/.exec(text)?.[1] ?? "?";
      outcomes[name] = /<(failure|error|skipped)\b/.exec(text)?.[1] ?? "passed";
    }
    return { code, output, outcomes };
  } finally {
    await rm(folder, { recursive: true });
  }
}

test("test() turns a hang, an exit and a stray error into failures under the test's name", async () => {
  const { code, output, outcomes } = await runFixture({});
  assert(code !== 0);
  const { "has a reason to skip": skipped, "leaks a timer": leak, ...others } = outcomes;
  assertEquals(others, {
    "passes": "passed",
    "throws": "failure",
    "hangs": "failure",
    "rejects aside": "failure",
    "throws aside": "failure",
    "exits": "failure",
    "passes in the end": "passed",
  });
  // Bun has no leak sanitizer.
  assertEquals(leak, runner === "deno" ? "failure" : "passed");
  assertEquals(skipped, "skipped");
  assertStringIncludes(output, "skipped: has a reason to skip: a good reason");
});

test("test() fails instead of skipping where no test may be skipped", async () => {
  const { output, outcomes } = await runFixture({ GETCONN_NO_SKIP: "1" });
  assertEquals(outcomes["has a reason to skip"], "failure");
  assertStringIncludes(output, "skipped where no test may be skipped: a good reason");
});
