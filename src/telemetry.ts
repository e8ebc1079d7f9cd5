/**
 * OpenTelemetry for a pool, built on its events, its statistics and what it tells of statements: nothing of it is on the
 * way of a lease, or of a statement that nobody observes.
 */

import { AbstractConnectionPool, observersOf } from "./abstract_pool.ts";
import { systemClock } from "./clock.ts";
import { reasonOf } from "./pool/errors.ts";
import type { PoolEvent, PoolEventType, WaitEnd } from "./pool/events.ts";
import type { StatementEnd, StatementFacts, StatementObserver } from "./pool/observe.ts";
import { isRecord, readOptions } from "./pool/options.ts";
import type { PoolSettings } from "./pool/types.ts";
import { type TracingChannels, tracingChannels } from "./runtime.ts";

/** Attributes of a metric or a span. */
export type TelemetryAttributes = Record<string, string | number | boolean>;

/** What is used of OpenTelemetry's Span. */
export interface TelemetrySpan {
  /** Says that what the span stands for has failed. */
  setStatus(status: { code: 2; message: string }): unknown;
  /** Adds an attribute. */
  setAttribute(key: string, value: string): unknown;
  /** Which one it is: for `sqlcommenter`. */
  spanContext?(): {
    readonly traceId: string;
    readonly spanId: string;
    readonly traceFlags: number;
    readonly traceState?: { serialize(): string } | undefined;
  };
  /** Ends it. */
  end(): void;
}

/** What is used of OpenTelemetry's TracerProvider. */
export interface TelemetryTracerProvider {
  /** Gives a tracer. */
  getTracer(name: string): {
    startSpan(
      name: string,
      options: { kind: 0 | 2; attributes: TelemetryAttributes; startTime?: number },
    ): TelemetrySpan;
  };
}

/** What is used of OpenTelemetry's observable instruments: their identity. */
export type TelemetryObservable = object;

/** What is used of OpenTelemetry's BatchObservableResult. */
export interface TelemetryObserver {
  /** Notes a value. */
  // deno-lint-ignore no-explicit-any -- OpenTelemetry's instruments are classes of the SDK at hand
  observe(instrument: any, value: number, attributes: TelemetryAttributes): void;
}

/** What is used of OpenTelemetry's options for an instrument. */
export interface TelemetryInstrument {
  /** What it measures. */
  readonly description: string;
  /** The unit, in UCUM. */
  readonly unit: string;
  /** The buckets that a histogram should have. */
  readonly advice?: { readonly explicitBucketBoundaries: number[] };
}

/** What is used of OpenTelemetry's MeterProvider. */
export interface TelemetryMeterProvider {
  /** Gives a meter. */
  getMeter(name: string): {
    createHistogram(name: string, options: TelemetryInstrument): {
      record(value: number, attributes: TelemetryAttributes): void;
    };
    createCounter(name: string, options: TelemetryInstrument): {
      add(value: number, attributes: TelemetryAttributes): void;
    };
    createObservableUpDownCounter(name: string, options: TelemetryInstrument): TelemetryObservable;
    addBatchObservableCallback(
      callback: (result: TelemetryObserver) => void,
      // deno-lint-ignore no-explicit-any -- as in TelemetryObserver
      observables: any[],
    ): void;
    removeBatchObservableCallback(
      callback: (result: TelemetryObserver) => void,
      // deno-lint-ignore no-explicit-any -- as in TelemetryObserver
      observables: any[],
    ): void;
  };
}

/** What is used of the module `@opentelemetry/api`. */
export interface TelemetryApi {
  /** Where the meter provider is. */
  readonly metrics: { getMeterProvider(): TelemetryMeterProvider };
  /** Where the tracer provider is. */
  readonly trace: { getTracerProvider(): TelemetryTracerProvider };
}

