/**
 * Liveness, readiness and Prometheus metrics of a pool, for any server of the web's Request and
 * Response. Everything is read from memory: no answer waits for the pool or the server.
 *
 * @module
 */
import type { SimpleConnectionPool } from "@getconn/pool";

/** How a pool is, and why it is not better. */
export interface Health {
  readonly status: "open" | "degraded" | "down";
  readonly reason?: string;
}

/**
 * - `down`: the pool is closed, or it has no connection and cannot open one.
 * - `degraded`: it serves, but connecting fails, or callers queue for more than a full round of it.
 */
export function health(pool: SimpleConnectionPool): Health {
  const { poolMax, poolSize, connecting, requestsWaiting, lastFailure } = pool.stats();
  if (pool.closed) return { status: "down", reason: "the pool is closed" };
  if (lastFailure !== null) {
    const status = poolSize === connecting ? "down" : "degraded";
    return { status, reason: `no connection can be opened: ${lastFailure}` };
  }
  if (requestsWaiting > poolMax) {
    return { status: "degraded", reason: `${requestsWaiting} wait for ${poolMax} connections` };
  }
  return { status: "open" };
}

/** In the order of https://prometheus.io/docs/instrumenting/exposition_formats/. */
export function prometheus(pool: SimpleConnectionPool): string {
  const stats = pool.stats();
  const label = `{pool="${stats.name.replace(/[\\"\n]/g, "_")}"}`;
  const lines: string[] = [];
  const tell = (name: string, type: string, help: string, value: number): void => {
    lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, `${name}${label} ${value}`);
  };
  const up = health(pool).status === "down" ? 0 : 1;
  tell("pool_up", "gauge", "Whether it serves.", up);
  tell("pool_connections_max", "gauge", "The most there may be.", stats.poolMax);
  tell("pool_connections_idle", "gauge", "At hand.", stats.idle);
  tell("pool_connections_leased", "gauge", "Lent.", stats.leased);
  tell("pool_connections_shared", "gauge", "With statements of pool.sql.", stats.shared);
  tell("pool_connections_connecting", "gauge", "Being opened.", stats.connecting);
  tell("pool_requests_waiting", "gauge", "Who waits now.", stats.requestsWaiting);
  tell("pool_longest_wait_seconds", "gauge", "The longest of them.", stats.longestWaitMs / 1_000);
  tell("pool_requests_total", "counter", "Calls of getconn.", stats.requestsNum);
  tell("pool_requests_failed_total", "counter", "Those that failed.", stats.requestsErrors);
  tell("pool_wait_seconds_total", "counter", "Time in the queue.", stats.requestsWaitMs / 1_000);
  tell("pool_use_seconds_total", "counter", "Time lent.", stats.usageMs / 1_000);
  tell("pool_connects_total", "counter", "Attempts to connect.", stats.connectionsNum);
  tell("pool_connects_failed_total", "counter", "Those that failed.", stats.connectionsErrors);
  tell("pool_connections_lost_total", "counter", "Lost connections.", stats.connectionsLost);
  return lines.join("\n") + "\n";
}

/** Answers the three paths; null for any other. */
export function probe(pool: SimpleConnectionPool, request: Request): Response | null {
  switch (new URL(request.url).pathname) {
    // The process lives. A database that is away is no reason to kill it: the pool reconnects.
    case "/livez":
      return new Response("ok\n");
    case "/readyz": {
      const found = health(pool);
      // Nobody sends requests to what is down, and a pool that nobody asks gives up after its reconnectTimeout: so one
      // connect is begun, and the next probe sees what came of it.
      if (found.status === "down") pool.use(() => {}, { timeout: 0 }).catch(() => {});
      return Response.json(found, { status: found.status === "down" ? 503 : 200 });
    }
    case "/metrics":
      return new Response(prometheus(pool), {
        headers: { "content-type": "text/plain; version=0.0.4" },
      });
    default:
      return null;
  }
}
