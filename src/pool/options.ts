/** The pool's own options: one interface, one table of defaults and rules, one resolver. */

import { LONGEST } from "../clock.ts";
import type { Connector, TransactionModes, TransactionOptions } from "./types.ts";

/**
 * The pool's own options: the value of the key `pool` in the options of a pool's constructor.
 * All times are milliseconds. The names are psycopg_pool's.
 */
export interface PoolOptions<C extends object> {
  /**
   * Names the pool in errors, statistics and metrics.
   *
   * @default {"pool-N"}
   */
  readonly name?: string | undefined;
  /**
   * How long getconn may wait for a connection: queueing, connecting and checking together. 0 is
   * psycopg2's rule: throw PoolExhausted at once when maxconn connections are lent. Infinity waits
   * without limit.
   *
   * @default {0}
   */
  readonly timeout?: number | undefined;
  /**
   * At most so many callers may queue in getconn while no connection is on its way to them; one
   * more is refused with TooManyWaiting. 0 = no limit.
   *
   * @default {0}
   */
  readonly maxWaiting?: number | undefined;
  /**
   * An idle connection above minconn is closed after so long. 0 is psycopg2's rule: closed on
   * return, when minconn are idle already. Infinity = never.
   *
   * @default {60000}
   */
  readonly maxIdle?: number | undefined;
  /**
   * A connection is replaced at this age, less up to 5 % so that they do not all fall due at once
   * (HikariCP's rule); never while it is lent. 0 = never.
   *
   * @default {3600000}
   */
  readonly maxLifetime?: number | undefined;
  /**
   * A connection that was idle for longer than this is checked by a round trip before it is lent
   * (pgxpool's rule). It counts by the wall clock, so that the time in which the process was frozen
   * counts too. 0 = check always, Infinity = never.
   *
   * @default {1000}
   */
  readonly checkAfter?: number | undefined;
  /**
   * A check that takes longer than this has failed: the connection is closed, and so are those that were idle for
   * longer. Choose less than `timeout`, so that time is left for another connection.
   *
   * @default {5000}
   */
  readonly checkTimeout?: number | undefined;
  /**
   * A connection that was lent so often is closed when it comes back (pg-pool's). Statements of `pool.sql` that share
   * a connection do not count. 0 = no limit.
   *
   * @default {0}
   */
  readonly maxUses?: number | undefined;
  /** Prepares every new connection, once. It must leave no transaction open, and end within 30 s. */
  readonly configure?: ((conn: C) => unknown) | undefined;
  /**
   * Runs on every return, after the rollback. It must leave no transaction open, and end within 30 s. In it, as in
   * `configure`, a getconn that could only wait for what hooks hold, and a `ready()` that would wait, are refused
   * at once with code BAD_HOOK.
   */
  readonly reset?: ((conn: C) => unknown) | undefined;
  /**
   * Runs before each loan (pgx's PrepareConn): when it returns false, throws, leaves a transaction open or takes longer than
   * `checkTimeout`, this connection is closed, and the caller gets another one within its own timeout; where that is a new
   * one that is refused too, it counts as a connect that failed. Statements of `pool.sql` share a connection for which
   * it has run once. A getconn in it is refused as in `reset`.
   */
  readonly validate?: ((conn: C) => unknown) | undefined;
  /**
   * When the server is away, connections are tried again in the background with growing pauses.
   * After this time that ends with the event `reconnectfailed`; the next getconn begins anew.
   *
   * @default {300000}
   */
  readonly reconnectTimeout?: number | undefined;
  /**
   * A lease held for longer is reported by the event `leak`, with the stack of its getconn.
   * 0 = off.
   *
   * @default {0}
   */
  readonly leakAfter?: number | undefined;
  /**
   * A lease held for longer is taken back (c3p0's unreturnedConnectionTimeout): its statement is cancelled and its
   * connection closed, `use` and `transaction` reject, and whatever else is done with it throws a PoolError with code
   * LEASE_RECLAIMED. The event `leak` tells where it was taken. It does not count for what `pool.sql` holds by itself, to
   * listen or to execute one statement. Longer than `leakAfter`. 0 = off.
   *
   * @default {0}
   */
  readonly reclaimAfter?: number | undefined;
  /**
   * A statement that runs for longer is told by the event `slowstatement`, while it runs. 0 = off.
   *
   * @default {0}
   */
  readonly slowStatementAfter?: number | undefined;
  /**
   * How connections are opened, checked, cleaned and closed.
   *
   * @default {PostgreSQL; required by pools of something else}
   */
  readonly connector?: Connector<C> | undefined;
}

/** Those that have no default: what is not given is not there. */
type Optional = "configure" | "reset" | "validate" | "connector";

/** The options with every default filled in. */
export type ResolvedOptions<C extends object> = {
  readonly [K in keyof PoolOptions<C>]-?: K extends Optional ? PoolOptions<C>[K]
    : NonNullable<PoolOptions<C>[K]>;
};

type Check = (name: string, value: unknown) => void;

