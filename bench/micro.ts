/** What one cycle costs, by mitata. */

import { measure } from "mitata";
import type { Sample } from "./contest.ts";

/**
 * Cycles per call of mitata. It awaits each call, which costs a tenth of a microsecond: among so
 * many cycles that is nothing.
 */
export const CYCLES = 1_000;

/** Nanoseconds per cycle; `fn` does {@linkcode CYCLES} of them, or `cycles` where given. */
export async function cycleTime(
  fn: () => Promise<unknown>,
  span: number,
  cycles: number = CYCLES,
): Promise<Sample> {
  const stats = await measure(fn, {
    min_cpu_time: span * 1e6,
    min_samples: 5,
    max_samples: 1e5,
    // Without it mitata runs a call in batches of 4 096 when it takes less than 65 microseconds.
    batch_threshold: 0,
    gc: false,
  });
  // So many cycles hold their share of garbage collection; what the machine's other tenants do is
  // in few of the samples.
  return { value: stats.p50 / cycles };
}
