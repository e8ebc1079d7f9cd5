/**
 * A report as CSV, of any length, in little memory: a cursor fetches the next rows only when the client
 * has taken the last ones. `deno run -A main.ts`, `bun main.ts` or `node main.ts`
 *
 * @module
 */
import { limited, SimpleConnectionPool } from "@getconn/pool";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import process from "node:process";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { csv } from "./csv.ts";

const pool = new SimpleConnectionPool(0, 4, process.env["DATABASE_URL"], {
  pool: { name: "reports", timeout: 5_000 },
});

const server = createServer((request, response) => {
  answer(request, response).catch((error) => {
    // Whoever left needs no answer, and what is half sent is cut off, so that nobody takes it for the whole.
    if (response.destroyed) return;
    console.error(error);
    if (response.headersSent) response.destroy();
    else tell(response, 503, "there is no report now");
  });
});

function tell(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, { "content-type": "text/plain" }).end(`${text}\n`);
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const url = new URL(request.url ?? "/", "http://localhost");
  if (url.pathname !== "/orders.csv") return tell(response, 404, "try /orders.csv?rows=10");
  if (request.method !== "GET") return tell(response, 405, "only GET");
  const asked = url.searchParams.get("rows") ?? "10";
  const rows = Number(asked);
  if (!/^[0-9]+$/.test(asked) || rows < 1 || rows > 2_000_000_000) {
    return tell(response, 400, "rows must be a whole number from 1 to 2000000000");
  }
  await report(rows, response);
}

async function report(rows: number, response: ServerResponse): Promise<void> {
  const gone = new AbortController();
  response.once("close", () => gone.abort());
  await pool.use(async (conn) => {
    // In the select list generate_series gives row by row; in the from clause the server makes all rows first.
    const orders = limited(
      conn`
        select id, format('No. %s, "paid"', id) as note, date '2026-01-01' + id % 365 as day,
          case when id % 2 = 0 then E'two\nlines' end as remark
        from (select generate_series(1, ${rows}::int) as id) as orders`,
      { signal: gone.signal },
    );
    const text = csv(["id", "note", "day", "remark"], orders.cursor(500));
    // What fails until the first rows are here gets an answer with its own status.
    const { value: first = "" } = await text.next();
    response.setHeader("content-type", "text/csv; charset=utf-8; header=present");
    response.setHeader("content-disposition", `attachment; filename="orders.csv"`);
    await pipeline(
      Readable.from((async function* () {
        yield first;
        yield* text;
      })()),
      response,
    );
  }, { signal: gone.signal });
}

server.listen(Number(process.env["PORT"] ?? 8000));
// Reports that run at SIGTERM have four seconds; then their connections are closed.
pool.closeOn({ before: () => new Promise((done) => server.close(done)) });
