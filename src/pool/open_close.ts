/** The beginning and the end of a pool: ready, close, closeall. */

import type { Failure, PoolState } from "./state.ts";
import { Caller, Deadlines, Signals } from "./wait_queue.ts";
import { PoolClosed, PoolTimeout } from "./errors.ts";
import { checkTime, readOptions, readWaitOptions, type WaitOptions } from "./options.ts";
import type { ReadyOptions } from "./types.ts";
import type { PoolCore } from "./pool_core.ts";
import { within } from "./timeout.ts";
import { LONGEST } from "../clock.ts";

/** Answers `ready()`. */
export class Readiness<C extends object> {
  readonly #state: PoolState<C>;
  readonly #core: PoolCore<C>;
  /** The failure at the start, until somebody has been told of it. */
  #untold: Failure = null;
  #asked = false;

  constructor(state: PoolState<C>, core: PoolCore<C>) {
    this.#state = state;
    this.#core = core;
    if (state.minconn === 0) return;
    const unwatch = state.watchers.add((failure) => {
      if (failure !== null && !this.#asked) this.#untold ??= failure;
      if (!this.#stands) return;
      this.#untold = null;
      unwatch();
    });
  }

  /** Resolves when minconn connections stand; rejects with the first failure to connect that was not told yet. */
  ready(options: ReadyOptions): Promise<void> {
    const state = this.#state;
    let wait: WaitOptions;
    try {
      wait = readWaitOptions("ready", options);
    } catch (error) {
      return Promise.reject(error);
    }
    this.#asked = true;
    if (this.#state.phase !== "open") {
      return Promise.reject(new PoolClosed(state.errorContext()));
    }
    if (this.#stands) {
      this.#untold = null;
      return Promise.resolve();
    }
    const vain = state.vainInHook("ready()");
    if (vain !== null) return Promise.reject(vain);
    const untold = this.#untold;
    this.#untold = null;
    if (untold !== null) return Promise.reject(untold.error);
    const { timeout = Infinity, signal } = wait;
    if (timeout === 0) {
      this.#core.hurry();
      return Promise.reject(this.#late(0));
    }
    return this.#wait(timeout, signal);
  }

  #wait(timeout: number, signal: AbortSignal | undefined): Promise<void> {
    const state = this.#state;
    const waiter = new Caller<void>({
      key: null,
      timeout,
      signal,
      signals: new Signals(),
      deadlines: new Deadlines(state.clock),
      expired: (waited) => this.#late(waited),
      leave: () => unwatch(),
    });
    const unwatch = this.#state.watchers.add((failure) => {
      if (failure !== null) waiter.refuse(failure.error);
      else if (this.#state.phase !== "open") {
        waiter.refuse(new PoolClosed(state.errorContext()));
      } else if (this.#stands) waiter.accept(undefined);
      if (waiter.settled) unwatch();
    });
    this.#core.hurry();
    return waiter.promise;
  }

  #late(waited: number): Error {
    const { minconn, counts, size, failure } = this.#state;
    const why = `; of minconn ${minconn} stand ${size - counts.connecting}`;
    return new PoolTimeout(this.#state.errorContext(failure?.error), waited, why);
  }

  get #stands(): boolean {
    const { size, counts, minconn } = this.#state;
    const standing = size - counts.connecting;
    return standing >= minconn || standing + this.#state.elsewhere >= minconn;
  }
}

/** A close takes no longer than this, in milliseconds, whatever a connector does: a second more than a connection that is gone needs. */
const CLOSE_LIMIT = 6_000;

/** How long close() waits for leases unless told otherwise, in milliseconds. */
export const DRAIN_TIME = 30_000;

/** The `timeout` of a call that waits for leases; throws what is wrong with its options. */
export function readDrainTime(call: string, options: unknown): number {
  const { timeout = DRAIN_TIME } = readOptions(call, options, ["timeout"]);
  checkTime("timeout", timeout);
  return timeout as number;
}

/** Closes one pool once. */
export class Closing<C extends object> {
  readonly #state: PoolState<C>;
  readonly #core: PoolCore<C>;
  readonly #onended: () => void;
  #draining: Promise<void> | null = null;
  #ended: Promise<void> | null = null;

  /** `onended` is called when every connection is gone. */
  constructor(state: PoolState<C>, core: PoolCore<C>, onended: () => void) {
    this.#state = state;
    this.#core = core;
    this.#onended = onended;
  }

  /** Closes everything, leases too. */
  now(): Promise<void> {
    return this.#ended ??= within(this.#state.clock, CLOSE_LIMIT, this.#core.end())
      .then(this.#onended, this.#onended);
  }

  /** Waits for leases first, for `timeout` milliseconds at most. */
  gently(timeout: number): Promise<void> {
    return this.#ended ?? (this.#draining ??= this.#drain(timeout));
  }

  async #drain(timeout: number): Promise<void> {
    this.#core.drain();
    if (timeout > 0) await this.#leasesBack(timeout);
    await this.now();
  }

  #leasesBack(timeout: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const { clock } = this.#state;
    const timer = timeout > LONGEST ? undefined : clock.setTimeout(resolve, timeout);
    const look = (): void => {
      if (!this.#state.busy || this.#state.phase === "closed") resolve();
    };
    const unwatch = this.#state.watchers.add(look);
    look();
    return promise.finally(() => {
      clock.clearTimeout(timer);
      unwatch();
    });
  }
}
