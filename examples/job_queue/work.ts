/** A process of workers: `deno run -A work.ts`, `bun work.ts` or `node work.ts`, as many as you like. */

import { SimpleConnectionPool } from "@getconn/pool";
import process from "node:process";
import { createQueue, type Handler, Workers } from "./queue.ts";

const WORKERS = 4;

const handlers: Record<string, Handler> = {
  /** Writes a letter to the outbox. */
  async letter(sql, { id, payload }) {
    await sql`insert into letters (job, recipient) values (${id}, ${String(payload["to"])})`;
    if (!String(payload["to"]).includes("@")) throw new RangeError(`no address: ${payload["to"]}`);
  },
  /** Is busy for a while. */
  async sleep(sql, { payload }) {
    await sql`select pg_sleep(${Number(payload["seconds"])})`;
  },
};

// One connection for each worker, and one that listens.
const pool = new SimpleConnectionPool(0, WORKERS + 1, process.env["DATABASE_URL"], {
  onnotice: () => {},
  pool: { name: "workers", timeout: 10_000 },
});
await createQueue(pool);
await pool.sql`create table if not exists letters (job bigint, recipient text)`;

const workers = new Workers(pool, handlers);
await workers.start(WORKERS);
// Jobs that run have 25 s; after that they are rolled back, and another process does them.
pool.closeOn({ before: () => workers.stop(), timeout: 25_000 });
console.log("working");
