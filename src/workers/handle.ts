/** What travels to a worker so that it can join a pool. */

import { deserialize, serialize } from "node:v8";
import { isRecord } from "../pool/options.ts";

/**
 * What `share` gives and `join` takes: send it to the worker by `postMessage`. It holds what is
 * needed to connect, so treat it as a secret; it is good for one worker and for one time.
 */
export interface PoolHandle {
  /** Tells a handle from anything else. */
  readonly kind: "@getconn/pool";
  /** Which pool may join by it. */
  readonly pool: string;
  /** The shared permits. */
  readonly permits: SharedArrayBuffer;
  /** The shared statistics. */
  readonly stats: SharedArrayBuffer;
  /** The place that is reserved for the worker. */
  readonly id: number;
  /** Names the pool among all pools of the process. */
  readonly token: string;
  /** The thread of the worker for which it was made, where threads have numbers. */
  readonly thread: number | null;
  /** Whether the worker has to hold a lock while it lives. */
  readonly lock: boolean;
  /** The options, in a form that shows no password when it is printed. */
  readonly sealed: Uint8Array;
}

/** What is sealed in a handle. */
export interface Cargo {
  /** What the constructor was given after maxconn, without the key `pool`. */
  readonly args: readonly unknown[];
  /** The pool's own options. */
  readonly pool: Readonly<Record<string, unknown>>;
  /** The paths of what could not be sealed. */
  readonly missing: readonly string[];
}

/** Seals what can be cloned, and notes what cannot. */
export function seal(
  args: readonly unknown[],
  pool: Readonly<Record<string, unknown>>,
): { readonly sealed: Uint8Array; readonly missing: readonly string[] } {
  const missing: string[] = [];
  const last = args.at(-1);
  const cargo: Cargo = {
    args: args.map((arg) => {
      if (arg === last && isRecord(arg)) return sift(arg, "", missing);
      if (typeof arg !== "function") return arg;
      // A function in place of the connection string: the option of this name is the same.
      missing.push("dsn");
      return undefined;
    }),
    pool: sift(pool, "pool.", missing),
    missing,
  };
  return { sealed: new Uint8Array(serialize(cargo)), missing };
}

/** Opens what `seal` closed. */
export function unseal(sealed: Uint8Array): Cargo {
  return deserialize(sealed) as Cargo;
}

/** The constructor's arguments in a worker: those of the handle, with the worker's own options over them. */
export function localArgs(cargo: Cargo, local: Readonly<Record<string, unknown>>): unknown[] {
  const { pool: localPool, ...localRest } = local;
  if (localPool !== undefined && !isRecord(localPool)) {
    throw new TypeError('Option "pool" must be an object');
  }
  const given = { ...localRest, pool: localPool ?? {} };
  const lacking = cargo.missing.filter((path) => !has(given, path));
  if (lacking.length > 0) {
    throw new TypeError(
      `join() must be given ${
        lacking.join(", ")
      }: the pool has it, and it cannot be sent to a worker`,
    );
  }
  const args = [...cargo.args];
  const rest = isRecord(args.at(-1)) ? args.pop() as object : {};
  return [...args, { ...rest, ...localRest, pool: { ...cargo.pool, ...given.pool } }];
}

function sift(from: object, prefix: string, missing: string[]): Record<string, unknown> {
  const to: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(from)) {
    if (value === undefined) continue;
    if (canTravel(value)) to[key] = value;
    else missing.push(prefix + key);
  }
  return to;
}

function canTravel(value: unknown): boolean {
  try {
    structuredClone(value);
    return true;
  } catch {
    return false;
  }
}

function has(given: Record<string, unknown>, path: string): boolean {
  const [first, second] = path.split(".", 2) as [string, string?];
  return second === undefined ? first in given : second in (given[first] as object);
}
