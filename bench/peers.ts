/** The peers' clients, each set up as its own documents recommend. */

import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";
import pgModule from "pg";
import postgres from "postgres";
import { SimpleConnectionPool } from "@getconn/pool";
import type { Runtime } from "./contest.ts";

/** The one statement of all rows with a database; its answer is its argument. */
export const STATEMENT = "select $1::int as x";

/** What we use of node-postgres: its types would bring those of a browser along. */
export interface PgPool {
  query(query: unknown): Promise<{ rows: { x: number }[] }>;
  connect(): Promise<{
    query(query: unknown): Promise<{ rows: { x: number }[] }>;
    release(): void;
  }>;
  end(): Promise<void>;
}

/** What we use of generic-pool. */
export interface GenericPool<T> {
  acquire(): Promise<T>;
  release(resource: T): Promise<void>;
  drain(): Promise<void>;
  clear(): Promise<void>;
}

interface GenericPoolModule {
  createPool<T>(
    factory: { create(): Promise<T>; destroy(resource: T): Promise<void> },
    options: { max: number; min?: number },
  ): GenericPool<T>;
}

// Required, because its types would bring those of Node into every check of this project.
export const genericPool: GenericPoolModule = createRequire(import.meta.url)("generic-pool");

/** One connection of node-postgres. */
export interface PgClient {
  connect(): Promise<unknown>;
  query(query: unknown): Promise<{ rows: { x: number }[] }>;
  end(): Promise<void>;
}

const pg = pgModule as unknown as {
  Pool: new (options: object) => PgPool;
  Client: new (options: object) => PgClient;
};

/** What the clients have in common that take templates. */
export interface TemplateSql {
  // deno-lint-ignore no-explicit-any
  (strings: TemplateStringsArray, ...values: unknown[]): Promise<any[]>;
  unsafe(text: string, values?: unknown[], options?: object): Promise<{ x: number }[]>;
  begin(fn: (sql: TemplateSql) => Promise<void>): Promise<unknown>;
}

/** What we use of Bun.sql, which has types only in Bun. */
export interface BunSql extends TemplateSql {
  reserve(): Promise<BunSql & { release(): void }>;
  close(): Promise<void>;
}

/** Bun's own client; null in Deno. */
export function bunSql(url: string, max: number): BunSql | null {
  const { Bun: bun } = globalThis as {
    Bun?: { SQL: new (url: string, options: { max: number }) => BunSql };
  };
  return bun === undefined ? null : new bun.SQL(url, { max });
}

/** The driver's own pool. Prepared statements are on by default. */
export function postgresJs(url: string, max: number): postgres.Sql {
  return postgres(url, { max, max_lifetime: null, onnotice: () => {} });
}

/**
 * node-postgres: its pool; a statement with a name is prepared. Unless told otherwise without its
 * idle timer, which is at work in each lease.
 */
export function pgPool(url: string, max: number, idleTimeoutMillis = 0): PgPool {
  return new pg.Pool({ connectionString: url, max, idleTimeoutMillis });
}

/** A connection of node-postgres, to be opened. */
export function pgClient(url: string): PgClient {
  return new pg.Client({ connectionString: url });
}

/** The statement as node-postgres prepares it. */
export function prepared(value: number): object {
  return { name: "one", text: STATEMENT, values: [value] };
}

/** Ours. `timeout`: most rows let more callers wait than connections stand. */
export async function ourPool(url: string, max: number): Promise<SimpleConnectionPool> {
  const pool = new SimpleConnectionPool(max, max, url, {
    pool: { timeout: 30_000, checkAfter: 30_000 },
  });
  await pool.ready();
  return pool;
}

/** A client that takes templates. */
export interface TemplateClient {
  readonly name: string;
  /** With all its connections. */
  open(url: string): Promise<{ readonly sql: TemplateSql; stop(): Promise<unknown> }>;
}

/** Those of this runtime, each of which chooses a connection by itself; ours first. */
export function templateClients(runtime: Runtime, max: number): TemplateClient[] {
  const all: TemplateClient[] = [{
    name: "ours, pool.sql",
    open: async (url) => {
      const pool = await ourPool(url, max);
      return { sql: pool.sql as unknown as TemplateSql, stop: () => pool.close() };
    },
  }, {
    name: "postgres.js",
    open: async (url) => {
      const sql = postgresJs(url, max) as unknown as TemplateSql & postgres.Sql;
      await fill(max, () => sql`select 1`);
      return { sql, stop: () => sql.end() };
    },
  }];
  if (runtime === "bun") {
    all.push({
      name: "Bun.sql",
      open: async (url) => {
        const sql = bunSql(url, max)!;
        await fill(max, () => sql`select 1`);
        return { sql, stop: () => sql.close() };
      },
    });
  }
  return all;
}

/** Opens all connections of a pool, so that no round pays for it. */
export async function fill(max: number, work: () => Promise<unknown>): Promise<void> {
  await Promise.all(Array.from({ length: max * 4 }, work));
  await sleep(20);
}
