/** What all parts of one pool share: its options, its clocks' readings, its numbers, its news. */

import { type Clock, currentClock } from "../clock.ts";
import type { Permits } from "./permits.ts";
import { type PoolCounts, PoolError, type PoolErrorContext, reasonOf } from "./errors.ts";
import type { PoolEventDetails, PoolEventType } from "./events.ts";
import type { ResolvedOptions } from "./options.ts";
import { Backoff, Growth } from "./growth.ts";
import { Hooks } from "./hooks.ts";
import { snapshotContext } from "../runtime.ts";
import { Coming, noEntries, type PoolEntry, type StateCounts } from "./entry.ts";
import type { Connector, PoolGauges, PoolStats, PoolTotals } from "./types.ts";

/** The totals as the pool's parts keep them. */
export type Counters = { -readonly [Name in keyof PoolTotals]: PoolTotals[Name] };

/** Totals of a pool that has done nothing; what else needs their names takes them from here. */
export function noTotals(): Counters {
  return {
    requestsNum: 0,
    requestsQueued: 0,
    requestsWaitMs: 0,
    requestsErrors: 0,
    usageMs: 0,
    returnsBad: 0,
    connectionsNum: 0,
    connectionsMs: 0,
    connectionsErrors: 0,
    connectionsLost: 0,
  };
}

const NO_WORKERS: readonly [] = Object.freeze([]);

/**
 * - `open`: lends.
 * - `draining`: lends no more, takes back.
 * - `closed`: neither.
 */
export type PoolPhase = "open" | "draining" | "closed";

/** One pool's shared ground. */
export class PoolState<C extends object> {
  readonly options: ResolvedOptions<C>;
  /** Whether somebody may ask where a lease was borrowed. */
  readonly tellsWhere: boolean;
  readonly connector: Connector<C, object>;
  /** What goes to `connector.open`. */
  readonly args: readonly unknown[];
  readonly permits: Permits;
  readonly counts: StateCounts = noEntries();
  /** What will be ready without a further permit. */
  readonly coming: Coming = new Coming();
  /** Every entry that holds a permit; kept by {@linkcode Connections}. */
  readonly entries: Set<PoolEntry> = new Set();
  readonly counters: Counters;
  /** Whether the request at hand is the one whose part of the pool this is; null where requests own nothing. */
  readonly isHere: (() => boolean) | null;
  /** How fast to grow. */
  readonly growth: Growth = new Growth();
  /** When to try again after a failure to connect. */
  readonly backoff: Backoff = new Backoff(() => this.clock.random());
  /** Whether the pool lends; moved by the core alone. */
  phase: PoolPhase = "open";
  /** Who wants to know of every change of the connections. */
  readonly watchers: Watchers = new Watchers();
  /** Calls that were let in, and have not asked for a connection yet. */
  admitted = 0;
  /** The time for everything here. */
  readonly clock: Clock = currentClock();
  /**
   * By how much the wall clock was ahead of the one that nobody sets, when both were last read. It
   * grows by what the process was frozen for, where that clock stands still meanwhile.
   */
  wallAhead: number = NaN;
  /** Runs the pool's own work in the async context in which the pool was made. */
  readonly inContext: <T>(fn: () => T) => T = snapshotContext();
  /** The hooks that run now. */
  readonly hooks: Hooks = new Hooks(this.coming);
  minconn: number;
  /** Grows by each `renew()`: connections that were opened before have a smaller number. */
  generation = 0;
  /** How many callers wait now; kept by {@linkcode Requests}. */
  waiting = 0;
  /** The last failure to connect since the last success. */
  failure: { readonly error: unknown } | null = null;
  /** Whether anybody has ever listened to this type of event. */
  readonly heard: (type: PoolEventType) => boolean;
  /** Sends an event. */
  readonly tell: <T extends PoolEventType>(type: T, detail: PoolEventDetails[T]) => void;

