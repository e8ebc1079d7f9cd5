/** The words of the benchmarks: a row has contestants, a curve has series; both give figures. */

import process from "node:process";

/** One figure of one round. `more` holds what was measured beside it, such as a percentile. */
export interface Sample {
  readonly value: number;
  readonly more?: Readonly<Record<string, number>>;
}

/** A contestant that is warm and ready for its rounds. */
export interface Running {
  round(): Promise<Sample>;
  stop(): Promise<void>;
}

/** Whoever takes part in a row. */
export interface Contestant {
  readonly name: string;
  /**
   * - `ours`: the first one of these is what the ratios are about.
   * - `peer`: the others do the same work.
   * - `limit`: no peer, but the most that the server gives on this work.
   */
  readonly kind: "ours" | "peer" | "limit";
  start(): Promise<Running>;
}

/** What must come out. A ratio says how many times better ours is. */
export interface Goal {
  /** The contestants that it is about; the best of those present counts. */
  readonly against: readonly string[];
  /** At least this many times better. */
  readonly ratio: number;
  /** The runtimes for which it is set; without it, all. */
  readonly only?: Runtime;
}

/** One comparison. */
export interface Row {
  readonly name: string;
  readonly title: string;
  readonly unit: string;
  /** Which figure is better. */
  readonly better: "less" | "more";
  readonly goals: readonly Goal[];
  /** Ours must be below (`less`) or above (`more`) this. */
  readonly absolute?: number;
  /** No more rounds than these, where each takes long. */
  readonly rounds?: number;
  /** The runtime that can be measured; without it, all. */
  readonly only?: Runtime;
  contestants(bench: Bench): Contestant[] | Promise<Contestant[]>;
}

/** One line of a chart. */
export interface Series {
  readonly name: string;
  readonly points: { readonly x: number; readonly y: number }[];
}

/** One chart and its figures. */
export interface Curve {
  readonly name: string;
  readonly title: string;
  readonly x: string;
  readonly y: string;
  /** Axes count by powers unless told otherwise. */
  readonly linear?: boolean;
  measure(bench: Bench): Promise<Series[]>;
}

/** The runtimes that can be measured. */
export type Runtime = "deno" | "bun";

/** What rows and curves are given. */
export interface Bench {
  readonly runtime: Runtime;
  /** Short and inexact: to see whether it works. */
  readonly quick: boolean;
  /** How many milliseconds one round of load lasts. */
  readonly span: number;
  readonly rounds: number;
  /** The server, started at the first need. */
  url(): Promise<string>;
}

/** This runtime. */
export const runtime: Runtime = "Bun" in globalThis ? "bun" : "deno";

/** Ends the run when a contestant gave a wrong answer: a fast wrong answer is worth nothing. */
export function expect(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(`A contestant gave a wrong result: ${what}`);
}

/** Collects garbage, so that one contestant does not pay for another. Needs --expose-gc in Deno. */
export function collectGarbage(): void {
  const { Bun: bun, gc } = globalThis as {
    Bun?: { gc(force: boolean): void };
    gc?: () => void;
  };
  if (bun !== undefined) bun.gc(true);
  else gc?.();
}

/** Bytes in use on the heap after a collection. */
export async function heapUsed(): Promise<number> {
  // Twice with a pause: finalizers and weak things are let go between two collections.
  for (let i = 0; i < 3; i++) {
    collectGarbage();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  collectGarbage();
  return process.memoryUsage().heapUsed;
}
