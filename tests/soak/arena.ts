/** The pools of a soak, under one face for the tasks. */

import type { Connection, GetconnOptions, PoolStats } from "../../mod.ts";
import {
  PersistentConnectionPool,
  type SimpleConnectionPool,
  type ThreadedConnectionPool,
} from "../../mod.ts";
import type { Journal } from "./journal.ts";

/** Any of them. */
export type AnyPool = SimpleConnectionPool | ThreadedConnectionPool | PersistentConnectionPool;

/** The pools, in the order of their numbers. */
export const POOLS = ["threaded", "persistent", "simple", "session", "transaction"] as const;
/** One of them. */
export type PoolName = typeof POOLS[number];

/** How many connections each may have. */
export const CAPS: Readonly<Record<PoolName, number>> = {
  threaded: 8,
  persistent: 4,
  simple: 5,
  session: 4,
  // Over two of PgBouncer's.
  transaction: 4,
};

/** How many tasks each isolate runs on each pool; a worker runs those of pools that can be shared. */
export const TASKS: Readonly<Record<PoolName, number>> = {
  threaded: 6,
  persistent: 3,
  simple: 8,
  session: 6,
  transaction: 6,
};

/** One pool in one isolate. */
export interface Arena {
  readonly name: PoolName;
  readonly number: number;
  readonly pool: AnyPool;
  readonly journal: Journal;
  readonly cap: number;
  /** How many of our tasks use it in an isolate. */
  readonly tasks: number;
  /** Whether nothing stands between the pool and the server but our proxies. */
  readonly direct: boolean;
  /** Whether a lease has one session of the server. */
  readonly sessions: boolean;
  /** Whether borrowers name a key. */
  readonly keys: boolean;
  /** Runs `fn` where it may borrow. */
  within(fn: () => Promise<void>): Promise<void>;
  lend(key: string | null, options: GetconnOptions): Promise<Connection>;
  giveBack(conn: Connection, key: string | null, close: boolean): Promise<void>;
  stats(): PoolStats;
}

/** Makes one of a pool. `scope` is the persistent pool's. */
export function arenaOf(
  name: PoolName,
  pool: AnyPool,
  journal: Journal,
  scope: "worker" | "context",
): Arena {
  const persistent = pool instanceof PersistentConnectionPool;
  return {
    name,
    number: POOLS.indexOf(name),
    pool,
    journal,
    cap: CAPS[name],
    // Where the key is the worker, all its tasks would have one and the same lease.
    tasks: persistent && scope === "worker" ? 1 : TASKS[name],
    direct: name !== "session" && name !== "transaction",
    sessions: name !== "transaction",
    keys: !persistent,
    within: (fn) => persistent && scope === "context" ? pool.run(fn) : fn(),
    lend: (key, options) => persistent ? pool.getconn(options) : pool.getconn(key, options),
    giveBack: (conn, key, close) =>
      persistent ? pool.putconn(conn, close) : pool.putconn(conn, key, close),
    stats: () => pool.stats(),
  };
}

/** Counts the leases that a pool takes back because nobody has them any more. */
export function countLeaks(pool: AnyPool, journal: Journal): void {
  pool.on("leak", ({ detail }) => {
    if (detail.collected) journal.count("recovered");
  });
}