  constructor(init: {
    options: ResolvedOptions<C>;
    connector: Connector<C, object>;
    args: readonly unknown[];
    permits: Permits;
    minconn: number;
    heard: (type: PoolEventType) => boolean;
    tell: <T extends PoolEventType>(type: T, detail: PoolEventDetails[T]) => void;
    /** The totals of the whole pool, where this is a part of it. */
    counters?: Counters;
    isHere?: () => boolean;
  }) {
    this.counters = init.counters ?? noTotals();
    this.isHere = init.isHere ?? null;
    this.options = init.options;
    this.tellsWhere = init.options.leakAfter > 0 || init.options.reclaimAfter > 0;
    this.connector = init.connector;
    this.args = init.args;
    this.permits = init.permits;
    this.minconn = init.minconn;
    this.heard = init.heard;
    this.tell = init.tell;
  }

  /** Connections that a borrower has, or whose way to or from one is not finished. */
  get leased(): number {
    return this.counts.leased + this.counts.checking + this.counts.returning;
  }

  /** True while something is lent, or somebody waits or will. */
  get busy(): boolean {
    return this.leased + this.counts.shared + this.waiting + this.admitted > 0;
  }

  /** All connections but those being closed. */
  get size(): number {
    return this.counts.connecting + this.counts.idle + this.leased + this.counts.shared;
  }

  /** Nothing is opened, checked or closed, nothing may be, and nobody else has to know who waits. */
  get still(): boolean {
    const { permits, failure, counts, size } = this;
    return failure === null && permits.others === null && permits.held >= permits.limit &&
      size >= this.minconn && counts.shared + counts.leased === size;
  }

  /** How many permits other isolates hold. */
  get elsewhere(): number {
    return this.permits.others?.elsewhere ?? 0;
  }

  /** How many permits other isolates can be expected to give up soon. */
  prospects(): number {
    return this.permits.others?.prospects() ?? 0;
  }

  /** How many more than minconn are idle in all isolates together: that many or more. */
  get idleSurplus(): number {
    const here = this.counts.idle - this.minconn;
    return here > 0 || this.minconn === 0 ? here : here + (this.permits.others?.idleElsewhere ?? 0);
  }

  /** What an error says of this pool. */
  errorContext(cause?: unknown): PoolErrorContext {
    const counts: PoolCounts = Object.freeze({
      connecting: this.counts.connecting,
      idle: this.counts.idle,
      leased: this.leased,
      shared: this.counts.shared,
      waiting: this.waiting,
      maxconn: this.permits.limit,
    });
    return { pool: this.options.name, counts, cause };
  }

  /** Why what waits must not be called here: in a hook that would wait for itself; null elsewhere. */
  vainInHook(what: string): Error | null {
    const hook = this.hooks.here;
    if (hook === null) return null;
    const why = what === "ready()"
      ? "the connections that it waits for may wait for this hook"
      : "every connection is in a hook that waits for another one";
    if (what !== "ready()" && !this.hooks.isVain(hook, this.permits.limit)) return null;
    return new PoolError(
      `${what} in ${hook.name} would wait in vain: ${why}`,
      "BAD_HOOK",
      this.errorContext(),
    );
  }

  /** The numbers of this moment. */
  gauges(): PoolGauges {
    const { connecting, idle, shared, closing } = this.counts;
    return {
      connecting,
      idle,
      leased: this.leased,
      shared,
      closing,
      requestsWaiting: this.waiting,
    };
  }

  /** The snapshot for `pool.stats()`. */
  stats(longestWaitMs: number): PoolStats {
    return Object.freeze({
      name: this.options.name,
      poolMin: this.minconn,
      poolMax: this.permits.limit,
      poolSize: this.size,
      poolAvailable: this.counts.idle,
      ...this.gauges(),
      longestWaitMs,
      lastFailure: this.failure === null ? null : reasonOf(this.failure.error),
      ...this.counters,
      workers: NO_WORKERS,
    });
  }
}

/** Why no connection came up; null when something else has changed. */
export type Failure = { readonly error: unknown } | null;

/** Told of every connection that stands, every failure, and every connection that is gone. */
export class Watchers {
  readonly #all = new Set<(failure: Failure) => void>();

  /** Calls `fn` at each change, until the returned function is called. */
  add(fn: (failure: Failure) => void): () => void {
    this.#all.add(fn);
    return () => this.#all.delete(fn);
  }

  /** Tells everybody. */
  notify(failure: Failure): void {
    for (const watcher of [...this.#all]) watcher(failure);
  }
}
