/**
 * Deno.serve with a pool at module scope: every request borrows from the same few connections.
 *
 * `deno run --allow-net --allow-env=DATABASE_URL,PORT examples/edge/deno_serve.ts`
 *
 * @module
 */
import { SimpleConnectionPool } from "@getconn/pool";

// Nothing is opened before the first request.
const pool = new SimpleConnectionPool(0, 4, Deno.env.get("DATABASE_URL"), {
  pool: { timeout: 5_000 },
});

const server = Deno.serve({ port: Number(Deno.env.get("PORT") ?? 8000) }, async () => {
  const [row] = await pool.use((conn) => conn`select pg_backend_pid() as pid, now() as time`);
  return Response.json(row);
});

// At SIGTERM or SIGINT: first the requests get their answers, then the pool is closed, then the process ends.
pool.closeOn({ before: () => server.shutdown() });
