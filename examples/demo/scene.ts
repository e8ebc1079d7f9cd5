/** Puts together what there is to see, from wherever it is known. */

import type { PoolStats, WorkerStats } from "@getconn/pool";
import { mergeMetrics, type Metrics } from "./metrics.ts";
import type { DemoOptions } from "./options.ts";

/** A pool, or one worker's part of it. */
export interface PoolView {
  readonly leased: number;
  readonly idle: number;
  readonly connecting: number;
  readonly closing: number;
  readonly waiting: number;
}

/** One who does the work, as it is to be seen. */
export interface SourceView {
  readonly name: string;
  /** A word on it, if there is any to say. */
  readonly note: string;
  /** Its part of the pool. */
  readonly pool: PoolView;
  /** Its commits, as those of the scene. */
  readonly commits: readonly number[];
}

/** All that there is to see at one moment. */
export interface Scene {
  readonly options: DemoOptions;
  /** Runtime and server, with their versions. */
  readonly platform: string;
  /** Seconds since the load began. */
  readonly elapsed: number;
  readonly sessions: { readonly now: number; readonly most: number; readonly looks: number };
  /** The whole pool. */
  readonly pool: PoolView;
  /** The workers; none when there is only this isolate. */
  readonly workers: readonly SourceView[];
  readonly metrics: Metrics;
  /** Commits in each interval of {@linkcode INTERVAL} seconds, oldest first; the last has not ended. */
  readonly commits: readonly number[];
  /** How often chaos struck, by kind. */
  readonly strikes: Readonly<Record<string, number>>;
}

/** Where one load runs; there can be several, each in its own worker. */
export interface Source extends Pick<SourceView, "name" | "note"> {
  /** Its rows in the pool's statistics: its own, and those of predecessors whose sessions are not gone yet. */
  readonly seats: ReadonlySet<number>;
  readonly metrics: Metrics;
}

/** What does not change from scene to scene, and what is looked at each time. */
export interface Subjects extends Pick<Scene, "options" | "platform" | "sessions" | "strikes"> {
  readonly sources: readonly Source[];
  stats(): PoolStats;
}

/** Seconds. */
export const INTERVAL = 0.5;

/** Takes scenes; its clock starts when it is made. It is to be used more often than once in an interval. */
export class Camera {
  readonly #subjects: Subjects;
  readonly #began = performance.now();
  readonly #all = new Commits();
  readonly #each: readonly Commits[];

  constructor(subjects: Subjects) {
    this.#subjects = subjects;
    this.#each = subjects.sources.map(() => new Commits());
  }

  /** Seconds since the beginning. */
  get elapsed(): number {
    return (performance.now() - this.#began) / 1_000;
  }

  /** What there is to see now. */
  take(): Scene {
    const { sources, options, platform, sessions, strikes } = this.#subjects;
    const stats = this.#subjects.stats();
    const interval = Math.floor(this.elapsed / INTERVAL);
    const every = sources.map((source) => source.metrics);
    const metrics = mergeMetrics(every);
    const workers = sources.map(({ name, note, seats }, at): SourceView => ({
      name,
      note,
      pool: viewOf(stats.workers.filter(({ worker }) => seats.has(worker))),
      commits: this.#each[at]!.upTo(interval, every[at]!.committed),
    }));
    return {
      options,
      platform,
      sessions,
      strikes,
      elapsed: this.elapsed,
      pool: viewOf([stats]),
      workers: options.workers > 0 ? workers : [],
      metrics,
      commits: this.#all.upTo(interval, metrics.committed),
    };
  }
}

/** How many commits came in each interval. */
class Commits {
  readonly #intervals: number[] = [];
  #counted = 0;

  /** After `total` commits in all, in this interval. */
  upTo(interval: number, total: number): readonly number[] {
    while (this.#intervals.length <= interval) this.#intervals.push(0);
    this.#intervals[interval]! += total - this.#counted;
    this.#counted = total;
    return this.#intervals;
  }
}

function viewOf(parts: readonly (PoolStats | WorkerStats)[]): PoolView {
  const view = { leased: 0, idle: 0, connecting: 0, closing: 0, waiting: 0 };
  for (const { leased, idle, connecting, closing, requestsWaiting } of parts) {
    view.leased += leased;
    view.idle += idle;
    view.connecting += connecting;
    view.closing += closing;
    view.waiting += requestsWaiting;
  }
  return view;
}
