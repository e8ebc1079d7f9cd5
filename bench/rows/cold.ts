/** A fresh process: import, connect, first row. */

import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { type Bench, type Contestant, expect, type Row, type Sample } from "../contest.ts";

function path(name: string): string {
  return fileURLToPath(new URL(`../cold/${name}.ts`, import.meta.url));
}

/** Milliseconds from the start of the process to its first row, and those from its own first line on. */
function once(bench: Bench, url: string, script: string): Promise<[number, number]> {
  const flags = bench.runtime === "deno" ? ["run", "-A", "--no-check"] : [];
  return new Promise((resolve, reject) => {
    const began = performance.now();
    const child = spawn(process.execPath, [...flags, path(script)], {
      env: { ...process.env, DATABASE_URL: url },
      stdio: ["ignore", "pipe", "inherit"],
    });
    let result: [number, number] | undefined;
    child.stdout.on("data", (text) => result = [performance.now() - began, Number(text)]);
    child.on("error", reject);
    child.on("close", () => {
      if (result === undefined || Number.isNaN(result[1])) reject(new Error(`${script} failed`));
      else resolve(result);
    });
  });
}

function freshly(bench: Bench, name: string, kind: Contestant["kind"], script: string) {
  return {
    name,
    kind,
    start: async () => {
      const url = await bench.url();
      return {
        round: async (): Promise<Sample> => {
          const [value, inside] = await once(bench, url, script);
          expect(inside > 0, "no time");
          return { value, more: { inside } };
        },
        stop: () => Promise.resolve(),
      };
    },
  };
}

/** Each round is the median of five processes. */
export const cold: Row = {
  name: "cold",
  title: "a fresh process up to its first row",
  unit: "ms",
  better: "less",
  // At most 1.05 × the time.
  goals: [{ against: ["postgres.js"], ratio: 0.952 }],
  contestants: (bench) => [
    freshly(bench, "ours", "ours", "ours"),
    freshly(bench, "postgres.js", "peer", "postgres_js"),
    freshly(bench, "pg", "peer", "node_postgres"),
  ],
};