const TABLE: Readonly<Record<keyof ResolvedOptions<object>, readonly [unknown, Check]>> = {
  name: [undefined, checkName],
  timeout: [0, checkTime],
  maxWaiting: [0, checkCount],
  maxIdle: [60_000, checkTime],
  maxLifetime: [3_600_000, checkTime],
  checkAfter: [1_000, checkTime],
  checkTimeout: [5_000, checkLimit],
  maxUses: [0, checkCount],
  configure: [undefined, checkFunction],
  reset: [undefined, checkFunction],
  validate: [undefined, checkFunction],
  reconnectTimeout: [300_000, checkTime],
  leakAfter: [0, checkTime],
  reclaimAfter: [0, checkTime],
  slowStatementAfter: [0, checkTime],
  connector: [undefined, checkConnector],
};

/** True for the name of an option of the pool itself. */
export function isPoolOption(name: string): boolean {
  return Object.hasOwn(TABLE, name) || name === "scope";
}

/** Those that a connector may leave out; the type holds the list complete. */
type OptionalMethod = {
  [K in keyof Connector]-?: undefined extends Connector[K] ? K : never;
}[keyof Connector];

const OPTIONAL_METHODS = Object.keys(
  {
    accept: true,
    permanent: true,
    status: true,
    shares: true,
    quiet: true,
    check: true,
    begin: true,
    beginAhead: true,
    commit: true,
    ended: true,
    failedBy: true,
    rollback: true,
    lend: true,
    savepoint: true,
    observe: true,
    running: true,
    unref: true,
    ref: true,
    describe: true,
  } satisfies Record<OptionalMethod, true>,
) as OptionalMethod[];

let pools = 0;

/** Checks the options and fills in the defaults; the caller's object is left as it is. */
export function resolveOptions<C extends object>(given: unknown): ResolvedOptions<C> {
  if (given !== undefined && !isRecord(given)) {
    throw new TypeError(`Option "pool" must be an object, received ${show(given)}`);
  }
  const options = given ?? {};
  for (const key of Object.keys(options)) {
    if (!Object.hasOwn(TABLE, key)) {
      throw new TypeError(
        `Unknown option "pool.${key}": the options are ${Object.keys(TABLE).join(", ")}; ` +
          'what says how to connect goes beside "pool", not into it',
      );
    }
  }
  const resolved: Record<string, unknown> = {};
  for (const [key, [fallback, check]] of Object.entries(TABLE)) {
    const value = options[key];
    if (value !== undefined) check(`pool.${key}`, value);
    resolved[key] = value ?? fallback;
  }
  checkTogether(resolved as unknown as ResolvedOptions<object>);
  resolved.name ??= `pool-${++pools}`;
  return Object.freeze(resolved) as unknown as ResolvedOptions<C>;
}

/** Throws for options that make each other void. */
function checkTogether({ leakAfter, reclaimAfter }: ResolvedOptions<object>): void {
  if (reclaimAfter > 0 && leakAfter >= reclaimAfter) {
    throw new RangeError(
      `"pool.leakAfter" must be less than "pool.reclaimAfter", received ${leakAfter} and ${reclaimAfter}: ` +
        "a lease that was taken back is reported then, and no more later",
    );
  }
}

/** Takes the key `pool` out of what a constructor was given after maxconn; the rest goes to the connector. */
export function splitArgs(args: readonly unknown[]): { pool: unknown; rest: readonly unknown[] } {
  const last = args.at(-1);
  if (typeof last !== "object" || last === null || !("pool" in last)) {
    return { pool: undefined, rest: args };
  }
  const { pool, ...rest } = last as Record<string, unknown>;
  return { pool, rest: [...args.slice(0, -1), rest] };
}

/** PostgreSQL's own limit of `max_connections` (MAX_BACKENDS, 2^18 - 1): no server takes more. */
const MOST_CONNECTIONS = 262_143;

/** Throws unless 0 <= minconn <= maxconn, 1 <= maxconn <= 262143, both integers. */
export function checkSizes(minconn: unknown, maxconn: unknown): void {
  checkSize("minconn", minconn, 0);
  checkSize("maxconn", maxconn, 1);
  if ((maxconn as number) > MOST_CONNECTIONS) {
    throw new RangeError(
      `maxconn must be at most ${MOST_CONNECTIONS}, which is what PostgreSQL takes, received ${maxconn}`,
    );
  }
  if ((minconn as number) > (maxconn as number)) {
    throw new RangeError(
      `minconn must not be greater than maxconn, received minconn ${minconn} and maxconn ${maxconn}`,
    );
  }
}

/** Throws unless `value` is a time in milliseconds that a timer can take, or Infinity. */
export function checkTime(name: string, value: unknown): void {
  if (typeof value !== "number") {
    throw new TypeError(`"${name}" must be a number of milliseconds, received ${show(value)}`);
  }
  if (!(value >= 0) || (value > LONGEST && value !== Infinity)) {
    throw new RangeError(
      `"${name}" must be from 0 to ${LONGEST} milliseconds or Infinity, received ${value}`,
    );
  }
}

