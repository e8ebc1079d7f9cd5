/**
 * A statement: what borrowers call and await, its callbacks, the rounds of its cursor, and its limits. What is relied upon of the
 * driver's own queries, whose methods it inherits, stands in language.ts.
 */

import { LONGEST } from "../clock.ts";
import { report } from "../pool/errors.ts";
import { readOptions } from "../pool/options.ts";
import { ignore, isThenable } from "../pool/safely.ts";
import { bindContext } from "../runtime.ts";
import type { StatementLimits } from "./connection.ts";
import type { Observed } from "./observed.ts";

/** How one query is to be executed. */
export interface QueryOptions {
  simple?: boolean;
  prepare?: boolean;
  /** Milliseconds; see {@linkcode StatementLimits}. */
  queryTimeout?: number;
  /** See {@linkcode StatementLimits}. */
  signal?: AbortSignal;
}

/** Who has the right to execute queries, and does so. */
export interface Owner {
  /** Never throws. */
  execute(query: Query): void;
  /** What `cancel()` does. */
  cancel(query: Query): Promise<void>;
  /** Why nothing can be executed any more, also no further part of what was; null while it can. */
  readonly refusal?: Error | null;
}

/** What {@linkcode settlers} has seen last. */
let resolveLast: (result: unknown) => void = ignore;
let rejectLast: (reason: unknown) => void = ignore;

/** The executor of all statements: one for each would be a function and a scope more. */
function settlers(resolve: (result: unknown) => void, reject: (reason: unknown) => void): void {
  resolveLast = resolve;
  rejectLast = reject;
}

const READY = Promise.resolve();

/**
 * A statement: lazy, a promise, and executed by its owner a microtask after it was first awaited. Made with half of the
 * driver's objects, and executed with a third of them. A cursor's end is told to its iterator, and waits for the close.
 */
export class Query extends Promise<unknown> {
  // No more than seven until it is executed, and set in this order: many thousands may wait.
  /** The template's texts, or the one text. */
  strings: readonly string[];
  /** The arguments between the texts, or the values for the text. */
  readonly args: readonly unknown[];
  readonly owner: Owner;
  /** How it is to be executed; null when nobody has asked for anything. */
  given: QueryOptions | null;
  resolve: (result: unknown) => void;
  reject: (reason: unknown) => void;
  /** What executes it; null before that, and undefined before it was awaited. */
  execution: unknown = undefined;
  /** Set when it was cancelled before it was executed. */
  declare cancelled: unknown;
  /** Where it was made; with `debug` only. */
  declare trace?: string;
  /** True when `readable` or `writable` was asked for. */
  declare streaming?: boolean;
  declare onstream?: ((stream: unknown) => void) | null;
  /** True when it is to be described and not executed. */
  declare onlyDescribe?: boolean;
  /** Gets the rows one by one. */
  declare forEachFn?: (row: unknown, result: unknown) => void;
  /** Gets the rows of a cursor's round. */
  declare cursorFn?: (rows: unknown) => unknown;
  declare cursorRows?: number;
  /** `true` for rows of bytes, `values` for rows as arrays. */
  declare isRaw?: boolean | "values";
  /** True when it became a part of another one. */
  declare fragment?: boolean;
  /** What tells of it, from its call on; null when nothing is told of it. */
  declare observed?: Observed | null;

  constructor(
    strings: readonly string[],
    args: readonly unknown[],
    owner: Owner,
    given: QueryOptions | null,
  ) {
    super(settlers);
    this.strings = strings;
    this.args = args;
    this.owner = owner;
    this.given = given;
    this.resolve = resolveLast;
    this.reject = rejectLast;
    // They would keep the statement, and that its lease, which would never be garbage.
    resolveLast = rejectLast = ignore;
  }

  static override get [Symbol.species](): PromiseConstructor {
    return Promise;
  }

  get options(): QueryOptions {
    return this.given ??= {};
  }

  /** A text of a template has its raw form beside it. */
  get tagged(): boolean {
    return (this.strings as TemplateStringsArray).raw !== undefined;
  }

  get executed(): boolean {
    return this.execution !== undefined;
  }

  get origin(): string {
    return this.trace ?? "";
  }

  handler(query: Query): void {
    query.owner.execute(query);
  }

  canceller(query: Query): Promise<void> {
    return query.owner.cancel(query);
  }

