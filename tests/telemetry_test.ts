/** `instrument` with OpenTelemetry's real SDK from npm. */

import { context, metrics, SpanStatusCode, trace } from "@opentelemetry/api";
import * as api from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import {
  AggregationTemporality,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
} from "@opentelemetry/sdk-metrics";
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  type ReadableSpan,
  SimpleSpanProcessor,
} from "@opentelemetry/sdk-trace-base";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { instrument, SimpleConnectionPool, type TelemetryOptions } from "../mod.ts";
import { type Clock, outcome, withClock, wordOf } from "./support/checks.ts";
import { FakePool, settle } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";

type Attributes = Record<string, unknown>;
interface Point {
  readonly attributes: Attributes;
  readonly value: unknown;
}

/** A meter provider whose points a test can read; on a clock that stands still, by that. */
function meters(): {
  meterProvider: MeterProvider;
  points(clock?: Clock): Promise<Map<string, Point[]>>;
} {
  const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE);
  const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 1e8 });
  const meterProvider = new MeterProvider({ readers: [reader] });
  const points = async (clock?: Clock) => {
    exporter.reset();
    const flushed = outcome(reader.forceFlush());
    // The SDK waits for a timer of no length.
    while (!flushed.settled) {
      await (clock?.tickAsync(0) ?? new Promise<unknown>((r) => setTimeout(r)));
    }
    const found = new Map<string, Point[]>();
    for (const { scopeMetrics } of exporter.getMetrics()) {
      for (const { scope, metrics } of scopeMetrics) {
        assertEquals(scope.name, "@getconn/pool");
        for (const { descriptor, dataPoints } of metrics) {
          found.set(`${descriptor.name} ${descriptor.unit}`, dataPoints as Point[]);
        }
      }
    }
    return found;
  };
  return { meterProvider, points };
}

/** A tracer provider whose spans a test can read. */
function tracers(): { tracerProvider: BasicTracerProvider; spans(): ReadableSpan[] } {
  const exporter = new InMemorySpanExporter();
  const spanProcessors = [new SimpleSpanProcessor(exporter)];
  const tracerProvider = new BasicTracerProvider({ spanProcessors });
  return { tracerProvider, spans: () => exporter.getFinishedSpans() };
}

/** Runs `fn` where spans know their parents. */
async function inContexts(fn: () => Promise<void>): Promise<void> {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  try {
    await fn();
  } finally {
    context.disable();
  }
}

const NAME = "db.client.connection.pool.name";

test("instrument() makes the metrics of the semantic conventions", async () => {
  const { meterProvider, points } = meters();
  await withClock(async (clock) => {
    const pool = new FakePool(1, 3, { name: "orders", timeout: 20 });
    const telemetry = instrument(pool, { meterProvider, attributes: { "service.name": "shop" } });
    assertEquals([telemetry.metrics, telemetry.spans], [true, false]);
    const [a, b, c] = await Promise.all([pool.getconn(), pool.getconn(), pool.getconn()]);
    assertEquals(await wordOf(pool.getconn(null, { timeout: 0 })), "POOL_EXHAUSTED");
    const waiter = outcome(pool.getconn(null, { timeout: 1 }));
    const patient = pool.getconn(null, { timeout: 10_000 });
    const busy = await points(clock);
    const base = { "service.name": "shop", [NAME]: "orders" };
    const state = (name: string) => ({ ...base, "db.client.connection.state": name });
    const values = (at: typeof busy, name: string) =>
      (at.get(`db.client.connection.${name}`) ?? []).map(({ value, attributes }) => ({
        value,
        attributes,
      }));
    assertEquals(values(busy, "count {connection}"), [
      { value: 0, attributes: state("idle") },
      { value: 3, attributes: state("used") },
    ]);
    assertEquals(values(busy, "max {connection}"), [{ value: 3, attributes: base }]);
    assertEquals(values(busy, "idle.max {connection}"), [{ value: 3, attributes: base }]);
    assertEquals(values(busy, "idle.min {connection}"), [{ value: 1, attributes: base }]);
    assertEquals(values(busy, "pending_requests {request}"), [{ value: 2, attributes: base }]);

    await clock.tickAsync(100);
    assertEquals(waiter.word, "POOL_TIMEOUT");
    await pool.putconn(a);
    await pool.putconn(await patient);
    await pool.putconn(b);
    const calm = await points(clock);
    assertEquals(values(calm, "pending_requests {request}"), [{ value: 0, attributes: base }]);
    assertEquals(values(calm, "timeouts {timeout}"), [{ value: 1, attributes: base }]);
    const histogram = (name: string) => {
      const [point, ...others] = values(calm, `${name} s`);
      assertEquals(others, []);
      assertEquals(point?.attributes, base);
      return point?.value as { count: number; sum: number; buckets: { boundaries: number[] } };
    };
    const counts = ["create_time", "wait_time", "use_time"].map((name) => histogram(name).count);
    assertEquals(counts, [3, 4, 3]);
    // Seconds, not milliseconds: one waited for 100 ms, two were lent for as long.
    const sums = ["create_time", "wait_time", "use_time"].map((name) => histogram(name).sum);
    assertEquals(sums.map((sum) => Math.round(10 * sum) / 10), [0, 0.1, 0.2]);
    assertEquals(histogram("wait_time").buckets.boundaries[0], 0.001);
    await pool.putconn(c);
    telemetry.dispose();
    await pool.closeall();
  });
  await meterProvider.shutdown();
});

