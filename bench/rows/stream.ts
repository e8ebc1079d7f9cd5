/** Many rows: what the wire watcher costs where there is the most to watch. */

import { expect, type Row } from "../contest.ts";
import { ourPool, postgresJs } from "../peers.ts";
import { type Loaded, loaded } from "./statements.ts";

const ROWS = 20_000;

/** What both clients have. */
interface Sql {
  (strings: TemplateStringsArray, ...values: unknown[]): PromiseLike<{ x: number; t: string }[]> & {
    cursor(rows: number): AsyncIterable<{ x: number; t: string }[]>;
  };
}

function statement(sql: Sql): ReturnType<Sql> {
  return sql`select i as x, 'the text of a row of usual length' as t
    from generate_series(1, ${ROWS}::int) i`;
}

async function whole(sql: Sql): Promise<void> {
  const rows = await statement(sql);
  expect(rows.length === ROWS && rows[ROWS - 1]!.x === ROWS, "rows");
}

async function portions(sql: Sql): Promise<void> {
  let count = 0;
  for await (const rows of statement(sql).cursor(1_000)) count += rows.length;
  expect(count === ROWS, "rows of a cursor");
}

function streaming(name: string, title: string, read: (sql: Sql) => Promise<void>): Row {
  return {
    name,
    title,
    unit: "rows/s",
    better: "more",
    goals: [{ against: ["postgres.js, max 1"], ratio: 0.98 }],
    contestants: async (bench) => {
      const url = await bench.url();
      return [
        loaded(bench, 1, "ours, leased", "ours", async (): Promise<Loaded> => {
          const pool = await ourPool(url, 1);
          const conn = await pool.getconn();
          return {
            work: () => read(conn as unknown as Sql),
            stop: () => conn[Symbol.asyncDispose]().then(() => pool.close()),
          };
        }, ROWS),
        loaded(bench, 1, "postgres.js, max 1", "peer", (): Promise<Loaded> => {
          const sql = postgresJs(url, 1);
          return Promise.resolve({
            work: () => read(sql as unknown as Sql),
            stop: () => sql.end(),
          });
        }, ROWS),
      ];
    },
  };
}

/** One large result. */
export const stream: Row = streaming("stream", `${ROWS} rows of one result`, whole);

/** The same through a cursor. */
export const cursor: Row = streaming(
  "stream-cursor",
  `${ROWS} rows through a cursor, 1 000 at a time`,
  portions,
);
