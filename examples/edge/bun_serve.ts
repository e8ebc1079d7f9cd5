/**
 * Bun serves what a module exports by default. `getPool` keeps the pool when `bun --hot` loads the
 * module again, where a plain `new` would leave the old connections open.
 *
 * `bun --hot examples/edge/bun_serve.ts`
 *
 * @module
 */
import { getPool, SimpleConnectionPool } from "@getconn/pool";
import { env } from "node:process";

const pool = getPool(
  "app",
  () => new SimpleConnectionPool(0, 4, env["DATABASE_URL"], { pool: { timeout: 5_000 } }).closeOn(),
);

/** What Bun serves. */
const server: { port: number; fetch(request: Request): Promise<Response> } = {
  port: Number(env["PORT"] ?? 3000),
  async fetch() {
    const [row] = await pool.use((conn) => conn`select pg_backend_pid() as pid, now() as time`);
    return Response.json(row);
  },
};

export default server;
