/** On Deno: `deno run -A main_deno.ts` */

import { createApp } from "./app.ts";
import { pool } from "./pool.ts";

const server = Deno.serve({ port: Number(Deno.env.get("PORT") ?? 8000) }, createApp(pool).fetch);
// At SIGTERM: what was accepted gets its answer, then the pool is closed, then the process ends.
pool.closeOn({ before: () => server.shutdown() });
