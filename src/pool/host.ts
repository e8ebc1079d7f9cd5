/** What a pool does at its host's wish: keeps an instance alive for a while, ends with the process. */

import { reasonOf, report } from "./errors.ts";
import { checkTime } from "./options.ts";
import {
  endBySignal,
  holdTimer,
  onShutdown,
  type ShutdownEvent,
  shutdownListeners,
  type Timer,
} from "../runtime.ts";
import type { CloseOnOptions, HostContext, PoolStats } from "./types.ts";

/** A pool as it is seen from here. */
export interface HostedPool {
  readonly closed: boolean;
  stats(): PoolStats;
  close(options?: { timeout?: number }): Promise<void>;
  on(type: "acquire" | "release" | "remove", fn: () => void): unknown;
}

/** How often to look whether the pool has come to rest, where no event tells it. */
const LOOK = 1_000;

/** Keeps the instance alive, by the host's waitUntil, until the pool's idle connections are closed. */
class KeepAlive {
  readonly #pool: HostedPool;
  #host: HostContext | null = null;
  /** Whether this host waits already. */
  #told = false;
  /** What hosts wait for, while they do. */
  #rest: PromiseWithResolvers<void> | null = null;
  #timer: Timer | undefined;

  constructor(pool: HostedPool) {
    this.#pool = pool;
  }

  /** The latest host counts: where each request has a context, it is the one that is sure to live. */
  attach(host: HostContext): void {
    if (typeof host?.waitUntil !== "function") {
      throw new TypeError("attach() needs an object with waitUntil()");
    }
    if (this.#host === null) {
      this.#pool.on("acquire", () => this.#hold());
      for (const type of ["release", "remove"] as const) {
        // The event comes before the pool has finished with the connection.
        this.#pool.on(type, () => queueMicrotask(() => this.#look()));
      }
    }
    if (host === this.#host) return;
    this.#host = host;
    this.#told = false;
    if (!this.#resting) this.#hold();
  }

  get #resting(): boolean {
    const { leased, idle, closing, poolMin } = this.#pool.stats();
    return leased === 0 && closing === 0 && (idle === 0 || (idle <= poolMin && !this.#pool.closed));
  }

  #hold(): void {
    this.#rest ??= Promise.withResolvers<void>();
    if (this.#told) return;
    this.#told = true;
    try {
      this.#host?.waitUntil(this.#rest.promise);
    } catch (error) {
      // A context of a request that is over. The pool works without it.
      report("waitUntil of the host that a connection pool is attached to failed:", error);
    }
  }

  #look(): void {
    clearTimeout(this.#timer);
    if (this.#rest === null) return;
    if (this.#resting) {
      this.#rest.resolve();
      this.#rest = null;
      this.#told = false;
      return;
    }
    this.#timer = setTimeout(() => this.#look(), LOOK);
    holdTimer(this.#timer, false);
  }
}

const ALL: readonly ShutdownEvent[] = ["SIGINT", "SIGTERM", "beforeunload"];
/** How long leases may take to come back: hosts that give notice give about five seconds. */
const PATIENCE = 4_000;
/** The pools that are closing; the process ends after the last one. */
const closing = new Set<HostedPool>();

/** What one pool has to do with its host. */
export class Hosting {
  readonly #pool: HostedPool;
  #keepAlive: KeepAlive | null = null;
  #unlisten: (() => void)[] | null = [];

  constructor(pool: HostedPool) {
    this.#pool = pool;
  }

  /** Keeps the instance alive while the pool is not at rest. */
  attach(host: HostContext): void {
    (this.#keepAlive ??= new KeepAlive(this.#pool)).attach(host);
  }

  /** Closes the pool when the process is told to end. */
  closeOn(options?: CloseOnOptions): void {
    const unlisten = closeOnShutdown(this.#pool, options);
    if (this.#unlisten === null) unlisten();
    else this.#unlisten.push(unlisten);
  }

  /** The pool is closed, by whomever: nobody listens for it any more. */
  end(): void {
    for (const unlisten of this.#unlisten ?? []) unlisten();
    this.#unlisten = null;
  }
}

/** Closes the pool when the process is told to end, and then ends it as it would have ended. */
function closeOnShutdown(pool: HostedPool, options: CloseOnOptions = {}): () => void {
  const { events = ALL, timeout = PATIENCE, exit = true } = options;
  checkTime("timeout", timeout);
  for (const event of events) {
    if (!ALL.includes(event)) {
      throw new RangeError(`"events" may hold ${ALL.join(", ")}, received ${reasonOf(event)}`);
    }
  }
  const unlisten = events.map((event) => onShutdown(event, () => shutdown(event)));
  async function shutdown(event: ShutdownEvent): Promise<void> {
    const signal = event === "beforeunload" ? null : event;
    // Who asks twice does not want to wait.
    if (closing.has(pool)) return exit && signal !== null ? endBySignal(signal) : undefined;
    closing.add(pool);
    await pool.close({ timeout }).catch(() => {});
    closing.delete(pool);
    if (signal === null || !exit || closing.size > 0) return;
    // Who else listens, decides himself when to end.
    if (shutdownListeners(signal) === 0) endBySignal(signal);
  }
  return () => {
    for (const stop of unlisten) stop();
  };
}
