/** A limit in time for work that may never end. */

import { chanceAfter, type Clock } from "../clock.ts";
import type { Timer } from "../runtime.ts";

/** That the limit has passed. */
export class NoAnswer extends Error {
  /** The class name. */
  override readonly name = "NoAnswer";

  /** Made by {@linkcode within}. */
  constructor(ms: number) {
    super(`no answer within ${ms} ms`);
  }
}

/** Settles as `work` does, or rejects after `ms` milliseconds; `work` goes on by itself then. */
export async function within<T>(
  clock: Clock,
  ms: number,
  work: Promise<T> | undefined,
): Promise<T | undefined> {
  if (work === undefined) return undefined;
  let timer: Timer | undefined;
  const limit = new Promise<never>((_, reject) => {
    const due = clock.now() + ms;
    timer = clock.setTimeout(() => {
      const chance = chanceAfter(clock.now() - due);
      const end = (): void => reject(new NoAnswer(ms));
      if (chance === 0) end();
      else timer = clock.setTimeout(end, chance);
    }, ms);
  });
  try {
    return await Promise.race([work, limit]);
  } finally {
    clock.clearTimeout(timer);
  }
}
