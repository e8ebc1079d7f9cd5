/** Statements on leased connections, and leases under load. */

import {
  type Bench,
  type Contestant,
  expect,
  type Row,
  type Runtime,
  type Sample,
} from "../contest.ts";
import { load } from "../load.ts";
import { bunSql, fill, ourPool, pgPool, postgresJs, prepared, templateClients } from "../peers.ts";
import { pgbench } from "../pgbench.ts";

/** What a contestant of a load does: one piece of work, whose number is also its argument. */
export interface Loaded {
  work(turn: number): Promise<unknown>;
  stop(): Promise<unknown>;
}

/** How many times longer the rounds of a load are: some clients get faster with time and some slower, for seconds. */
const STEADY = 4;

/**
 * A contestant whose figure is how often per second `tasks` tasks get their work done; for one task
 * by the median time of its work, which a visit of the machine's other tenants does not change.
 */
export function loaded(
  bench: Bench,
  tasks: number,
  name: string,
  kind: Contestant["kind"],
  start: () => Promise<Loaded>,
  rate = 1,
): Contestant {
  return {
    name,
    kind,
    start: async () => {
      const { work, stop } = await start();
      // Servers run for days: what is compared is compiled code.
      await load(tasks, 8 * bench.span, work);
      return {
        round: async (): Promise<Sample> => {
          const sample = await load(tasks, STEADY * bench.span, work);
          const { p50 } = sample.more!;
          return tasks === 1 ? { ...sample, value: 1e6 / p50! * rate } : sample;
        },
        stop: async () => {
          await stop();
        },
      };
    },
  };
}

/** One row, with the argument in it. */
export function check(rows: readonly { x: number }[], turn: number): void {
  // The text costs more than the look, and not the same for everybody's rows.
  if (rows.length !== 1 || rows[0]!.x !== turn) {
    expect(false, `${JSON.stringify(rows)} for ${turn}`);
  }
}

/** Each of them keeps one connection and sends statement after statement. */
export const leasedQuery: Row = {
  name: "leased-query",
  title: "one statement after the other on a leased connection",
  unit: "statements/s",
  better: "more",
  goals: [{ against: ["postgres.js, max 1", "pg, leased", "Bun.sql, reserved"], ratio: 1 }],
  contestants: async (bench) => {
    const url = await bench.url();
    const all = [
      loaded(bench, 1, "ours, leased", "ours", async () => {
        const pool = await ourPool(url, 1);
        const conn = await pool.getconn();
        return {
          work: async (turn) => check(await conn<{ x: number }[]>`select ${turn}::int as x`, turn),
          stop: () => conn[Symbol.asyncDispose]().then(() => pool.close()),
        };
      }),
      loaded(bench, 1, "postgres.js, max 1", "peer", () => {
        const sql = postgresJs(url, 1);
        return Promise.resolve({
          work: async (turn) => check(await sql<{ x: number }[]>`select ${turn}::int as x`, turn),
          stop: () => sql.end(),
        });
      }),
      loaded(bench, 1, "pg, leased", "peer", async () => {
        const pool = pgPool(url, 1);
        const client = await pool.connect();
        return {
          work: async (turn) => check((await client.query(prepared(turn))).rows, turn),
          stop: () => (client.release(), pool.end()),
        };
      }),
    ];
    const bun = bunSql(url, 1);
    if (bun !== null) {
      all.push(loaded(bench, 1, "Bun.sql, reserved", "peer", async () => {
        const conn = await bun.reserve();
        return {
          work: async (turn) => check(await conn`select ${turn}::int as x`, turn),
          stop: () => (conn.release(), bun.close()),
        };
      }));
    }
    return all;
  },
};

const TASKS = 64;
const MAX = 4;

