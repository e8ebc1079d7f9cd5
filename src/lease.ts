/** What the borrower holds: how the pool finds the loan behind a handle. */

import type { Loan } from "./types.ts";

/** The key under which every handle answers its {@linkcode Loan}. */
export const LOAN: unique symbol = Symbol("loan");

/** The loan behind a handle, or undefined when this is no handle. */
export function loanOf(handle: unknown): Loan | undefined {
  if (handle === null || (typeof handle !== "object" && typeof handle !== "function")) {
    return undefined;
  }
  return (handle as { [LOAN]?: Loan })[LOAN];
}
