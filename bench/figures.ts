/** The figures that a run of the benchmarks finds. */

import type { Curve, Runtime, Series } from "./contest.ts";
import type { RowResult } from "./run.ts";

/** What came out of a curve. */
export interface CurveResult extends Required<Omit<Curve, "measure">> {
  readonly series: readonly Series[];
}

/** One runtime's figures. */
export interface RuntimeResults {
  readonly version: string;
  readonly date: string;
  readonly rounds: number;
  readonly rows: readonly RowResult[];
  readonly curves: readonly CurveResult[];
}

/** The whole file. */
export interface Results {
  readonly machine: string;
  readonly packages: Readonly<Record<string, string>>;
  readonly runtimes: Partial<Record<Runtime, RuntimeResults>>;
}

/** What one run found. */
export interface Update {
  readonly rows: RowResult[];
  readonly curves: CurveResult[];
}
