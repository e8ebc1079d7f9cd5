/** `instrument` with Deno's built-in OpenTelemetry, which sends to a collector on loopback. */

import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { assert, assertEquals } from "@std/assert";
import { runner, test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";

const PROGRAM = fileURLToPath(new URL("./fixtures/otel_program.ts", import.meta.url));

interface Attribute {
  key: string;
  value: { stringValue?: string };
}
interface Span {
  name: string;
  attributes: Attribute[];
}
interface Metric {
  name: string;
  unit: string;
  sum?: { dataPoints: { attributes: Attribute[] }[] };
  histogram?: { dataPoints: { attributes: Attribute[]; count: string | number }[] };
}
interface Scoped {
  scope: { name: string };
}

/** What came in, by path. */
class Collector {
  readonly spans: Span[] = [];
  readonly metrics: Metric[] = [];
  readonly #server: Server = createServer((request, response) => this.#take(request, response));

  async listen(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }

  async #take(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let text = "";
    for await (const chunk of request.setEncoding("utf8")) text += chunk;
    const ours = (scope: Scoped): boolean => scope.scope.name === "@getconn/pool";
    const body = JSON.parse(text);
    for (const { scopeSpans } of body.resourceSpans ?? []) {
      for (const scope of scopeSpans.filter(ours)) this.spans.push(...scope.spans);
    }
    for (const { scopeMetrics } of body.resourceMetrics ?? []) {
      for (const scope of scopeMetrics.filter(ours)) this.metrics.push(...scope.metrics);
    }
    response.setHeader("content-type", "application/json").end("{}");
  }
}

// Bun and Node have nothing of the kind.
if (runner === "deno") {
  test("instrument() needs nothing but OTEL_DENO=true on Deno", async () => {
    const { url } = await testServer();
    const collector = new Collector();
    const endpoint = await collector.listen();
    try {
      const child = spawn(process.execPath, ["run", "-A", PROGRAM], {
        stdio: ["ignore", "pipe", "inherit"],
        env: {
          ...process.env,
          DATABASE_URL: url,
          OTEL_DENO: "true",
          OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
          OTEL_EXPORTER_OTLP_ENDPOINT: endpoint,
          OTEL_METRIC_EXPORT_INTERVAL: "100",
        },
      });
      let output = "";
      child.stdout.setEncoding("utf8").on("data", (text: string) => output += text);
      const [code] = await once(child, "close");
      assertEquals([code, output.trim()], [0, "[true,true]"]);
    } finally {
      await collector.close();
    }

    const names = new Set(collector.metrics.map(({ name, unit }) => `${name} ${unit}`));
    const wanted = [
      "count {connection}",
      "idle.max {connection}",
      "idle.min {connection}",
      "max {connection}",
      "pending_requests {request}",
      "create_time s",
      "wait_time s",
      "use_time s",
    ];
    for (const name of wanted) assert(names.has(`db.client.connection.${name}`), name);
    assert(names.has("db.client.operation.duration s"));
    const waits = collector.metrics.findLast(({ name }) =>
      name === "db.client.connection.wait_time"
    );
    const [point] = waits?.histogram?.dataPoints ?? [];
    assertEquals(Number(point?.count), 3);
    assertEquals(point?.attributes, [
      { key: "db.client.connection.pool.name", value: { stringValue: "built in" } },
    ]);
    assertEquals(
      collector.spans.map(({ name }) => name).sort(),
      ["connect", "getconn", "getconn", "getconn", "select", "select", "select"],
    );
    const connect = collector.spans.find(({ name }) => name === "connect");
    assert(connect?.attributes.some(({ key }) => key === "server.address"));
  });
}