/** Starts a contestant that takes a lease for each statement. */
export async function leasing(name: string, url: string, max: number): Promise<Loaded> {
  if (name === "ours, getconn") {
    const pool = await ourPool(url, max);
    return {
      work: async (turn) => {
        const conn = await pool.getconn();
        try {
          check(await conn<{ x: number }[]>`select ${turn}::int as x`, turn);
        } finally {
          await pool.putconn(conn);
        }
      },
      stop: () => pool.close(),
    };
  }
  if (name === "pg-pool") {
    const pool = pgPool(url, max);
    await fill(max, () => pool.query("select 1"));
    return {
      work: async (turn) => {
        const client = await pool.connect();
        try {
          check((await client.query(prepared(turn))).rows, turn);
        } finally {
          client.release();
        }
      },
      stop: () => pool.end(),
    };
  }
  if (name === "postgres.js reserve") {
    const sql = postgresJs(url, max);
    await fill(max, () => sql`select 1`);
    return {
      work: async (turn) => {
        const conn = await sql.reserve();
        try {
          check(await conn<{ x: number }[]>`select ${turn}::int as x`, turn);
        } finally {
          conn.release();
        }
      },
      stop: () => sql.end(),
    };
  }
  const sql = bunSql(url, max)!;
  await fill(max, () => sql`select 1`);
  return {
    work: async (turn) => {
      const conn = await sql.reserve();
      try {
        check(await conn`select ${turn}::int as x`, turn);
      } finally {
        conn.release();
      }
    },
    stop: () => sql.close(),
  };
}

/** Who can take leases in this runtime; ours first. */
export function leasers(runtime: Runtime): string[] {
  const all = ["ours, getconn", "pg-pool", "postgres.js reserve"];
  return runtime === "bun" ? [...all, "Bun.sql reserve"] : all;
}

/** More tasks than connections, each with a connection of its own for one statement. */
export const leases: Row = {
  name: "leases",
  title: `${TASKS} tasks, each statement on an exclusive lease of ${MAX} connections`,
  unit: "statements/s",
  better: "more",
  goals: [{ against: ["pg-pool"], ratio: 1.1 }],
  contestants: async (bench) => {
    const url = await bench.url();
    const all = leasers(bench.runtime).map((name, i) =>
      loaded(bench, TASKS, name, i === 0 ? "ours" : "peer", () => leasing(name, url, MAX))
    );
    return [...all, ...await pgbench(bench, url, MAX)];
  },
};

/** A transaction of one statement: begin, the statement, commit, each with its own round trip. */
export const transactions: Row = {
  name: "transactions",
  title: `${TASKS} tasks, transactions of one statement on ${MAX} connections`,
  unit: "transactions/s",
  better: "more",
  goals: [{ against: ["pg-pool"], ratio: 1 }],
  contestants: async (bench) => {
    const url = await bench.url();
    const all = [
      loaded(bench, TASKS, "ours, transaction", "ours", async () => {
        const pool = await ourPool(url, MAX);
        return {
          work: (turn) =>
            pool.transaction(async (conn) =>
              check(await conn<{ x: number }[]>`select ${turn}::int as x`, turn)
            ),
          stop: () => pool.close(),
        };
      }),
      loaded(bench, TASKS, "pg-pool", "peer", async () => {
        const pool = pgPool(url, MAX);
        await fill(MAX, () => pool.query("select 1"));
        return {
          work: async (turn) => {
            const client = await pool.connect();
            try {
              await client.query("begin");
              check((await client.query(prepared(turn))).rows, turn);
              await client.query("commit");
            } finally {
              client.release();
            }
          },
          stop: () => pool.end(),
        };
      }),
    ];
    for (const { name, open } of templateClients(bench.runtime, MAX).slice(1)) {
      all.push(loaded(bench, TASKS, `${name} begin`, "peer", async () => {
        const { sql, stop } = await open(url);
        return {
          work: (turn) =>
            sql.begin(async (sql) => check(await sql`select ${turn}::int as x`, turn)),
          stop,
        };
      }));
    }
    return all;
  },
};
