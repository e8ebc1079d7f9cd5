/**
 * Cloudflare Workers, with the compatibility flag `nodejs_compat` and a compatibility date of 2025-09-15
 * or later: one pool for all requests of the isolate. No socket may be used across requests there, so each
 * request opens connections of its own, within the one `maxconn`; those it leaves are closed after its end.
 * Hyperdrive makes them cheap: it keeps the connections to the server.
 *
 * @module
 */
import { getPool, SimpleConnectionPool } from "@getconn/pool";

interface Env {
  readonly HYPERDRIVE: { readonly connectionString: string };
}

export default {
  async fetch(_request: Request, env: Env): Promise<Response> {
    const pool = getPool(
      "app",
      () =>
        new SimpleConnectionPool(0, 5, env.HYPERDRIVE.connectionString, {
          pool: { timeout: 5_000 },
        }),
    );
    const [[one], [two]] = await Promise.all([
      pool.use((conn) => conn`select pg_backend_pid() as pid`),
      pool.use((conn) => conn`select now() as time`),
    ]);
    return Response.json({ ...one, ...two });
  },
};
