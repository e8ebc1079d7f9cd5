/**
 * The edge function that bench/edge.ts calls: `edge_function.ts HOW PORT URL`, on Deno and on Bun.
 *
 * @module
 */
import { SimpleConnectionPool } from "../mod.ts";
import process from "node:process";
import postgres from "postgres";

const [, , how, port, url] = process.argv as [
  string,
  string,
  "pool" | "client" | "connect",
  string,
  string,
];

type Handler = () => Promise<Response>;

/** The pool at module scope, reused by every request. */
function pooled(): Handler {
  const pool = new SimpleConnectionPool(0, 4, url, { pool: { timeout: 10_000 } });
  return () => pool.use(async (conn) => Response.json(await conn`select ${1}::int as one`));
}

/** The driver's own client at module scope. */
function sharing(): Handler {
  const sql = postgres(url, { max: 4, fetch_types: false });
  return async () => Response.json(await sql`select ${1}::int as one`);
}

/** What the older samples of edge platforms do: a client for each request. */
function connecting(): Handler {
  return async () => {
    const sql = postgres(url, { max: 1, fetch_types: false });
    try {
      return Response.json(await sql`select ${1}::int as one`);
    } finally {
      await sql.end();
    }
  };
}

const handler = { pool: pooled, client: sharing, connect: connecting }[how]();
const { Bun } = globalThis as { Bun?: { serve(options: object): unknown } };
const at = { hostname: "127.0.0.1", port: Number(port) };
if (Bun !== undefined) Bun.serve({ ...at, fetch: handler });
else Deno.serve({ ...at, onListen: () => {} }, handler);
