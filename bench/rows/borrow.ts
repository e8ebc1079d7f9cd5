/** getconn + putconn with an idle connection at hand. */

import { Pool as TarnPool } from "tarn";
import { type Bench, type Contestant, expect, type Row } from "../contest.ts";
import { FakePool, type Thing, thing } from "../fakes.ts";
import { CYCLES, cycleTime } from "../micro.ts";
import { bunSql, genericPool, ourPool, pgPool, postgresJs } from "../peers.ts";

type Cycles = () => Promise<unknown>;

/** A contestant of a row that measures {@linkcode CYCLES} cycles per call. */
export function cycling(
  bench: Bench,
  name: string,
  kind: Contestant["kind"],
  start: () => Promise<{ cycles: Cycles; stop: () => unknown }>,
): Contestant {
  return {
    name,
    kind,
    start: async () => {
      const { cycles, stop } = await start();
      return {
        round: () => cycleTime(cycles, bench.span / 2),
        stop: async () => {
          await stop();
        },
      };
    },
  };
}

function borrowPg(bench: Bench, url: string, name: string, idle: number): Contestant {
  return cycling(bench, name, "peer", async () => {
    const pool = pgPool(url, 1, idle);
    await pool.query("select 1");
    const cycles = async (): Promise<void> => {
      for (let i = 0; i < CYCLES; i++) (await pool.connect()).release();
    };
    return { cycles, stop: () => pool.end() };
  });
}

/** Real connections: what an application pays. */
export const borrow: Row = {
  name: "borrow",
  title: "getconn + putconn, PostgreSQL connections, one idle at hand",
  unit: "ns",
  better: "less",
  absolute: 1_000,
  goals: [{ against: ["pg-pool", "postgres.js reserve", "Bun.sql reserve"], ratio: 1.5 }],
  contestants: async (bench) => {
    const url = await bench.url();
    const all = [
      cycling(bench, "ours", "ours", async () => {
        const pool = await ourPool(url, 1);
        const cycles = async (): Promise<void> => {
          for (let i = 0; i < CYCLES; i++) {
            const conn = await pool.getconn();
            await pool.putconn(conn);
          }
        };
        return { cycles, stop: () => pool.close() };
      }),
      borrowPg(bench, url, "pg-pool", 0),
      borrowPg(bench, url, "pg-pool, closing idle ones", 10_000),
      // With max 1, its best: with more, its queues grow and it gets slower and slower.
      cycling(bench, "postgres.js reserve", "peer", async () => {
        const sql = postgresJs(url, 1);
        await sql`select 1`;
        const cycles = async (): Promise<void> => {
          for (let i = 0; i < CYCLES; i++) (await sql.reserve()).release();
        };
        return { cycles, stop: () => sql.end() };
      }),
    ];
    const bun = bunSql(url, 1);
    if (bun !== null) {
      all.push(cycling(bench, "Bun.sql reserve", "peer", async () => {
        await bun`select 1`;
        const cycles = async (): Promise<void> => {
          for (let i = 0; i < CYCLES; i++) (await bun.reserve()).release();
        };
        return { cycles, stop: () => bun.close() };
      }));
    }
    return all;
  },
};

/** Plain objects: the price of the pool alone, beside the pools that hold anything. */
export const borrowAny: Row = {
  name: "borrow-any",
  title: "the same with plain objects instead of connections",
  unit: "ns",
  better: "less",
  absolute: 1_000,
  goals: [{ against: ["tarn", "generic-pool"], ratio: 3 }],
  contestants: (bench) => [
    cycling(bench, "ours", "ours", async () => {
      const pool = new FakePool(1, 4);
      await pool.ready();
      const cycles = async (): Promise<void> => {
        for (let i = 0; i < CYCLES; i++) {
          const conn = await pool.getconn();
          await pool.putconn(conn);
        }
      };
      return { cycles, stop: () => pool.close() };
    }),
    cycling(bench, "ours, use()", "peer", async () => {
      const pool = new FakePool(1, 4);
      await pool.ready();
      let sum = 0;
      const cycles = async (): Promise<void> => {
        for (let i = 0; i < CYCLES; i++) await pool.use((conn) => void (sum += conn.id));
      };
      return { cycles, stop: () => (expect(sum > 0, "use"), pool.close()) };
    }),
    cycling(bench, "tarn", "peer", () => {
      const pool = new TarnPool<Thing>({
        create: () => Promise.resolve(thing()),
        destroy: () => {},
        min: 0,
        max: 4,
      });
      const cycles = async (): Promise<void> => {
        for (let i = 0; i < CYCLES; i++) {
          const one = await pool.acquire().promise;
          expect(pool.release(one), "tarn release");
        }
      };
      return Promise.resolve({ cycles, stop: () => pool.destroy() });
    }),
    cycling(bench, "generic-pool", "peer", () => {
      const pool = genericPool.createPool<Thing>({
        create: () => Promise.resolve(thing()),
        destroy: () => Promise.resolve(),
      }, { max: 4 });
      const cycles = async (): Promise<void> => {
        for (let i = 0; i < CYCLES; i++) {
          const one = await pool.acquire();
          await pool.release(one);
        }
      };
      return Promise.resolve({ cycles, stop: () => pool.drain().then(() => pool.clear()) });
    }),
  ],
};
