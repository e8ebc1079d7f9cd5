/** The two ways to close a pool: now, and when the leases have come back. */

import type { PoolContext } from "./state.ts";
import type { Lending } from "./pool_core.ts";
import { within } from "./timeout.ts";
import { LONGEST } from "../clock.ts";

/** A close takes no longer than this, in milliseconds, whatever a connector does: a second more than a connection that is gone needs. */
const CLOSE_LIMIT = 6_000;

/** How long close() waits for leases unless told otherwise, in milliseconds. */
export const DRAIN_TIME = 30_000;

/** Closes one pool once. */
export class Closing<C extends object> {
  readonly #context: PoolContext<C>;
  readonly #lending: Lending<C>;
  readonly #onended: () => void;
  #draining: Promise<void> | null = null;
  #ended: Promise<void> | null = null;

  /** `onended` is called when every connection is gone. */
  constructor(context: PoolContext<C>, lending: Lending<C>, onended: () => void) {
    this.#context = context;
    this.#lending = lending;
    this.#onended = onended;
  }

  /** Closes everything, leases too. */
  now(): Promise<void> {
    return this.#ended ??= within(this.#context.clock, CLOSE_LIMIT, this.#lending.end())
      .then(this.#onended, this.#onended);
  }

  /** Waits for leases first, for `timeout` milliseconds at most. */
  gently(timeout: number): Promise<void> {
    return this.#ended ?? (this.#draining ??= this.#drain(timeout));
  }

  async #drain(timeout: number): Promise<void> {
    this.#lending.drain();
    if (timeout > 0) await this.#leasesBack(timeout);
    await this.now();
  }

  #leasesBack(timeout: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const { clock } = this.#context;
    const timer = timeout > LONGEST ? undefined : clock.setTimeout(resolve, timeout);
    const look = (): void => {
      if (!this.#context.busy || this.#lending.phase === "closed") resolve();
    };
    const unwatch = this.#lending.watchers.add(look);
    look();
    return promise.finally(() => {
      clock.clearTimeout(timer);
      unwatch();
    });
  }
}
