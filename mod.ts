/**
 * psycopg2's PostgreSQL connection pools for Deno and Bun, and Node, in the language of postgres.js.
 *
 * {@linkcode SimpleConnectionPool} lends connections in one isolate; {@linkcode ThreadedConnectionPool} holds one
 * cap for all workers; {@linkcode PersistentConnectionPool} gives each worker or each request its own;
 * {@linkcode AbstractConnectionPool} is the base for pools of anything. {@linkcode getPool} keeps one pool per name in
 * edge functions and through hot reloads.
 *
 * ```ts
 * import { SimpleConnectionPool } from "@getconn/pool";
 * import { env } from "node:process";
 *
 * await using pool = new SimpleConnectionPool(1, 10, env.DATABASE_URL);
 * const [row] = await pool.use((conn) => conn<{ sum: number }[]>`select 1 + 2 as sum`);
 * console.log(row?.sum);
 * ```
 *
 * @module
 */

export { AbstractConnectionPool } from "./src/abstract_pool.ts";
export { type Closable, getPool } from "./src/get_pool.ts";
export { SimpleConnectionPool } from "./src/simple_pool.ts";
export { ThreadedConnectionPool } from "./src/threaded_pool.ts";
export { PersistentConnectionPool, type PersistentPoolOptions } from "./src/persistent_pool.ts";
export { SharedConnectionPool, type SharedOptions } from "./src/shared_pool.ts";
export type { PoolHandle } from "./src/workers/handle.ts";
export type { WorkerLike } from "./src/runtime.ts";
export {
  ConnectionReturned,
  PoolClosed,
  type PoolCounts,
  PoolError,
  type PoolErrorCode,
  type PoolErrorContext,
  PoolExhausted,
  PoolTimeout,
  TooManyWaiting,
} from "./src/pool/errors.ts";
export {
  PoolEvent,
  type PoolEventDetails,
  PoolEvents,
  type PoolEventType,
  type PoolListener,
  type PoolListenerOptions,
  type WaitEnd,
} from "./src/pool/events.ts";
export type {
  StatementEnd,
  StatementFacts,
  StatementObservation,
  StatementObserver,
} from "./src/pool/observe.ts";
export type { PoolOptions } from "./src/pool/options.ts";
export type {
  BeginWithModes,
  Connection,
  ConnectKeywords,
  ConninfoFunction,
  postgres,
  PostgresOptions,
  StatementLimits,
  TransactionHandle,
} from "./src/postgres/connection.ts";
export { limited } from "./src/postgres/query.ts";
export type { SslMode, TargetSessionAttrs, TlsVersion } from "./src/postgres/wire/settings.ts";
export type {
  OpenTransport,
  Transport,
  TransportHandlers,
  TransportTarget,
  TransportTls,
  TransportTlsInfo,
} from "./src/postgres/wire/transport.ts";
export type { PoolSql } from "./src/sql/sql.ts";
export type {
  CloseOnOptions,
  CloseOptions,
  ConnectAttempt,
  Connector,
  EntryState,
  GetconnOptions,
  HostContext,
  Lease,
  PoolGauges,
  PoolSettings,
  PoolStats,
  PoolTotals,
  ReadyOptions,
  RemoveReason,
  RetryOptions,
  TransactionModes,
  TransactionOptions,
  TransactionStatus,
  WorkerStats,
} from "./src/pool/types.ts";
export {
  instrument,
  type Telemetry,
  type TelemetryApi,
  type TelemetryAttributes,
  type TelemetryInstrument,
  type TelemetryMeterProvider,
  type TelemetryObservable,
  type TelemetryObserver,
  type TelemetryOptions,
  type TelemetrySpan,
  type TelemetryTracerProvider,
} from "./src/telemetry.ts";
