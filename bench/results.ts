/** results.json: the figures of both runtimes, and on what they were taken. */

import { mkdir, readFile, writeFile } from "node:fs/promises";
import os from "node:os";
import { join } from "node:path";
import process from "node:process";
import type { Bench, Runtime } from "./contest.ts";
import { writeCharts } from "./chart.ts";
import { markdown } from "./markdown.ts";
import type { Results, Update } from "./figures.ts";

const PACKAGES = ["postgres", "pg", "pg-pool", "tarn", "generic-pool", "mitata"];

/** What stands in the folder; null when nothing does. */
export async function readResults(folder: string): Promise<Results | null> {
  try {
    return JSON.parse(await readFile(join(folder, "results.json"), "utf8")) as Results;
  } catch {
    return null;
  }
}

/** Writes the three kinds of files, with what this run found in the place of what was there. */
export async function saveResults(
  folder: string,
  before: Results | null,
  update: Update,
  bench: Bench,
): Promise<void> {
  await mkdir(folder, { recursive: true });
  const old = before?.runtimes[bench.runtime];
  const runtimes = {
    ...before?.runtimes,
    [bench.runtime]: {
      version: version(bench.runtime),
      date: new Date().toISOString().slice(0, 10),
      rounds: bench.rounds,
      rows: merge(old?.rows, update.rows),
      curves: merge(old?.curves, update.curves),
    },
  };
  const { deno, bun } = runtimes;
  const results: Results = {
    machine: machine(),
    packages: await packages(),
    runtimes: { ...(deno && { deno }), ...(bun && { bun }) },
  };
  await writeFile(join(folder, "results.json"), JSON.stringify(results, rounded, 1) + "\n");
  await writeFile(join(folder, "results.md"), markdown(results));
  await writeCharts(folder, results);
}

function merge<T extends { readonly name: string }>(old: readonly T[] = [], found: T[]): T[] {
  const kept = old.map((one) => found.find(({ name }) => name === one.name) ?? one);
  return [...kept, ...found.filter(({ name }) => !old.some((one) => one.name === name))];
}

/** Six digits are more than any of these figures is good for. */
function rounded(_key: string, value: unknown): unknown {
  return typeof value === "number" ? Number(value.toPrecision(6)) : value;
}

function machine(): string {
  const cpus = os.cpus();
  const memory = Math.round(os.totalmem() / 2 ** 30);
  const model = cpus[0]?.model.trim() || "unknown processor";
  return `${cpus.length} × ${model}, ${memory} GiB, ${os.type()} ${os.arch()}`;
}

function version(runtime: Runtime): string {
  const { deno, bun } = process.versions as Record<string, string | undefined>;
  return runtime === "bun" ? `Bun ${bun}` : `Deno ${deno}`;
}

async function packages(): Promise<Record<string, string>> {
  const versions: Record<string, string> = {};
  for (const name of PACKAGES) {
    const path = new URL(`../node_modules/${name}/package.json`, import.meta.url);
    try {
      versions[name] = (JSON.parse(await readFile(path, "utf8")) as { version: string }).version;
    } catch {
      // It came with another package, and stands in no place of its own.
    }
  }
  return versions;
}
