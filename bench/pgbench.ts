/** pgbench on the same statement: what the server gives to a client that costs nothing. */

import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Bench, Contestant } from "./contest.ts";

const execute = promisify(execFile);

/** The contestant, where pgbench is installed; one statement at a time on each connection. */
export async function pgbench(bench: Bench, url: string, max: number): Promise<Contestant[]> {
  try {
    await execute("pgbench", ["--version"]);
  } catch {
    return [];
  }
  // About as long as a round of the others.
  const count = Math.max(50, Math.round(bench.span * 5));
  return [{
    name: `pgbench -c ${max}`,
    kind: "limit",
    start: async () => {
      const folder = await mkdtemp(join(tmpdir(), "getconn-bench-"));
      const script = join(folder, "statement.sql");
      await writeFile(script, "\\set x random(1, 1000000)\nselect :x::int as x;\n");
      const args = ["-n", "-M", "prepared", "-c", String(max), "-j", "2", "-f", script];
      return {
        round: async () => {
          const { stdout } = await execute("pgbench", [...args, "-t", String(count), url]);
          return { value: Number(/tps = ([\d.]+)/.exec(stdout)?.[1]) };
        },
        stop: () => rm(folder, { recursive: true }),
      };
    },
  }];
}
