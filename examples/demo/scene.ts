/** Puts together what there is to see, from wherever it is known. */

import type { PoolStats } from "@getconn/pool";
import { mergeMetrics, type Metrics } from "./metrics.ts";
import type { DemoOptions } from "./options.ts";

/** A pool, or one worker's part of it. */
export interface PoolView {
  readonly name: string;
  readonly leased: number;
  readonly idle: number;
  readonly connecting: number;
  readonly closing: number;
  readonly waiting: number;
}

/** All that there is to see at one moment. */
export interface Scene {
  readonly options: DemoOptions;
  /** Runtime and server, with their versions. */
  readonly platform: string;
  /** Seconds since the load began. */
  readonly elapsed: number;
  readonly sessions: { readonly now: number; readonly most: number; readonly looks: number };
  readonly pools: readonly PoolView[];
  readonly metrics: Metrics;
  /** Commits in each interval of {@linkcode INTERVAL} seconds, oldest first; the last has not ended. */
  readonly commits: readonly number[];
  /** How often chaos struck, by kind. */
  readonly strikes: Readonly<Record<string, number>>;
}

/** One load on one pool; there can be several, each in its own worker. */
export interface Source {
  readonly name: string;
  stats(): PoolStats;
  readonly metrics: Metrics;
}

/** What does not change from scene to scene, and what is looked at each time. */
export interface Subjects extends Pick<Scene, "options" | "platform" | "sessions" | "strikes"> {
  readonly sources: readonly Source[];
}

/** Seconds. */
export const INTERVAL = 0.5;

/** Takes scenes; its clock starts when it is made. It is to be used more often than once in an interval. */
export class Camera {
  readonly #subjects: Subjects;
  readonly #began = performance.now();
  readonly #commits: number[] = [];
  #counted = 0;

  constructor(subjects: Subjects) {
    this.#subjects = subjects;
  }

  /** Seconds since the beginning. */
  get elapsed(): number {
    return (performance.now() - this.#began) / 1_000;
  }

  /** What there is to see now. */
  take(): Scene {
    const { sources, ...rest } = this.#subjects;
    const metrics = mergeMetrics(sources.map((source) => source.metrics));
    const interval = Math.floor(this.elapsed / INTERVAL);
    while (this.#commits.length <= interval) this.#commits.push(0);
    this.#commits[interval]! += metrics.committed - this.#counted;
    this.#counted = metrics.committed;
    return {
      ...rest,
      elapsed: this.elapsed,
      pools: sources.map(({ name, stats }) => viewOf(name, stats())),
      metrics,
      commits: this.#commits,
    };
  }
}

function viewOf(name: string, stats: PoolStats): PoolView {
  const { leased, idle, connecting, closing, requestsWaiting: waiting } = stats;
  return { name, leased, idle, connecting, closing, waiting };
}
