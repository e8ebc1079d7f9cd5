/** What the borrower holds: a fresh, revocable handle for each loan. */

import { PoolError, type PoolErrorContext } from "./errors.ts";
import type { Clock } from "../clock.ts";
import type { Timer } from "../runtime.ts";
import { isThenable } from "./safely.ts";
import type { Loan } from "./types.ts";

/** Under this symbol a handle shows its loan to the pool, and to nobody else. */
export const LOAN: unique symbol = Symbol("loan");

/** What a loan needs of the pool that made it. */
export interface Lender {
  /** The pool's name and counts, for errors. */
  context(): PoolErrorContext;
  /** Why a lease that was put back, or whose pool was closed, refuses. */
  refusal(): Error;
  /** Takes the connection back. */
  takeBack(loan: PoolLoan): Promise<void>;
}

/** The loans behind handles that a connector made without knowing the symbol. */
const LOANS = new WeakMap<object, PoolLoan>();

/** Makes `loanOf` find the loan of a handle that a connector made. */
export function mark(handle: object, loan: PoolLoan): object {
  if ((handle as { [LOAN]?: unknown })[LOAN] !== loan) LOANS.set(handle, loan);
  return handle;
}

/** One loan of one connection. `open` goes from true to false once and never back. */
export class PoolLoan implements Loan {
  open = true;
  /** What the borrower holds; kept for getconn of the same key, and until the pool looks for leaks. */
  handle: object | null = null;
  /** Where getconn was called, when leaks are looked for. */
  stack: string | null = null;
  /** Whether the loan was reported as a leak. */
  reported = false;
  /** Whether its handle's end is watched for. */
  watched = false;
  holder: object | null = null;
  /** True while the pool's own begin, commit or rollback is under way: put back now, the connection is in the middle of it. */
  busy = false;
  /** Who wants to know of its end; null while nobody does. */
  #watchers: Set<(lost: { readonly reason: unknown } | null) => void> | null = null;
  #lossExpected = false;
  /** The pool's record of the connection. */
  readonly entry: object;
  readonly key: unknown;
  readonly since: number;
  readonly lender: Lender;

  constructor(lender: Lender, entry: object, key: unknown, since: number) {
    this.lender = lender;
    this.entry = entry;
    this.key = key;
    this.since = since;
  }

  /** What the connector opened. */
  get resource(): object {
    return (this.entry as { readonly resource: object }).resource;
  }

  assertOpen(): void {
    if (!this.open) throw this.returned();
  }

  returned(): Error {
    return this.lender.refusal();
  }

  error(message: string, code: Parameters<Loan["error"]>[1], cause?: unknown): Error {
    return new PoolError(message, code, { ...this.lender.context(), cause });
  }

  putconn(): Promise<void> {
    return this.open ? this.lender.takeBack(this) : Promise.resolve();
  }

  whenOver(fn: (lost: { readonly reason: unknown } | null) => void): () => void {
    const watchers = this.#watchers ??= new Set();
    watchers.add(fn);
    return () => watchers.delete(fn);
  }

  expectLoss(): void {
    this.#lossExpected = true;
  }

  /** Tells that it is over: put back, or with a reason lost. To be called when `open`, or the entry, says so. */
  over(lost: { readonly reason: unknown } | null): void {
    if (this.#watchers === null || (lost !== null && this.#lossExpected)) return;
    const watchers = this.#watchers;
    this.#watchers = null;
    for (const fn of watchers) fn(lost);
  }
}

/**
 * Settles as `fn` does, or rejects when the connection is lost or the pool closed while `fn` is at work, which may
 * never notice. It has the rest of the turn to settle by itself: it may have an answer to the failure of its statement.
 */
export async function unlessLost<T>(
  clock: Clock,
  loan: PoolLoan,
  fn: () => T | Promise<T>,
): Promise<T> {
  const result = fn();
  // Nothing can be lost in the turn in which it was called.
  if (!isThenable(result)) return result;
  let timer: Timer | undefined;
  let forget!: () => void;
  try {
    // By hand: Promise.race costs twice as much.
    return await new Promise<T>((resolve, reject) => {
      forget = loan.whenOver((why) => {
        if (why === null) return;
        const { reason } = why;
        const error = reason instanceof PoolError
          ? reason
          : loan.error("the connection was lost while it was lent", "CONNECTION_LOST", reason);
        timer = clock.setTimeout(() => reject(error), 0);
      });
      result.then(resolve, reject);
    });
  } finally {
    forget();
    if (timer !== undefined) clock.clearTimeout(timer);
  }
}

/** The loan behind a handle; undefined for anything that no pool has lent. */
export function loanOf(handle: unknown): PoolLoan | undefined {
  if (handle === null || (typeof handle !== "object" && typeof handle !== "function")) {
    return undefined;
  }
  try {
    const loan = (handle as { [LOAN]?: unknown })[LOAN];
    return loan instanceof PoolLoan ? loan : LOANS.get(handle);
  } catch {
    // A revoked proxy, for one, throws whatever it is asked.
    return undefined;
  }
}

/**
 * The handle for connectors without `lend`: the resource itself, seen through a view that ends
 * with the loan. Methods run on the resource, so that private fields work.
 */
export function guard<R extends object>(resource: R, loan: PoolLoan): R {
  // The view's target is a stand-in: a frozen resource would forbid a proxy to wrap its methods.
  const target = typeof resource === "function"
    ? function standIn(): void {}
    : Object.create(Object.getPrototypeOf(resource));
  return new Proxy(target, new Guard(resource, loan)) as R;
}

class Guard<R extends object> implements ProxyHandler<object> {
  readonly #resource: R;
  readonly #loan: PoolLoan;

  constructor(resource: R, loan: PoolLoan) {
    this.#resource = resource;
    this.#loan = loan;
  }

  get(_target: object, key: string | symbol, view: object): unknown {
    const loan = this.#loan;
    if (key === LOAN) return loan;
    if (key === Symbol.asyncDispose) return (): Promise<void> => loan.putconn();
    // A lease is a value that can be awaited, also after its end.
    if (key === "then" && !loan.open) return undefined;
    loan.assertOpen();
    const resource = this.#resource;
    const value: unknown = Reflect.get(resource, key, resource);
    if (typeof value !== "function") return value;
    return (...args: unknown[]): unknown => {
      loan.assertOpen();
      const result: unknown = Reflect.apply(value, resource, args);
      // A method that returns `this` must not hand out what is behind the view.
      return result === resource ? view : result;
    };
  }

  set(_target: object, key: string | symbol, value: unknown): boolean {
    this.#loan.assertOpen();
    return Reflect.set(this.#resource, key, value, this.#resource);
  }

  has(_target: object, key: string | symbol): boolean {
    return Reflect.has(this.#resource, key);
  }

  apply(_target: object, receiver: unknown, args: unknown[]): unknown {
    this.#loan.assertOpen();
    return Reflect.apply(this.#resource as () => unknown, receiver, args);
  }
}
