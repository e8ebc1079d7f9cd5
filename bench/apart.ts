/** The same rows with each contestant in a process of its own, to see whether they disturb each other. */

import { execFile } from "node:child_process";
import process from "node:process";
import { promisify } from "node:util";
import type { Bench, Row } from "./contest.ts";
import { short } from "./stats.ts";

const execute = promisify(execFile);

/** Prints each contestant's median. */
export async function apart(rows: readonly Row[], bench: Bench): Promise<void> {
  const url = await bench.url();
  const flags = bench.runtime === "deno" ? ["run", "-A", "--v8-flags=--expose-gc"] : [];
  for (const row of rows) {
    console.log(`\n${row.title} (${row.unit}), each in its own process`);
    for (const { name } of await row.contestants(bench)) {
      const script = process.argv[1]!;
      const own = ["--only", row.name, "--alone", name, "--rounds", String(bench.rounds)];
      const { stdout } = await execute(
        process.execPath,
        [...flags, script, ...own, "--span", String(bench.span)],
        { env: { ...process.env, DATABASE_URL: url, NO_COLOR: "1" } },
      );
      const line = stdout.split("\n").find((text) => text.trim().startsWith(`${name}  `));
      console.log(line ?? `  ${name}: ${short(NaN)}`);
    }
  }
}
