/** results.md: every figure, for people. */

import type { Results } from "./figures.ts";
import type { RowResult } from "./run.ts";
import { short } from "./stats.ts";
import { grid } from "./table.ts";

/** The whole file. */
export function markdown(results: Results): string {
  const packages = Object.entries(results.packages).map(([name, version]) => `${name} ${version}`);
  const lines = [
    "# Results of the benchmarks",
    "",
    "Written by `deno task bench` and `bun run bench`; what the figures mean stands in",
    "[docs/performance.md](../docs/performance.md).",
    "",
    `- Machine: ${results.machine}`,
    `- Peers: ${packages.join(", ")}`,
    ...Object.values(results.runtimes).map(({ version, date, rounds }) =>
      `- ${version}: ${date}, ${rounds} rounds`
    ),
    "",
    "A ratio says how many times better ours is: the median over the rounds, and in brackets the",
    "quartiles.",
  ];
  for (const { version, rows, curves } of Object.values(results.runtimes)) {
    lines.push("", `## ${version}`);
    for (const row of rows) lines.push("", `### ${row.title}`, "", ...rowTable(row));
    for (const curve of curves) {
      lines.push("", `### ${curve.title}`, "", `${curve.y}, by ${curve.x}.`, "");
      lines.push(...table(grid(curve)));
    }
  }
  return lines.join("\n") + "\n";
}

function rowTable(row: RowResult): string[] {
  const beside = Object.keys(row.outcomes[0]?.more ?? {});
  const body = row.outcomes.map(({ name, kind, median, low, high, more }) => {
    const ratio = row.comparisons.find(({ against }) => against === name);
    return [
      kind === "limit" ? `${name} (limit)` : name,
      `${short(median)} (${short(low)} … ${short(high)})`,
      ...beside.map((key) => short(more[key]?.median ?? NaN)),
      ratio === undefined
        ? ""
        : `${short(ratio.median)} (${short(ratio.low)} … ${short(ratio.high)})`,
    ];
  });
  const lines = table([["", `${row.unit}, ${row.better} is better`, ...beside, "ratio"], ...body]);
  for (const { goal, reached, met } of row.verdicts) {
    lines.push("", `Goal ${goal}: ${short(reached)}, ${met ? "met" : "**missed**"}.`);
  }
  return lines;
}

/** A table that `deno fmt` leaves as it is. */
export function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, i) => Math.max(3, ...rows.map((row) => row[i]!.length)));
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell, i) => cell.padEnd(widths[i]!)).join(" | ")} |`;
  return [
    line(rows[0]!),
    `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`,
    ...rows.slice(1).map(line),
  ];
}
