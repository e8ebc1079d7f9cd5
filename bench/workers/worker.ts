/** A worker that borrows from its pool, a shared one or one of its own, as often as it can. */

import { type PoolHandle, SimpleConnectionPool, ThreadedConnectionPool } from "@getconn/pool";
import { expect } from "../contest.ts";
import { load } from "../load.ts";
import type { Connection } from "@getconn/pool";

/** What a worker is told. */
export type Order =
  | { readonly op: "join"; readonly handle: PoolHandle }
  | { readonly op: "own"; readonly url: string; readonly max: number }
  | { readonly op: "load"; readonly tasks: number; readonly span: number; readonly pause: number }
  | { readonly op: "close" };

interface Port {
  onmessage: ((event: { data: Order }) => void) | null;
  postMessage(answer: unknown): void;
}

const port = globalThis as unknown as Port;
let pool: SimpleConnectionPool | ThreadedConnectionPool | null = null;

async function statement(turn: number, pause: number): Promise<void> {
  await pool!.use(async (conn: Connection) => {
    const rows = pause > 0
      ? await conn<{ x: number }[]>`select ${turn}::int as x, pg_sleep(${pause / 1000}::float8)`
      : await conn<{ x: number }[]>`select ${turn}::int as x`;
    expect(rows[0]!.x === turn, "the answer of a worker");
  });
}

async function obey(order: Order): Promise<unknown> {
  switch (order.op) {
    case "join":
      pool = await ThreadedConnectionPool.join(order.handle);
      return null;
    case "own":
      pool = new SimpleConnectionPool(0, order.max, order.url, { pool: { timeout: 30_000 } });
      return null;
    case "load":
      return await load(order.tasks, order.span, (turn) => statement(turn, order.pause));
    case "close":
      return await pool?.close();
  }
}

port.onmessage = ({ data }) => {
  obey(data).then(
    (value) => port.postMessage({ value }),
    (error) => port.postMessage({ error: String(error) }),
  );
};
port.postMessage({ value: "ready" });
