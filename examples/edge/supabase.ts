/**
 * An edge function for Supabase. One isolate serves many requests, and one connection serves them
 * all; the isolate is kept until that is closed, and closes it when it is told to end.
 *
 * @module
 */
import { SimpleConnectionPool } from "@getconn/pool";

/** What the platform brings along. */
declare const EdgeRuntime: { waitUntil(promise: Promise<unknown>): void };

const pool = new SimpleConnectionPool(0, 1, Deno.env.get("SUPABASE_DB_URL"), {
  // The platform's transaction pooler (port 6543) keeps no prepared statements.
  prepare: false,
  pool: { timeout: 10_000, maxIdle: 5_000 },
}).attach(EdgeRuntime).closeOn({ events: ["beforeunload"] });

Deno.serve(async () => {
  const [row] = await pool.use((conn) => conn`select pg_backend_pid() as pid, now() as time`);
  return Response.json(row);
});
