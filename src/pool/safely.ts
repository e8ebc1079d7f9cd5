/** Callbacks of users, whose failures harm nobody. */

import { report } from "./errors.ts";

/** Calls back; what it throws, or rejects with, goes to console.error. `what` names it there. */
export function callSafely(what: string, fn: () => unknown): void {
  try {
    const result = fn();
    if (isThenable(result)) {
      Promise.resolve(result).then(undefined, (error) => report(`${what} failed:`, error));
    }
  } catch (error) {
    report(`${what} failed:`, error);
  }
}

/** Whether it can be awaited. */
export function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === "function";
}

/** For a promise whose failure is told elsewhere, or is nobody's. */
export function ignore(): void {}