  handle(): void {
    if (this.executed) return;
    this.execution = null;
    // What follows in the caller's turn may still change how it is executed.
    READY.then(() => this.handler(this));
  }

  override then<A = unknown, B = never>(
    done?: ((value: unknown) => A | PromiseLike<A>) | null,
    failed?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.handle();
    return Promise.prototype.then.call(this, done, failed) as Promise<A | B>;
  }

  /** As the driver's; an iterator over it tells of a lost session, and its end waits for the close. */
  cursor(rows: unknown = 1, fn?: unknown): unknown {
    const [size, callback] = typeof rows === "function" ? [1, rows] : [rows, fn];
    const count = Number(size);
    // The server takes every other number for "all rows".
    if (!(Number.isInteger(count) && count > 0 && count <= 0x7fffffff)) {
      throw new RangeError(
        `cursor takes a whole number of rows from 1 to 2147483647, not ${String(size)}`,
      );
    }
    this.options.simple = false;
    this.cursorRows = count;
    if (typeof callback === "function") {
      this.cursorFn = callback as never;
      return this;
    }
    return { [Symbol.asyncIterator]: () => iterate(this) };
  }

  /** As the driver's; the statement itself does not keep its stream. */
  readable(): Promise<unknown> {
    return streamOf(this);
  }

  /** As the driver's; the statement itself does not keep its stream. */
  writable(): Promise<unknown> {
    return streamOf(this);
  }

  /** Sets limits for this one statement. */
  limits(limits: StatementLimits): this {
    if (limits === undefined) throw new TypeError("limited() takes a statement and its limits");
    const given = readOptions("limited", limits, ["queryTimeout", "signal"]);
    if (this.execution) throw new TypeError("limited() comes too late: the statement is under way");
    Object.assign(this.options, checkLimits(given as StatementLimits));
    return this;
  }
}
Query.prototype.cancelled = null;

/**
 * Sets limits for one statement, of a lease, a transaction or `pool.sql`, before it is awaited. Gives the same statement.
 * Throws a RangeError or a TypeError for limits that are none, for one that there is not, for what is no statement of a
 * pool, and for a statement that is under way.
 *
 * @example
 * ```ts
 * import { limited, SimpleConnectionPool } from "@getconn/pool";
 *
 * async function slow(pool: SimpleConnectionPool, signal: AbortSignal) {
 *   return await limited(pool.sql`select pg_sleep(60)`, { queryTimeout: 1_000, signal });
 * }
 * void slow;
 * ```
 */
export function limited<Q extends PromiseLike<unknown>>(query: Q, limits: StatementLimits): Q {
  const set = (query as { limits?: unknown } | null | undefined)?.limits;
  if (typeof set !== "function") throw new TypeError("limited() takes a statement of a pool");
  set.call(query, limits);
  return query;
}

/** Throws when the limits among them are no good. */
export function checked(options: QueryOptions): QueryOptions {
  if (options.queryTimeout !== undefined || options.signal !== undefined) checkLimits(options);
  return options;
}

/** What `queryTimeout` may be, for one statement and for all. */
export const LIMIT: { readonly ok: (value: unknown) => boolean; readonly rule: string } = {
  ok: (value) => typeof value === "number" && value >= 0 && value <= LONGEST,
  rule: `a number of milliseconds from 0 to ${LONGEST}`,
};

/** Throws when it is no good. */
function checkLimits({ queryTimeout, signal }: StatementLimits): QueryOptions {
  const options: QueryOptions = {};
  if (queryTimeout !== undefined) {
    if (!LIMIT.ok(queryTimeout)) {
      throw new RangeError(`queryTimeout must be ${LIMIT.rule}, not ${queryTimeout}`);
    }
    options.queryTimeout = queryTimeout;
  }
  if (signal !== undefined && signal !== null) {
    if (!(signal instanceof AbortSignal)) throw new TypeError("signal must be an AbortSignal");
    options.signal = signal;
  }
  return options;
}

/** Executes a COPY; the promise is the borrower's alone, so that a stream that nobody has is garbage. */
function streamOf(query: Query): Promise<unknown> {
  query.options.simple = true;
  query.streaming = true;
  return new Promise((resolve, reject) => {
    query.onstream = resolve;
    query.then(resolve, reject);
  });
}

/** What the callback of {@linkcode Rounds} returns to have no more rows. */
export const NO_MORE: unique symbol = Symbol("no more");

