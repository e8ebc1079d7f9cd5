/** The error family: few classes, each with a literal code and the pool's numbers at that moment. */

/** How many connections were in which state, and how many callers waited, when an error was made. */
export interface PoolCounts {
  /** Connections being opened. */
  readonly connecting: number;
  /** Connections at hand for the next borrower. */
  readonly idle: number;
  /** Connections in a borrower's hands, or on their way back. */
  readonly leased: number;
  /** Connections on which single statements are in flight. */
  readonly shared: number;
  /** Callers waiting for a connection. */
  readonly waiting: number;
  /** The cap. */
  readonly maxconn: number;
}

/**
 * The literal codes that {@linkcode PoolError.code} takes, one for each thing that can go wrong.
 *
 * - `POOL_CLOSED`: the pool is closed or closing.
 * - `POOL_EXHAUSTED`: all connections are lent and the caller did not want to wait.
 * - `POOL_TIMEOUT`: the caller's `timeout` ran out.
 * - `TOO_MANY_WAITING`: `maxWaiting` callers wait already.
 * - `CONNECTION_RETURNED`: the lease was put back before it was used.
 * - `CONNECTION_LOST`: the leased connection is closed, by the server, the network or the borrower.
 * - `LEASE_RECLAIMED`: the lease was held for longer than `reclaimAfter`, and its connection was taken back and closed.
 * - `UNKEYED_CONNECTION`: putconn got something that this pool has not lent, or not any more.
 * - `WRONG_KEY`: putconn got a key under which this connection was not lent.
 * - `CONNECT_FAILED`: no connection could be opened; `cause` is why.
 * - `BAD_HOOK`: `configure`, `reset` or `validate` failed, refused the connection or left a transaction open.
 * - `IN_TRANSACTION`: `begin` or `transaction` on a connection that is in a transaction already, or has a part that
 *   holds it: a reservation, another savepoint.
 * - `OUTCOME_UNKNOWN`: the connection was lost after a commit was sent and before its answer: the server may have
 *   committed or not. `cause` is the loss.
 * - `TRANSACTION_ENDED`: the function of a transaction has ended it by hand, with `commit` or `rollback`. When it has
 *   failed as well, in a way that `retry` would mend, `cause` is how.
 * - `RUN_ENDED`: the call of `pool.run` to which the caller belongs has ended.
 * - `TRANSACTION_FAILED`: the transaction could not be committed, because a statement in it had failed.
 * - `BAD_HANDLE`: a pool's handle that was used already, or is too old.
 * - `UNSUPPORTED`: something that a leased connection cannot do without leaving the pool's cap.
 */
export type PoolErrorCode =
  | "POOL_CLOSED"
  | "POOL_EXHAUSTED"
  | "POOL_TIMEOUT"
  | "TOO_MANY_WAITING"
  | "CONNECTION_RETURNED"
  | "CONNECTION_LOST"
  | "LEASE_RECLAIMED"
  | "UNKEYED_CONNECTION"
  | "WRONG_KEY"
  | "CONNECT_FAILED"
  | "BAD_HOOK"
  | "IN_TRANSACTION"
  | "OUTCOME_UNKNOWN"
  | "TRANSACTION_FAILED"
  | "TRANSACTION_ENDED"
  | "RUN_ENDED"
  | "BAD_HANDLE"
  | "UNSUPPORTED";

/** What an error says of the pool it comes from. */
export interface PoolErrorContext {
  /** The pool's name. */
  readonly pool: string;
  /** The pool's counts when the error was made. */
  readonly counts: PoolCounts;
  /** What led to it, when something did. */
  readonly cause?: unknown;
}

/** On each class of the family: the name under which every copy of this package knows it. */
const FAMILY = Symbol("family");

/** What an instance of the class of this name carries, whichever copy and version made it. */
const brand = (name: string): symbol => Symbol.for(`@getconn/pool.${name}`);

/** Makes a class one with its namesakes of other copies; only for names that are never reused. */
function join(family: { prototype: object }, name: string): void {
  Object.defineProperty(family, FAMILY, { value: name });
  Object.defineProperty(family.prototype, brand(name), { value: true });
}

/**
 * Anything that a pool refuses or fails to do. The messages begin with psycopg2's words where
 * psycopg2 has them.
 *
 * @example Tell one failure from another by its code
 * ```ts
 * import { PoolError, SimpleConnectionPool } from "@getconn/pool";
 *
 * const pool = new SimpleConnectionPool(0, 1, "postgres://localhost/app");
 * await pool.closeall();
 * try {
 *   await pool.getconn();
 * } catch (error) {
 *   if (!(error instanceof PoolError) || error.code !== "POOL_CLOSED") throw error;
 * }
 * ```
 */
export class PoolError extends Error {
  /** The class name. */
  override readonly name: string = "PoolError";
  /** Which failure this is. */
  readonly code: PoolErrorCode;
  /** The name of the pool. */
  readonly pool: string;
  /** The pool's counts at that moment. */
  readonly counts: PoolCounts;

  static {
    join(this, "PoolError");
  }

