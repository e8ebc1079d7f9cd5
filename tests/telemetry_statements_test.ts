/** What is told of statements: to OpenTelemetry's real SDK, to listeners, and on diagnostics channels. */

import { Buffer } from "node:buffer";
import { AsyncLocalStorage } from "node:async_hooks";
import { spawn } from "node:child_process";
import diagnostics from "node:diagnostics_channel";
import { once } from "node:events";
import fs from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { context, SpanKind, SpanStatusCode } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import {
  AggregationTemporality,
  type Histogram,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
} from "@opentelemetry/sdk-metrics";
import {
  AlwaysOffSampler,
  BasicTracerProvider,
  InMemorySpanExporter,
  type ReadableSpan,
  SimpleSpanProcessor,
} from "@opentelemetry/sdk-trace-base";
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import {
  instrument,
  limited,
  type PoolEventDetails,
  SimpleConnectionPool,
  type TelemetryOptions,
} from "../mod.ts";
import { rejection } from "./support/postgres.ts";
import { runner, test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";

/** What stands before a program's path; on Node the hooks that give it the package. */
const runArgs: string[] = { deno: ["run", "-A"], bun: ["run"], node: process.execArgv }[runner];

/** Pools, and what they told. */
async function traced(
  fn: (pool: SimpleConnectionPool, spans: () => ReadableSpan[]) => Promise<void>,
  options: TelemetryOptions = {},
  maxconn = 2,
): Promise<void> {
  const { url } = await testServer();
  const exporter = new InMemorySpanExporter();
  const tracerProvider = new BasicTracerProvider({
    spanProcessors: [new SimpleSpanProcessor(exporter)],
  });
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  try {
    await using pool = new SimpleConnectionPool(1, maxconn, url, { pool: { name: "orders" } });
    await pool.ready();
    await pool.sql`select 1`;
    using telemetry = instrument(pool, {
      tracerProvider,
      metrics: false,
      spans: true,
      ...options,
    });
    assertEquals(telemetry.spans, true);
    await fn(pool, () => exporter.getFinishedSpans());
  } finally {
    context.disable();
  }
}

function statements(spans: ReadableSpan[]): ReadableSpan[] {
  return spans.filter(({ kind, name }) => kind === SpanKind.CLIENT && name !== "connect");
}

/** What pools told at the event `statement`. */
type Told = PoolEventDetails["statement"];

async function listening(
  fn: (pool: SimpleConnectionPool, told: Told[]) => Promise<void>,
  maxconn = 2,
): Promise<void> {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(1, maxconn, url, { pool: { timeout: 60_000 } });
  await pool.ready();
  const told: Told[] = [];
  pool.on("statement", ({ detail }) => void told.push(detail));
  await fn(pool, told);
}

test("instrument(): a statement's span has what the conventions require", async () => {
  const { url } = await testServer();
  await traced(async (pool, spans) => {
    await pool.sql`create temp table if not exists nothing (n int)`.catch(() => {});
    await pool.sql`select ${1}::int as n from pg_class where relname = ${"secret"}`;
    const failed = await rejection(pool.sql`select ${1}::int from missing_table`);
    const [, good, bad] = statements(spans());
    const { hostname, port, pathname } = new URL(url);
    const common = {
      "db.system.name": "postgresql",
      "db.namespace": pathname.slice(1),
      "server.address": hostname,
      "server.port": Number(port),
      "db.client.connection.pool.name": "orders",
      "db.operation.name": "select",
    };
    assertEquals(good?.name, "select pg_class");
    assertEquals(good?.attributes, {
      ...common,
      "db.collection.name": "pg_class",
      "db.query.summary": "select pg_class",
      "db.query.text": "select $1::int as n from pg_class where relname = $2",
    });
    assertEquals(good?.status, { code: SpanStatusCode.UNSET });
    assertEquals(bad?.attributes, {
      ...common,
      "db.collection.name": "missing_table",
      "db.query.summary": "select missing_table",
      "db.query.text": "select $1::int from missing_table",
      "db.response.status_code": "42P01",
      "error.type": "42P01",
    });
    assertEquals(bad?.status, { code: SpanStatusCode.ERROR, message: failed.message });
  });
});

test("instrument(): leases, transactions, savepoints, cursors and COPY have spans, and values stand in none", async () => {
  await traced(async (pool, spans) => {
    await pool.use(async (conn) => {
      await conn`create temp table copied (a int)`;
      await conn.unsafe("insert into copied values (4711)");
      for await (const _ of conn`select n from generate_series(1, 5) n`.cursor(2)) { /* all */ }
      const into = await conn`copy copied from stdin`.writable();
      await new Promise<void>((done, fail) =>
        void into.on("error", fail).end(Buffer.from("1\n2\n"), () => done())
      );
      for await (const _ of await conn`copy copied to stdout`.readable()) { /* all */ }
      await conn.begin(async (tx) => {
        await tx.savepoint((point) => point`update copied set a = ${1} where a = ${2}`);
      });
    });
    await pool.transaction((conn) => conn`select 1`, { mode: "read only" });
    await rejection(pool.transaction(() => Promise.reject(new Error("no"))));
    await rejection(pool.sql.unsafe("select 'hunter2' from nobody"));
    assertEquals(statements(spans()).map(({ name }) => name), [
      "create table copied",
      "insert copied",
      "select",
      "copy copied",
      "copy copied",
      "begin",
      "savepoint",
      "update copied",
      "commit",
      "begin",
      "select",
      "commit",
      "begin",
      "rollback",
      "select nobody",
    ]);
    const all = JSON.stringify(spans().map(({ attributes }) => attributes));
    assert(!all.includes("4711") && !all.includes("hunter2"), all);
  });
});

test("instrument(): the parent of a statement's span is the span that was active at the call, also after a wait", async () => {
  await traced(
    async (pool, spans) => {
      const tracer = pool.options.name;
      assertEquals(tracer, "orders");
      const provider = new BasicTracerProvider();
      const callers = provider.getTracer("callers");
      const held = await pool.getconn();
      const ids: string[] = [];
      const calls = ["one", "two"].map((name) =>
        callers.startActiveSpan(name, async (span) => {
          ids.push(span.spanContext().spanId);
          await pool.sql`select 1 as a from pg_class limit 1`;
          span.end();
        })
      );
      await callers.startActiveSpan("other", async (span) => {
        await new Promise((resolve) => setTimeout(resolve, 5));
        await pool.putconn(held);
        span.end();
      });
      await Promise.all(calls);
      const of = (name: string) =>
        spans().filter((span) => span.name === name).map(({ parentSpanContext }) =>
          parentSpanContext?.spanId
        );
      assertEquals(of("select pg_class"), ids);
      assertEquals(of("wait"), ids);
    },
    {},
    1,
  );
});

test("instrument(): operation.duration of each statement, pool.sql in wait_time and use_time", async () => {
  const { url } = await testServer();
  const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE);
  const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 1e8 });
  const meterProvider = new MeterProvider({ readers: [reader] });
  await using pool = new SimpleConnectionPool(1, 1, url);
  await pool.ready();
  await pool.sql`select 1`;
  const telemetry = instrument(pool, { meterProvider, attributes: { "service.name": "shop" } });
  const held = await pool.getconn();
  const waits = pool.sql`select 1 from pg_class limit 1`.execute();
  // A statement begins some microtasks after it was called.
  await new Promise((resolve) => setTimeout(resolve, 0));
  const before = performance.now();
  await new Promise((resolve) => setTimeout(resolve, 20));
  const waited = (performance.now() - before) / 1_000;
  await pool.putconn(held);
  await waits;
  await rejection(pool.sql`select 1 from nobody`);
  await pool.use((conn) => conn`select 1 from pg_class limit 1`);
  await reader.forceFlush();
  const points = new Map(
    exporter.getMetrics().flatMap(({ scopeMetrics }) =>
      scopeMetrics.flatMap(({ metrics }) =>
        metrics.map(({ descriptor, dataPoints }) => [descriptor.name, dataPoints] as const)
      )
    ),
  );
  const durations = points.get("db.client.operation.duration") ?? [];
  const { hostname, port, pathname } = new URL(url);
  const attributes = {
    "service.name": "shop",
    "db.system.name": "postgresql",
    "db.namespace": pathname.slice(1),
    "server.address": hostname,
    "server.port": Number(port),
    "db.operation.name": "select",
  };
  assertEquals(
    durations.map(({ attributes, value }) => [attributes, (value as Histogram).count]),
    [
      [{
        ...attributes,
        "db.collection.name": "pg_class",
        "db.query.summary": "select pg_class",
      }, 2],
      [{
        ...attributes,
        "db.collection.name": "nobody",
        "db.query.summary": "select nobody",
        "error.type": "42P01",
        "db.response.status_code": "42P01",
      }, 1],
    ],
  );
  const histogram = (name: string) =>
    points.get(`db.client.connection.${name}`)?.[0]?.value as Histogram;
  // Two of pool.sql, of which one waited, and two leases.
  assertEquals(histogram("wait_time").count, 4);
  assert((histogram("wait_time").sum ?? 0) >= waited);
  assertEquals(histogram("use_time").count, 4);
  telemetry.dispose();
  await meterProvider.shutdown();
});

