/** How the pool alone behaves at scale: plain objects instead of connections. */

import { Pool as TarnPool } from "tarn";
import { collectGarbage, type Curve, expect, heapUsed, type Series } from "../contest.ts";
import { FakePool, type Thing, thing } from "../fakes.ts";
import { genericPool } from "../peers.ts";
import { median } from "../stats.ts";

/** What the three pools have in common. */
export interface AnyPool {
  take(): Promise<Thing>;
  give(one: Thing): unknown;
  close(): unknown;
}

/** Makes each of the pools. */
export const POOLS: Readonly<Record<string, (max: number) => AnyPool>> = {
  ours: (max) => {
    const pool = new FakePool(0, max);
    return {
      take: () => pool.getconn(),
      give: (one) => pool.putconn(one),
      close: () => pool.close(),
    };
  },
  tarn: (max) => {
    const pool = new TarnPool<Thing>({
      create: () => Promise.resolve(thing()),
      destroy: () => {},
      min: 0,
      max,
      acquireTimeoutMillis: 600_000,
    });
    return {
      take: () => pool.acquire().promise,
      give: (one) => expect(pool.release(one), "release"),
      close: () => pool.destroy(),
    };
  },
  "generic-pool": (max) => {
    const pool = genericPool.createPool<Thing>({
      create: () => Promise.resolve(thing()),
      destroy: () => Promise.resolve(),
    }, { max });
    return {
      take: () => pool.acquire(),
      give: (one) => pool.release(one),
      close: () => pool.drain().then(() => pool.clear()),
    };
  },
};

/** A contestant that takes longer than this for one point gets no larger ones. */
const PATIENCE = 4_000;

/** One series for each pool: `point` gives nanoseconds for one x. */
async function seriesOf(
  xs: readonly number[],
  names: readonly string[],
  point: (name: string, x: number) => Promise<number>,
  repeats: number,
): Promise<Series[]> {
  const series = names.map((name) => ({ name, points: [] as { x: number; y: number }[] }));
  const slow = new Set<string>();
  for (const x of xs) {
    for (const { name, points } of series) {
      if (slow.has(name)) continue;
      const values: number[] = [];
      const began = performance.now();
      for (let i = 0; i < repeats && performance.now() - began < PATIENCE; i++) {
        collectGarbage();
        values.push(await point(name, x));
      }
      if (performance.now() - began >= PATIENCE) slow.add(name);
      points.push({ x, y: median(values) });
    }
  }
  return series;
}

/** Takes as many as there are, so that all stand, and gives all back. */
async function fill(pool: AnyPool, count: number): Promise<void> {
  const taken = [];
  for (let i = 0; i < count; i++) taken.push(await pool.take());
  for (const one of taken) await pool.give(one);
}

async function cycles(pool: AnyPool, count: number): Promise<number> {
  const began = performance.now();
  for (let i = 0; i < count; i++) await pool.give(await pool.take());
  return (performance.now() - began) / count * 1e6;
}

function powers(most: number): number[] {
  const xs = [];
  for (let x = 1; x <= most; x *= 10) xs.push(x);
  return xs;
}

/** Borrowing among many idle ones. */
export const idle: Curve = {
  name: "curve-idle",
  title: "getconn + putconn among idle connections",
  x: "idle connections",
  y: "ns",
  measure: (bench) =>
    seriesOf(powers(bench.quick ? 100 : 10_000), Object.keys(POOLS), async (name, x) => {
      const pool = POOLS[name]!(x);
      await fill(pool, x);
      await cycles(pool, 2_000);
      const cost = await cycles(pool, 10_000);
      await pool.close();
      return cost;
    }, bench.quick ? 1 : 5),
};

/** Waiters enter the queue of one connection and are served one after the other. */
async function handOver(pool: AnyPool, waiters: number): Promise<void> {
  const all = [];
  for (let i = 0; i < waiters; i++) all.push(pool.take().then((one) => void pool.give(one)));
  await Promise.all(all);
}

/** Queueing and being served, by the length of the queue. */
export const waiters: Curve = {
  name: "curve-waiters",
  title: "entering the queue and being served, per waiter",
  x: "waiters",
  y: "ns",
  measure: (bench) =>
    seriesOf(powers(bench.quick ? 100 : 100_000), Object.keys(POOLS), async (name, x) => {
      const pool = POOLS[name]!(1);
      const repeats = Math.max(1, Math.ceil(10_000 / x));
      for (let i = 0; i < repeats; i++) await handOver(pool, x);
      const holder = await pool.take();
      let took = 0;
      const began = performance.now();
      const first = handOver(pool, x);
      await pool.give(holder);
      await first;
      took = performance.now() - began;
      for (let i = 1; i < repeats; i++) {
        const holder = await pool.take();
        const began = performance.now();
        const all = handOver(pool, x);
        await pool.give(holder);
        await all;
        took += performance.now() - began;
      }
      await pool.close();
      return took / repeats / x * 1e6;
    }, bench.quick ? 1 : 5),
};