/** Options of {@linkcode instrument}. */
export interface TelemetryOptions {
  /**
   * Whether metrics are made.
   *
   * @default {true}
   */
  readonly metrics?: boolean | undefined;
  /**
   * Whether spans are made: one for every statement, named by its summary, such as `select orders`; `getconn` for every
   * call that has to wait for a connection, `wait` for every statement of `pool.sql` that has to; `connect` for every
   * attempt to open one.
   *
   * @default {false}
   */
  readonly spans?: boolean | undefined;
  /**
   * Whether statements carry their span to the server, in a comment as sqlcommenter has it
   * (https://google.github.io/sqlcommenter/spec/): `select 1 /*traceparent='00-…-01'*\/`. So it stands in the server's log
   * and in pg_stat_activity. Only with `spans`, and only for spans that are sampled: the text is another one each time, so
   * the server parses and plans it each time.
   *
   * @default {false}
   */
  readonly sqlcommenter?: boolean | undefined;
  /**
   * Whether every statement is told on the tracing channel `getconn:statement` of `node:diagnostics_channel`; see
   * docs/observability.md for what is told. OpenTelemetry is not needed for it.
   *
   * @default {false}
   */
  readonly diagnosticsChannel?: boolean | undefined;
  /**
   * `db.client.connection.pool.name`.
   *
   * @default {the pool's name, or `host:port/database` for a pool that was given none}
   */
  readonly poolName?: string | undefined;
  /** Attributes for every metric and span beside the pool's name. */
  readonly attributes?: TelemetryAttributes | undefined;
  /** The module `@opentelemetry/api`. Without it the providers that are registered globally are found. */
  readonly api?: TelemetryApi | undefined;
  /** Where metrics go. */
  readonly meterProvider?: TelemetryMeterProvider | undefined;
  /** Where spans go. */
  readonly tracerProvider?: TelemetryTracerProvider | undefined;
}

/** What {@linkcode instrument} has begun. */
export interface Telemetry {
  /** Whether metrics are made: they were asked for, and a meter provider was found. */
  readonly metrics: boolean;
  /** Whether spans are made: they were asked for, and a tracer provider was found. */
  readonly spans: boolean;
  /** Whether statements are told on a diagnostics channel: it was asked for, and the runtime has such channels. */
  readonly diagnosticsChannel: boolean;
  /** Ends it: no listener and no callback is left. */
  dispose(): void;
  /** The same as `dispose()`. */
  [Symbol.dispose](): void;
}

/** The name of the instrumentation. */
const SCOPE = "@getconn/pool";
/** The name of the diagnostics channel. */
const CHANNEL = "getconn:statement";
const CLIENT = 2;
const INTERNAL = 0;
const ERROR = 2;
const SYSTEM = "postgresql";
/** None is without a digit, as codes of the system are. */
const SQLSTATE = /^(?=.*[0-9])[0-9A-Z]{5}$/;
/** Seconds; what the conventions advise for durations of database calls. */
const BUCKETS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10];

type Pool = AbstractConnectionPool<object>;
type Observe = (observer: StatementObserver) => void;
type Listen = <T extends PoolEventType>(type: T, fn: (event: PoolEvent<T>) => void) => void;

const TELEMETRY_OPTIONS = [
  "metrics",
  "spans",
  "sqlcommenter",
  "diagnosticsChannel",
  "poolName",
  "attributes",
  "api",
  "meterProvider",
  "tracerProvider",
] as const satisfies readonly (keyof TelemetryOptions)[];

/**
 * Gives OpenTelemetry a pool's metrics, by its semantic conventions for database clients, and when
 * asked spans. `@opentelemetry/api` is not needed: what every copy of it registers globally is found,
 * and so is Deno's own (`OTEL_DENO=true`). So register the SDK first. Where nothing is registered
 * nothing happens, and the handle says so.
 *
 * No value of a parameter leaves the program by it: of a statement its text with the placeholders is told.
 *
 * Of a pool that workers share, each worker that calls this tells its own connections and callers; the
 * limits are the whole pool's.
 *
 * @returns a handle that ends it
 * @throws {TypeError} for an unknown option, a value that it does not take, `sqlcommenter` without `spans`, and a
 * provider that would get nothing
 *
 * @example Metrics of a pool, wherever the program sends its metrics
 * ```ts
 * import { instrument, SimpleConnectionPool } from "@getconn/pool";
 * import { assertEquals } from "@std/assert";
 *
 * await using pool = new SimpleConnectionPool(0, 10, "postgres://localhost/app", {
 *   pool: { name: "orders" },
 * });
 * using telemetry = instrument(pool, { spans: true });
 * // No SDK is registered here.
 * assertEquals(telemetry.metrics, false);
 * ```
 */
