/**
 * The words of the project: one name for each thing, used everywhere. No code.
 *
 * connection: one session at the server. lease: what getconn gives, the right to use a connection
 * until putconn. entry: the pool's record of a connection. permit: the right to have one more
 * connection open. waiter: a call of getconn that has no connection yet.
 */

import type { StatementObserver } from "./observe.ts";

/**
 * The state of a connection's transaction, in libpq's words (PQtransactionStatus).
 *
 * - `idle`: no transaction is open.
 * - `active`: a statement has been sent and its end has not been seen.
 * - `intrans`: in a transaction, between statements.
 * - `inerror`: in a transaction of which a statement has failed.
 * - `unknown`: the connection is lost or closed.
 */
export type TransactionStatus = "idle" | "active" | "intrans" | "inerror" | "unknown";

/**
 * The states of a pool's entry.
 *
 * - `connecting`: being opened (and configured).
 * - `idle`: at hand for the next borrower.
 * - `checking`: not idle any more, not yet lent: a round trip finds out whether it is alive.
 * - `leased`: in a borrower's hands.
 * - `shared`: in nobody's hands: statements of many callers are in flight on it.
 * - `returning`: put back, being rolled back or reset.
 * - `closing`: being closed; its permit is still held.
 * - `closed`: gone at the server; its permit is free.
 */
export type EntryState =
  | "connecting"
  | "idle"
  | "checking"
  | "leased"
  | "shared"
  | "returning"
  | "closing"
  | "closed";

/**
 * Why a connection left the pool.
 *
 * - `lost`: closed from outside: by the server, the network or the borrower.
 * - `discarded`: putconn with `close`.
 * - `dirty`: put back in the middle of a statement, or its rollback or `reset` failed.
 * - `unhealthy`: the check before lending failed, or `validate` refused it.
 * - `idle`: idle for longer than `maxIdle`, or more than `minconn` with `maxIdle: 0`.
 * - `lifetime`: older than `maxLifetime`.
 * - `uses`: lent as often as `maxUses` says.
 * - `renewed`: opened before the last `renew()`.
 * - `resized`: above maxconn after `resize()`.
 * - `reclaimed`: lent for longer than `reclaimAfter`.
 * - `yielded`: given up because another worker needs the permit more.
 * - `closed`: the pool was closed.
 */
export type RemoveReason =
  | "lost"
  | "discarded"
  | "dirty"
  | "unhealthy"
  | "idle"
  | "lifetime"
  | "uses"
  | "renewed"
  | "resized"
  | "reclaimed"
  | "yielded"
  | "closed";

/** What a connector is told of the connection it shall open. */
export interface ConnectAttempt {
  /** What the pool's constructor was given after maxconn, without the key `pool`. */
  readonly args: readonly unknown[];
  /** Aborts when the pool closes meanwhile: then `open` gives up, leaves nothing open, and rejects. */
  readonly signal: AbortSignal;
  /** To be called once when the opened connection closes by itself; not before `open` has resolved. */
  readonly onlost: (reason: unknown) => void;
  /** To be called when work may be given to the connection that could not a moment ago; see {@linkcode Connector.shares}. */
  readonly onshares: () => void;
}

/** The pool's side of a lease, for connectors that make their own handles in {@linkcode Connector.lend}. */
export interface Lease {
  /** True until putconn takes the connection back. */
  readonly open: boolean;
  /** Throws ConnectionReturned when the lease was put back. */
  assertOpen(): void;
  /** The error that says so. */
  returned(): Error;
  /** A PoolError of this pool, for a connector's own refusals. */
  error(
    message: string,
    code:
      | "CONNECTION_LOST"
      | "IN_TRANSACTION"
      | "OUTCOME_UNKNOWN"
      | "TRANSACTION_ENDED"
      | "TRANSACTION_FAILED"
      | "UNSUPPORTED",
    cause?: unknown,
  ): Error;
  /**
   * What has the connection for itself beside the lease: a transaction's function, or a reservation. One at a time: who
   * wants to be it sets this in the turn in which it was null, and sets it back in the end.
   */
  holder: object | null;
  /**
   * Calls `fn` once when the lease ends before its borrower is done: with null when it was put back, with the
   * reason when its connection was lost or the pool closed. Returns how to take that back.
   */
  whenOver(fn: (lost: { readonly reason: unknown } | null) => void): () => void;
  /** The borrower closes the connection by itself: what comes is no loss that it must be told of. */
  expectLoss(): void;
  /** Puts the connection back; does nothing when it is back already. */
  putconn(): Promise<void>;
}