/**
 * The rounds of a cursor, one by one: the next one is asked for when the loop comes back. The session keeps this, and
 * nobody's {@linkcode Loop}: so that one is garbage when it was left in the middle without `return()`.
 */
class Rounds {
  readonly #query: Query;
  #more: ((answer?: unknown) => void) | null = null;
  /** Who has asked for rounds that have not come, the first one first. */
  readonly #waiting: { resolve(r: IteratorResult<unknown>): void; reject(e: unknown): void }[] = [];
  #outcome: { readonly error?: unknown; failed: boolean } | null = null;
  #started = false;
  #left = false;

  constructor(query: Query) {
    this.#query = query;
    query.cursorFn = (rows) => {
      if (this.#left) return NO_MORE;
      this.#waiting.shift()?.resolve({ done: false, value: rows });
      if (this.#waiting.length > 0) return;
      return new Promise((resolve) => this.#more = resolve);
    };
  }

  next(): Promise<IteratorResult<unknown>> {
    return new Promise((resolve, reject) => {
      const outcome = this.#outcome;
      if (outcome !== null) {
        const { failed, error } = outcome;
        outcome.failed = false;
        if (failed) reject(error);
        else resolve({ done: true, value: undefined });
        return;
      }
      this.#waiting.push({ resolve, reject });
      if (this.#started) return this.#goOn();
      this.#started = true;
      this.#query.then(() => this.#finished(false), (error) => this.#finished(true, error));
    });
  }

  async return(): Promise<IteratorResult<unknown>> {
    if (this.#started && this.#outcome === null) {
      this.leave();
      await this.#query;
    }
    this.#outcome ??= { failed: false };
    return { done: true, value: undefined };
  }

  /** There shall be no more. */
  leave(): void {
    this.#left = true;
    this.#goOn(NO_MORE);
  }

  #goOn(answer?: unknown): void {
    const resume = this.#more;
    this.#more = null;
    resume?.(answer);
  }

  #finished(failed: boolean, error?: unknown): void {
    this.#outcome = { failed, error };
    // One is told of the failure; as with a generator, that is the end for the others.
    if (failed && this.#waiting.length > 0) {
      this.#outcome.failed = false;
      this.#waiting.shift()!.reject(error);
    }
    for (const { resolve } of this.#waiting.splice(0)) resolve({ done: true, value: undefined });
  }
}

const forgotten = new FinalizationRegistry<Rounds>((rounds) => rounds.leave());

/** The borrower's side of a cursor's rounds. */
class Loop {
  readonly #rounds: Rounds;
  #watched = false;

  constructor(query: Query) {
    this.#rounds = new Rounds(query);
  }

  next(): Promise<IteratorResult<unknown>> {
    if (!this.#watched) forgotten.register(this, this.#rounds);
    this.#watched = true;
    return this.#rounds.next();
  }

  return(): Promise<IteratorResult<unknown>> {
    return this.#rounds.return();
  }
}

/** Whoever has one of the functions alone has the whole. */
function iterate(query: Query): AsyncIterator<unknown> {
  const loop = new Loop(query);
  return { next: () => loop.next(), return: () => loop.return() };
}

/** Nobody may ever wait for a statement that is cancelled before it is executed. */
export function silence(query: Query): void {
  // The native `then`, as the statement's own would execute it.
  Promise.prototype.then.call(query, undefined, ignore);
}

/**
 * Lets a statement's callbacks run in the async context of the call that gave them: what comes from the wire runs in
 * that of whoever opened the socket, or in none. To be called in the turn in which the statement is executed.
 */
export function bindCallbacks(query: Query): void {
  const { forEachFn, cursorFn } = query;
  if (forEachFn !== undefined) {
    const bound = bindContext(forEachFn);
    query.forEachFn = (row, result) => {
      const returned = bound(row, result);
      if (isThenable(returned)) failWith(query, returned);
      return returned;
    };
  }
  if (cursorFn !== undefined) query.cursorFn = bindContext(cursorFn);
}

/** Nobody waits for what a callback of single rows returns; a rejection of it fails the statement, or is reported. */
function failWith(query: Query, returned: PromiseLike<unknown>): void {
  Promise.resolve(returned).then(undefined, (error) => {
    query.reject(error);
    const late = (): void => report("the callback of forEach() failed after its statement:", error);
    // The native `then`, as the statement's own would execute it.
    Promise.prototype.then.call(query, late, (reason) => {
      if (reason !== error) late();
    });
  });
}
