/** What a transaction may be asked for, what is called in it, and when it may be tried again. It sends nothing. */

import type { Clock } from "../clock.ts";
import { checkTime, readOptions } from "./options.ts";
import { ignore } from "./safely.ts";
import { Ambient } from "../runtime.ts";
import type { RetryOptions, TransactionModes } from "./types.ts";

const ISOLATIONS = ["serializable", "repeatable read", "read committed", "read uncommitted"];

/** The same, checked. */
export interface TransactionPlan {
  /** What stands behind `begin`. */
  readonly mode: string | undefined;
  /** Null: it is tried once. */
  readonly retry: Retry | null;
  /** Whether it is a savepoint when it is called in another one of the same connection. */
  readonly nested: boolean;
  /** What is given and a savepoint cannot have. */
  readonly whole: readonly string[];
}

/** The same as {@linkcode RetryOptions}, complete. */
export type Retry = { readonly [K in keyof RetryOptions]-?: number };

/** As the server has it, once, and in no other one. */
export const PLAIN: TransactionPlan = Object.freeze(planTransaction({}));

/** Checks the options of a transaction; throws a TypeError or RangeError that names the option and the rule. */
export function planTransaction(
  { mode, isolation, readOnly, deferrable, retry, nested }: {
    readonly [K in keyof TransactionModes]?: unknown;
  },
): TransactionPlan {
  if (mode !== undefined && typeof mode !== "string") {
    throw new TypeError('"mode" must be a string, what stands behind begin');
  }
  for (const [name, value] of Object.entries({ readOnly, deferrable })) {
    if (value !== undefined && typeof value !== "boolean") {
      throw new TypeError(`"${name}" must be true or false`);
    }
  }
  if (isolation !== undefined && !ISOLATIONS.includes(isolation as string)) {
    throw new (typeof isolation === "string" ? RangeError : TypeError)(
      `"isolation" must be one of ${ISOLATIONS.join(", ")}`,
    );
  }
  if (nested !== undefined && nested !== "savepoint") {
    throw new (typeof nested === "string" ? RangeError : TypeError)(
      '"nested" must be "savepoint"; without it a transaction within another one is refused',
    );
  }
  const words = [
    ...(isolation === undefined ? [] : [`isolation level ${isolation}`]),
    ...(readOnly === undefined ? [] : [readOnly ? "read only" : "read write"]),
    ...(deferrable === undefined ? [] : [deferrable ? "deferrable" : "not deferrable"]),
  ];
  if (mode !== undefined && words.length > 0) {
    throw new TypeError('"mode" says the same as "isolation", "readOnly", "deferrable": give one');
  }
  if (deferrable === true && !(isolation === "serializable" && readOnly === true)) {
    throw new TypeError(
      '"deferrable" has an effect only with isolation: "serializable" and readOnly: true',
    );
  }
  return {
    mode: words.length > 0 ? words.join(" ") : mode as string | undefined,
    retry: retry === undefined || retry === null ? null : readRetry(retry),
    nested: nested !== undefined,
    whole: nested === undefined
      ? []
      : Object.entries({ mode, isolation, readOnly, deferrable, retry: retry ?? undefined })
        .filter(([, value]) => value !== undefined).map(([name]) => name),
  };
}

/** Throws a TypeError when it was asked for what a savepoint cannot have. */
export function checkSavepoint({ whole }: TransactionPlan): void {
  if (whole.length === 0) return;
  throw new TypeError(
    `${
      whole.map((name) => `"${name}"`).join(", ")
    }: this transaction is a savepoint of the one around it, ` +
      "which alone can have that: give it there",
  );
}

/** The innermost transaction in whose function the code at hand runs. */
const around: Ambient<OpenTransaction> = new Ambient();

/**
 * A transaction of a lease, which is its `holder` meanwhile. Where others have the connection too, what its function calls
 * is known by the async context: what they call must not become a part of it, as it would be acknowledged and then taken
 * back with it.
 */
export class OpenTransaction {
  /** Those within which it may be nested; set by the connector. */
  parts: { end(): void } | null = null;
  #ended = false;
  #outer: OpenTransaction | null = null;
  readonly #exclusive: boolean;