/**
 * How connections are opened, checked, cleaned and closed. The pool knows no driver but this, so
 * that it can hold anything that is worth pooling.
 *
 * `C` is what borrowers get, `R` what the connector opens; without `lend` borrowers get a revocable
 * view of `R` itself. All that is done to the view is done to `R`, and refused after putconn. Where `R`
 * comes out of a property, a method or its promise, the view stands in its place; in arrays, in
 * other objects and in the arguments of callbacks it does not: things that give themselves out there
 * need a `lend`.
 *
 * Every method may be called only for a resource that `open` gave and `close` was not yet called for.
 */
export interface Connector<C extends object = object, R extends object = C> {
  /**
   * Called once, in the pool's constructor: look at the arguments for `open` and throw a TypeError
   * or RangeError when they are no good. Does no I/O.
   */
  accept?(args: readonly unknown[]): void;
  /**
   * Opens one connection. Rejecting means that nothing is left open. What is open in this pool
   * already, or is `unknown` at once, counts as a failure.
   */
  open(attempt: ConnectAttempt): Promise<R>;
  /**
   * Whether what `open` rejected with comes again until somebody changes something, such as a wrong password: then
   * everybody who waits is told at once, and the background tries on. Without this method everything may heal.
   */
  permanent?(error: unknown): boolean;
  /**
   * Closes it, also in the middle of a statement or after it was lost. Resolves when the other side has let go, which is
   * what frees the permit; must resolve within a limit of its own. A rejection counts as closed. `why` is given when it
   * is taken from a borrower who may have something running there: the cause of what fails by that.
   */
  close(resource: R, why?: Error): Promise<void>;
  /** The transaction state, without I/O. Without this method a connection counts as `idle`. */
  status?(resource: R): TransactionStatus;
  /**
   * Whether more work may be given to it beside what runs there; asked only of a shared connection. Without it,
   * always. When the answer changes without the end of any work, {@linkcode ConnectAttempt.onshares} is to be called.
   */
  shares?(resource: R): boolean;
  /** Resolves when nothing runs on it any more, or it is closed; for work that shares a connection. */
  quiet?(resource: R): Promise<void>;
  /** One round trip that rejects when the connection is dead. Without it nothing is checked. */
  check?(resource: R): Promise<void>;
  /**
   * Opens a transaction; with `commit` and `rollback` it makes `pool.transaction` possible. `mode` is
   * {@linkcode TransactionModes.mode}, or what says the same. Resolves with false when one was open already.
   */
  begin?(resource: R, mode?: string): Promise<boolean | void>;
  /**
   * The same without a mode, where the transaction's function need not wait for it: what it executes comes behind it, and
   * fails when it fails, by the loss of the connection. Null where that is not possible: then `begin` is called.
   */
  beginAhead?(resource: R): Promise<unknown> | null;
  /**
   * Commits the transaction of the last `begin`; resolves with false when it was rolled back instead, as a statement in
   * it had failed, and with `"ended"`, having done nothing, when the borrower had ended it by hand.
   */
  commit?(resource: R): Promise<boolean | "ended" | void>;
  /**
   * Whether the borrower has ended the transaction of the last `begin` by hand, before `commit` was called, and
   * `unknown` when he has sent what may end it and there is no answer; without I/O, also of a connection that is lost.
   * Then its function is not called again, whatever `retry` says. Without this method nobody ends one by hand.
   */
  ended?(resource: R): "ended" | "unknown" | null;
  /** What a statement of the transaction of the last `begin` has failed with, so that it could not be committed. */
  failedBy?(resource: R): unknown;
  /** Ends the transaction of a connection that is `intrans` or `inerror`. */
  rollback?(resource: R): Promise<void>;
  /**
   * Runs `fn` in a savepoint of the transaction that `pool.transaction` has open: when it rejects, what was done in it is
   * taken back, and nothing else. One runs at a time, and what is executed beside waits for its end. `conn` is what `lend` made.
   */
  savepoint?<T>(conn: C, fn: () => T | Promise<T>): Promise<T>;
  /** Makes the handle of one lease. It must refuse every use when `lease.open` is false. */
  lend?(resource: R, lease: Lease): C;
  /** Tells the observer of every statement from now on; with null, nobody. Without it there are no statements. */
  observe?(observer: StatementObserver | null): void;
  /** What runs on it now, without values, and since when by the monotonic clock where that is known; null for nothing. */
  running?(resource: R): { readonly text: string; readonly since: number | null } | null;
  /** An idle connection must not keep the process alive … */
  unref?(resource: R): void;
  /** … and a leased one must. */
  ref?(resource: R): void;
  /** What may be shown in `pool.options`: where connections go, and no secret. */
  describe?(): Readonly<Record<string, unknown>>;
}

