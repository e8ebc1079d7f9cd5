/** What a pool does at its host's wish: keeps an instance alive for a while, ends with the process. */

import { reasonOf, report } from "./errors.ts";
import { checkTime, readOptions } from "./options.ts";
import {
  type Clock,
  currentClock,
  LONGEST,
  queueMicrotask,
  systemClock as clock,
} from "../clock.ts";
import {
  endBySignal,
  onShutdown,
  type ShutdownEvent,
  shutdownListeners,
  type Timer,
} from "../runtime.ts";
import { ignore, isThenable } from "./safely.ts";
import { NoAnswer, within } from "./timeout.ts";
import type { CloseOnOptions, HostContext, PoolStats } from "./types.ts";

/** A pool as it is seen from here. */
export interface HostedPool {
  readonly closed: boolean;
  readonly options: { readonly name: string };
  stats(): PoolStats;
  close(options?: { timeout?: number }): Promise<void>;
  closeall(): Promise<void>;
  on(type: "acquire" | "share" | "release" | "remove", fn: () => void): unknown;
}

/** How often to look whether the pool has come to rest, where no event tells it; milliseconds. */
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
    const failed = (error: unknown): void =>
      // A context of a request that is over. The pool works without it.
      report("waitUntil of the host that a connection pool is attached to failed:", error, "warn");
    try {
      const result = this.#host?.waitUntil(this.#rest.promise);
      if (isThenable(result)) Promise.resolve(result).then(undefined, failed);
    } catch (error) {
      failed(error);
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
/** How long all may take together, in milliseconds: hosts that give notice give about five seconds. */
const PATIENCE = 4_000;
/** How long the process then stays, in milliseconds: an answer is written after the lease that it needed is back. */
const LAST_WORDS = 500;
/** The pools that are closing; the process ends after the last one. */
const closing = new Set<HostedPool>();

/** What one pool has to do with its host. */
export class Hosting {
  readonly #pool: HostedPool;
  #keepAlive: KeepAlive | null = null;
  /** What is to be done at each event; null when the pool is closed. */
  #shutdowns: Map<ShutdownEvent, Shutdown> | null = new Map();

  constructor(pool: HostedPool) {
    this.#pool = pool;
  }

  /** Keeps the instance alive while the pool is not at rest. */
  attach(host: HostContext): void {
    (this.#keepAlive ??= new KeepAlive(this.#pool)).attach(host);
  }

  /** Closes the pool when the process is told to end. */
  closeOn(options: CloseOnOptions | undefined): void {
    const { events = ALL, ...wanted } = checkOptions(options);
    for (const event of events) {
      if (this.#shutdowns === null) return;
      let shutdown = this.#shutdowns.get(event);
      if (shutdown === undefined) {
        this.#shutdowns.set(event, shutdown = new Shutdown(this.#pool, event));
      }
      shutdown.add(wanted);
    }
  }

  /** The pool is closed, by whomever: nobody listens for it any more. */
  end(): void {
    for (const shutdown of this.#shutdowns?.values() ?? []) shutdown.stop();
    this.#shutdowns = null;
  }
}

/**
 * Closes the pool at one event, and then ends the process as it would have ended. Several may ask for it, the part of a
 * program that makes the pool and the one that makes a server: one listener for all, or the second would
 * take the first one's event for somebody's second wish.
 */
class Shutdown {
  readonly #pool: HostedPool;
  readonly #signal: "SIGINT" | "SIGTERM" | null;
  readonly #befores = new Set<NonNullable<CloseOnOptions["before"]>>();
  /** The longest that was asked for. */
  #timeout = 0;
  #exit = true;
  /** Stops listening. */
  readonly stop: () => void;

  constructor(pool: HostedPool, event: ShutdownEvent) {
    this.#pool = pool;
    this.#signal = event === "beforeunload" ? null : event;
    this.stop = onShutdown(event, () => void this.#run());
  }

  /** One more asks for it. */
  add({ before, timeout = PATIENCE, exit = true }: Omit<CloseOnOptions, "events">): void {
    if (before !== undefined) this.#befores.add(before);
    this.#timeout = Math.max(this.#timeout, timeout);
    this.#exit &&= exit;
  }

  async #run(): Promise<void> {
    const pool = this.#pool;
    const signal = this.#signal;
    // Who asks twice does not want to wait.
    if (closing.has(pool)) return this.#exit && signal !== null ? endBySignal(signal) : undefined;
    closing.add(pool);
    const end = clock.now() + this.#timeout;
    // At once where there is nothing before: Deno ends when it has called who listens to beforeunload.
    if (this.#befores.size > 0) {
      await Promise.all([...this.#befores].map((before) => finish(before, pool, this.#timeout)));
    }
    await closeWithin(pool, Math.max(0, end - clock.now()));
    closing.delete(pool);
    // Who else listens, decides himself when to end.
    const ends = () => closing.size === 0 && shutdownListeners(signal as "SIGINT") === 0;
    if (signal === null || !this.#exit || !ends()) return;
    // It holds the process: under `bun --hot` one that does not would never fire.
    clock.setTimeout(() => ends() && endBySignal(signal), LAST_WORDS);
  }
}

/** Closes a pool. It may be closing already, for somebody who wants to wait for longer: that does not count any more. */
async function closeWithin(pool: HostedPool, timeout: number): Promise<void> {
  const gently = pool.close({ timeout }).catch(ignore);
  try {
    await within(clock, Math.min(timeout, LONGEST), gently);
  } catch {
    // Closed now, if it is not: then what is left has a limit of its own.
    await pool.closeall().catch(() => gently);
  }
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

function checkOptions(given: unknown): CloseOnOptions {
  const options = readOptions("closeOn", given, ["events", "before", "timeout", "exit"]);
  const { events, before, timeout, exit } = options;
  if (timeout !== undefined) checkTime("timeout", timeout);
  if (before !== undefined && typeof before !== "function") {
    throw new TypeError(`"before" must be a function, received ${typeof before}`);
  }
  if (exit !== undefined && typeof exit !== "boolean") {
    throw new TypeError(`"exit" must be true or false, received ${typeof exit}`);
  }
  if (events === undefined) return options as CloseOnOptions;
  if (!Array.isArray(events)) throw new TypeError('"events" must be an array');
  for (const event of events) {
    if (!ALL.includes(event)) {
      throw new RangeError(`"events" may hold ${ALL.join(", ")}, received ${reasonOf(event)}`);
    }
  }
  return options as CloseOnOptions;
}
