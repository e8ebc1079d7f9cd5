/** Adds a job: `deno run -A add.ts letter '{"to":"ann@example.org"}'`. */

import { SimpleConnectionPool } from "@getconn/pool";
import process from "node:process";
import { addJob, createQueue } from "./queue.ts";

const [kind, payload] = process.argv.slice(2);
if (kind === undefined || payload === undefined) {
  console.error(`usage: add.ts KIND '{"NAME": VALUE}'`);
  process.exit(2);
}
await using pool = new SimpleConnectionPool(0, 1, process.env["DATABASE_URL"], {
  onnotice: () => {},
});
await createQueue(pool);
console.log("job", await addJob(pool.sql, kind, JSON.parse(payload)));
