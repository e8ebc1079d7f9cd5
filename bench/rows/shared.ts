/** Statements that need no connection of their own: `pool.sql` beside clients that do the like. */

import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import {
  type Bench,
  type Contestant,
  expect,
  heapUsed,
  type Row,
  type Runtime,
} from "../contest.ts";
import { load } from "../load.ts";
import { fill, pgPool, postgresJs, prepared, templateClients, type TemplateSql } from "../peers.ts";
import { pgbench } from "../pgbench.ts";
import { check, type Loaded, loaded } from "./statements.ts";

const MAX = 4;
const ignore = (): void => {};
const FASTEST = ["postgres.js", "Bun.sql"];

async function one(sql: TemplateSql, turn: number): Promise<void> {
  check(await sql`select ${turn}::int as x`, turn);
}

/** Starts a contestant that leaves it to the client which connection a statement takes. */
export async function sharing(name: string, url: string, max: number): Promise<Loaded> {
  if (name !== "pg-pool query") {
    const { sql, stop } = await client(name, max).open(url);
    return { work: (turn) => one(sql, turn), stop };
  }
  const pool = pgPool(url, max);
  await fill(max, () => pool.query("select 1"));
  return {
    work: async (turn) => check((await pool.query(prepared(turn))).rows, turn),
    stop: () => pool.end(),
  };
}

function client(name: string, max: number): ReturnType<typeof templateClients>[number] {
  return templateClients("bun", max).find((one) => one.name === name)!;
}

/** Who can share connections in this runtime; ours first. */
export function sharers(runtime: Runtime): string[] {
  const names = templateClients(runtime, MAX).map(({ name }) => name);
  return [...names.slice(0, 2), "pg-pool query", ...names.slice(2)];
}

/** A contestant for each client; `start` is given one that stands. */
async function clients(
  bench: Bench,
  max: number,
  make: (
    name: string,
    kind: Contestant["kind"],
    open: () => Promise<{ sql: TemplateSql; stop(): Promise<unknown> }>,
  ) => Contestant,
): Promise<Contestant[]> {
  const url = await bench.url();
  return templateClients(bench.runtime, max).map(({ name, open }, i) =>
    make(name, i === 0 ? "ours" : "peer", () => open(url))
  );
}

/** A load by so many tasks on so many connections. */
interface Load {
  readonly tasks?: number;
  readonly max?: number;
  readonly goals?: Row["goals"];
  /** Makes what the work needs. */
  readonly prepare?: (sql: TemplateSql, name: string) => Promise<unknown>;
  readonly work?: (sql: TemplateSql, turn: number, name: string) => Promise<void>;
}

function row(name: string, title: string, settings: Load): Row {
  const { tasks = 64, max = MAX, work = one } = settings;
  return {
    name,
    title,
    unit: "statements/s",
    better: "more",
    goals: settings.goals ?? [{ against: FASTEST, ratio: 1 }],
    contestants: (bench) =>
      clients(bench, max, (name, kind, open) =>
        loaded(bench, tasks, name, kind, async () => {
          const { sql, stop } = await open();
          await settings.prepare?.(sql, name);
          return { work: (turn) => work(sql, turn, name), stop };
        })),
  };
}

const MANY = [{ against: ["postgres.js"], ratio: 1.5 }, { against: ["Bun.sql"], ratio: 1 }];
const TEXTS = Array.from({ length: 200 }, (_, i) => `select $1::int as x, ${i} as y`);
const ROWS = 20;

/** What most callers do. */
export const poolSql: Row = {
  ...row("pool-sql", `64 tasks, single statements on ${MAX} shared connections`, {
    goals: [
      { against: ["postgres.js"], ratio: 2.5, only: "deno" },
      { against: ["postgres.js"], ratio: 3, only: "bun" },
      { against: ["Bun.sql"], ratio: 1 },
    ],
  }),
  contestants: async (bench) => {
    const url = await bench.url();
    const all = sharers(bench.runtime).map((name, i) =>
      loaded(bench, 64, name, i === 0 ? "ours" : "peer", () => sharing(name, url, MAX))
    );
    return [...all, ...await pgbench(bench, url, MAX)];
  },
};

/** Many thousand promises, or thousands at once after a pause: microseconds for each statement. */
function atOnce(name: string, count: number, pause: number, title: string, rounds: number): Row {
  return {
    name,
    title,
    unit: "µs",
    better: "less",
    rounds,
    goals: [{ against: FASTEST, ratio: 1 }],
    contestants: (bench) => {
      const size = bench.quick ? count / 10 : count;
      return clients(bench, MAX, (name, kind, open) => ({
        name,
        kind,
        start: async () => {
          const { sql, stop } = await open();
          return {
            round: async () => {
              if (pause > 0) await sleep(pause);
              const before = process.cpuUsage();
              const began = performance.now();
              await Promise.all(Array.from({ length: size }, (_, turn) => one(sql, turn)));
              const took = performance.now() - began;
              const { user, system } = process.cpuUsage(before);
              return { value: took / size * 1e3, more: { cpu: (user + system) / size } };
            },
            stop: async () => void await stop(),
          };
        },
      }));
    },
  };
}