export function instrument<C extends object>(
  pool: AbstractConnectionPool<C>,
  options: TelemetryOptions = {},
): Telemetry {
  readOptions("instrument", options, TELEMETRY_OPTIONS);
  const { api } = options;
  const metrics = flag("metrics", options.metrics, true);
  const spans = flag("spans", options.spans, false);
  const sqlcommenter = flag("sqlcommenter", options.sqlcommenter, false);
  const channelled = flag("diagnosticsChannel", options.diagnosticsChannel, false);
  if (sqlcommenter && !spans) {
    throw new TypeError(
      '"sqlcommenter" needs { spans: true }: it is the span of a statement that the comment names',
    );
  }
  checkPool(pool);
  checkProviders(options, metrics, spans);
  checkLabels(options);
  const found = registered();
  const meters = metrics
    ? options.meterProvider ?? api?.metrics.getMeterProvider() ?? found?.metrics
    : undefined;
  const tracers = spans
    ? options.tracerProvider ?? api?.trace.getTracerProvider() ?? found?.trace
    : undefined;
  const cleanup: (() => void)[] = [];
  const listen: Listen = (type, fn) => {
    pool.on(type, fn);
    cleanup.push(() => pool.off(type, fn));
  };
  const attributes = {
    ...options.attributes,
    "db.client.connection.pool.name": options.poolName ?? nameOf(pool.options),
  };
  const observe = (observer: StatementObserver): void => {
    cleanup.push(observersOf(pool).add(observer));
  };
  const dispose = (): void => {
    for (const end of cleanup.splice(0)) end();
  };
  const channels = channelled ? tracingChannels(CHANNEL) : null;
  const place = target(pool.options.connection);
  try {
    if (meters !== undefined) {
      const operations = { ...options.attributes, ...place };
      cleanup.push(
        measure(pool as unknown as Pool, listen, observe, meters, attributes, operations),
      );
    }
    if (tracers !== undefined) {
      trace(listen, observe, tracers, { ...attributes, ...place }, sqlcommenter);
    }
    if (channels !== null) observe(publisher(channels, pool.options));
  } catch (error) {
    // What a provider throws must not leave half of it behind.
    dispose();
    throw error;
  }
  return {
    metrics: meters !== undefined,
    spans: tracers !== undefined,
    diagnosticsChannel: channels !== null,
    dispose,
    [Symbol.dispose]: dispose,
  };
}

function flag(name: string, value: unknown, fallback: boolean): boolean {
  if (value === undefined) return fallback;
  if (typeof value === "boolean") return value;
  throw new TypeError(`"${name}" of instrument must be true or false`);
}

function checkPool(pool: unknown): void {
  if (pool instanceof AbstractConnectionPool) return;
  throw new TypeError("instrument takes a pool, and then its options");
}

/** Throws for what is no provider, and for one that would get nothing. */
function checkProviders(options: TelemetryOptions, metrics: boolean, spans: boolean): void {
  const has = (thing: unknown, ...path: string[]): boolean => {
    let at: unknown = thing;
    for (const key of path) at = (at as Record<string, unknown> | null | undefined)?.[key];
    return typeof at === "function";
  };
  const { api, meterProvider, tracerProvider } = options;
  if (meterProvider !== undefined && !has(meterProvider, "getMeter")) {
    throw new TypeError('"meterProvider" of instrument must be a MeterProvider of OpenTelemetry');
  }
  if (tracerProvider !== undefined && !has(tracerProvider, "getTracer")) {
    throw new TypeError('"tracerProvider" of instrument must be a TracerProvider of OpenTelemetry');
  }
  if (
    api !== undefined &&
    !(has(api, "metrics", "getMeterProvider") && has(api, "trace", "getTracerProvider"))
  ) throw new TypeError('"api" of instrument must be the module @opentelemetry/api');
  if (tracerProvider !== undefined && !spans) {
    throw new TypeError('"tracerProvider" of instrument gets nothing without { spans: true }');
  }
  if (meterProvider !== undefined && !metrics) {
    throw new TypeError('"meterProvider" of instrument gets nothing with { metrics: false }');
  }
}

function checkLabels({ poolName, attributes }: TelemetryOptions): void {
  if (poolName !== undefined && (typeof poolName !== "string" || poolName === "")) {
    throw new TypeError('"poolName" of instrument must be a string that is not empty');
  }
  if (attributes === undefined) return;
  const values = isRecord(attributes) ? Object.values(attributes) : [];
  if (
    !isRecord(attributes) ||
    values.some((value) => !/^(?:string|number|boolean)$/.test(typeof value))
  ) {
    throw new TypeError(
      '"attributes" of instrument must be an object of strings, numbers and booleans',
    );
  }
}

/** What any copy of `@opentelemetry/api` 1.x, or Deno itself, has registered. */
function registered():
  | { metrics?: TelemetryMeterProvider; trace?: TelemetryTracerProvider }
  | undefined {
  return Reflect.get(globalThis, Symbol.for("opentelemetry.js.api.1"));
}

