/** One pool for all workers beside a pool for each of them. */

import type { Bench, Contestant, Curve, Row, Series } from "../contest.ts";
import { median } from "../stats.ts";
import { Crew, type Shift } from "../workers/crew.ts";

const MAX = 8;
const SHARED = "ours, one pool";
const SEPARATE = "a pool for each worker";

function crew(bench: Bench, shared: boolean, workers: number, shift: Shift): Contestant {
  // When work begins, connections move to whoever began first. That is no part of steady work.
  const rounds = bench.quick ? 1 : 6;
  return {
    name: shared ? SHARED : SEPARATE,
    kind: shared ? "ours" : "peer",
    start: async () => {
      const one = await Crew.start(workers, MAX, await bench.url(), shared);
      return { round: () => one.work(shift, bench.span * rounds), stop: () => one.stop() };
    },
  };
}

function row(name: string, title: string, workers: number, shift: Shift, ratio: number): Row {
  return {
    name,
    title,
    unit: "statements/s",
    better: "more",
    rounds: 8,
    goals: [{ against: [SEPARATE], ratio }],
    contestants: (bench) => [
      crew(bench, true, workers, shift),
      crew(bench, false, workers, shift),
    ],
  };
}

/** All workers have the same to do: sharing must cost nothing. */
export const workersEven: Row = row(
  "workers-even",
  `2 workers with equal load, maxconn ${MAX} for all or ${MAX / 2} for each`,
  2,
  { busy: 2, tasks: 16, pause: 0 },
  0.98,
);

/** One has all the work, of a kind that takes the server its time: it uses what the others do not. */
export const workersSkewed: Row = row(
  "workers-skewed",
  `4 workers, one has all the load (2 ms each), maxconn ${MAX} for all or ${MAX / 4} for each`,
  4,
  { busy: 1, tasks: 32, pause: 2 },
  2,
);

/** More workers than connections, once their code is compiled: they take turns, and each turn costs a connect. */
function crowd(workers: number): Row {
  const shift = (busy: number): Shift => ({ busy, tasks: 4, pause: 0 });
  const contestant = (bench: Bench, kind: "ours" | "peer", count: number): Contestant => ({
    name: `${count} workers`,
    kind,
    start: async () => {
      const one = await Crew.start(count, MAX, await bench.url(), true);
      // Each isolate compiles its code for itself, and has a part of the work: so that none of it is left to do, each
      // does some 30 000 statements alone before all work together.
      await one.warm(bench.quick ? bench.span : 30 * bench.span);
      if (!bench.quick) await one.work(shift(count), 160 * bench.span);
      // Long enough for some turns of everybody.
      const span = bench.quick ? bench.span : 40 * bench.span;
      return { round: () => one.work(shift(count), span), stop: () => one.stop() };
    },
  });
  return {
    name: `workers-crowd-${workers}`,
    title: `${workers} workers on maxconn ${MAX}, as many workers as connections beside it`,
    unit: "statements/s",
    better: "more",
    rounds: 3,
    goals: [{ against: [`${MAX} workers`], ratio: 0.7 }],
    contestants: (bench) => [
      contestant(bench, "ours", workers),
      contestant(bench, "peer", MAX),
    ],
  };
}

/** Twice and four times as many workers as connections. */
export const workersCrowd16: Row = crowd(16);
export const workersCrowd32: Row = crowd(32);

function curve(name: string, title: string, shiftOf: (workers: number) => Shift): Curve {
  return {
    name,
    title,
    x: "workers",
    y: "statements/s",
    measure: async (bench) => {
      const url = await bench.url();
      const series: Series[] = [SHARED, SEPARATE].map((name) => ({ name, points: [] }));
      for (const workers of bench.quick ? [2] : [1, 2, 4, 8]) {
        const crews = [
          await Crew.start(workers, MAX, url, true),
          await Crew.start(workers, MAX, url, false),
        ];
        const values: number[][] = [[], []];
        for (let round = bench.quick ? 1 : 0; round <= Math.min(5, bench.rounds); round++) {
          for (const [i, one] of crews.entries()) {
            const { value } = await one.work(shiftOf(workers), bench.span * 4);
            if (round > 0) values[i]!.push(value);
          }
        }
        for (const one of crews) await one.stop();
        for (const [i, { points }] of series.entries()) {
          points.push({ x: workers, y: median(values[i]!) });
        }
      }
      return series;
    },
  };
}

/** By the number of workers. */
export const WORKER_CURVES: readonly Curve[] = [
  curve(
    "curve-workers-even",
    `equal load on each worker, ${MAX} connections in all`,
    (workers) => ({ busy: workers, tasks: Math.ceil(32 / workers), pause: 0 }),
  ),
  curve(
    "curve-workers-skewed",
    `all load (2 ms each) on one worker, ${MAX} connections in all`,
    () => ({ busy: 1, tasks: 32, pause: 2 }),
  ),
];
