/** Where the load runs: in this isolate, or in workers (`crew.ts`). Either way it is looked after like this. */

import {
  type AbstractConnectionPool,
  type Connection,
  type PoolStats,
  SimpleConnectionPool,
} from "@getconn/pool";
import type { Mischief } from "./chaos.ts";
import type { Database } from "./database.ts";
import type { Ledger } from "./ledger.ts";
import type { DemoOptions } from "./options.ts";
import type { Source } from "./scene.ts";
import { Load, newCounter } from "./tasks.ts";

/** How long a task may wait for a connection, in milliseconds. */
export const PATIENCE = 10_000;

/** What has become of the tasks. */
export interface TaskCount {
  /** Those that should have ended by themselves. */
  readonly all: number;
  /** Those of them that have not. */
  readonly running: number;
  /** Those that ended with their workers, because chaos wanted it. */
  readonly terminated: number;
  /** Why some can never end. */
  readonly failures: readonly string[];
}

/** The load and its pool. Leaving it to `await using` ends both. */
export interface Site extends AsyncDisposable {
  /** The pool as the main isolate sees it. */
  readonly pool: Pick<AbstractConnectionPool<Connection>, "getconn" | "close"> & {
    stats(): PoolStats;
  };
  /** Those who do the work. */
  readonly sources: readonly Source[];
  /** All transfers, as far as the main isolate has heard of them. */
  readonly ledger: Ledger;
  /** What only this site can break. */
  readonly mischiefs: readonly Mischief[];
  /** Makes everything ready; the load has not begun. */
  prepare(): Promise<void>;
  /** Starts all tasks. */
  start(): void;
  /** Lets each task end what it has begun; resolves when all have ended, and all is told. */
  stop(): Promise<void>;
  /** What has become of the tasks. */
  tasks(): TaskCount;
}

/** All tasks in this isolate. */
export class LocalSite implements Site {
  readonly pool: SimpleConnectionPool;
  readonly sources: readonly Source[];
  readonly ledger: Ledger;
  readonly mischiefs: readonly Mischief[] = [];
  readonly #load: Load;
  readonly #tasks: number;

  constructor(db: Database, { tasks, scale, maxconn }: DemoOptions) {
    this.pool = new SimpleConnectionPool(1, maxconn, db.url, {
      connection: db.connection,
      pool: { name: "demo", timeout: PATIENCE },
    });
    this.#load = new Load(this.pool, { source: 0, tasks, scale, begun: newCounter() });
    this.#tasks = tasks;
    this.ledger = this.#load.ledger;
    this.sources = [{
      name: "in the pool",
      note: "",
      seats: new Set(),
      metrics: this.#load.metrics,
    }];
  }

  prepare(): Promise<void> {
    return this.pool.ready();
  }

  start(): void {
    this.#load.start();
  }

  stop(): Promise<void> {
    return this.#load.stop();
  }

  tasks(): TaskCount {
    return { all: this.#tasks, running: this.#load.running, terminated: 0, failures: [] };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.pool.close({ timeout: 0 });
  }
}
