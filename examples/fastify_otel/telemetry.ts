/**
 * OpenTelemetry's SDK, with exporters to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names
 * (http://localhost:4318 without it), and a span for each request to Fastify.
 *
 * @module
 */
import {
  context,
  propagation,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
} from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import { OTLPMetricExporter } from "@opentelemetry/exporter-metrics-otlp-http";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { MeterProvider, PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics";
import { BasicTracerProvider, BatchSpanProcessor } from "@opentelemetry/sdk-trace-base";
import type { FastifyInstance, FastifyRequest } from "fastify";
import process from "node:process";

const resource = resourceFromAttributes({
  "service.name": process.env["OTEL_SERVICE_NAME"] ?? "shop",
});

/** Where the spans go. */
export const tracerProvider: BasicTracerProvider = new BasicTracerProvider({
  resource,
  spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
});

/** Where the numbers go, once a minute. */
export const meterProvider: MeterProvider = new MeterProvider({
  resource,
  readers: [new PeriodicExportingMetricReader({ exporter: new OTLPMetricExporter() })],
});

// By this a statement finds the request that it belongs to.
context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
propagation.setGlobalPropagator(new W3CTraceContextPropagator());

/** A span for each request, under the one that its header `traceparent` names. */
export function traceRequests(app: FastifyInstance): void {
  const tracer = tracerProvider.getTracer("shop");
  const spans = new WeakMap<FastifyRequest, Span>();

  app.addHook("onRequest", (request, _reply, done) => {
    const route = request.routeOptions.url;
    const attributes = {
      "http.request.method": request.method,
      "url.path": request.url.split("?", 1)[0]!,
      "url.scheme": request.protocol,
      ...(route === undefined ? {} : { "http.route": route }),
    };
    const parent = propagation.extract(context.active(), request.headers);
    const name = route === undefined ? request.method : `${request.method} ${route}`;
    spans.set(request, tracer.startSpan(name, { kind: SpanKind.SERVER, attributes }, parent));
    done();
  });
  // Right before the handler: nothing on the way there, such as reading the body, can lose it.
  app.addHook("preHandler", (request, _reply, done) => {
    context.with(trace.setSpan(context.active(), spans.get(request)!), done);
  });
  app.addHook("onResponse", (request, reply, done) => {
    const span = spans.get(request)!;
    span.setAttribute("http.response.status_code", reply.statusCode);
    if (reply.statusCode >= 500) {
      span.setAttribute("error.type", String(reply.statusCode));
      span.setStatus({ code: SpanStatusCode.ERROR });
    }
    span.end();
    done();
  });
  app.addHook("onRequestAbort", (request, done) => {
    spans.get(request)?.setAttribute("error.type", "aborted").end();
    done();
  });
}

/** Sends what is not sent yet. */
export async function flush(): Promise<void> {
  await Promise.allSettled([tracerProvider.shutdown(), meterProvider.shutdown()]);
}
