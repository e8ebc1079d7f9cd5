/** Results for the terminal. */

import type { CurveResult } from "./figures.ts";
import type { RowResult } from "./run.ts";
import { short } from "./stats.ts";

/** One row. */
export function printRow(row: RowResult): void {
  console.log(`\n${row.title} (${row.unit}; ${row.better} is better)`);
  for (const { name, median, low, high, kind, more } of row.outcomes) {
    const ratio = row.comparisons.find(({ against }) => against === name);
    const versus = ratio === undefined
      ? ""
      : `ours ${short(ratio.median)} × (${short(ratio.low)} … ${short(ratio.high)})`;
    const beside = Object.entries(more).map(([key, one]) => `${key} ${short(one.median)}`);
    console.log(
      `  ${(kind === "limit" ? `${name} (limit)` : name).padEnd(26)}${short(median).padStart(10)}` +
        `  (${short(low)} … ${short(high)})`.padEnd(24) + `${versus.padEnd(32)}${beside.join(" ")}`,
    );
  }
  for (const { goal, reached, met } of row.verdicts) {
    console.log(`  goal ${goal}: ${short(reached)}, ${met ? "met" : "MISSED"}`);
  }
}

/** The figures of one curve: a line for each x, a column for each series. */
export function printCurve(curve: CurveResult): void {
  console.log(`\n${curve.title} (${curve.y}, by ${curve.x})`);
  for (const line of grid(curve)) {
    console.log("  " + line.map((text) => text.padStart(16)).join(""));
  }
}

/** The figures of a curve as a table, its head first. */
export function grid(curve: CurveResult): string[][] {
  const xs = new Set(curve.series.flatMap(({ points }) => points.map(({ x }) => x)));
  const head = [curve.x, ...curve.series.map(({ name }) => name)];
  const body = [...xs].sort((a, b) => a - b).map((at) => [
    at.toString().replace(/\B(?=(\d{3})+$)/g, " "),
    ...curve.series.map(({ points }) => short(points.find(({ x }) => x === at)?.y ?? NaN)),
  ]);
  return [head, ...body];
}
