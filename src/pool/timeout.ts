/** A limit in time for work that may never end. */

import { type After, chanceAfter, type Clock } from "../clock.ts";
import type { Timer } from "../runtime.ts";
import { ignore } from "./safely.ts";

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

/**
 * Calls `fn` with a signal that aborts after `ms` milliseconds (0 = never), with the reason that `late` gives, or when
 * `outer` does, with the reason of that. What `fn` gives counts: it has to heed the signal.
 */
export async function underLimit<T>(
  after: After,
  ms: number,
  late: () => unknown,
  outer: AbortSignal | null,
  fn: (limit: AbortSignal) => Promise<T>,
): Promise<T> {
  const limit = new AbortController();
  const forward = (): void => limit.abort(outer!.reason);
  if (outer?.aborted) forward();
  else outer?.addEventListener("abort", forward, { once: true });
  const cancel = ms === 0 ? ignore : after(ms, () => limit.abort(late()));
  try {
    return await fn(limit.signal);
  } finally {
    cancel();
    outer?.removeEventListener("abort", forward);
  }
}

/** Settles as `work` does, or rejects when the signal aborts; a value that comes too late is given to `late`. */
export function untilAborted<T>(
  signal: AbortSignal,
  work: Promise<T>,
  late: (value: T) => void = ignore,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    work.then((value) => {
      signal.removeEventListener("abort", abort);
      if (signal.aborted) late(value);
      else resolve(value);
    }, (error) => {
      signal.removeEventListener("abort", abort);
      reject(error);
    });
    if (signal.aborted) abort();
  });
}

/** Resolves when `work` has settled, in whichever way, and after `ms` milliseconds at the latest. */
export function settled(after: After, ms: number, work: Promise<unknown>): Promise<void> {
  return new Promise((resolve) => {
    const cancel = after(ms, resolve);
    const end = (): void => {
      cancel();
      resolve();
    };
    work.then(end, end);
  });
}
