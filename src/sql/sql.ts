/** `pool.sql`: a client of the driver on a whole pool. */

import type postgres from "postgres";
import { type AbstractConnectionPool, insideOf } from "../abstract_pool.ts";
import type { Connection } from "../postgres/connection.ts";
import { PostgresConnector } from "../postgres/connector.ts";
import { type DriverOptions, isTemplate } from "../postgres/language.ts";
import type { Owner } from "../postgres/query.ts";
import { begin, beginArguments } from "../postgres/transaction.ts";
import { scopeOf } from "../postgres/handle.ts";
import { reserveSession } from "../postgres/lease_handle.ts";
import type { Session } from "../postgres/session.ts";
import { codeOf, connectionError } from "../postgres/wire/connect_error.ts";
import { largeObject } from "../postgres/large_object.ts";
import type { ConnectSettings } from "../postgres/wire/settings.ts";
import { Channels } from "./listen.ts";
import { SqlAccess } from "./access.ts";
import { Statements } from "./statements.ts";

/**
 * A client of postgres.js that is served by a pool: it can be given to whatever takes such a client.
 *
 * Single statements run beside each other on shared connections; `begin`, `reserve`, cursors and COPY
 * take one for themselves; `listen` takes one for all channels. All are within the pool's maxconn.
 */
export interface PoolSql extends postgres.Sql {
  /** Replaces every connection; the pool stays open. As in postgres.js. */
  close(): Promise<void>;
}

const made = new WeakMap<object, PoolSql>();

/** The client of a pool: made at the first use, then always the same. */
export function sqlOf(pool: AbstractConnectionPool<Connection>): PoolSql {
  let sql = made.get(pool);
  if (sql === undefined) {
    const { connector } = insideOf(pool).state;
    if (!(connector instanceof PostgresConnector)) {
      throw new TypeError(
        "sql is for pools of PostgreSQL connections: this one has another connector",
      );
    }
    made.set(pool, sql = makeSql(pool, connector));
  }
  return sql;
}

function makeSql(
  pool: AbstractConnectionPool<Connection>,
  { language, settings }: PostgresConnector,
): PoolSql {
  const { options: driver, sql: maker } = language;
  const access = new SqlAccess(() => insideOf(pool));
  access.core.sharing.depth = driver.max_pipeline;
  const statements = new Statements(access, language);
  // What is made after `end()` was called is refused; what was made before has until the end of that turn.
  let executor: Owner = statements;
  const channels = new Channels(access);

  const sql = (strings: unknown, ...args: unknown[]): unknown => {
    if (!isTemplate(strings)) return language.helper(strings, args);
    return language.tagged(strings, args, executor, sql);
  };

  const mayStart = (): void => {
    if (executor !== statements) throw access.ended();
  };

  const members = {
    unsafe: (text: unknown, ...rest: unknown[]) => language.unsafe(text, rest, executor),
    file: (path: unknown, ...rest: unknown[]) =>
      executor === statements ? statements.file(path, rest) : language.unsafe("", [], executor),
    json: maker.json,
    array: maker.array,
    typed: maker.typed,
    types: maker.types,
    CLOSE: maker.CLOSE,
    END: maker.END,
    PostgresError: maker.PostgresError,
    options: optionsOf(driver, settings, pool),
    notify: async (channel: string, payload: unknown) =>
      await client`select pg_notify(${channel}, ${"" + payload})`,
    listen: async (channel: string, fn: (payload: string) => void, onlisten?: () => void) => {
      mayStart();
      return await channels.listen(channel, fn, onlisten);
    },
    begin: async (...args: [unknown, unknown?]) => {
      const given = args[1] === undefined ? args.slice(0, 1) : args;
      if (beginArguments(given).plan.nested) {
        throw new TypeError(
          '"nested" is for what is called in a transaction of the same connection, and this begin takes one of its own: ' +
            "use begin of what the function of the outer one gets",
        );
      }
      mayStart();
      const lease = await access.borrow();
      try {
        return await begin(scopeOf(lease.conn), given, true);
      } catch (error) {
        throw asLost(error, lease.session);
      } finally {
        lease.giveBack();
      }
    },
    reserve: async () => {
      mayStart();
      const { session, lease } = await access.borrow();
      return reserveSession(session, lease);
    },
    largeObject: (oid?: number, mode?: number) => largeObject(client, oid, mode),
    subscribe: (): Promise<never> =>
      Promise.reject(
        access.error(
          "subscribe is not possible on a pool: it opens a session of its own for replication; " +
            "use a client that postgres() makes for it",
          "UNSUPPORTED",
        ),
      ),
    end: async ({ timeout }: { timeout?: number | null } = {}) => {
      executor = statements.ended;
      // Statements come to the pool some microtasks after they were awaited.
      await new Promise<void>((resolve) => access.state.clock.setTimeout(resolve, 0));
      await pool.close(
        timeout === undefined || timeout === null ? {} : { timeout: timeout * 1000 },
      );
    },
    close: () => pool.renew(),
  };
  const client = Object.assign(sql, members) as unknown as PoolSql;
  Object.defineProperty(client, "parameters", { get: () => driver.parameters, enumerable: true });
  return client;
}

/** A transaction whose session is ended while none of its statements runs is told, as in the driver, that it is closed. */
function asLost(error: unknown, { started }: Session): unknown {
  if (!(error instanceof Error) || "query" in error) return error;
  if (codeOf(error) !== "CONNECTION_DESTROYED") return error;
  return connectionError("CONNECTION_CLOSED", started.target, "read", error);
}

/**
 * The parsed options, as clients show them. Parsers, serializers and the like are those of all
 * connections: what is changed in them takes effect.
 */
function optionsOf(
  driver: DriverOptions,
  settings: ConnectSettings | null,
  pool: AbstractConnectionPool<Connection>,
): DriverOptions {
  // Where a function tells at each connect, nobody knows before.
  const places = settings === null ? { host: [], port: [] } : {
    host: settings.targets.map((target) => target.host),
    port: settings.targets.map((target) => target.port),
    target_session_attrs: settings.attrs,
    ssl: settings.tls.mode !== "disable",
    connect_timeout: settings.connectTimeout / 1000,
  };
  const options: DriverOptions = { ...driver, ...places };
  // Not in what console.log shows.
  Object.defineProperty(options, "pass", { value: driver.pass, enumerable: false });
  Object.defineProperty(options, "max", { get: () => pool.maxconn, enumerable: true });
  return options;
}