test("instrument({ sqlcommenter: true }): the server sees the statement's own span, where it is sampled", async () => {
  const [TEXT, COMMENT] = ["select query from pg_stat_activity where pid = pg_backend_pid()", "/*"];
  await traced(async (pool, spans) => {
    for (let i = 0; i < 2; i++) {
      const [row] = await pool.sql`select query, ${i}::int as i from pg_stat_activity
        where pid = pg_backend_pid()`;
      const { traceId, spanId } = statements(spans()).at(-1)!.spanContext();
      assertMatch(row?.["query"], / \/\*traceparent='00-[0-9a-f]{32}-[0-9a-f]{16}-01'\*\/$/);
      assert(row?.["query"].includes(`${traceId}-${spanId}`));
      assertEquals(row?.["i"], i);
    }
    const [simple] = await pool.sql.unsafe(TEXT);
    assertMatch(simple?.["query"], /traceparent/);
    // A text with a comment is left as it is.
    const [own] = await pool.sql.unsafe(`${TEXT} /* mine */`);
    assertEquals(own?.["query"], `${TEXT} /* mine */`);
    await pool.use(async (conn) => {
      const rows: unknown[] = [];
      for await (const [row] of conn.unsafe(TEXT).cursor(1)) rows.push(row?.["query"]);
      assertMatch(String(rows), /traceparent/);
    });
    const [prepared] = await pool.sql`select count(*)::int from pg_prepared_statements
      where statement like '%traceparent%'`;
    assertEquals(prepared?.["count"], 0);
  }, { sqlcommenter: true });
  const unsampled = new BasicTracerProvider({ sampler: new AlwaysOffSampler() });
  await traced(async (pool) => {
    const [row] = await pool.sql.unsafe(TEXT);
    assert(!row?.["query"].includes(COMMENT));
  }, { sqlcommenter: true, tracerProvider: unsampled });
});

