/** One worker of the demo: joins the pool, runs its part of the load, and tells how it goes. */

import { type PoolHandle, ThreadedConnectionPool } from "@getconn/pool";
import type { Outcome } from "./ledger.ts";
import type { Metrics } from "./metrics.ts";
import { Load, type LoadPlan } from "./tasks.ts";

/** What the main isolate tells a worker, in this order. */
export type Order =
  | { readonly type: "join"; readonly handle: PoolHandle; readonly plan: LoadPlan }
  | { readonly type: "start" }
  | { readonly type: "stop" };

/** How a worker is getting on. */
export interface Report {
  /** What its tasks measured since its beginning. */
  readonly metrics: Metrics;
  /** What has become of transfers since the last report. */
  readonly news: readonly (readonly [id: number, outcome: Outcome])[];
  /** How many of its tasks have not ended. */
  readonly running: number;
}

/** What a worker tells. */
export type Answer =
  /** It has joined the pool and is this one in the pool's statistics. */
  | { readonly type: "joined"; readonly seat: number }
  | { readonly type: "report"; readonly report: Report }
  /** It stopped in good order; the last report came before. */
  | { readonly type: "stopped" }
  | { readonly type: "failed"; readonly message: string };

/**
 * Milliseconds between two reports. What a worker has not reported when it is terminated is unknown for
 * ever, so they are frequent.
 */
const REPORT_EVERY = 50;

interface Scope {
  onmessage: (event: MessageEvent<Order>) => void;
  postMessage(answer: Answer): void;
}
const scope = globalThis as unknown as Scope;

let load: Load | undefined;
let timer: ReturnType<typeof setInterval> | undefined;

function report(): void {
  const { metrics, ledger, running } = load!;
  scope.postMessage({ type: "report", report: { metrics, news: ledger.take(), running } });
}

async function follow(order: Order): Promise<void> {
  if (order.type === "join") {
    const pool = await ThreadedConnectionPool.join(order.handle);
    load = new Load(pool, order.plan);
    const self = pool.stats().workers.find((worker) => worker.self);
    scope.postMessage({ type: "joined", seat: self!.worker });
  } else if (order.type === "start") {
    load!.start();
    timer = setInterval(report, REPORT_EVERY);
  } else {
    await load!.stop();
    clearInterval(timer);
    report();
    scope.postMessage({ type: "stopped" });
  }
}

let last: Promise<void> = Promise.resolve();
// One order after the other: "stop" can come while it still joins.
scope.onmessage = ({ data }) => {
  last = last.then(() => follow(data)).catch((error) => {
    scope.postMessage({ type: "failed", message: String(error) });
  });
};
