/**
 * Runs one row: all contestants in one process, in many short rounds. Each round has an order of its
 * own, as who comes first, or after whom, must not matter.
 */

import { type Bench, collectGarbage, type Contestant, type Row, type Sample } from "./contest.ts";
import { ratios, type Spread, spread } from "./stats.ts";

/** What one contestant did. */
export interface Outcome extends Spread {
  readonly name: string;
  readonly kind: Contestant["kind"];
  readonly rounds: readonly number[];
  readonly more: Readonly<Record<string, Spread>>;
}

/** How ours compares to one other. */
export interface Comparison extends Spread {
  readonly against: string;
}

/** Whether a goal was met. */
export interface Verdict {
  readonly goal: string;
  readonly reached: number;
  readonly met: boolean;
}

/** What came out of a row. */
export interface RowResult {
  readonly name: string;
  readonly title: string;
  readonly unit: string;
  readonly better: Row["better"];
  readonly outcomes: readonly Outcome[];
  readonly comparisons: readonly Comparison[];
  readonly verdicts: readonly Verdict[];
}

/** Runs a row; with `alone` only that contestant. */
export async function runRow(row: Row, bench: Bench, alone?: string): Promise<RowResult> {
  const contestants = (await row.contestants(bench))
    .filter(({ name }) => alone === undefined || name === alone);
  const samples = await rounds(contestants, bench, Math.min(bench.rounds, row.rounds ?? Infinity));
  const outcomes = contestants.map((contestant, i) => outcome(contestant, samples[i]!));
  const ours = outcomes.find(({ kind }) => kind === "ours");
  const comparisons = ours === undefined ? [] : outcomes
    .filter((one) => one !== ours)
    .map((one) => ({ against: one.name, ...ratios(ours.rounds, one.rounds, row.better) }));
  const { name, title, unit, better } = row;
  const verdicts = ours === undefined ? [] : judge(row, bench, ours, comparisons);
  return { name, title, unit, better, outcomes, comparisons, verdicts };
}

async function rounds(
  contestants: readonly Contestant[],
  bench: Bench,
  count: number,
): Promise<Sample[][]> {
  const running = [];
  try {
    for (const contestant of contestants) running.push(await contestant.start());
    const samples: Sample[][] = contestants.map(() => []);
    // No collection between rounds: it makes V8 throw compiled code away, and all get slower by a third.
    // One round for nothing: code gets compiled, statements get prepared, connections opened.
    collectGarbage();
    for (let round = bench.quick ? 1 : 0; round <= count; round++) {
      for (const i of shuffled(running.length)) {
        const sample = await running[i]!.round();
        if (round > 0) samples[i]!.push(sample);
      }
    }
    return samples;
  } finally {
    for (const one of running) await one.stop();
  }
}

function shuffled(count: number): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const other = Math.floor(Math.random() * (i + 1));
    [order[i], order[other]] = [order[other]!, order[i]!];
  }
  return order;
}

function outcome({ name, kind }: Contestant, samples: readonly Sample[]): Outcome {
  const values = samples.map(({ value }) => value);
  const more: Record<string, Spread> = {};
  for (const key of Object.keys(samples[0]?.more ?? {})) {
    more[key] = spread(samples.map((sample) => sample.more?.[key] ?? NaN));
  }
  return { name, kind, rounds: values, more, ...spread(values) };
}

function judge(
  row: Row,
  bench: Bench,
  ours: Outcome,
  comparisons: readonly Comparison[],
): Verdict[] {
  const verdicts: Verdict[] = [];
  if (row.absolute !== undefined) {
    const met = row.better === "less" ? ours.median < row.absolute : ours.median > row.absolute;
    const goal = `${row.better === "less" ? "<" : ">"} ${row.absolute} ${row.unit}`;
    verdicts.push({ goal, reached: ours.median, met });
  }
  for (const { against, ratio, only } of row.goals) {
    if (only !== undefined && only !== bench.runtime) continue;
    const present = comparisons.filter((one) => against.includes(one.against));
    if (present.length === 0) continue;
    const worst = present.reduce((a, b) => b.median < a.median ? b : a);
    const goal = `≥ ${ratio} × ${worst.against}`;
    verdicts.push({ goal, reached: worst.median, met: worst.median >= ratio });
  }
  return verdicts;
}
