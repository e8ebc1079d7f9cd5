/** On Bun: `bun main_bun.ts` */

import process from "node:process";
import { createApp } from "./app.ts";
import { pool } from "./pool.ts";

const server = Bun.serve({
  port: Number(process.env["PORT"] ?? 8000),
  fetch: createApp(pool).fetch,
});
// At SIGTERM: what was accepted gets its answer, then the pool is closed, then the process ends.
pool.closeOn({ before: () => server.stop() });

// What is used of Bun; with @types/bun it is not needed.
declare const Bun: {
  serve(options: {
    port: number;
    fetch(request: Request): Response | Promise<Response>;
  }): { stop(): Promise<void> };
};