/** The same with deadlines that never come, and with signals. */
export const deadlines: Curve = {
  name: "curve-deadlines",
  title: "the same with a deadline or a signal for each waiter",
  x: "waiters",
  y: "ns",
  measure: (bench) => {
    const kinds = {
      "no limit": () => ({}),
      "timeout 30 s": () => ({ timeout: 30_000 }),
      "a timeout each": (i: number) => ({ timeout: 30_000 + i }),
      "signal each": () => ({ signal: new AbortController().signal }),
    };
    return seriesOf(
      powers(bench.quick ? 100 : 100_000),
      Object.keys(kinds),
      async (name, x) => {
        const options = kinds[name as keyof typeof kinds];
        const pool = new FakePool(1, 1);
        let took = 0;
        const repeats = Math.max(2, Math.ceil(5_000 / x));
        for (let repeat = 0; repeat < repeats; repeat++) {
          const holder = await pool.getconn();
          const began = performance.now();
          const all = [];
          for (let i = 0; i < x; i++) {
            all.push(pool.getconn(null, options(i)).then((one) => void pool.putconn(one)));
          }
          await pool.putconn(holder);
          await Promise.all(all);
          // The first is warm-up.
          if (repeat > 0) took += performance.now() - began;
        }
        await pool.close();
        return took / (repeats - 1) / x * 1e6;
      },
      bench.quick ? 1 : 3,
    );
  },
};

/** Keys that are lent, and one more that comes and goes. */
export const keys: Curve = {
  name: "curve-keys",
  title: "getconn of a key among lent keys",
  x: "lent keys",
  y: "ns",
  measure: (bench) =>
    seriesOf(
      powers(bench.quick ? 100 : 10_000),
      ["known key", "new key, and putconn"],
      async (name, x) => {
        const pool = new FakePool(0, x + 1);
        for (let i = 0; i < x; i++) await pool.getconn(i);
        const count = 10_000;
        const run = async (): Promise<number> => {
          const began = performance.now();
          for (let i = 0; i < count; i++) {
            if (name === "known key") await pool.getconn(i % x);
            else await pool.putconn(await pool.getconn(-1), -1);
          }
          return (performance.now() - began) / count * 1e6;
        };
        await run();
        const cost = await run();
        await pool.closeall();
        return cost;
      },
      bench.quick ? 1 : 5,
    ),
};

/** A million leases: nothing may pile up. */
export const million: Curve = {
  name: "curve-million",
  title: "getconn + putconn over a million cycles",
  x: "cycles",
  y: "ns",
  linear: true,
  measure: async (bench) => {
    const names = Object.keys(POOLS);
    const series = names.map((name) => ({ name, points: [] as { x: number; y: number }[] }));
    const pools = names.map((name) => POOLS[name]!(4));
    const [most, step] = bench.quick ? [20_000, 10_000] : [1_000_000, 50_000];
    for (const pool of pools) await fill(pool, 4);
    for (let x = step; x <= most; x += step) {
      for (const [i, pool] of pools.entries()) {
        series[i]!.points.push({ x, y: await cycles(pool, step) });
      }
    }
    for (const pool of pools) await pool.close();
    return series;
  },
};

/** Bytes on the heap. */
export const memory: Curve = {
  name: "curve-memory",
  title: "memory per idle connection and per waiter, of the pool alone",
  x: "idle connections, or waiters",
  y: "bytes",
  measure: async (bench) => {
    const series: Series[] = [];
    const xs = bench.quick ? [1_000] : [1_000, 10_000];
    for (const [name, make] of Object.entries(POOLS)) {
      const idle = { name: `${name}, idle`, points: [] as { x: number; y: number }[] };
      const waiting = { name: `${name}, waiting`, points: [] as { x: number; y: number }[] };
      for (const x of xs) {
        idle.points.push({ x, y: await perIdle(make, x) });
        waiting.points.push({ x, y: await perWaiter(make, x) });
      }
      series.push(idle, waiting);
    }
    return series;
  },
};

async function perIdle(make: (max: number) => AnyPool, count: number): Promise<number> {
  await fill(make(1), 1);
  const before = await heapUsed();
  const pool = make(count);
  const taken = [];
  for (let i = 0; i < count; i++) taken.push(await pool.take());
  while (taken.length > 0) await pool.give(taken.pop()!);
  const after = await heapUsed();
  await pool.close();
  return (after - before) / count;
}

async function perWaiter(make: (max: number) => AnyPool, count: number): Promise<number> {
  const pool = make(1);
  let holder = await pool.take();
  const before = await heapUsed();
  const all = [];
  for (let i = 0; i < count; i++) all.push(pool.take());
  const after = await heapUsed();
  for (const one of all) {
    await pool.give(holder);
    holder = await one;
  }
  await pool.give(holder);
  await pool.close();
  return (after - before) / count;
}

/** All of them. */
export const FAKE_CURVES: readonly Curve[] = [idle, waiters, deadlines, keys, million, memory];
