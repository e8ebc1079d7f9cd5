/** A fresh process: import, connect, first row. */

import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { installed } from "../cold_home.ts";
import { type Bench, type Contestant, expect, type Row, type Sample } from "../contest.ts";

/** Milliseconds from the start of the process to its first row, and those from its own first line on. */
function once(
  bench: Bench,
  url: string,
  home: string,
  script: string,
): Promise<[number, number]> {
  const flags = bench.runtime === "deno" ? ["run", "-A", "--no-check"] : [];
  return new Promise((resolve, reject) => {
    const began = performance.now();
    const child = spawn(process.execPath, [...flags, join(home, `${script}.ts`)], {
      cwd: home,
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

function freshly(
  bench: Bench,
  home: string,
  name: string,
  kind: Contestant["kind"],
  script: string,
) {
  return {
    name,
    kind,
    start: async () => {
      const url = await bench.url();
      return {
        round: async (): Promise<Sample> => {
          const [value, inside] = await once(bench, url, home, script);
          expect(inside > 0, "no time");
          return { value, more: { inside } };
        },
        stop: () => Promise.resolve(),
      };
    },
  };
}

export const cold: Row = {
  name: "cold",
  title: "a fresh process up to its first row",
  unit: "ms",
  better: "less",
  // At most 1.05 × the time.
  goals: [{ against: ["postgres.js"], ratio: 0.952 }],
  contestants: async (bench) => {
    // Deno's users get the sources, which it keeps compiled; Bun's get JavaScript.
    const sources = fileURLToPath(new URL("../cold/", import.meta.url));
    const home = bench.runtime === "bun" ? await installed() : sources;
    return [
      freshly(bench, home, "ours", "ours", "ours"),
      freshly(bench, home, "postgres.js", "peer", "postgres_js"),
      freshly(bench, home, "pg", "peer", "node_postgres"),
    ];
  },
};
