/**
 * What the tasks measure. Plain data, so that it can be posted from a worker as it is, and the
 * numbers of several workers can be added up.
 */

/** Times in buckets that grow by 5 %, from a microsecond on: exact enough to print, cheap to keep. */
export type Histogram = number[];

/** The numbers of one load, or of several together. */
export interface Metrics {
  /** Transactions whose COMMIT was acknowledged. */
  committed: number;
  /** Attempts that certainly did not commit. */
  failed: number;
  /** Attempts whose COMMIT was sent and never answered. */
  unknown: number;
  /** Attempts that were made because an earlier one failed. */
  retries: number;
  /** How many errors of each kind there were. */
  errors: Record<string, number>;
  /** From BEGIN to the acknowledged COMMIT. */
  transaction: Histogram;
  /** How long getconn took. */
  wait: Histogram;
}

const GROWTH = Math.log(1.05);

/** Metrics of a load that has not begun. */
export function newMetrics(): Metrics {
  return {
    committed: 0,
    failed: 0,
    unknown: 0,
    retries: 0,
    errors: {},
    transaction: [],
    wait: [],
  };
}

/** The numbers of all of them together. */
export function mergeMetrics(all: readonly Metrics[]): Metrics {
  const sum = newMetrics();
  for (const one of all) {
    for (const key of ["committed", "failed", "unknown", "retries"] as const) sum[key] += one[key];
    for (const key of ["transaction", "wait"] as const) {
      one[key].forEach((count, bucket) => sum[key][bucket] = (sum[key][bucket] ?? 0) + count);
    }
    for (const [kind, count] of Object.entries(one.errors)) {
      sum.errors[kind] = (sum.errors[kind] ?? 0) + count;
    }
  }
  return sum;
}

/** Adds a time, in milliseconds. */
export function record(histogram: Histogram, ms: number): void {
  const bucket = Math.max(0, Math.round(Math.log(ms * 1000) / GROWTH));
  histogram[bucket] = (histogram[bucket] ?? 0) + 1;
}

/** The time, in milliseconds, that this share of all stayed below; undefined when there are none. */
export function quantile(histogram: Histogram, share: number): number | undefined {
  // The array is sparse: reduce and forEach pass over buckets that nothing fell into.
  let left = histogram.reduce((sum, count) => sum + count, 0) * share;
  let found: number | undefined;
  histogram.forEach((count, bucket) => {
    if (left > 0) found = Math.exp(bucket * GROWTH) / 1000;
    left -= count;
  });
  return found;
}
