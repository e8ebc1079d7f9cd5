/** Runs seeds: `--seed N`, `--seeds N`, `--minutes M`, `--from N`. */

import process from "node:process";
import { parseArgs } from "node:util";
import { type Result, simulate } from "./run.ts";

const { values } = parseArgs({
  args: process.argv.slice(2),
  options: {
    seed: { type: "string" },
    from: { type: "string" },
    seeds: { type: "string" },
    minutes: { type: "string" },
    log: { type: "boolean" },
  },
});

function add(into: Record<string, number>, from: Readonly<Record<string, number>>): void {
  for (const [name, count] of Object.entries(from)) into[name] = (into[name] ?? 0) + count;
}

function tell(result: Result): void {
  console.log(result.lines.join("\n"));
  console.log(result.failure);
  console.log("faults:", result.kinds.join(" "));
}

const first = Number(values.seed ?? values.from ?? Date.now() % 1e9);
const many = values.seed !== undefined ? 1 : Number(values.seeds ?? Infinity);
const until = performance.now() +
  (values.minutes === undefined ? Infinity : Number(values.minutes) * 60_000);
const begun = performance.now();
const faults: Record<string, number> = {};
const done: Record<string, number> = {};
const failed: number[] = [];
let seeds = 0;
let steps = 0;
let lived = 0;
for (let seed = first; seeds < many && performance.now() < until; seed++) {
  const result = await simulate(seed);
  seeds++;
  steps += result.steps;
  lived += result.lived;
  add(faults, result.faults);
  add(done, result.done);
  if (values.seed !== undefined) {
    if (values.log || result.failure !== null) tell(result);
    console.log(`seed ${seed}: hash ${result.hash}, ${result.steps} steps`);
  } else if (result.failure !== null) {
    console.log(`seed ${seed}: ${String(result.failure).split("\n")[0]}`);
  }
  if (result.failure !== null) failed.push(seed);
}
const minutes = (performance.now() - begun) / 60_000;
if (values.seed === undefined) {
  console.log(
    `${seeds} seeds, ${Math.round(seeds / minutes)} a minute, ${steps} steps, ${
      (lived / 3_600_000).toFixed(1)
    } virtual hours`,
  );
  console.log("faults:", faults);
  console.log("calls:", done);
  console.log(failed.length === 0 ? "all held" : `failed: ${failed.join(" ")}`);
}
process.exit(failed.length === 0 ? 0 : 1);
