/** A pool on a real server and workers that have joined it, for one test. */

import { ThreadedConnectionPool } from "../../mod.ts";
import { admin, testServer } from "./server.ts";
import { TestWorker } from "./workers.ts";

// The runtimes end a worker in their own time, which the sanitizers take for a leak of the test.
/** For tests with workers. */
export const options: { readonly sanitize: false } = { sanitize: false };
let pools = 0;

/** What a test works with. */
export interface Bench {
  readonly name: string;
  readonly pool: ThreadedConnectionPool;
  readonly workers: TestWorker[];
  join(): Promise<TestWorker>;
  sessions(): Promise<number>;
}

/** A pool and some workers, all of which end with `fn`. */
export async function bench(
  [minconn, maxconn, count]: readonly [number, number, number],
  fn: (bench: Bench) => Promise<void>,
  own: Record<string, unknown> = {},
  connection: Record<string, unknown> = {},
): Promise<void> {
  const { url } = await testServer();
  const name = `workers test ${++pools} ${crypto.randomUUID().slice(0, 8)}`;
  const sql = await admin();
  const pool = new ThreadedConnectionPool(minconn, maxconn, url, {
    connection: { ...connection, application_name: name },
    pool: own,
  });
  const workers: TestWorker[] = [];
  const join = async (): Promise<TestWorker> => {
    const worker = await TestWorker.join(pool);
    workers.push(worker);
    return worker;
  };
  try {
    for (let i = 0; i < count; i++) await join();
    await fn({
      name,
      pool,
      workers,
      join,
      sessions: async () => {
        const rows = await sql<{ n: number }[]>`
          select count(*)::int as n from pg_stat_activity where application_name = ${name}`;
        return rows[0]!.n;
      },
    });
  } finally {
    if (!pool.closed) await pool.closeall();
    for (const worker of workers) worker[Symbol.dispose]();
    await sql.end();
  }
}

/** Samples the sessions as fast as it can while `fn` runs; gives the most that it saw. */
export async function most(bench: Bench, fn: () => Promise<unknown>): Promise<number> {
  let highest = 0;
  let running = true;
  const sampling = (async () => {
    while (running) highest = Math.max(highest, await bench.sessions());
  })();
  try {
    await fn();
  } finally {
    running = false;
    await sampling;
  }
  return highest;
}
