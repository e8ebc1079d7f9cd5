/** A server whose pool can be looked at: `deno run -A main.ts`, or `bun main.ts`. */

import { SimpleConnectionPool } from "@getconn/pool";
import { createServer } from "node:http";
import process from "node:process";
import { probe } from "./health.ts";

const pool = new SimpleConnectionPool(1, 4, process.env["DATABASE_URL"], {
  connect_timeout: 2,
  pool: { name: "shop", timeout: 5_000, leakAfter: 30_000, slowStatementAfter: 1_000 },
});
pool.on("connectfailed", ({ detail }) => console.warn("cannot connect:", detail.error));
pool.on("slowstatement", ({ detail: { summary, duration } }) => {
  console.warn(`${summary} runs for ${Math.round(duration)} ms`);
});

const server = createServer(async (request, response) => {
  const url = `http://${request.headers.host}${request.url}`;
  const answer = probe(pool, new Request(url)) ?? await page();
  response.writeHead(answer.status, Object.fromEntries(answer.headers));
  response.end(await answer.text());
});

async function page(): Promise<Response> {
  try {
    const [row] = await pool.sql`select now() as time`;
    return Response.json(row);
  } catch (error) {
    return new Response(String(error), { status: 503 });
  }
}

server.listen(Number(process.env["PORT"] ?? 8000));
pool.closeOn({ before: () => new Promise((done) => server.close(done)) });