/** What a slow neighbour does to the slowest hundredth of the quick statements. */
const slow: Row = {
  name: "pool-sql-slow",
  title:
    `the slowest hundredth of 16 tasks on ${MAX} connections, with a slow statement beside them`,
  unit: "µs",
  better: "less",
  goals: [{ against: ["ours, nothing slow"], ratio: 0.5 }],
  contestants: async (bench) => {
    const all = await clients(
      bench,
      MAX,
      (name, kind, open) => besideSlow(bench, name, kind, open),
    );
    const url = await bench.url();
    const [ours] = templateClients(bench.runtime, MAX);
    return [
      ...all,
      besideSlow(bench, "ours, nothing slow", "peer", () => ours!.open(url), false),
    ];
  },
};

function besideSlow(
  bench: Bench,
  name: string,
  kind: Contestant["kind"],
  open: () => Promise<{ sql: TemplateSql; stop(): Promise<unknown> }>,
  isSlow = true,
): Contestant {
  return {
    name,
    kind,
    start: async () => {
      const { sql, stop } = await open();
      return {
        round: async () => {
          let over = false;
          async function keepSlow(): Promise<void> {
            while (!over) await sql`select pg_sleep(0.03)`;
          }
          const other = isSlow ? keepSlow() : null;
          const { value, more } = await load(16, bench.span, (turn) => one(sql, turn));
          over = true;
          await other;
          return { value: more!["p99"]!, more: { rate: value, p50: more!["p50"]! } };
        },
        stop: async () => void await stop(),
      };
    },
  };
}

const KEY = 4711;

/** Holds a lock until `release` is called. */
async function lock(
  client: ReturnType<typeof postgresJs>,
): Promise<{ release: () => void; held: Promise<unknown> }> {
  const taken = Promise.withResolvers<void>();
  const over = Promise.withResolvers<void>();
  const held = client.begin(async (sql) => {
    await sql`select pg_advisory_xact_lock(${KEY}::int)`;
    taken.resolve();
    await over.promise;
  });
  await Promise.race([taken.promise, held]);
  return { release: over.resolve, held };
}

/** What a statement takes on the heap while it waits. */
const pending: Row = {
  name: "pool-sql-pending",
  title: "a statement that waits, of 20 000 behind one that waits for a lock, on one connection",
  unit: "bytes",
  better: "less",
  absolute: 800,
  rounds: 5,
  goals: [],
  contestants: (bench) =>
    clients(bench, 1, (name, kind, open) => ({
      name,
      kind,
      start: async () => {
        const { sql, stop } = await open();
        const holder = postgresJs(await bench.url(), 1);
        return {
          round: async () => {
            const count = bench.quick ? 2_000 : 20_000;
            const all = new Array<Promise<{ x: number }[]>>(count);
            let waits = true;
            const { release, held } = await lock(holder);
            const slow = sql`select pg_advisory_xact_lock(${KEY}::int)`.then(() => waits = false);
            const before = await heapUsed();
            for (let turn = 0; turn < count; turn++) {
              all[turn] = sql`select ${turn}::int as x`;
              // Whoever awaits it counts too.
              all[turn]!.then(undefined, ignore);
            }
            const after = await heapUsed();
            expect(waits, "they did not wait");
            release();
            await held;
            await slow;
            for (const [turn, rows] of (await Promise.all(all)).entries()) check(rows, turn);
            return { value: (after - before) / count };
          },
          stop: async () => {
            await stop();
            await holder.end();
          },
        };
      },
    })),
};

/** All of them. */
export const SHARED_ROWS: readonly Row[] = [
  poolSql,
  row("pool-sql-512", "the same, 512 tasks", { tasks: 512, goals: MANY }),
  row("pool-sql-4096", "the same, 4 096 tasks", { tasks: 4096, goals: MANY }),
  row("pool-sql-texts", "the same, 64 tasks, 200 texts in turn", {
    work: async (sql, turn) =>
      check(await sql.unsafe(TEXTS[turn % 200]!, [turn], { prepare: true }), turn),
  }),
  row("pool-sql-inserts", "the same, 64 tasks, inserts into an unlogged table", {
    prepare: (sql, name) => sql.unsafe(`create unlogged table ${tableOf(name)} (x int, t text)`),
    work: async (sql, turn, name) => {
      await sql.unsafe(`insert into ${tableOf(name)} values ($1, $2)`, [turn, "a text"], {
        prepare: true,
      });
    },
  }),
  row("pool-sql-rows", `the same, 64 tasks, answers of ${ROWS} rows`, {
    work: async (sql, turn) => {
      const rows = await sql`select ${turn}::int + i as x, 'a text' as t
        from generate_series(1, ${ROWS}::int) i`;
      expect(rows.length === ROWS && rows[ROWS - 1]!.x === turn + ROWS, "rows");
    },
  }),
  row("pool-sql-one", "the same, 64 tasks on 1 connection", { max: 1 }),
  row("pool-sql-latency", `1 task on ${MAX} connections`, { tasks: 1 }),
  slow,
  atOnce("pool-sql-all", 100_000, 0, "one of 100 000 statements in one Promise.all", 5),
  atOnce("pool-sql-burst", 2_000, 100, "one of 2 000 statements at once after a pause", 20),
  pending,
];

function tableOf(name: string): string {
  return `bench_${name.replace(/\W/g, "_")}`;
}