  /**
   * Several copies of this package may be loaded in one process, by a bundler's chunks or a linked
   * folder: an error of any of them is an instance of the class of that name in all of them.
   */
  static override [Symbol.hasInstance](value: unknown): boolean {
    try {
      if (Function.prototype[Symbol.hasInstance].call(this, value)) return true;
      // Not inherited: a subclass of a program is nobody's namesake.
      if (!Object.hasOwn(this, FAMILY) || typeof value !== "object" || value === null) return false;
      return Reflect.get(value, brand(Reflect.get(this, FAMILY))) === true;
    } catch {
      // A proxy that lets nobody look.
      return false;
    }
  }

  /** Made by pools; `message` gets the pool's name and counts appended. */
  constructor(message: string, code: PoolErrorCode, context: PoolErrorContext) {
    const { pool, counts, cause } = context;
    super(
      `${message} (pool "${pool}": ${counts.leased} leased, ` +
        (counts.shared > 0 ? `${counts.shared} shared, ` : "") + `${counts.idle} idle, ` +
        `${counts.connecting} connecting, ${counts.waiting} waiting, maxconn ${counts.maxconn})`,
      cause === undefined ? undefined : { cause },
    );
    this.code = code;
    this.pool = pool;
    this.counts = counts;
  }
}

/** Thrown by whatever needs an open pool when it is closed, with psycopg2's words; a further `close()` resolves. */
export class PoolClosed extends PoolError {
  static {
    join(this, "PoolClosed");
  }

  /** The class name. */
  override readonly name: string = "PoolClosed";

  /** Made by pools. */
  constructor(context: PoolErrorContext) {
    super("connection pool is closed: make a new one", "POOL_CLOSED", context);
  }
}

/** Thrown by getconn when maxconn connections are lent and the caller does not wait (`timeout: 0`). */
export class PoolExhausted extends PoolError {
  static {
    join(this, "PoolExhausted");
  }

  /** The class name. */
  override readonly name: string = "PoolExhausted";

  /** Made by pools. */
  constructor(
    context: PoolErrorContext,
    message: string =
      "connection pool exhausted: put connections back, by putconn or use(), or wait for one " +
      "with the option timeout",
    code: PoolErrorCode = "POOL_EXHAUSTED",
  ) {
    super(message, code, context);
  }
}

/**
 * Thrown by getconn when its `timeout` ran out. `cause` is the last failure to connect, when the
 * pool could not connect meanwhile.
 */
export class PoolTimeout extends PoolExhausted {
  static {
    join(this, "PoolTimeout");
  }

  /** The class name. */
  override readonly name: string = "PoolTimeout";
  /** How long the caller waited, in milliseconds. */
  readonly waited: number;

  /** Made by pools. */
  constructor(context: PoolErrorContext, waited: number, why = "") {
    super(
      context,
      `connection pool exhausted: no connection within ${waited} ms${why}`,
      "POOL_TIMEOUT",
    );
    this.waited = waited;
  }
}

/** Thrown by getconn when `maxWaiting` callers wait already. */
export class TooManyWaiting extends PoolError {
  static {
    join(this, "TooManyWaiting");
  }

  /** The class name. */
  override readonly name: string = "TooManyWaiting";

  /** Made by pools. */
  constructor(context: PoolErrorContext, limit: number) {
    super(
      `connection pool exhausted: ${limit} callers wait already, which is maxWaiting`,
      "TOO_MANY_WAITING",
      context,
    );
  }
}

/** Thrown by every use of a lease after putconn took it back. */
export class ConnectionReturned extends PoolError {
  static {
    join(this, "ConnectionReturned");
  }

  /** The class name. */
  override readonly name: string = "ConnectionReturned";

  /** Made by pools. */
  constructor(context: PoolErrorContext) {
    super(
      "connection was put back to the pool and cannot be used any more: borrow one with getconn or use()",
      "CONNECTION_RETURNED",
      context,
    );
  }
}

/** The hint of an error at what to do, ready to follow its text; empty when it has none. */
export function hintOf(error: unknown): string {
  try {
    const hint = error instanceof Error ? (error as { hint?: unknown }).hint : undefined;
    return typeof hint === "string" && hint !== "" ? `; ${hint}` : "";
  } catch {
    // Not ours: to look at it may throw.
    return "";
  }
}

/**
 * The text of any thrown thing, for use inside another error's message. Whatever was thrown is not
 * ours: to look at it may throw as well, and must not.
 */
export function reasonOf(error: unknown): string {
  try {
    if (error instanceof AggregateError && error.message === "") {
      return error.errors.map(reasonOf).join("; ");
    }
    const text: unknown = error instanceof Error ? error.message || error.name : error;
    return typeof text === "string" ? text : String(text);
  } catch {
    return "something that cannot be shown as text";
  }
}

/** Where this was called from, as a stack; a program may have its own idea of what a stack is. */
export function stackHere(message: string): string {
  try {
    const { stack } = new Error(message);
    return typeof stack === "string" ? stack : "";
  } catch {
    return "";
  }
}

/** Tells the console of a failure that is nobody's to catch. */
export function report(message: string, error: unknown, level: "error" | "warn" = "error"): void {
  try {
    console[level](message, error);
  } catch {
    // The console looks at what it prints.
    console[level](message, reasonOf(error));
  }
}
