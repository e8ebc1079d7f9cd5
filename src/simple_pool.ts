/** The pool for one isolate. */

import { AbstractConnectionPool } from "./abstract_pool.ts";
import type { Connection, ConninfoFunction, PostgresOptions } from "./postgres/connection.ts";
import { PostgresConnector } from "./postgres/connector.ts";
import { type PoolSql, sqlOf } from "./sql/sql.ts";
import type { Connector } from "./pool/types.ts";

/**
 * A pool of PostgreSQL connections in one isolate: psycopg2's SimpleConnectionPool.
 *
 * @example Borrow by hand, as in psycopg2
 * ```ts
 * import { SimpleConnectionPool } from "@getconn/pool";
 * import { assertEquals } from "@std/assert";
 * import { env } from "node:process";
 *
 * await using pool = new SimpleConnectionPool(1, 4, env.DATABASE_URL);
 * const conn = await pool.getconn();
 * try {
 *   const [row] = await conn<{ n: number }[]>`select ${20}::int + 1 as n`;
 *   assertEquals(row?.n, 21);
 * } finally {
 *   await pool.putconn(conn);
 * }
 * ```
 */
export class SimpleConnectionPool extends AbstractConnectionPool<Connection> {
  /**
   * Takes what psycopg2's takes. Throws a TypeError or RangeError that names option, rule and value.
   *
   * @param minconn How many connections are kept open; 0 = none is opened before the first getconn.
   * @param maxconn How many may ever be open at once.
   * @param dsn How to connect, as libpq has it: `dbname=test user=postgres`, or
   * `postgres://user:password@host:port/database`; or a function that gives one, asked at each connect.
   * What it leaves open is in the options, the service file, the environment (PGHOST and the like), the defaults.
   * @param options libpq's keywords and postgres.js's options, which win over `dsn`; under `pool` the pool's own.
   */
  constructor(
    minconn: number,
    maxconn: number,
    dsn?: string | ConninfoFunction | null,
    options?: PostgresOptions,
  );
  /** Without a connection string. */
  constructor(minconn: number, maxconn: number, options: PostgresOptions);
  constructor(minconn: number, maxconn: number, ...args: unknown[]) {
    super(minconn, maxconn, ...args);
  }

  /**
   * A client of postgres.js that is served by this pool, for whatever takes such a client.
   *
   * @example
   * ```ts
   * import { SimpleConnectionPool } from "@getconn/pool";
   * import { assertEquals } from "@std/assert";
   * import { env } from "node:process";
   *
   * await using pool = new SimpleConnectionPool(0, 4, env.DATABASE_URL);
   * const { sql } = pool;
   * const rows = await Promise.all([1, 2, 3].map((n) => sql<{ n: number }[]>`select ${n}::int as n`));
   * assertEquals(rows.map(([row]) => row?.n), [1, 2, 3]);
   * const sum = await sql.begin(async (sql) => {
   *   const [row] = await sql<{ sum: number }[]>`select 1 + 2 as sum`;
   *   return row?.sum;
   * });
   * assertEquals(sum, 3);
   * ```
   */
  get sql(): PoolSql {
    return sqlOf(this);
  }

  /** PostgreSQL. */
  protected override defaultConnector(): Connector<Connection> {
    return new PostgresConnector() as unknown as Connector<Connection>;
  }
}