test("instrument() refuses what is no option, and a comment without spans", () => {
  const pool = new SimpleConnectionPool(0, 1, "postgres://localhost/app");
  const wrong: [TelemetryOptions, RegExp][] = [
    [{ sqlcommenter: true }, /"sqlcommenter" needs \{ spans: true \}/],
    [{ spans: 1 as never }, /"spans" of instrument must be true or false/],
    [{ diagnosticsChannel: "yes" as never }, /"diagnosticsChannel" of instrument must be/],
    [{ statements: true } as never, /Unknown option "statements" of instrument/],
    [{ poolName: 5 as never }, /"poolName" of instrument must be a string/],
    [{ poolName: "" }, /"poolName" of instrument must be a string that is not empty/],
    [{ attributes: "x" as never }, /"attributes" of instrument must be an object of strings/],
    [{ attributes: { a: {} as never } }, /"attributes" of instrument must be an object of strings/],
    [{ api: {} as never }, /"api" of instrument must be the module @opentelemetry\/api/],
    [{ meterProvider: {} as never }, /"meterProvider" of instrument must be a MeterProvider/],
    [{ spans: true, tracerProvider: {} as never }, /must be a TracerProvider/],
    [{ tracerProvider: new BasicTracerProvider() }, /gets nothing without \{ spans: true \}/],
    [{ metrics: false, meterProvider: new MeterProvider() }, /nothing with \{ metrics: false \}/],
  ];
  for (const [options, message] of wrong) {
    assertMatch(assertThrows(() => instrument(pool, options), TypeError).message, message);
  }
});

