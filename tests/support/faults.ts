/** What the fault tests share: a pool before a proxy, and what must hold after any fault. */

import { assert, assertEquals } from "@std/assert";
import { type Connection, type PostgresOptions, SimpleConnectionPool } from "../../mod.ts";
import { uniqueName, within } from "./postgres.ts";
import { type FaultProxy, startProxy } from "./proxy.ts";
import { eventually, sessions, testServer } from "./server.ts";

/** A pool on the test server, and the proxy between them. */
export interface Faulty {
  readonly pool: SimpleConnectionPool;
  readonly proxy: FaultProxy;
  /** Its sessions' application_name. */
  readonly name: string;
  /** The password in its URL. */
  readonly password: string;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Opens both. */
export async function faulty(
  minconn: number,
  maxconn: number,
  options: PostgresOptions = {},
): Promise<Faulty> {
  const { url } = await testServer();
  const proxy = await startProxy(url);
  const name = uniqueName();
  const pool = new SimpleConnectionPool(minconn, maxconn, proxy.url(url), {
    connection: { application_name: name },
    fetch_types: false,
    ...options,
  });
  return {
    pool,
    proxy,
    name,
    password: new URL(url).password,
    async [Symbol.asyncDispose]() {
      await proxy.set("pass");
      if (!pool.closed) await pool.close({ timeout: 0 });
      await proxy.close();
    },
  };
}

/** The backend that answers. */
export async function pidOf(conn: Connection): Promise<number> {
  const [row] = await conn<{ pid: number }[]>`select pg_backend_pid() as pid`;
  return row!.pid;
}

/** What must hold after any storm: maxconn can be lent, each idle and alive, and nothing is left at the end. */
export async function assertLendable(
  pool: SimpleConnectionPool,
  name: string | null = null,
): Promise<void> {
  const conns = await within(
    Promise.all(
      Array.from({ length: pool.maxconn }, () => pool.getconn(null, { timeout: 60_000 })),
    ),
  );
  const pids = new Set<number>();
  for (const conn of conns) {
    assertEquals(conn.transactionStatus, "idle");
    pids.add(await pidOf(conn));
  }
  assertEquals(pids.size, pool.maxconn, "one session was lent twice");
  for (const conn of conns) await pool.putconn(conn);
  assertEquals(pool.stats().leased, 0);
  if (name !== null) assert(await sessions(name) <= pool.maxconn);
}

/** Waits until the pool's numbers are so. */
export function eventuallyStats(
  pool: SimpleConnectionPool,
  wanted: Partial<Record<"idle" | "connecting" | "leased" | "poolSize" | "closing", number>>,
): Promise<void> {
  return eventually(() => {
    const stats = pool.stats();
    for (const [key, value] of Object.entries(wanted)) {
      assertEquals(stats[key as "idle"], value, key);
    }
  });
}

/** Every text in an error and in what it was caused by. */
export function textOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const more = error instanceof AggregateError ? error.errors.map(textOf).join(" ") : "";
  const own = Object.values(error).filter((value) => typeof value === "string").join(" ");
  return `${error.message} ${error.stack} ${own} ${more} ${
    error.cause === undefined ? "" : textOf(error.cause)
  }`;
}

/**
 * How long it took, in milliseconds, and how it ended. Of what has begun before, that is less than its whole time; of
 * what a function begins it is all.
 */
export async function timed<T>(
  work: Promise<T> | (() => Promise<T>),
): Promise<{ took: number; value?: T; error?: Error & { code?: string } }> {
  const begun = performance.now();
  try {
    const value = await within(typeof work === "function" ? work() : work);
    return { took: performance.now() - begun, value };
  } catch (error) {
    return { took: performance.now() - begun, error: error as Error };
  }
}