/** Options of one call of getconn. */
export interface GetconnOptions {
  /**
   * How long to wait for a connection, in milliseconds: queueing, connecting and checking together.
   * 0 = do not queue: throw PoolExhausted at once when maxconn connections are lent.
   *
   * @default {the pool's `timeout`}
   */
  readonly timeout?: number | undefined;
  /** Gives up waiting when it aborts; getconn rejects with the signal's reason. */
  readonly signal?: AbortSignal | null | undefined;
}

/** Options of `pool.ready`. */
export interface ReadyOptions {
  /**
   * How long to wait for the first connections, in milliseconds; 0 = do not wait.
   *
   * @default {Infinity}
   */
  readonly timeout?: number | undefined;
  /** Gives up waiting when it aborts; ready rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/** What a transaction may be asked for. The names are those of PostgreSQL's `begin`. */
export interface TransactionModes {
  /**
   * What stands behind `begin`, such as `isolation level serializable read only`: in place of the three below.
   *
   * @default {the server's defaults}
   */
  readonly mode?: string | undefined;
  /** How far others are out of sight. */
  readonly isolation?:
    | "serializable"
    | "repeatable read"
    | "read committed"
    | "read uncommitted"
    | undefined;
  /** Whether it only reads. */
  readonly readOnly?: boolean | undefined;
  /** True with `serializable` and `readOnly`: waits in the beginning for a moment from which on nothing can fail. */
  readonly deferrable?: boolean | undefined;
  /**
   * Tries it again, from `begin` on, after a serialization failure (40001), a deadlock (40P01), or the loss of the
   * session before the commit was sent: then nothing has been done. Never after that: see OUTCOME_UNKNOWN. Its
   * function is called anew each time; what it does beside the transaction is done again.
   *
   * What its function has committed by hand is never done again: see TRANSACTION_ENDED and OUTCOME_UNKNOWN.
   *
   * @default {once only}
   */
  readonly retry?: RetryOptions | null | undefined;
  /**
   * With `savepoint`, what is called by the function of a transaction of the same connection is a part of that one: a
   * savepoint, which is rolled back alone when its own function throws. Outside of one it is a transaction as any. The
   * options above are those of a whole transaction: together with one of them it is refused where it is nested.
   *
   * @default {none: a transaction within a transaction is refused, with IN_TRANSACTION}
   */
  readonly nested?: "savepoint" | undefined;
}

/** How often, and after what pauses, a transaction is tried. */
export interface RetryOptions {
  /** How often at most, the first time included. @default {3} */
  readonly attempts?: number | undefined;
  /**
   * How long the first pause is at most, in milliseconds; each one is by chance from 0 to twice the one before. Not more
   * than `maxDelay`.
   *
   * @default {20}
   */
  readonly delay?: number | undefined;
  /** No pause is longer, in milliseconds. @default {1000} */
  readonly maxDelay?: number | undefined;
}

/** Options of `pool.transaction`. `timeout` counts for each attempt, `signal` for all, and the pauses. */
export interface TransactionOptions extends GetconnOptions, TransactionModes {}

/** Options of `pool.close`. */
export interface CloseOptions {
  /**
   * How long to wait for leases to come back, in milliseconds, before they are closed in use.
   *
   * @default {30000}
   */
  readonly timeout?: number | undefined;
}

/** A host of edge functions, or the context that it gives with a request: anything with waitUntil. */
export interface HostContext {
  /** Keeps the instance alive until the promise settles. */
  waitUntil(promise: Promise<unknown>): unknown;
}

/** Options of `pool.closeOn`. */
export interface CloseOnOptions {
  /**
   * Which events close the pool; one that the host does not have does no harm.
   *
   * @default {["SIGINT", "SIGTERM", "beforeunload"]}
   */
  readonly events?: readonly ("SIGINT" | "SIGTERM" | "beforeunload")[] | undefined;
  /**
   * Ends what uses the pool, such as a server; called at the event. Until its promise settles the
   * pool lends as ever, so that requests which were accepted get their answers. When it rejects,
   * gives no promise or takes too long, console.error says so and the pool is closed all the same.
   *
   * - `Deno.serve`: `() => server.shutdown()`
   * - `Bun.serve`: `() => server.stop()`
   * - `node:http`: `() => new Promise((done) => server.close(done))`; it waits for connections that a
   *   browser keeps alive, too, unless `server.closeIdleConnections()` is called now and then
   *
   * Without it the pool is closed at once: requests that ask for a connection from then on get
   * PoolClosed, and answers have half a second to be written when the last lease is back.
   */
  readonly before?: (() => PromiseLike<unknown>) | undefined;
  /**
   * How long `before` and the leases' coming back may take together, in milliseconds; after that
   * leases are closed in use. The process ends half a second later. Give less than the
   * host gives: it kills what has not ended by then (Kubernetes after 30 s, many others after 5 or 10).
   *
   * @default {4000}
   */
  readonly timeout?: number | undefined;
  /**
   * Whether the process ends after a signal when its pools are closed, with the exit code that the
   * signal would have given. It does not where the program itself listens to the signal by
   * `process.on`; who uses `Deno.addSignalListener` sets this to false.
   *
   * @default {true}
   */
  readonly exit?: boolean | undefined;
}

/** A pool's options in force, safe to print. Times in milliseconds. */
export interface PoolSettings {
  /** The pool's name. */
  readonly name: string;
  /** How long getconn waits. */
  readonly timeout: number;
  /** How many callers may wait. */
  readonly maxWaiting: number;
  /** How long a connection above minconn may be idle. */
  readonly maxIdle: number;
  /** The same as maxIdle, under the name that hosts of edge functions look for. */
  readonly idleTimeoutMillis: number;
  /** How old a connection gets. */
  readonly maxLifetime: number;
  /** After how much idle time a connection is checked. */
  readonly checkAfter: number;
  /** How long a check may take. */
  readonly checkTimeout: number;
  /** How often a connection is lent; 0 for no limit. */
  readonly maxUses: number;
  /** Whether there is a configure hook. */
  readonly configure: boolean;
  /** Whether there is a reset hook. */
  readonly reset: boolean;
  /** Whether there is a validate hook. */
  readonly validate: boolean;
  /** How long the background tries to reconnect. */
  readonly reconnectTimeout: number;
  /** When a lease counts as leaked. */
  readonly leakAfter: number;
  /** When a lease is taken back. */
  readonly reclaimAfter: number;
  /** When a statement is told as slow. */
  readonly slowStatementAfter: number;
  /** Where connections go, as the connector tells it, without secrets. */
  readonly connection: Readonly<Record<string, unknown>>;
}

/** Numbers that only grow; the names are psycopg_pool's in camelCase. Times in milliseconds. */
export interface PoolTotals {
  /** Calls of getconn, and statements of `pool.sql` that had to wait. */
  readonly requestsNum: number;
  /** Those that had to wait, also those that were refused or gave up. */
  readonly requestsQueued: number;
  /** Time spent waiting by those that had to, and were served. */
  readonly requestsWaitMs: number;
  /** Those that failed. */
  readonly requestsErrors: number;
  /** Time that connections were lent. */
  readonly usageMs: number;
  /** Connections put back in a state other than idle. */
  readonly returnsBad: number;
  /** Attempts to connect. */
  readonly connectionsNum: number;
  /** Time spent in attempts that succeeded. */
  readonly connectionsMs: number;
  /** Attempts that failed. */
  readonly connectionsErrors: number;
  /** Connections found lost: closed from outside or by a failed check. */
  readonly connectionsLost: number;
}

/** Numbers of this moment. */
export interface PoolGauges {
  /** Connections being opened. */
  readonly connecting: number;
  /** Connections at hand. */
  readonly idle: number;
  /** Connections lent, being checked for a borrower, or on their way back from one. */
  readonly leased: number;
  /** Connections on which single statements of `pool.sql` are in flight. */
  readonly shared: number;
  /** Connections being closed: not in poolSize, but their permits are held until the server has let go. */
  readonly closing: number;
  /** Callers of getconn, and statements of `pool.sql`, that wait now. */
  readonly requestsWaiting: number;
}

/** A frozen snapshot of a pool's numbers; the names are psycopg_pool's in camelCase. Times in milliseconds. */
export interface PoolStats extends PoolTotals, PoolGauges {
  /** The pool's name. */
  readonly name: string;
  /** minconn. */
  readonly poolMin: number;
  /** maxconn. */
  readonly poolMax: number;
  /** Connections that the pool has: connecting + idle + leased + shared. */
  readonly poolSize: number;
  /** Connections at hand: the same as idle. */
  readonly poolAvailable: number;
  /** For how long the first of those who wait in this isolate has waited; 0 when nobody does. */
  readonly longestWaitMs: number;
  /** Why connecting fails: the last failure since the last success, in words; null while it does not fail. */
  readonly lastFailure: string | null;
  /** The isolates that share the pool, this one included; empty for a pool that cannot be shared. */
  readonly workers: readonly WorkerStats[];
}

/** One isolate's part in a shared pool. The numbers of other isolates are up to 0.1 s old. Times in milliseconds. */
export interface WorkerStats extends PoolTotals, PoolGauges {
  /** A number that no other isolate of the pool has now. */
  readonly worker: number;
  /** Whether this is the isolate that asks. */
  readonly self: boolean;
  /** False for one that died a moment ago, whose permits are not free yet. */
  readonly alive: boolean;
  /** How many of the maxconn permits it holds. */
  readonly permits: number;
}
