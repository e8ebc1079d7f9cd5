/**
 * Runs seeds.
 *
 * - `--seed N`: one, with the log of its end when it fails, or with `--log`; `--shrink`: with as little of it as fails.
 * - `--seeds N`, `--minutes M`, `--from N`: many; `--stop`: up to the first that fails.
 * - `--jobs N`: in so many processes, two unless told otherwise.
 * - `--runtime bun`, or `deno`: in another runtime than this.
 */

import { spawn } from "node:child_process";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Coverage } from "./coverage.ts";
import { type Result, simulate } from "./run.ts";
import { shrink } from "./shrink.ts";

const options = {
  seed: { type: "string" },
  from: { type: "string" },
  seeds: { type: "string" },
  minutes: { type: "string" },
  jobs: { type: "string" },
  step: { type: "string" },
  runtime: { type: "string" },
  stop: { type: "boolean" },
  shrink: { type: "boolean" },
  log: { type: "boolean" },
  child: { type: "boolean" },
} as const;

const values = flags();

function flags(): ReturnType<typeof parseArgs<{ options: typeof options }>>["values"] {
  try {
    return parseArgs({ args: process.argv.slice(2), options }).values;
  } catch (error) {
    return refuse((error as Error).message);
  }
}

/** What a flag says, in numbers; ends with 2 when that is none. */
function given(name: "seed" | "from" | "seeds" | "minutes" | "jobs" | "step"): number | undefined {
  const text = values[name];
  if (text === undefined) return undefined;
  const whole = name !== "minutes";
  const least = name === "seed" || name === "from" ? 0 : whole ? 1 : 0.001;
  const value = text.trim() === "" ? NaN : Number(text);
  if (value >= least && value <= 2 ** 53 && (!whole || Number.isInteger(value))) return value;
  const kind = whole ? `an integer of at least ${least}` : "a number above 0";
  return refuse(`--${name} must be ${kind}, received ${JSON.stringify(text)}`);
}

function refuse(why: string): never {
  console.error(why);
  process.exit(2);
}

const HERE = fileURLToPath(import.meta.url);
const OWN = "Bun" in globalThis ? "bun" : "deno";

type Counts = Record<string, number>;

/** What many seeds came to. */
class Total {
  seeds = 0;
  steps = 0;
  lived = 0;
  readonly faults: Counts = {};
  readonly done: Counts = {};
  readonly coverage: Counts = {};
  readonly failed: number[] = [];

  add(result: Result): void {
    this.seeds++;
    this.steps += result.steps;
    this.lived += result.lived;
    addTo(this.faults, result.faults);
    addTo(this.done, result.done);
    if (result.failure !== null) this.failed.push(result.seed);
  }

  merge(other: Total): void {
    this.seeds += other.seeds;
    this.steps += other.steps;
    this.lived += other.lived;
    addTo(this.faults, other.faults);
    addTo(this.done, other.done);
    addTo(this.coverage, other.coverage);
    this.failed.push(...other.failed);
  }
}

function addTo(into: Counts, from: Readonly<Counts>): void {
  for (const [name, count] of Object.entries(from)) into[name] = (into[name] ?? 0) + count;
}

function said(result: Result): string {
  return `seed ${result.seed}: ${String(result.failure).split("\n")[0]}`;
}

/** One seed, for people. */
async function one(seed: number): Promise<void> {
  const result = await simulate(seed);
  if (values.log || result.failure !== null) {
    console.log(result.lines.join("\n"));
    console.log(result.failure);
    console.log("kind and faults:", result.kinds.join(" "));
  }
  if (values.shrink && result.failure !== null) {
    const { without, result: least } = await shrink(result, (tried) => console.log(tried));
    console.log(least.lines.join("\n"));
    console.log(least.failure);
    console.log("needs:", least.kinds.join(" "), least.acts.join(" "));
    console.log("without:", [...without.faults ?? []].join(" "));
  }
  console.log(`seed ${seed}: hash ${result.hash}, ${result.steps} steps`);
  process.exit(result.failure === null ? 0 : 1);
}

/** Many, in this process. */
async function many(told: (line: string) => void): Promise<Total> {
  const total = new Total();
  const coverage = new Coverage();
  const first = given("from") ?? Date.now() % 1e9;
  const step = given("step") ?? 1;
  const most = given("seeds") ?? Infinity;
  const until = performance.now() + (given("minutes") ?? Infinity) * 60_000;
  for (let i = 0; i < most && performance.now() < until; i++) {
    const result = await simulate(first + i * step);
    total.add(result);
    if (result.failure !== null) told(said(result));
    if (result.failure !== null && values.stop) break;
  }
  addTo(total.coverage, coverage.counts);
  coverage.dispose();
  return total;
}

/** Many, in several processes. */
async function spread(runtime: string, jobs: number): Promise<Total> {
  const total = new Total();
  const first = given("from") ?? Date.now() % 1e9;
  const seeds = given("seeds") ?? Infinity;
  await Promise.all(Array.from({ length: jobs }, (_, i) => {
    const args = ["--child", "--from", String(first + i), "--step", String(jobs)];
    if (seeds !== Infinity) args.push("--seeds", String(Math.ceil((seeds - i) / jobs)));
    if (values.minutes !== undefined) args.push("--minutes", values.minutes);
    if (values.stop) args.push("--stop");
    return child(runtime, args, total);
  }));
  return total;
}

function child(runtime: string, args: readonly string[], total: Total): Promise<void> {
  const before = runtime === "deno" ? ["run", "-A", "--no-check", HERE] : [HERE];
  const process = spawn(runtime, [...before, ...args], { stdio: ["ignore", "pipe", "inherit"] });
  createInterface({ input: process.stdout! }).on("line", (line) => {
    if (line.startsWith("{")) total.merge(JSON.parse(line));
    else console.log(line);
  });
  return new Promise((resolve, reject) => {
    process.on("error", reject);
    process.on("close", () => resolve());
  });
}

function report(total: Total, minutes: number): void {
  const { seeds, steps, lived, faults, done, coverage, failed } = total;
  const hours = (lived / 3_600_000).toFixed(1);
  console.log("faults:", faults);
  console.log("calls:", done);
  console.log(Coverage.report(coverage));
  console.log(
    `${seeds} seeds, ${
      Math.round(seeds / minutes)
    } a minute, ${steps} steps, ${hours} virtual hours`,
  );
  console.log(failed.length === 0 ? "all held" : `failed: ${failed.join(" ")}`);
}

const known = Object.keys(options) as (keyof typeof options)[];
for (const name of known) {
  if (options[name].type === "string" && name !== "runtime") given(name as "seed");
}
if (values.runtime !== undefined && !["deno", "bun"].includes(values.runtime)) {
  refuse(`--runtime must be deno or bun, received ${JSON.stringify(values.runtime)}`);
}
if (values.seed !== undefined) await one(given("seed")!);
else if (values.child) console.log(JSON.stringify(await many((line) => console.log(line))));
else {
  const begun = performance.now();
  const jobs = Math.min(given("jobs") ?? 2, given("seeds") ?? Infinity);
  const runtime = values.runtime ?? OWN;
  const total = jobs === 1 && runtime === OWN
    ? await many((line) => console.log(line))
    : await spread(runtime, jobs);
  report(total, (performance.now() - begun) / 60_000);
  process.exit(total.failed.length === 0 ? 0 : 1);
}
process.exit(0);
