/** psycopg2's ThreadedConnectionPool. */

import type { Connection, ConninfoFunction } from "./postgres/connection.ts";
import type { PoolHandle } from "./workers/handle.ts";
import { joinPool, SharedConnectionPool, type SharedOptions } from "./shared_pool.ts";

/**
 * A pool that all workers of a process share: `maxconn` holds for all of them together, exactly.
 *
 * In one isolate it is a SimpleConnectionPool. `share(worker)` makes a handle, `join(handle)` in the
 * worker gives a pool with the same methods. Every worker opens its own connections; what they share
 * is the right to open one, which moves to where it is needed.
 *
 * @typeParam C What borrowers get.
 *
 * @example Two isolates, one cap
 * ```ts
 * import { ThreadedConnectionPool } from "@getconn/pool";
 * import { env } from "node:process";
 *
 * const pool = new ThreadedConnectionPool(0, 10, env.DATABASE_URL, { pool: { timeout: 5_000 } });
 *
 * // Usually a file: new Worker(new URL("./worker.ts", import.meta.url), { type: "module" })
 * const code = `
 *   import { ThreadedConnectionPool } from "${import.meta.resolve("@getconn/pool")}";
 *   self.onmessage = async ({ data }) => {
 *     const pool = await ThreadedConnectionPool.join(data);
 *     const [row] = await pool.use((sql) => sql\`select 1 as one\`);
 *     self.postMessage(row.one);
 *   };
 * `;
 * const source = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
 * const worker = new Worker(source, { type: "module" });
 *
 * worker.postMessage(pool.share(worker)); // one handle for each worker
 * const { data } = await new Promise<MessageEvent>((resolve) => worker.onmessage = resolve);
 * console.log(data); // 1
 *
 * await pool.close(); // in all workers
 * worker.terminate();
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
   * @param dsn How to connect, as libpq has it: `dbname=test user=postgres`, or
   * `postgres://user:password@host:port/database`; or a function that gives one, asked at each connect.
   * What it leaves open is in the options, the service file, the environment (PGHOST and the like), the defaults.
   * @param options libpq's keywords and postgres.js's options, which win over `dsn`; under `pool` the pool's own.
   */
  constructor(
    minconn: number,
    maxconn: number,
    dsn?: string | ConninfoFunction | null,
    options?: SharedOptions<C>,
  );
  /** Without a connection string. */
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
   * @throws {PoolError} BAD_HANDLE when the handle was used already, or is for another worker
   * @throws {PoolClosed} when the pool is closed
   */
  static join<C extends object = Connection>(
    handle: PoolHandle,
    options: Readonly<Record<string, unknown>> = {},
  ): Promise<ThreadedConnectionPool<C>> {
    return joinPool(handle, options, "ThreadedConnectionPool", ThreadedConnectionPool<C>);
  }
}