test('the event "statement" tells text, summary, rows and times of every kind of statement, in its caller\'s context', async () => {
  const request = new AsyncLocalStorage<string>();
  await listening(async (pool, told) => {
    const contexts: unknown[] = [];
    pool.on("statement", () => void contexts.push(request.getStore()));
    await request.run(
      "one",
      async () => await pool.sql`select ${7}::int as n from generate_series(1, 3)`,
    );
    await request.run("two", () =>
      pool.use(async (conn) => {
        await conn`create temp table told (a int)`;
        await conn`insert into told select generate_series(1, ${4}::int)`;
        for await (const _ of conn`select a from told`.cursor(3)) { /* all */ }
        for await (const _ of await conn`copy told to stdout`.readable()) { /* all */ }
        await conn`select 1 from told; select 2 from told`.simple();
      }));
    assertEquals(contexts, ["one", "two", "two", "two", "two", "two"]);
    assertEquals(
      told.map(({ text, summary, rows, shared, error }) => [text, summary, rows, shared, error]),
      [
        ["select $1::int as n from generate_series(1, 3)", "select", 3, true, undefined],
        ["create temp table told (a int)", "create table told", null, false, undefined],
        [
          "insert into told select generate_series(1, $1::int)",
          "insert told select",
          4,
          false,
          undefined,
        ],
        ["select a from told", "select told", 4, false, undefined],
        ["copy told to stdout", "copy told", 4, false, undefined],
        ["select ? from told; select ? from told", "select told select told", 8, false, undefined],
      ],
    );
    for (const { duration, waited } of told) assert(duration > 0 && waited >= 0);
  });
});

test('the event "statement" comes before the caller goes on, and tells of failures and of waits in vain', async () => {
  await listening(async (pool, told) => {
    const failed = await rejection(pool.sql`select 1 / ${0}::int`);
    assertEquals(told.at(-1)?.error, failed);
    const held = await pool.getconn();
    const abort = new AbortController();
    const waits = pool.sql`select 1`;
    const left = rejection(
      limited(waits, { signal: abort.signal }),
    );
    await new Promise((resolve) => setTimeout(resolve, 5));
    abort.abort(new Error("enough"));
    assertEquals((await left).message, "enough");
    const { error, duration, waited } = told.at(-1)!;
    assertEquals([(error as Error).message, duration], ["enough", 0]);
    assert(waited > 0);
    // Beside it, one that runs alone waits for a lease.
    const alone = rejection(
      limited(pool.sql`show work_mem`, { signal: abort.signal }),
    );
    assertEquals((await alone).message, "enough");
    assertEquals(told.at(-1)?.summary, "show");
    await pool.putconn(held);
    assertEquals(told.length, 3);
  }, 1);
});

test('a listener to "statement" that throws, rejects, or asks the pool itself harms nobody', async () => {
  const { error: print } = console;
  const printed: unknown[] = [];
  console.error = (...args: unknown[]) => void printed.push(args[0]);
  try {
    await listening(async (pool, told) => {
      let inner = 0;
      pool.on("statement", () => {
        throw new Error("a bad listener");
      });
      pool.on("statement", () => Promise.reject(new Error("a worse listener")));
      pool.on("statement", async () => {
        await pool.sql`select 'from a listener'`;
        await pool.use((conn) => conn`select 'from a listener'`);
        inner++;
      });
      assertEquals((await pool.sql`select ${1}::int as n`)[0], { n: 1 });
      assertEquals((await pool.use((conn) => conn`select 2 as n`))[0], { n: 2 });
      while (inner < 2) await new Promise((resolve) => setTimeout(resolve, 1));
      assertEquals(told.map(({ text }) => text), ["select $1::int as n", "select ? as n"]);
      assertEquals(printed.length, 4);
    });
  } finally {
    console.error = print;
  }
});

test('without a listener to "statement" nothing is observed, and off() ends it', async () => {
  await listening(async (pool, told) => {
    const more: unknown[] = [];
    const listener = (): void => void more.push(1);
    pool.on("statement", listener);
    await pool.sql`select 1`;
    pool.off("statement", listener);
    await pool.sql`select 1`;
    assertEquals([told.length, more.length], [2, 1]);
    const once: unknown[] = [];
    pool.addEventListener("statement", () => once.push(1), { once: true });
    await pool.sql`select 1`;
    await pool.sql`select 1`;
    assertEquals([told.length, once.length], [4, 1]);
  });
});

