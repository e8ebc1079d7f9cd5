/**
 * What workers_server.ts runs in each worker: the first message is the handle, the others are work.
 *
 * @module
 */
import { type PoolHandle, ThreadedConnectionPool } from "@getconn/pool";

const scope = globalThis as unknown as Worker;
let pool: Promise<ThreadedConnectionPool> | undefined;

async function work(id: number): Promise<void> {
  const row = await (await pool)?.use(async (conn) => {
    const [row] = await conn`select pg_backend_pid() as pid, now() as time`;
    return row;
  });
  scope.postMessage({ id, row: { ...row } });
}

scope.addEventListener("message", ({ data }: MessageEvent<PoolHandle | number>) => {
  if (typeof data === "number") void work(data);
  else pool = ThreadedConnectionPool.join(data);
});
