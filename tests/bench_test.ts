/** The benchmarks run, and write what others read. Their figures are not for a test. */

import { assert, assertEquals } from "@std/assert";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import type { Results } from "../bench/figures.ts";
import { runner, test } from "./support/harness.ts";

const MAIN = fileURLToPath(new URL("../bench/main.ts", import.meta.url));
const FLAGS = runner === "deno" ? ["run", "-A", "--v8-flags=--expose-gc"] : [];

function bench(...args: string[]): Promise<{ stdout: string; stderr: string }> {
  return promisify(execFile)(process.execPath, [...FLAGS, MAIN, ...args]);
}

test("bench --quick --only writes figures, a table and charts of that row and curve", async () => {
  const folder = await mkdtemp(join(tmpdir(), "getconn-bench-"));
  try {
    const only = ["--only", "borrow-any,curve-keys"];
    const { stdout } = await bench("--quick", ...only, "--out", folder);
    assert(stdout.includes("tarn"), stdout);
    const results = JSON.parse(await readFile(join(folder, "results.json"), "utf8")) as Results;
    const { rows, curves } = results.runtimes[runner as "deno" | "bun"]!;
    assertEquals(rows.map(({ name }) => name), ["borrow-any"]);
    assertEquals(curves.map(({ name }) => name), ["curve-keys"]);
    for (const { name, rounds, median } of rows[0]!.outcomes) {
      assertEquals(rounds.length, 2, name);
      assert(median > 0 && median < 1e7, `${name}: ${median}`);
    }
    for (const { against, low, median, high } of rows[0]!.comparisons) {
      assert(0 < low && low <= median && median <= high, against);
    }
    assert((await readFile(join(folder, "results.md"), "utf8")).includes("| tarn"));
    for (const chart of ["rows.svg", "keys.svg"]) {
      assert((await readFile(join(folder, "charts", chart), "utf8")).startsWith("<svg"), chart);
    }
  } finally {
    await rm(folder, { recursive: true });
  }
}, { timeout: 300_000 });

test("bench --list names rows; an unknown row is refused", async () => {
  assert((await bench("--list")).stdout.includes("leased-query"));
  const failure = await bench("--only", "nothing").catch((error) => error);
  assertEquals(failure.code, 2);
  assert(failure.stderr.includes('no row or curve "nothing"'));
});