test("instrument({ diagnosticsChannel: true }): a tracing channel of Node's kind, without OpenTelemetry", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 1, url, { pool: { name: "orders" } });
  using telemetry = instrument(pool, { diagnosticsChannel: true });
  assertEquals([telemetry.metrics, telemetry.spans, telemetry.diagnosticsChannel], [
    false,
    false,
    true,
  ]);
  await pool.sql`select 'nobody listens'`;
  const seen: [string, Record<string, unknown>][] = [];
  const channels = diagnostics.tracingChannel("getconn:statement");
  const listener = (name: string) => (message: unknown) => {
    seen.push([name, message as Record<string, unknown>]);
  };
  const subscribers = {
    start: listener("start"),
    end: listener("end"),
    asyncStart: listener("asyncStart"),
    asyncEnd: listener("asyncEnd"),
    error: listener("error"),
  };
  channels.subscribe(subscribers);
  try {
    await pool.sql`select ${1}::int from pg_class limit 2`;
    const failed = await rejection(pool.sql`select 1 from nobody`);
    assertEquals(seen.map(([name]) => name), [
      ...["start", "end", "asyncStart", "asyncEnd"],
      ...["start", "end", "error", "asyncStart", "asyncEnd"],
    ]);
    const { text, summary, rows, result, pool: name, error } = seen[0]![1];
    assertEquals([text, summary, rows, result, name, error], [
      "select $1::int from pg_class limit 2",
      "select pg_class",
      2,
      2,
      "orders",
      undefined,
    ]);
    assertEquals(seen[6]![1]["error"], failed);
    telemetry.dispose();
    await pool.sql`select 1`;
    assertEquals(seen.length, 9);
  } finally {
    channels.unsubscribe(subscribers);
  }
});

test("docs/observability.md prints the spans that its program has", async () => {
  const { url } = await testServer();
  const root = new URL("../", import.meta.url);
  const text = fs.readFileSync(new URL("docs/observability.md", root), "utf8");
  const program = new URL("tests/fixtures/spans_program.ts", root);
  const code = fs.readFileSync(program, "utf8");
  const blocks = [...text.matchAll(/^```(?:ts|text)\n([^]*?)^```$/gm)].map(([, block]) => block);
  const at = blocks.indexOf(code);
  assert(at >= 0, "the program stands in the document as it runs here");
  const child = spawn(process.execPath, [...runArgs, fileURLToPath(program)], {
    env: { ...process.env, DATABASE_URL: url },
    stdio: ["ignore", "pipe", "inherit"],
  });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => output += chunk);
  await once(child, "close");
  const { hostname, port, pathname } = new URL(url);
  assertEquals(
    output.replaceAll(`server.address: ${hostname}`, "server.address: localhost")
      .replaceAll(`server.port: ${port}`, "server.port: 5433")
      .replaceAll(`db.namespace: ${pathname.slice(1)}`, "db.namespace: app"),
    blocks[at + 1],
  );
  // Required by the conventions, with those required on their conditions; all that is shown is a statement's.
  const required = ["db.system.name", "db.namespace", "server.address", "server.port"];
  const recommended = ["db.query.summary", "db.query.text"];
  for (const span of output.split(/^(?=\S)/m)) {
    for (const key of [...required, ...recommended]) assert(span.includes(`  ${key}: `), span);
    assertEquals(span.includes("error.type"), span.includes("db.response.status_code"));
  }
});

test("a program that does not use it loads neither OpenTelemetry nor diagnostics channels", async () => {
  const { url } = await testServer();
  // Bun and Deno tell nobody what was loaded: whoever asks for such a module is seen here.
  const code = `
    const asked = [];
    const real = process.getBuiltinModule;
    process.getBuiltinModule = (name) => (asked.push(name), real(name));
    const { instrument, SimpleConnectionPool } = await import(${
    JSON.stringify(new URL("../mod.ts", import.meta.url).href)
  });
    const pool = new SimpleConnectionPool(0, 1, ${JSON.stringify(url)});
    await pool.sql\`select 1\`;
    await pool.use((conn) => conn\`select 1\`);
    instrument(pool).dispose();
    const before = asked.join();
    const { diagnosticsChannel } = instrument(pool, { diagnosticsChannel: true });
    console.log(JSON.stringify([before, asked.join(), diagnosticsChannel]));
    await pool.close();
  `;
  const args = runner === "deno" ? ["eval"] : runner === "bun" ? ["-e"] : [...runArgs, "-e"];
  const child = spawn(process.execPath, [...args, code], { stdio: ["ignore", "pipe", "inherit"] });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => output += chunk);
  await once(child, "close");
  assertEquals(JSON.parse(output), ["", "node:diagnostics_channel", true]);
});
