/**
 * A function for Vercel: `attachDatabasePool` keeps the instance awake until idle connections are
 * closed. It takes the pool as it is.
 *
 * @module
 */
import { SimpleConnectionPool } from "@getconn/pool";
import { attachDatabasePool } from "@vercel/functions";
import { env } from "node:process";

const pool = new SimpleConnectionPool(0, 4, env["DATABASE_URL"], {
  pool: { timeout: 5_000, maxIdle: 5_000 },
});
attachDatabasePool(pool);

export async function GET(_request: Request): Promise<Response> {
  const [row] = await pool.use((conn) => conn`select pg_backend_pid() as pid, now() as time`);
  return Response.json(row);
}
