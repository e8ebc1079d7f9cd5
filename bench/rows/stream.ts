/** Much data: rows at once and through a cursor, COPY in and out. */

import type { Readable, Writable } from "node:stream";
import { expect, type Row } from "../contest.ts";
import { ourPool, pgPool, postgresJs } from "../peers.ts";
import { type Loaded, loaded } from "./statements.ts";

const COUNT = 100_000;
const ROUNDS = 12;

const TEXT = `select i as a, i * 2 as b, i::bigint as c, i % 2 = 0 as d, i / 3.0::float8 as e,
  'a text of usual length ' || i as f, 'short' as g, null::text as h, i + 1 as i, 'the last' as j
  from generate_series(1, $1::int) i`;

interface Ten {
  readonly a: number;
  readonly f: string;
}

/** What both clients have. */
interface Sql {
  unsafe(text: string, values?: unknown[], options?: object): Promise<Ten[]> & {
    cursor(rows: number): AsyncIterable<Ten[]>;
    readable(): Promise<Readable>;
    writable(): Promise<Writable>;
  };
}

function statement(sql: Sql): ReturnType<Sql["unsafe"]> {
  return sql.unsafe(TEXT, [COUNT], { prepare: true });
}

function check(rows: readonly Ten[]): void {
  const last = rows[COUNT - 1];
  expect(rows.length === COUNT && last?.f === `a text of usual length ${COUNT}`, "rows");
}

async function portions(sql: Sql): Promise<void> {
  let count = 0;
  for await (const rows of statement(sql).cursor(1_000)) count += rows.length;
  expect(count === COUNT, "rows of a cursor");
}

const LINE = "12345\ta text of usual length, as it stands in many tables\t2026-01-01\t3.14159\n";
/** What goes in at once: as much as a file is read by. */
const CHUNK = LINE.repeat(Math.ceil(65_536 / LINE.length));
const CHUNKS = 160;
const LINES = 150_000;
const MEGABYTES = CHUNK.length * CHUNKS / 1e6;

async function copyIn(sql: Sql, table: string): Promise<void> {
  // Read by the server, and not stored.
  const stream = await sql.unsafe(`copy ${table} from stdin where false`).writable();
  for (let i = 0; i < CHUNKS; i++) {
    if (!stream.write(CHUNK)) await new Promise((resolve) => stream.once("drain", resolve));
  }
  await new Promise((resolve, reject) => {
    stream.once("error", reject);
    stream.once("finish", resolve);
    stream.end();
  });
}

async function copyOut(sql: Sql): Promise<void> {
  let bytes = 0;
  const stream = await sql.unsafe(
    `copy (select 12345, 'a text of usual length, as it stands in many tables',
      date '2026-01-01', 3.14159 from generate_series(1, ${LINES})) to stdout`,
  ).readable();
  // The driver's stream hangs now and then in a `for await`.
  await new Promise((resolve, reject) => {
    stream.on("data", (chunk: Uint8Array) => bytes += chunk.length);
    stream.once("error", reject);
    stream.once("end", resolve);
  });
  expect(bytes === LINES * LINE.length, `${bytes} bytes`);
}

/** On one connection of each; `rate` figures are the work of one turn. */
function streaming(
  name: string,
  title: string,
  unit: string,
  rate: number,
  read: (sql: Sql, table: string) => Promise<void>,
  prepare: (sql: Sql, table: string) => Promise<unknown> = () => Promise.resolve(),
  withPg = false,
): Row {
  return {
    name,
    title,
    unit,
    better: "more",
    rounds: ROUNDS,
    goals: [{ against: ["postgres.js, max 1", "pg, leased"], ratio: 1.1 }],
    contestants: async (bench) => {
      const url = await bench.url();
      const all = [
        loaded(bench, 1, "ours, leased", "ours", async (): Promise<Loaded> => {
          const pool = await ourPool(url, 1);
          const conn = await pool.getconn();
          const sql = conn as unknown as Sql;
          await prepare(sql, "copied_ours");
          return {
            work: () => read(sql, "copied_ours"),
            stop: () => conn[Symbol.asyncDispose]().then(() => pool.close()),
          };
        }, rate),
        loaded(bench, 1, "postgres.js, max 1", "peer", async (): Promise<Loaded> => {
          const client = postgresJs(url, 1);
          const sql = client as unknown as Sql;
          await prepare(sql, "copied_postgres_js");
          return { work: () => read(sql, "copied_postgres_js"), stop: () => client.end() };
        }, rate),
      ];
      if (withPg) {
        all.push(loaded(bench, 1, "pg, leased", "peer", async (): Promise<Loaded> => {
          const pool = pgPool(url, 1);
          const client = await pool.connect();
          const query = { name: "ten", text: TEXT, values: [COUNT] };
          return {
            work: async () => check((await client.query(query)).rows as unknown as Ten[]),
            stop: () => (client.release(), pool.end()),
          };
        }, rate));
      }
      return all;
    },
  };
}

/** All of them. */
export const STREAM_ROWS: readonly Row[] = [
  streaming(
    "stream",
    "100 000 rows of 10 columns",
    "rows/s",
    COUNT,
    async (sql) => check(await statement(sql)),
    undefined,
    true,
  ),
  streaming(
    "stream-cursor",
    "the same through a cursor, 1 000 at a time",
    "rows/s",
    COUNT,
    portions,
  ),
  streaming(
    "copy-in",
    `COPY of ${MEGABYTES.toFixed(0)} MB into a table`,
    "MB/s",
    MEGABYTES,
    copyIn,
    (sql, table) => sql.unsafe(`create unlogged table ${table} (a int, b text, c date, d float8)`),
  ),
  streaming(
    "copy-out",
    `COPY of ${(LINES * LINE.length / 1e6).toFixed(0)} MB from a query`,
    "MB/s",
    LINES * LINE.length / 1e6,
    copyOut,
  ),
];
