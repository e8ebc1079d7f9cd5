/**
 * The load: many tasks that each want a connection, run a transfer, and give it back. It knows its
 * pool and nothing else of the demo, so that it runs in a worker as well as here.
 */

import { type AbstractConnectionPool, type Connection, PoolError } from "@getconn/pool";
import { Ledger, type Outcome } from "./ledger.ts";
import { type Metrics, newMetrics, record } from "./metrics.ts";
import { randomTransfer, runTransfer } from "./tpcb.ts";

/** What a load needs of its pool. */
export type LoadPool = Pick<AbstractConnectionPool<Connection>, "getconn">;

/** What a load shall do. Plain data. */
export interface LoadPlan {
  /** Which load this is: the ids of different loads never meet. */
  readonly source: number;
  /** How many tasks run at the same time. */
  readonly tasks: number;
  /** The scale of the data. */
  readonly scale: number;
  /**
   * How many transfers were begun. In shared memory, because it has to outlive the worker: so it is
   * known of each transfer in the books whether it can come from there.
   */
  readonly begun: Int32Array<SharedArrayBuffer>;
}

/** How far a transaction had come when it failed; what the failure means depends on it. */
type Stage = "waiting" | "working" | "committing" | "committed";

/** How an attempt ends. */
type Verdict = Exclude<Outcome, "sent">;

/** Room for the transfers of one load, below 2^53 with thousands of loads. */
const IDS_PER_SOURCE = 2 ** 40;
/** The longest pause before a failed transaction is tried again, in milliseconds. */
const LONGEST_PAUSE = 250;

/** The counter for a plan. */
export function newCounter(): LoadPlan["begun"] {
  return new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));
}

/** The ids of all transfers that were begun by this plan. */
export function* idsOf({ source, begun }: LoadPlan): Generator<number> {
  const count = Atomics.load(begun, 0);
  for (let n = 0; n < count; n++) yield source * IDS_PER_SOURCE + n;
}

/** Tasks at work. */
export class Load {
  /** What they measured so far. */
  readonly metrics: Metrics = newMetrics();
  /** Every transfer that they sent. */
  readonly ledger: Ledger = new Ledger();
  /** How many of them have not ended. */
  running = 0;
  readonly #pool: LoadPool;
  readonly #plan: LoadPlan;
  #stopping = false;
  #done: Promise<unknown> = Promise.resolve();

  constructor(pool: LoadPool, plan: LoadPlan) {
    this.#pool = pool;
    this.#plan = plan;
  }

  /** Starts all tasks. */
  start(): void {
    this.running = this.#plan.tasks;
    this.#done = Promise.all(Array.from({ length: this.#plan.tasks }, () => this.#task()));
  }

  /** Lets each task end what it has begun; resolves when all have ended. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#done;
  }

  async #task(): Promise<void> {
    let failures = 0;
    while (!this.#stopping) {
      if (failures > 0) {
        this.metrics.retries++;
        await pause(Math.random() * Math.min(LONGEST_PAUSE, 2 ** failures));
      }
      const outcome = await this.#attempt();
      // An unknown one is not tried again: it may have happened, and money would move twice.
      failures = outcome === "failed" ? failures + 1 : 0;
    }
    this.running--;
  }

  /** One transfer with an id of its own. Never rejects. */
  async #attempt(): Promise<Verdict> {
    const { source, begun, scale } = this.#plan;
    const id = source * IDS_PER_SOURCE + Atomics.add(begun, 0, 1);
    this.ledger.set(id, "sent");
    let stage = "waiting" as Stage;
    try {
      const asked = performance.now();
      await using conn = await this.#pool.getconn();
      const began = performance.now();
      record(this.metrics.wait, began - asked);
      stage = "working";
      await conn.begin(async (sql) => {
        await runTransfer(sql, randomTransfer(id, scale));
        stage = "committing";
      });
      stage = "committed";
      record(this.metrics.transaction, performance.now() - began);
    } catch (error) {
      const kind = kindOf(error);
      this.metrics.errors[kind] = (this.metrics.errors[kind] ?? 0) + 1;
      if (stage === "committing" && !isRefusal(error)) return this.#settle(id, "unknown");
      // What goes wrong after the COMMIT cannot take it back.
      if (stage !== "committed") return this.#settle(id, "failed");
    }
    return this.#settle(id, "acknowledged");
  }

  #settle(id: number, outcome: Verdict): Verdict {
    this.ledger.set(id, outcome);
    this.metrics[outcome === "acknowledged" ? "committed" : outcome]++;
    return outcome;
  }
}

/** True when the server itself said that the transaction is rolled back, and lived on. */
function isRefusal(error: unknown): boolean {
  if (error instanceof PoolError) return error.code === "TRANSACTION_FAILED";
  return (error as { severity_local?: string } | null)?.severity_local === "ERROR";
}

/** The literal code of an error: SQLSTATE, or the pool's, the driver's or the system's word. */
function kindOf(error: unknown): string {
  const { code, name } = (error ?? {}) as { code?: unknown; name?: unknown };
  return String(code ?? name ?? error);
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