/** The conventions' form for a pool that has no name of its own. */
function nameOf({ name, connection }: PoolSettings): string {
  const { hosts, database } = connection;
  if (!/^pool-\d+$/.test(name) || !Array.isArray(hosts)) return name;
  return `${hosts.join(",")}/${database}`;
}

/** Makes the instruments; returns what ends the observing. */
function measure(
  pool: Pool,
  listen: Listen,
  observe: Observe,
  provider: TelemetryMeterProvider,
  attributes: TelemetryAttributes,
  operations: TelemetryAttributes,
): () => void {
  const meter = provider.getMeter(SCOPE);
  const seconds = (name: string, description: string) => {
    const advice = { explicitBucketBoundaries: BUCKETS };
    return meter.createHistogram(`db.client.${name}`, { description, unit: "s", advice });
  };
  const upDown = (name: string, unit: string, description: string) =>
    meter.createObservableUpDownCounter(`db.client.connection.${name}`, { description, unit });

  const createTime = seconds(
    "connection.create_time",
    "The time it took to create a new connection.",
  );
  const waitTime = seconds(
    "connection.wait_time",
    "The time it took to obtain an open connection from the pool.",
  );
  const useTime = seconds(
    "connection.use_time",
    "The time between borrowing a connection and returning it to the pool.",
  );
  const timeouts = meter.createCounter("db.client.connection.timeouts", {
    description: "The number of timeouts that occurred while waiting for a connection.",
    unit: "{timeout}",
  });
  listen("connect", ({ detail }) => createTime.record(detail.took / 1_000, attributes));
  listen("acquire", ({ detail }) => waitTime.record(detail.waited / 1_000, attributes));
  // Of `pool.sql`: for how long it had the connection, for all statements together that it had on it.
  listen("release", ({ detail }) => useTime.record(detail.used / 1_000, attributes));
  listen("timeout", () => timeouts.add(1, attributes));
  const duration = seconds("operation.duration", "Duration of database client operations.");
  observe({
    sent: (facts) => {
      // One that is alone on a connection has acquired it.
      if (facts.shared) waitTime.record(facts.waited / 1_000, attributes);
      return {
        ended: (end) =>
          duration.record(end.duration / 1_000, {
            ...operations,
            ...described(facts),
            ...failed(end),
          }),
      };
    },
  });

  const count = upDown("count", "{connection}", "The number of connections in each state.");
  const idleMax = upDown("idle.max", "{connection}", "The most connections that may be idle.");
  const idleMin = upDown("idle.min", "{connection}", "The fewest connections that are kept.");
  const max = upDown("max", "{connection}", "The most connections that may be open.");
  const pending = upDown("pending_requests", "{request}", "The requests that wait now.");
  const all = [count, idleMax, idleMin, max, pending];
  const idle = { ...attributes, "db.client.connection.state": "idle" };
  const used = { ...attributes, "db.client.connection.state": "used" };
  const { maxIdle } = pool.options;
  const look = (result: TelemetryObserver): void => {
    const stats = pool.stats();
    // Of a pool that workers share, each tells its own part.
    const own = stats.workers.find((one) => one.self);
    const size = own === undefined ? stats.poolSize : own.permits - own.closing;
    const part = own ?? stats;
    result.observe(count, part.idle, idle);
    result.observe(count, size - part.idle - part.connecting, used);
    result.observe(idleMax, maxIdle === 0 ? stats.poolMin : stats.poolMax, attributes);
    result.observe(idleMin, stats.poolMin, attributes);
    result.observe(max, stats.poolMax, attributes);
    result.observe(pending, part.requestsWaiting, attributes);
  };
  meter.addBatchObservableCallback(look, all);
  return () => meter.removeBatchObservableCallback(look, all);
}