test("instrument() observes the callers that wait, and the timeouts", async () => {
  const { meterProvider, points } = meters();
  await withClock(async (clock) => {
    const pool = new FakePool(0, 1);
    const telemetry = instrument(pool, { meterProvider });
    const conn = await pool.getconn();
    const waits = [1, 1, 10_000].map((timeout) => outcome(pool.getconn(null, { timeout })));
    const pending = (await points(clock)).get("db.client.connection.pending_requests {request}");
    assertEquals(pending?.[0]?.value, 3);
    await clock.tickAsync(2);
    assertEquals(waits.map(({ word }) => word), ["POOL_TIMEOUT", "POOL_TIMEOUT", "pending"]);
    const timeouts = (await points(clock)).get("db.client.connection.timeouts {timeout}");
    assertEquals(timeouts?.[0]?.value, 2);
    await pool.putconn(conn);
    telemetry[Symbol.dispose]();
    await pool.closeall();
  });
  await meterProvider.shutdown();
});

test("instrument(): spans of waits have the caller's span as their parent", async () => {
  await inContexts(async () => {
    const { tracerProvider, spans } = tracers();
    const tracer = tracerProvider.getTracer("test");
    const pool = new FakePool(0, 1, { name: "orders" });
    const telemetry = instrument(pool, { tracerProvider, metrics: false, spans: true });
    assertEquals([telemetry.metrics, telemetry.spans], [false, true]);
    const held = await pool.getconn();
    const calls = ["one", "two"].map((name) =>
      tracer.startActiveSpan(name, async (span) => {
        const conn = await pool.getconn(null, { timeout: 10_000 });
        await pool.putconn(conn);
        span.end();
      })
    );
    // Whoever puts it back has a span of his own, which is nobody's parent here.
    await tracer.startActiveSpan("other", async (span) => {
      await settle();
      await pool.putconn(held);
      span.end();
    });
    await Promise.all(calls);
    // Without waiting there is no span.
    await pool.putconn(await pool.getconn());
    const parentOf = new Map(spans().map((span) => [span.spanContext().spanId, span.name]));
    const waits = spans().filter(({ name }) => name === "getconn");
    // The first getconn waited for its connect, without a span around it.
    assertEquals(
      waits.map(({ parentSpanContext }) => parentOf.get(parentSpanContext?.spanId ?? "")),
      [undefined, "one", "two"],
    );
    assertEquals(waits[1]?.attributes, { [NAME]: "orders" });
    assertEquals(spans().filter(({ name }) => name === "connect").length, 1);
    telemetry.dispose();
    await pool.closeall();
  });
});

test("instrument(): a statement of pool.sql that waits for a connection has a span, a child of its caller's", async () => {
  await inContexts(async () => {
    const { tracerProvider, spans } = tracers();
    const { url } = await testServer();
    await using pool = new SimpleConnectionPool(0, 1, url);
    const tracer = tracerProvider.getTracer("test");
    await pool.sql`select 1`;
    using _telemetry = instrument(pool, { tracerProvider, metrics: false, spans: true });
    const held = await pool.getconn();
    const calls = ["one", "two"].map((name) =>
      tracer.startActiveSpan(name, async (span) => {
        await pool.sql`select 1`;
        span.end();
      })
    );
    const transaction = tracer.startActiveSpan("three", async (span) => {
      await pool.sql.begin((tx) => tx`select 1`);
      span.end();
    });
    await new Promise((resolve) => setTimeout(resolve, 1));
    await pool.putconn(held);
    await Promise.all([...calls, transaction]);
    await pool.sql`select 1`;
    const parentOf = new Map(spans().map((span) => [span.spanContext().spanId, span.name]));
    const waits = spans().filter(({ name }) => name === "wait" || name === "getconn")
      .map(({ name, parentSpanContext }) => [
        name,
        parentOf.get(parentSpanContext?.spanId ?? ""),
      ]);
    assertEquals(waits.sort((a, b) => `${a[1]}` < `${b[1]}` ? -1 : 1), [
      ["wait", "one"],
      ["getconn", "three"],
      ["wait", "two"],
    ]);
  });
});

