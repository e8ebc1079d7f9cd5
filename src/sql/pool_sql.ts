/** `sql` of the pools of PostgreSQL connections. */

import { type AbstractConnectionPool, insideOf } from "../abstract_pool.ts";
import type { Connection } from "../postgres/connection.ts";
import { PostgresConnector } from "../postgres/connector.ts";
import { makeSql, type PoolSql } from "./sql.ts";
import { SqlAccess } from "./access.ts";

const made = new WeakMap<object, PoolSql>();

/** The client of a pool: made at the first use, then always the same. */
export function sqlOf(pool: AbstractConnectionPool<Connection>): PoolSql {
  let sql = made.get(pool);
  if (sql === undefined) {
    const { state } = insideOf(pool);
    const { connector } = state;
    if (!(connector instanceof PostgresConnector)) {
      throw new TypeError(
        "sql is for pools of PostgreSQL connections: this one has another connector",
      );
    }
    sql = makeSql(
      new SqlAccess(() => insideOf(pool)),
      pool,
      connector.language,
      connector.settings,
    );
    made.set(pool, sql);
  }
  return sql;
}
