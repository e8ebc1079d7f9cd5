/**
 * A server that spreads its work over workers, for all cores. They share one pool: `maxconn` holds
 * for all of them together, and the right to connect goes to where it is needed.
 *
 * `deno run --allow-net --allow-read=. --allow-env=DATABASE_URL,PORT examples/edge/workers_server.ts`
 *
 * @module
 */
import { ThreadedConnectionPool } from "@getconn/pool";

const pool = new ThreadedConnectionPool(0, 4, Deno.env.get("DATABASE_URL"), {
  pool: { timeout: 5_000 },
});

const answers = new Map<number, (row: unknown) => void>();
const workers = [1, 2, 3].map((number) => {
  const url = new URL("./workers_server_worker.ts", import.meta.url);
  const worker = new Worker(url, { type: "module" });
  worker.addEventListener("message", ({ data: { id, row } }) => {
    answers.get(id)?.({ ...row, worker: number });
    answers.delete(id);
  });
  worker.postMessage(pool.share(worker));
  return worker;
});

let requests = 0;
const server = Deno.serve({ port: Number(Deno.env.get("PORT") ?? 8000) }, async () => {
  const id = requests++;
  const answer = new Promise((resolve) => answers.set(id, resolve));
  workers[id % workers.length]?.postMessage(id);
  return Response.json(await answer);
});

pool.closeOn({ before: () => server.shutdown() });