/** Makes the spans. */
function trace(
  listen: Listen,
  observe: Observe,
  provider: TelemetryTracerProvider,
  attributes: TelemetryAttributes,
  sqlcommenter: boolean,
): void {
  const tracer = provider.getTracer(SCOPE);
  observe({
    sent: (facts) => {
      const { text, statements } = facts;
      const span = tracer.startSpan(facts.summary || facts.operation || SYSTEM, {
        kind: CLIENT,
        attributes: {
          ...attributes,
          ...described(facts),
          "db.query.text": text,
          ...(statements > 1 ? { "db.operation.batch.size": statements } : null),
        },
      });
      return {
        comment: sqlcommenter ? commentOf(span) : null,
        ended: (end) => {
          for (const [key, value] of Object.entries(failed(end))) span.setAttribute(key, value);
          if (end.failure !== null) {
            span.setStatus({ code: ERROR, message: reasonOf(end.failure.error) });
          }
          span.end();
        },
      };
    },
  });
  const fail = (span: TelemetrySpan, error: unknown): void => {
    span.setAttribute("error.type", typeOf(error));
    span.setStatus({ code: ERROR, message: reasonOf(error) });
  };
  // The event comes while getconn is called, or a statement is executed: the tracer takes the caller's span as the parent.
  listen("wait", ({ detail }) => {
    const name = detail.shared ? "wait" : "getconn";
    const span = tracer.startSpan(name, { kind: INTERNAL, attributes });
    void detail.ended.then(({ served, error }: WaitEnd) => {
      if (!served) fail(span, error);
      span.end();
    });
  });
  const connected = (took: number, error?: { readonly error: unknown }): void => {
    const startTime = systemClock.wall() - took;
    const span = tracer.startSpan("connect", { kind: CLIENT, attributes, startTime });
    if (error !== undefined) fail(span, error.error);
    span.end();
  };
  listen("connect", ({ detail }) => connected(detail.took));
  listen("connectfailed", ({ detail }) => connected(detail.took, detail));
}

/** What the conventions want to know of a statement. */
function described(
  { summary, operation, collection, host, port }: StatementFacts,
): TelemetryAttributes {
  const attributes: TelemetryAttributes = { "db.system.name": SYSTEM, "server.address": host };
  if (port !== null) attributes["server.port"] = port;
  if (summary !== "") attributes["db.query.summary"] = summary;
  if (operation !== null) attributes["db.operation.name"] = operation;
  if (collection !== null) attributes["db.collection.name"] = collection;
  return attributes;
}

/** What they want to know of its failure; nothing when there was none. */
function failed({ failure }: StatementEnd): Record<string, string> {
  if (failure === null) return {};
  const type = typeOf(failure.error);
  const attributes: Record<string, string> = { "error.type": type };
  if (SQLSTATE.test(type)) attributes["db.response.status_code"] = type;
  return attributes;
}

/** The span's own comment, as sqlcommenter has it; null for one that is not sampled. */
function commentOf(span: TelemetrySpan): string | null {
  const context = span.spanContext?.();
  if (context === undefined || (context.traceFlags & 1) === 0) return null;
  const { traceId, spanId, traceFlags, traceState } = context;
  const flags = traceFlags.toString(16).padStart(2, "0");
  const pairs = [`traceparent='00-${traceId}-${spanId}-${flags}'`];
  const state = traceState?.serialize();
  if (state) pairs.push(`tracestate='${encodeURIComponent(state).replaceAll("'", "%27")}'`);
  return pairs.join();
}

/** Tells a tracing channel of statements. */
function publisher(
  channels: TracingChannels,
  { name: pool, connection: { database } }: PoolSettings,
): StatementObserver {
  return {
    sent: (facts) => {
      if (!channels.heard) return null;
      const message: Record<string, unknown> = { pool, database: database ?? null, ...facts };
      channels.start.publish(message);
      channels.end.publish(message);
      return {
        ended: ({ rows, duration, failure }) => {
          Object.assign(message, { rows, duration });
          if (failure !== null) {
            message["error"] = failure.error;
            channels.error.publish(message);
          } else message["result"] = rows;
          channels.asyncStart.publish(message);
          channels.asyncEnd.publish(message);
        },
      };
    },
  };
}

/** Where connections go, when it is one place. */
function target({ hosts, database }: PoolSettings["connection"]): TelemetryAttributes {
  if (!Array.isArray(hosts)) return {};
  const attributes: TelemetryAttributes = { "db.system.name": SYSTEM };
  if (typeof database === "string") attributes["db.namespace"] = database;
  if (hosts.length !== 1) return attributes;
  // `[::1]:5432`, `localhost:5432`, or the path of a Unix socket.
  const [host = ""] = hosts.map(String);
  const [, address, port] = /^\[?([^\]]*)\]?:(\d+)$/.exec(host) ?? [];
  attributes["server.address"] = address ?? host;
  if (port !== undefined) attributes["server.port"] = Number(port);
  return attributes;
}

/** A code or a class name: few different values. */
function typeOf(error: unknown): string {
  try {
    const { code, name } = (error ?? {}) as { code?: unknown; name?: unknown };
    if (typeof code === "string" && code !== "") return code;
    return typeof name === "string" && name !== "" ? name : "_OTHER";
  } catch {
    // Whatever was thrown is not ours.
    return "_OTHER";
  }
}