/** Throws unless it is a time that comes. */
function checkLimit(name: string, value: unknown): void {
  checkTime(name, value);
  if (value === 0 || value === Infinity) {
    throw new RangeError(`"${name}" must be above 0 and below Infinity, received ${value}`);
  }
}

/**
 * Reads the options of a call, each once: what they are is somebody else's, and so are its getters.
 * Throws a TypeError for anything but an object, and for a key that the call does not have.
 */
export function readOptions<K extends string>(
  call: string,
  given: unknown,
  keys: readonly K[],
): { readonly [Key in K]?: unknown } {
  if (given === undefined) return {};
  if (!isRecord(given)) {
    throw new TypeError(`The options of ${call} must be an object, received ${show(given)}`);
  }
  if (given instanceof AbortSignal) {
    throw new TypeError(`The options of ${call} must be an object; a signal goes into { signal }`);
  }
  for (const key of Object.keys(given)) {
    if (!(keys as readonly string[]).includes(key)) {
      throw new TypeError(`Unknown option "${key}" of ${call}: it takes ${keys.join(", ")}`);
    }
  }
  const read: { [Key in K]?: unknown } = {};
  for (const key of keys) read[key] = given[key];
  return read;
}

/** How long and until when to wait, after all checks. */
export interface WaitOptions {
  /** Undefined: as long as the pool says. */
  readonly timeout: number | undefined;
  readonly signal: AbortSignal | undefined;
}

/** The options of a call that may wait; throws what is wrong with them, also the reason of a signal that has aborted. */
export function readWaitOptions(call: string, given: unknown): WaitOptions {
  const { timeout, signal } = readOptions(call, given, ["timeout", "signal"]);
  if (timeout !== undefined) checkTime("timeout", timeout);
  if (signal === undefined || signal === null) return { timeout, signal: undefined } as WaitOptions;
  if (!(signal instanceof AbortSignal)) throw new TypeError('"signal" must be an AbortSignal');
  if (signal.aborted) throw signal.reason;
  return { timeout, signal } as WaitOptions;
}

/** What `transaction` takes beside `timeout` and `signal`, and `begin` in place of its string. */
export const TRANSACTION_MODES: readonly (keyof TransactionModes)[] = [
  "mode",
  "isolation",
  "readOnly",
  "deferrable",
  "retry",
  "nested",
];

/** What `transaction` takes. */
export const TRANSACTION_OPTIONS: readonly (keyof TransactionOptions)[] = [
  "timeout",
  "signal",
  ...TRANSACTION_MODES,
];

const IN_CALLS: readonly string[] = [...TRANSACTION_OPTIONS, "close"];

/**
 * Throws when a key is an object literal with nothing in it but options of calls: whoever wrote it
 * meant them to be options.
 */
export function checkKey(call: string, key: unknown, where: string): void {
  if (typeof key !== "object" || key === null) return;
  const prototype: unknown = Object.getPrototypeOf(key);
  if (prototype !== Object.prototype && prototype !== null) return;
  const names = Object.keys(key);
  if (names.length === 0 || !names.every((name) => IN_CALLS.includes(name))) return;
  throw new TypeError(
    `${call} got { ${names.join(", ")} } in the place of the key: ${where}`,
  );
}

/** Throws unless it is a function. */
export function checkFn(call: string, fn: unknown): void {
  if (typeof fn !== "function") {
    throw new TypeError(`${call} takes a function, received ${show(fn)}`);
  }
}

/** Throws unless it says whether putconn closes the connection. */
export function checkClose(close: unknown): void {
  if (typeof close === "boolean") return;
  throw new TypeError(`putconn takes true or false for close, received ${show(close)}`);
}

function checkSize(name: string, value: unknown, least: number): void {
  if (typeof value !== "number") {
    throw new TypeError(`${name} must be an integer, received ${show(value)}`);
  }
  if (!Number.isSafeInteger(value) || value < least) {
    throw new RangeError(`${name} must be an integer of at least ${least}, received ${value}`);
  }
}

function checkCount(name: string, value: unknown): void {
  checkSize(`"${name}"`, value, 0);
}

function checkName(name: string, value: unknown): void {
  if (typeof value !== "string" || value === "") {
    throw new TypeError(`"${name}" must be a string that is not empty, received ${show(value)}`);
  }
}

function checkFunction(name: string, value: unknown): void {
  if (typeof value !== "function") {
    throw new TypeError(`"${name}" must be a function, received ${show(value)}`);
  }
}

function checkConnector(name: string, value: unknown): void {
  const connector = value as Partial<Connector> | null;
  if (typeof connector?.open !== "function" || typeof connector.close !== "function") {
    throw new TypeError(
      `"${name}" must be an object with open() and close(), received ${show(value)}`,
    );
  }
  for (const method of OPTIONAL_METHODS) {
    const one: unknown = connector[method];
    if (one !== undefined && typeof one !== "function") {
      throw new TypeError(`"${name}.${method}" must be a function, received ${show(one)}`);
    }
  }
}

/** True for an object that is no array. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Names a value by its kind; strings and objects are not shown, they may hold a secret. */
function show(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "an array";
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  return value === undefined ? "undefined" : `a value of type ${typeof value}`;
}
