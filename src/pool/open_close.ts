/** Whether the first connections stand, and who wants to know. */

import type { PoolContext } from "./state.ts";
import { Deadlines } from "./deadlines.ts";
import { PoolClosed, PoolTimeout } from "./errors.ts";
import { readWaitOptions, type WaitOptions } from "./options.ts";
import { Signals } from "./signals.ts";
import type { ReadyOptions } from "./types.ts";
import { Caller } from "./wait_queue.ts";
import type { Lending } from "./pool_core.ts";
import type { Failure } from "./watchers.ts";

/** Answers `ready()`. */
export class Readiness<C extends object> {
  readonly #context: PoolContext<C>;
  readonly #lending: Lending<C>;
  /** The failure at the start, until somebody has been told of it. */
  #untold: Failure = null;
  #asked = false;

  constructor(context: PoolContext<C>, lending: Lending<C>) {
    this.#context = context;
    this.#lending = lending;
    if (context.minconn === 0) return;
    const unwatch = lending.watchers.add((failure) => {
      if (failure !== null && !this.#asked) this.#untold ??= failure;
      if (!this.#stands) return;
      this.#untold = null;
      unwatch();
    });
  }

  /** Resolves when minconn connections stand; rejects with the first failure to connect that was not told yet. */
  ready(options: ReadyOptions): Promise<void> {
    const context = this.#context;
    let wait: WaitOptions;
    try {
      wait = readWaitOptions("ready", options);
    } catch (error) {
      return Promise.reject(error);
    }
    this.#asked = true;
    if (this.#lending.phase !== "open") {
      return Promise.reject(new PoolClosed(context.errorContext()));
    }
    if (this.#stands) {
      this.#untold = null;
      return Promise.resolve();
    }
    const vain = context.vainInHook("ready()");
    if (vain !== null) return Promise.reject(vain);
    const untold = this.#untold;
    this.#untold = null;
    if (untold !== null) return Promise.reject(untold.error);
    const { timeout = Infinity, signal } = wait;
    if (timeout === 0) {
      this.#lending.hurry();
      return Promise.reject(this.#late(0));
    }
    return this.#wait(timeout, signal);
  }

  #wait(timeout: number, signal: AbortSignal | undefined): Promise<void> {
    const context = this.#context;
    const waiter = new Caller<void>({
      key: null,
      timeout,
      signal,
      signals: new Signals(),
      deadlines: new Deadlines(context.clock),
      expired: (waited) => this.#late(waited),
      left: () => unwatch(),
    });
    const unwatch = this.#lending.watchers.add((failure) => {
      if (failure !== null) waiter.refuse(failure.error);
      else if (this.#lending.phase !== "open") {
        waiter.refuse(new PoolClosed(context.errorContext()));
      } else if (this.#stands) waiter.accept(undefined);
      if (waiter.settled) unwatch();
    });
    this.#lending.hurry();
    return waiter.promise;
  }

  #late(waited: number): Error {
    const { minconn, states, size, failure } = this.#context;
    const why = `; of minconn ${minconn} stand ${size - states.connecting}`;
    return new PoolTimeout(this.#context.errorContext(failure?.error), waited, why);
  }

  get #stands(): boolean {
    const { size, states, minconn } = this.#context;
    const standing = size - states.connecting;
    return standing >= minconn || standing + this.#context.elsewhere >= minconn;
  }
}
