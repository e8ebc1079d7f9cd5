/**
 * Bun.serve with a pool at module scope. `getPool` keeps the pool when `bun --hot` loads the module
 * again, where a plain `new` would leave the old connections open.
 *
 * `bun --hot examples/edge/bun_serve.ts`
 *
 * @module
 */
import { getPool, SimpleConnectionPool } from "@getconn/pool";
import { env } from "node:process";

// At SIGTERM or SIGINT: first the requests get their answers, then the pool is closed, then the process ends.
const pool = getPool(
  "app",
  () =>
    new SimpleConnectionPool(0, 4, env["DATABASE_URL"], { pool: { timeout: 5_000 } })
      .closeOn({ before: () => server.stop() }),
);

const server = Bun.serve({
  port: Number(env["PORT"] ?? 3000),
  async fetch() {
    const [row] = await pool.use((conn) => conn`select pg_backend_pid() as pid, now() as time`);
    return Response.json(row);
  },
});

// What is used of Bun; with @types/bun it is not needed.
declare const Bun: {
  serve(options: { port: number; fetch(request: Request): Promise<Response> }): {
    stop(): Promise<void>;
  };
};
