/** Whether the first connections stand, and who wants to know. */

import type { PoolContext } from "./state.ts";
import { PoolClosed } from "./errors.ts";
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
  ready(): Promise<void> {
    const context = this.#context;
    this.#asked = true;
    if (this.#lending.phase !== "open") {
      return Promise.reject(new PoolClosed(context.errorContext()));
    }
    if (this.#stands) {
      this.#untold = null;
      return Promise.resolve();
    }
    const untold = this.#untold;
    this.#untold = null;
    if (untold !== null) return Promise.reject(untold.error);
    return this.#wait();
  }

  #wait(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const unwatch = this.#lending.watchers.add((failure) => {
      if (failure !== null) reject(failure.error);
      else if (this.#lending.phase !== "open") reject(new PoolClosed(this.#context.errorContext()));
      else if (this.#stands) resolve();
    });
    this.#lending.hurry();
    return promise.finally(unwatch);
  }

  get #stands(): boolean {
    const { size, states, minconn } = this.#context;
    const standing = size - states.connecting;
    return standing >= minconn || standing + this.#context.elsewhere >= minconn;
  }
}
