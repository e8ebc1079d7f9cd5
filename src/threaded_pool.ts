/** psycopg2's ThreadedConnectionPool. */

import type { Connection } from "./postgres/connection.ts";
import type { PoolHandle } from "./handle.ts";
import { Seat, SharedConnectionPool, type SharedOptions } from "./shared_pool.ts";

/**
 * A pool that all workers of a process share: `maxconn` holds for all of them together, exactly.
 *
 * In one isolate it is a SimpleConnectionPool. `share(worker)` makes a handle, `join(handle)` in the
 * worker gives a pool with the same methods. Every worker opens its own connections; what they share
 * is the right to open one, which moves to where it is needed.
 *
 * @typeParam C What borrowers get.
 *
 * @example
 * ```ts ignore
 * // main.ts
 * const pool = new ThreadedConnectionPool(0, 10, "postgres://localhost/app");
 * const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
 * worker.postMessage(pool.share(worker));
 *
 * // worker.ts
 * self.onmessage = async ({ data }) => {
 *   const pool = await ThreadedConnectionPool.join(data);
 *   await pool.use((sql) => sql`select 1`);
 * };
 * ```
 */
export class ThreadedConnectionPool<C extends object = Connection> extends SharedConnectionPool<C> {
  /** Handles of this pool are for this class. */
  protected readonly kind: string = "ThreadedConnectionPool";

  /**
   * Takes what psycopg2's takes. Throws a TypeError or RangeError that names option, rule and value.
   *
   * @param minconn How many connections are kept open in all workers together.
   * @param maxconn How many may ever be open at once in all workers together.
   * @param url `postgres://user:password@host:port/database`; without it the options and PGHOST and the like count.
   * @param options The driver's options, and under `pool` the pool's own.
   */
  constructor(minconn: number, maxconn: number, url?: string, options?: SharedOptions<C>);
  /** Without a URL. */
  constructor(minconn: number, maxconn: number, options: SharedOptions<C>);
  constructor(minconn: number, maxconn: number, ...args: unknown[]) {
    super(minconn, maxconn, ...args);
  }

  /**
   * Joins a pool from a worker.
   *
   * @param handle What `share` made for this worker.
   * @param options Options that differ in this worker, and those that could not be sent: the same as
   * the last argument of the constructor.
   * @throws {TypeError} for anything but a handle, or when options are missing that could not be sent
   * @throws {PoolError} BAD_HANDLE when the handle was used already
   * @throws {PoolClosed} when the pool is closed
   */
  static async join<C extends object = Connection>(
    handle: PoolHandle,
    options: Readonly<Record<string, unknown>> = {},
  ): Promise<ThreadedConnectionPool<C>> {
    const { seat, args } = await Seat.join(handle, options, "ThreadedConnectionPool");
    const Pool = ThreadedConnectionPool as unknown as new (
      ...all: unknown[]
    ) => ThreadedConnectionPool<C>;
    return seat.settle(() => new Pool(...seat.sizes, seat, ...args));
  }
}