  /** `exclusive`: nobody but its function has the connection. Then nothing needs to know who calls. */
  constructor(exclusive: boolean) {
    this.#exclusive = exclusive;
    if (exclusive) return;
    this.#outer = openFrom(around.current ?? null);
    // Work that each time starts the next one and ends: the chain must not grow with it.
    for (let at = this.#outer; at !== null; at = at.#outer) at.#outer = openFrom(at.#outer);

    function openFrom(found: OpenTransaction | null): OpenTransaction | null {
      let at = found;
      while (at !== null && at.#ended) at = at.#outer;
      return at;
    }
  }

  /** Whether it is open, and the code at hand is called by its function. */
  get here(): boolean {
    if (this.#ended || this.#exclusive) return !this.#ended;
    for (let at = around.current ?? null; at !== null; at = at.#outer) if (at === this) return true;
    return false;
  }

  /** Calls its function. */
  run<T>(fn: () => T): T {
    return this.#exclusive ? fn() : around.run(this, fn);
  }

  /** From now on nothing is a part of it, and nothing that was goes on. */
  end(): void {
    this.#ended = true;
    this.parts?.end();
  }
}

/**
 * Calls a transaction's function, which need not wait until it has begun, and settles when both have; as soon as it
 * cannot begin, with that: the function's own failure is a consequence, and it may never notice.
 */
export async function behind<T>(begun: Promise<unknown>, fn: () => T | Promise<T>): Promise<T> {
  const result = (async () => await fn())();
  result.catch(ignore);
  await begun;
  return await result;
}

function readRetry(given: unknown): Retry {
  const { attempts = 3, delay = 20, maxDelay = 1_000 } = readOptions("retry", given, [
    "attempts",
    "delay",
    "maxDelay",
  ]);
  if (!Number.isSafeInteger(attempts) || (attempts as number) < 2) {
    throw new RangeError(
      `"retry.attempts" must be an integer of at least 2, the first one included`,
    );
  }
  checkTime("retry.delay", delay);
  checkTime("retry.maxDelay", maxDelay);
  if (maxDelay === Infinity) throw new RangeError('"retry.maxDelay" must be a time that ends');
  if ((delay as number) > (maxDelay as number)) {
    throw new RangeError(
      `"retry.delay" must be at most "retry.maxDelay", received ${delay} and ${maxDelay}`,
    );
  }
  return { attempts, delay, maxDelay } as Retry;
}

/** What the server rolls back by itself, though nothing is wrong with it: a serialization failure, a deadlock. */
const ROLLED_BACK = /^(?:40001|40P01)$/;
/** That the session is gone, in the words of pools, servers and sockets. */
const LOST = /^(?:CONNECTION_|08|57P0|25P03|E[A-Z]+$)/;

/** True for a failure that has no cause but what others did at the same time. */
export function isConflict(error: unknown): boolean {
  return hasCode(error, ROLLED_BACK);
}

/** True for a failure that comes from the loss of the session. */
export function isLoss(error: unknown): boolean {
  return hasCode(error, LOST);
}

/** Whether the function of a transaction has ended it by hand; `unknown` when its commit has no answer. */
export type ByHand = "ended" | "unknown" | null;

/** What a transaction's caller is told, by a PoolError: in the same words whether by `begin` or `pool.transaction`. */
type Told = readonly [
  message: string,
  code: "TRANSACTION_ENDED" | "TRANSACTION_FAILED" | "OUTCOME_UNKNOWN",
];

/** The connection was lost, and nobody knows. */
export const OUTCOME_UNKNOWN: Told = [
  "it is not known whether the transaction was committed: the connection was lost after the commit was sent",
  "OUTCOME_UNKNOWN",
];

/** The server has rolled back what was to be committed. */
export const TRANSACTION_FAILED: Told = [
  "the transaction was rolled back: a statement in it failed",
  "TRANSACTION_FAILED",
];

/** The function of this call has ended it. */
export function endedByHand(where: "begin" | "transaction", more = ""): Told {
  return [
    `the transaction was ended by hand, with commit or rollback, in the function of ${where}()${more}`,
    "TRANSACTION_ENDED",
  ];
}

/** What is told in place of a failure that would be tried again, if nothing could have been committed. */
export function notAgain(how: "ended" | "unknown", where: "begin" | "transaction"): Told {
  if (how === "ended") {
    return endedByHand(where, ", which then failed: to try it again might do its work twice");
  }
  return [
    "it is not known whether the transaction was committed: " +
    `the function of ${where}() has sent a commit by hand, which has no answer`,
    "OUTCOME_UNKNOWN",
  ];
}

/** That something may have been committed: what is around it must not be tried again either. */
const COMMITTED = /^(?:TRANSACTION_ENDED|OUTCOME_UNKNOWN)$/;

/** Whether an error, or what it was made of, has such a code: query builders wrap those of the server. */
function hasCode(error: unknown, pattern: RegExp): boolean {
  let at = error;
  for (let depth = 0; depth < 8 && typeof at === "object" && at !== null; depth++) {
    const { code, cause } = at as { code?: unknown; cause?: unknown };
    if (typeof code === "string" && pattern.test(code)) return true;
    if (typeof code === "string" && COMMITTED.test(code)) return false;
    at = cause;
  }
  return false;
}

/**
 * Calls `once` until it succeeds, fails for good, or was called often enough: then it throws the last failure, or what
 * `again` throws in place of one. The
 * pauses grow, each by chance from 0 to its length, so that those who got into each other's way do not meet again.
 */
export async function retrying<T>(
  clock: Clock,
  { attempts, delay, maxDelay }: Retry,
  signal: AbortSignal | null | undefined,
  once: () => Promise<T>,
  again: (error: unknown) => boolean,
): Promise<T> {
  for (let made = 1;; made++) {
    try {
      return await once();
    } catch (error) {
      if (!again(error) || made >= attempts || signal?.aborted) throw error;
    }
    await pause(clock, clock.random() * Math.min(maxDelay, delay * 2 ** (made - 1)), signal);
  }
}

/** Waits so many milliseconds; rejects with the signal's reason when it aborts. */
function pause(
  clock: Clock,
  ms: number,
  signal: AbortSignal | null | undefined,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = (): void => {
      clock.clearTimeout(timer);
      reject(signal!.reason);
    };
    const timer = clock.setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", abort, { once: true });
  });
}