test("instrument(): a wait or a connect that fails is a span with status ERROR", async () => {
  await inContexts(async () => {
    const { tracerProvider, spans } = tracers();
    const pool = new FakePool(0, 1);
    pool.fake.failure = Object.assign(new Error("away"), { code: "ECONNREFUSED" });
    using _telemetry = instrument(pool, { tracerProvider, metrics: false, spans: true });
    const abort = new AbortController();
    const aborted = outcome(pool.getconn(null, { timeout: 10_000, signal: abort.signal }));
    await settle();
    abort.abort(new Error("enough"));
    await settle();
    assertEquals(aborted.word, "enough");
    assertEquals(
      spans().map(({ name, status, attributes }) => [name, status, attributes["error.type"]]),
      [
        ["connect", { code: SpanStatusCode.ERROR, message: "away" }, "ECONNREFUSED"],
        ["getconn", { code: SpanStatusCode.ERROR, message: "enough" }, "Error"],
      ],
    );
    await pool.closeall();
  });
});

test("instrument(): a connect is a child of the call for which it was begun, and tells where it went", async () => {
  await inContexts(async () => {
    const { tracerProvider, spans } = tracers();
    const { url } = await testServer();
    await using pool = new SimpleConnectionPool(0, 1, url);
    using _telemetry = instrument(pool, { tracerProvider, metrics: false, spans: true });
    const tracer = tracerProvider.getTracer("test");
    await tracer.startActiveSpan("request", async (span) => {
      await pool.use((conn) => conn`select 1`);
      span.end();
    });
    const byName = new Map(spans().map((span) => [span.name, span]));
    const parent = byName.get("request")?.spanContext().spanId;
    assertEquals(byName.get("connect")?.parentSpanContext?.spanId, parent);
    assertEquals(byName.get("getconn")?.parentSpanContext?.spanId, parent);
    const { hostname, port, pathname } = new URL(url);
    assertEquals(byName.get("connect")?.attributes, {
      "db.system.name": "postgresql",
      "server.address": hostname,
      "server.port": Number(port),
      "db.namespace": pathname.slice(1),
      [NAME]: `${hostname}:${port}${pathname}`,
    });
    const [seconds = 0, nanos = 0] = byName.get("connect")?.duration ?? [];
    assert(seconds > 0 || nanos > 100_000, "a connect takes time");
  });
});

test("instrument() finds what is registered globally, takes the api, and does nothing without", async () => {
  const pool = new FakePool(0, 1);
  const none = instrument(pool, { spans: true });
  assertEquals([none.metrics, none.spans], [false, false]);
  await pool.putconn(await pool.getconn());
  const one = meters();
  metrics.setGlobalMeterProvider(one.meterProvider);
  const two = tracers();
  trace.setGlobalTracerProvider(two.tracerProvider);
  try {
    for (const options of [{}, { api }] satisfies TelemetryOptions[]) {
      const before = two.spans().length;
      using found = instrument(pool, { ...options, spans: true });
      assertEquals([found.metrics, found.spans], [true, true]);
      await pool.renew();
      await pool.putconn(await pool.getconn());
      assertEquals(two.spans().length - before, 2);
      assert((await one.points()).has("db.client.connection.count {connection}"));
    }
  } finally {
    metrics.disable();
    trace.disable();
  }
  await pool.closeall();
  await one.meterProvider.shutdown();
});

test("instrument() that fails in the middle, by a provider that throws, leaves nothing behind", async () => {
  const { meterProvider, points } = meters();
  const pool = new FakePool(0, 1);
  const broken = {
    getTracer: () => {
      throw new Error("no tracer today");
    },
  };
  const error = assertThrows(() =>
    instrument(pool, { meterProvider, tracerProvider: broken, spans: true })
  );
  assertEquals((error as Error).message, "no tracer today");
  await pool.putconn(await pool.getconn());
  const found = await points();
  for (const name of ["create_time s", "wait_time s", "use_time s", "count {connection}"]) {
    assertEquals(found.get(`db.client.connection.${name}`) ?? [], [], name);
  }
  const notAPool = { on() {}, off() {}, options: pool.options };
  assertThrows(() => instrument(notAPool as never), TypeError, "instrument takes a pool");
  await pool.closeall();
  await meterProvider.shutdown();
});

test("Telemetry.dispose() leaves no listener and no callback behind", async () => {
  const { meterProvider, points } = meters();
  const { tracerProvider, spans } = tracers();
  const pool = new FakePool(0, 1);
  const telemetry = instrument(pool, { meterProvider, tracerProvider, spans: true });
  await pool.putconn(await pool.getconn());
  const before = (await points()).get("db.client.connection.use_time s");
  const seen = spans().length;
  telemetry.dispose();
  telemetry.dispose();
  await pool.resize(0, 5);
  await pool.renew();
  await pool.putconn(await pool.getconn());
  const after = await points();
  assertEquals(spans().length, seen);
  assertEquals(
    after.get("db.client.connection.use_time s")?.map(({ value }) => value),
    before?.map(({ value }) => value),
  );
  // The SDK repeats the last value of what nobody observes any more.
  assertEquals(after.get("db.client.connection.max {connection}")?.[0]?.value, 1);
  await pool.closeall();
  await meterProvider.shutdown();
});
