/** What a session costs: to have, to make, and to use once. */

import process from "node:process";
import { type Contestant, heapUsed, type Row, type Sample } from "../contest.ts";
import { ourPool, pgClient, pgPool, postgresJs, prepared } from "../peers.ts";
import { check } from "./statements.ts";

const CONNECTIONS = 50;

function measured(
  name: string,
  kind: Contestant["kind"],
  round: () => Promise<Sample>,
  stop: () => Promise<unknown> = () => Promise.resolve(),
): Contestant {
  return {
    name,
    kind,
    start: () => Promise.resolve({ round, stop: async () => void await stop() }),
  };
}

/** What stands on the heap for one connection that was used and has nothing to do. */
const idleHeap: Row = {
  name: "idle-heap",
  title: `an idle connection on the heap, of ${CONNECTIONS}`,
  unit: "kB",
  better: "less",
  rounds: 5,
  goals: [{ against: ["postgres.js"], ratio: 1 }],
  contestants: async (bench) => {
    const url = await bench.url();
    async function idle(open: (max: number) => Promise<() => Promise<unknown>>): Promise<Sample> {
      // What a client has but once, its code among it.
      const first = await open(1);
      const before = await heapUsed();
      const stop = await open(CONNECTIONS);
      const after = await heapUsed();
      await stop();
      await first();
      return { value: (after - before) / CONNECTIONS / 1e3 };
    }
    const statements = <T>(max: number, work: (turn: number) => PromiseLike<T>): Promise<T[]> =>
      Promise.all(Array.from({ length: max }, (_, turn) => work(turn)));
    return [
      measured("ours", "ours", () =>
        idle(async (max) => {
          const pool = await ourPool(url, max);
          const all = await statements(max, () => pool.getconn());
          await Promise.all(all.map((conn, turn) => conn`select ${turn}::int as x`));
          for (const conn of all) await pool.putconn(conn);
          return () => pool.close();
        })),
      measured("postgres.js", "peer", () =>
        idle(async (max) => {
          const sql = postgresJs(url, max);
          await statements(max, (turn) => sql`select ${turn}::int as x, pg_sleep(0.05)`);
          return () => sql.end();
        })),
      measured("pg-pool", "peer", () =>
        idle(async (max) => {
          const pool = pgPool(url, max);
          const all = await statements(max, () => pool.connect());
          await Promise.all(all.map((client, turn) => client.query(prepared(turn))));
          for (const client of all) client.release();
          return () => pool.end();
        })),
    ];
  },
};

const CYCLES = 20;

async function cpu(cycle: (turn: number) => Promise<unknown>): Promise<Sample> {
  const before = process.cpuUsage();
  const began = performance.now();
  for (let turn = 0; turn < CYCLES; turn++) await cycle(turn);
  const wall = (performance.now() - began) / CYCLES;
  const { user, system } = process.cpuUsage(before);
  return { value: (user + system) / 1e3 / CYCLES, more: { wall } };
}

/** What a session costs that is used once. */
const connect: Row = {
  name: "connect",
  title: "connect, one statement, close: time of the processor",
  unit: "ms",
  better: "less",
  goals: [{ against: ["pg"], ratio: 1 }],
  contestants: async (bench) => {
    const url = await bench.url();
    const pool = await ourPool(url, 1);
    await pool.resize(0, 1);
    return [
      measured("ours", "ours", () =>
        cpu(async (turn) => {
          const conn = await pool.getconn();
          check(await conn<{ x: number }[]>`select ${turn}::int as x`, turn);
          await pool.putconn(conn, null, true);
        }), () => pool.close()),
      measured("pg", "peer", () =>
        cpu(async (turn) => {
          const client = pgClient(url);
          await client.connect();
          check((await client.query(prepared(turn))).rows, turn);
          await client.end();
        })),
      measured("postgres.js", "peer", () =>
        cpu(async (turn) => {
          const sql = postgresJs(url, 1);
          check(await sql<{ x: number }[]>`select ${turn}::int as x`, turn);
          await sql.end();
        })),
    ];
  },
};

const STATEMENTS = 2_000;

/** Bytes that were taken from the heap, as seen by so many looks: a collection between two hides what it frees. */
async function allocated(work: (turn: number) => Promise<unknown>): Promise<number> {
  let sum = 0;
  let last = process.memoryUsage().heapUsed;
  for (let turn = 0; turn < STATEMENTS; turn++) {
    await work(turn);
    const { heapUsed } = process.memoryUsage();
    if (heapUsed > last) sum += heapUsed - last;
    last = heapUsed;
  }
  return sum / STATEMENTS;
}

function allocating(
  name: string,
  kind: Contestant["kind"],
  work: (turn: number) => Promise<unknown>,
  stop: () => Promise<unknown>,
): Contestant {
  return measured(name, kind, async () => {
    const looks = await allocated(() => Promise.resolve());
    return { value: await allocated(work) - looks };
  }, stop);
}

/** What a statement leaves to the garbage collector. */
const allocation: Row = {
  name: "allocation",
  title: "taken from the heap by one statement on a lease",
  unit: "bytes",
  better: "less",
  rounds: 10,
  // Bun tells of the heap's size only what it was at the last collection.
  only: "deno",
  goals: [{ against: ["pg"], ratio: 1 }],
  contestants: async (bench) => {
    const url = await bench.url();
    const pool = await ourPool(url, 1);
    const conn = await pool.getconn();
    const sql = postgresJs(url, 1);
    const peers = pgPool(url, 1);
    const client = await peers.connect();
    return [
      allocating(
        "ours",
        "ours",
        async (turn) => check(await conn<{ x: number }[]>`select ${turn}::int as x`, turn),
        () => pool.putconn(conn).then(() => pool.close()),
      ),
      allocating(
        "pg",
        "peer",
        async (turn) => check((await client.query(prepared(turn))).rows, turn),
        () => (client.release(), peers.end()),
      ),
      allocating(
        "postgres.js",
        "peer",
        async (turn) => check(await sql<{ x: number }[]>`select ${turn}::int as x`, turn),
        () => sql.end(),
      ),
    ];
  },
};

/** All of them. */
export const COST_ROWS: readonly Row[] = [idleHeap, connect, allocation];
