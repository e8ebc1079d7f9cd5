/**
 * Cloudflare Workers, with the compatibility flag `nodejs_compat` and a compatibility date of 2025-09-15
 * or later. No socket may be used across
 * requests there, so each request has a pool of its own: it caps what the request opens, and goes
 * with it. Hyperdrive keeps the connections to the server.
 *
 * @module
 */
import { SimpleConnectionPool } from "@getconn/pool";

interface Env {
  readonly HYPERDRIVE: { readonly connectionString: string };
}

export default {
  async fetch(
    _request: Request,
    env: Env,
    ctx: { waitUntil(promise: Promise<unknown>): void },
  ): Promise<Response> {
    const pool = new SimpleConnectionPool(0, 5, env.HYPERDRIVE.connectionString, {
      pool: { timeout: 5_000 },
    });
    try {
      const [[one], [two]] = await Promise.all([
        pool.use((conn) => conn`select pg_backend_pid() as pid`),
        pool.use((conn) => conn`select now() as time`),
      ]);
      return Response.json({ ...one, ...two });
    } finally {
      ctx.waitUntil(pool.close());
    }
  },
};
