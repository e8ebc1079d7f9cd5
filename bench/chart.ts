/** The charts, by Vega-Lite, which needs no browser. */

import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parse, View } from "vega";
import { compile, type TopLevelSpec } from "vega-lite";
import type { CurveResult, Results, RuntimeResults } from "./figures.ts";

const FONT = "system-ui, sans-serif";
const CONFIG = {
  background: "white",
  font: FONT,
  axis: { labelFontSize: 11, titleFontSize: 12, grid: true, gridColor: "#eee" },
  title: { fontSize: 14, anchor: "start" },
  legend: { labelFontSize: 11, titleFontSize: 12, orient: "bottom", columns: 4 },
} as const;

/** One chart of all rows, and one for each curve, both runtimes side by side. */
export async function writeCharts(folder: string, results: Results): Promise<void> {
  const charts = join(folder, "charts");
  await mkdir(charts, { recursive: true });
  const runs = Object.values(results.runtimes);
  await writeFile(join(charts, "rows.svg"), await svg(rowsChart(results, runs)));
  const names = new Set(runs.flatMap(({ curves }) => curves.map(({ name }) => name)));
  for (const name of names) {
    const found = runs.flatMap(({ version, curves }) => {
      const curve = curves.find((one) => one.name === name);
      return curve === undefined ? [] : [{ version, curve }];
    });
    await writeFile(join(charts, `${name.replace("curve-", "")}.svg`), await svg(lines(found)));
  }
}

async function svg(spec: unknown): Promise<string> {
  const view = new View(parse(compile(spec as TopLevelSpec).spec), { renderer: "none" });
  const text = await view.toSVG();
  view.finalize();
  return text + "\n";
}

/** How many times better ours is than each peer, with the spread, by row. */
function rowsChart(results: Results, runs: readonly RuntimeResults[]): object {
  const values = runs.flatMap(({ version, rows }) =>
    rows.flatMap(({ name, outcomes, comparisons }) =>
      comparisons
        .filter(({ against }) => outcomes.find((one) => one.name === against)?.kind === "peer")
        .filter(({ against }) => !against.startsWith("ours"))
        .map(({ against, median, low, high }) => ({
          version,
          what: `${name}: ${against}`,
          median,
          low,
          high,
          better: median >= 1 ? "ours is better" : "the peer is better",
        }))
    )
  );
  const [date] = runs.map(({ date }) => date).sort().reverse();
  return {
    config: CONFIG,
    data: { values },
    title: {
      text: "How many times better than each peer, on the same work in the same run",
      subtitle: [
        `${runs.map(({ version }) => version).join(", ")} · ${results.machine} · ${date}`,
        Object.entries(results.packages).map(([name, is]) => `${name} ${is}`).join(", "),
      ],
    },
    facet: {
      column: { field: "version", title: null, sort: "descending", header: { labelFontSize: 13 } },
    },
    spec: {
      width: 330,
      height: { step: 17 },
      encoding: {
        y: {
          field: "what",
          type: "nominal",
          sort: null,
          title: null,
          axis: { labelLimit: 300 },
        },
      },
      layer: [
        {
          mark: { type: "rule", color: "#bbb" },
          encoding: { x: { datum: 1, type: "quantitative" }, y: null },
        },
        {
          mark: { type: "rule", strokeWidth: 3, opacity: 0.35 },
          encoding: {
            x: {
              field: "low",
              type: "quantitative",
              scale: { type: "log" },
              axis: { title: "times better (1 = the same)", format: "~g", tickCount: 6 },
            },
            x2: { field: "high" },
            color: { field: "better", type: "nominal" },
          },
        },
        {
          mark: { type: "point", filled: true, size: 60, opacity: 1 },
          encoding: {
            x: { field: "median", type: "quantitative" },
            color: {
              field: "better",
              type: "nominal",
              title: null,
              scale: {
                domain: ["ours is better", "the peer is better"],
                range: ["#1a7f4b", "#b3541e"],
              },
            },
          },
        },
      ],
    },
  };
}

function lines(found: readonly { version: string; curve: CurveResult }[]): object {
  const { title, x, y, linear } = found[0]!.curve;
  const values = found.flatMap(({ version, curve }) =>
    curve.series.flatMap(({ name, points }) =>
      points.filter((point) => point.y > 0).map((point) => ({ version, series: name, ...point }))
    )
  );
  const axis = { format: "~s", labelOverlap: true };
  return {
    config: CONFIG,
    data: { values },
    title,
    facet: {
      column: { field: "version", title: null, sort: "descending", header: { labelFontSize: 13 } },
    },
    spec: {
      width: 330,
      height: 220,
      mark: { type: "line", point: { size: 30 }, strokeWidth: 2 },
      encoding: {
        x: {
          field: "x",
          type: "quantitative",
          scale: { type: linear ? "linear" : "log" },
          axis,
          title: x,
        },
        y: { field: "y", type: "quantitative", scale: { type: "log" }, axis, title: y },
        color: { field: "series", type: "nominal", sort: null, title: null },
      },
    },
  };
}
