/** A pool for one test of `pool.sql`. */

import { assertEquals } from "@std/assert";
import { type PostgresOptions, SimpleConnectionPool } from "@getconn/pool";
import { testServer } from "./server.ts";

/** Runs `fn` with a pool, after which nothing may be lent, shared or waiting. */
export async function withPool(
  maxconn: number,
  options: PostgresOptions,
  fn: (pool: SimpleConnectionPool) => Promise<void>,
): Promise<void> {
  const { url } = await testServer();
  const pool = new SimpleConnectionPool(0, maxconn, url, { onnotice: () => {}, ...options });
  try {
    await fn(pool);
    const { leased, shared, requestsWaiting, poolSize, connecting, idle } = pool.stats();
    assertEquals(poolSize, connecting + idle + leased + shared);
    if (!pool.closed) assertEquals([leased, shared, requestsWaiting], [0, 0, 0]);
  } finally {
    await pool.close({ timeout: 5_000 });
  }
}

/** The next turn of the event loop. */
export function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve));
}
