/** Medians, percentiles and ratios. */

/** The value below which `part` of the values lie. */
export function percentile(values: ArrayLike<number>, part: number): number {
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? NaN;
}

/** The middle value; of an even number of values the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  if (sorted.length % 2 === 1) return sorted[half]!;
  return (sorted[half - 1]! + sorted[half]!) / 2;
}

/** A median, and the quartiles: between them lies the middle half of the values. */
export interface Spread {
  readonly median: number;
  readonly low: number;
  readonly high: number;
}

/** The median and the spread of some values. */
export function spread(values: readonly number[]): Spread {
  return {
    median: median(values),
    low: percentile(values, 0.25),
    high: percentile(values, 0.75),
  };
}

/**
 * How many times better ours is, round by round: the two figures of one round were taken one after
 * the other, so that what the machine did meanwhile hit both.
 */
export function ratios(
  ours: readonly number[],
  theirs: readonly number[],
  better: "less" | "more",
): Spread {
  const pairs = ours.map((own, i) => better === "more" ? own / theirs[i]! : theirs[i]! / own);
  return spread(pairs);
}

/** A figure for people: three digits that count. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (value !== 0 && Math.abs(value) < 0.01) return value.toExponential(1);
  if (Math.abs(value) >= 1000) {
    return Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, " ");
  }
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}
