/** Throughput and latency of real statements, by the number of tasks and of connections. */

import type { Bench, Curve, Series } from "../contest.ts";
import { load } from "../load.ts";
import { sharers, sharing } from "../rows/shared.ts";
import { leasers, leasing, type Loaded } from "../rows/statements.ts";
import { median } from "../stats.ts";

type Figure = "value" | "p50" | "p99";
type Starter = (name: string, url: string, max: number) => Promise<Loaded>;

const TASKS = [1, 4, 16, 64, 256, 1024];
const MAXCONN = [1, 2, 4, 8, 16, 32];

/** What was measured once serves three charts. */
const measured = new Map<string, Promise<Map<string, Map<number, Record<Figure, number>>>>>();

async function byTasks(bench: Bench, names: readonly string[], start: Starter) {
  const url = await bench.url();
  const all = [];
  for (const name of names) all.push({ name, ...await start(name, url, 4) });
  const found = new Map(
    names.map((name) => [name, new Map<number, Record<Figure, number>>()] as const),
  );
  for (const tasks of bench.quick ? [1, 16] : TASKS) {
    const samples = new Map(names.map((name) => [name, [] as Record<Figure, number>[]]));
    for (let round = bench.quick ? 1 : 0; round <= Math.min(7, bench.rounds); round++) {
      for (const { name, work } of all) {
        const { value, more } = await load(tasks, bench.span / 2, work);
        if (round > 0) samples.get(name)!.push({ value, p50: more!["p50"]!, p99: more!["p99"]! });
      }
    }
    for (const [name, taken] of samples) {
      const middle = (figure: Figure): number => median(taken.map((one) => one[figure]));
      found.get(name)!.set(tasks, {
        value: middle("value"),
        p50: middle("p50"),
        p99: middle("p99"),
      });
    }
  }
  for (const { stop } of all) await stop();
  return found;
}

function tasksCurve(
  name: string,
  title: string,
  y: string,
  figure: Figure,
  way: "lease" | "share",
): Curve {
  return {
    name,
    title,
    x: "tasks",
    y,
    measure: async (bench) => {
      const names = way === "lease" ? leasers(bench.runtime) : sharers(bench.runtime);
      const start = way === "lease" ? leasing : sharing;
      let found = measured.get(way);
      if (found === undefined) measured.set(way, found = byTasks(bench, names, start));
      return [...await found].map(([name, points]): Series => ({
        name,
        points: [...points].map(([x, figures]) => ({ x, y: figures[figure] })),
      }));
    },
  };
}

const maxconn: Curve = {
  name: "curve-maxconn",
  title: "64 tasks with exclusive leases, by maxconn",
  x: "maxconn",
  y: "statements/s",
  measure: async (bench) => {
    const url = await bench.url();
    const names = leasers(bench.runtime);
    const series = names.map((name) => ({ name, points: [] as { x: number; y: number }[] }));
    for (const max of bench.quick ? [2] : MAXCONN) {
      const all = [];
      for (const name of names) all.push(await leasing(name, url, max));
      const values = names.map(() => [] as number[]);
      for (let round = bench.quick ? 1 : 0; round <= Math.min(7, bench.rounds); round++) {
        for (const [i, { work }] of all.entries()) {
          const { value } = await load(64, bench.span / 2, work);
          if (round > 0) values[i]!.push(value);
        }
      }
      for (const [i, { points }] of series.entries()) {
        points.push({ x: max, y: median(values[i]!) });
      }
      for (const { stop } of all) await stop();
    }
    return series;
  },
};

function tasksCurves(name: string, title: string, way: "lease" | "share"): Curve[] {
  return [
    tasksCurve(name, title, "statements/s", "value", way),
    tasksCurve(`${name}-p50`, "the same: median time of one", "µs", "p50", way),
    tasksCurve(`${name}-p99`, "the same: 99th percentile", "µs", "p99", way),
  ];
}

/** All of them. */
export const LOAD_CURVES: readonly Curve[] = [
  ...tasksCurves("curve-tasks", "exclusive leases of 4 connections, by tasks", "lease"),
  maxconn,
];

/** Those of `pool.sql`. */
export const SHARE_CURVES: readonly Curve[] = tasksCurves(
  "curve-sql",
  "single statements on 4 shared connections, by tasks",
  "share",
);
