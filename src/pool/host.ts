/** What a pool does at its host's wish: keeps an instance alive for a while, ends with the process. */

import { reasonOf, report } from "./errors.ts";
import { checkTime } from "./options.ts";
import { type Clock, currentClock, LONGEST, systemClock as clock } from "../clock.ts";
import {
  endBySignal,
  onShutdown,
  type ShutdownEvent,
  shutdownListeners,
  type Timer,
} from "../runtime.ts";
import { isThenable } from "./safely.ts";
import { NoAnswer, within } from "./timeout.ts";
import type { CloseOnOptions, HostContext, PoolStats } from "./types.ts";

/** A pool as it is seen from here. */
export interface HostedPool {
  readonly closed: boolean;
  readonly options: { readonly name: string };
  stats(): PoolStats;
  close(options?: { timeout?: number }): Promise<void>;
  on(type: "acquire" | "share" | "release" | "remove", fn: () => void): unknown;
}

/** How often to look whether the pool has come to rest, where no event tells it. */
const LOOK = 1_000;

/** Keeps the instance alive, by the host's waitUntil, until the pool's idle connections are closed. */
class KeepAlive {
  readonly #pool: HostedPool;
  readonly #clock: Clock = currentClock();
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
      for (const type of ["acquire", "share"] as const) this.#pool.on(type, () => this.#hold());
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
    const { leased, shared, idle, closing, poolMin } = this.#pool.stats();
    return leased + shared + closing === 0 &&
      (idle === 0 || (idle <= poolMin && !this.#pool.closed));
  }

  #hold(): void {
    this.#rest ??= Promise.withResolvers<void>();
    if (this.#told) return;
    this.#told = true;
    try {
      this.#host?.waitUntil(this.#rest.promise);
    } catch (error) {
      // A context of a request that is over. The pool works without it.
      report("waitUntil of the host that a connection pool is attached to failed:", error, "warn");
    }
  }

  #look(): void {
    this.#clock.clearTimeout(this.#timer);
    if (this.#rest === null) return;
    if (this.#resting) {
      this.#rest.resolve();
      this.#rest = null;
      this.#told = false;
      return;
    }
    this.#timer = this.#clock.setTimeout(() => this.#look(), LOOK);
    this.#clock.hold(this.#timer, false);
  }
}

const ALL: readonly ShutdownEvent[] = ["SIGINT", "SIGTERM", "beforeunload"];
/** How long all may take together: hosts that give notice give about five seconds. */
const PATIENCE = 4_000;
/** How long the process then stays: an answer is written after the lease that it needed is back. */
const LAST_WORDS = 500;
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
  const { events = ALL, before, timeout = PATIENCE, exit = true } = checkOptions(options);
  const unlisten = events.map((event) => onShutdown(event, () => shutdown(event)));
  async function shutdown(event: ShutdownEvent): Promise<void> {
    const signal = event === "beforeunload" ? null : event;
    // Who asks twice does not want to wait.
    if (closing.has(pool)) return exit && signal !== null ? endBySignal(signal) : undefined;
    closing.add(pool);
    const end = clock.now() + timeout;
    if (before !== undefined) await finish(before, pool, timeout);
    await pool.close({ timeout: Math.max(0, end - clock.now()) }).catch(() => {});
    closing.delete(pool);
    // Who else listens, decides himself when to end.
    const ends = () => closing.size === 0 && shutdownListeners(signal as "SIGINT") === 0;
    if (signal === null || !exit || !ends()) return;
    // It holds the process: under `bun --hot` one that does not would never fire.
    clock.setTimeout(() => ends() && endBySignal(signal), LAST_WORDS);
  }
  return () => {
    for (const stop of unlisten) stop();
  };
}

/** Waits for what has to end while the pool still lends, but no longer than `timeout`. */
async function finish(
  before: NonNullable<CloseOnOptions["before"]>,
  pool: HostedPool,
  timeout: number,
): Promise<void> {
  const tell = (what: string, error?: unknown): void => {
    const said = `closeOn() of connection pool "${pool.options.name}": "before" ${what}`;
    if (error === undefined) console.error(said);
    else report(said, error);
  };
  try {
    const ending: unknown = before();
    if (!isThenable(ending)) return tell("gave no promise, so nothing was waited for");
    await within(clock, Math.min(timeout, LONGEST), Promise.resolve(ending));
  } catch (error) {
    if (error instanceof NoAnswer) tell(`has not ended within ${timeout} ms`);
    else tell("failed:", error);
  }
}

function checkOptions(options: CloseOnOptions): CloseOnOptions {
  for (const [name, value] of Object.entries(options)) {
    if (!["events", "before", "timeout", "exit"].includes(name)) {
      throw new TypeError(`closeOn() has no option "${name}": events, before, timeout, exit`);
    }
    if (value === undefined) continue;
    if (name === "timeout") checkTime(name, value);
    if (name === "before" && typeof value !== "function") {
      throw new TypeError(`"before" must be a function, received ${typeof value}`);
    }
    if (name === "exit" && typeof value !== "boolean") {
      throw new TypeError(`"exit" must be true or false, received ${typeof value}`);
    }
    if (name !== "events") continue;
    if (!Array.isArray(value)) throw new TypeError('"events" must be an array');
    for (const event of value) {
      if (!ALL.includes(event)) {
        throw new RangeError(`"events" may hold ${ALL.join(", ")}, received ${reasonOf(event)}`);
      }
    }
  }
  return options;
}
