/** The hooks that run now, and what must not be waited for in one: that it ends itself. */

import type { Coming, PoolEntry } from "./entry.ts";
import { Ambient } from "../runtime.ts";

/** One call of `configure`, `reset` or `validate`. */
export interface HookCall {
  readonly name: "configure" | "reset" | "validate";
  /** Whose hook it is. */
  readonly entry: PoolEntry;
  /** How many callers in it wait for a connection of the pool. */
  waiting: number;
  ended: boolean;
}

/** The hooks of one pool. A call belongs to a hook by its async context; without hooks nothing is entered. */
export class Hooks {
  readonly #coming: Coming;
  readonly #ambient = new Ambient<HookCall>();
  /** How many hooks have callers that wait. */
  #waiting = 0;

  /** `coming`: what is on its way in the pool. */
  constructor(coming: Coming) {
    this.#coming = coming;
  }

  /** The hook in which this is called; null in none, and in what a hook has left behind. */
  get here(): HookCall | null {
    const call = this.#ambient.current;
    return call === undefined || call.ended ? null : call;
  }

  /** Calls a hook. Until the returned function is called, whatever it calls is in it. */
  call(
    name: HookCall["name"],
    entry: PoolEntry,
    hook: () => unknown,
  ): { result: unknown; end: () => void } {
    const call: HookCall = { name, entry, waiting: 0, ended: false };
    const end = (): void => {
      call.ended = true;
    };
    try {
      return { result: this.#ambient.run(call, hook), end };
    } catch (error) {
      end();
      throw error;
    }
  }

  /**
   * Whether waiting in this hook is in vain: with it, every connection of the pool is in a hook that waits for
   * one. Each of the others may still get one when this one is refused.
   */
  isVain(call: HookCall, maxconn: number): boolean {
    return this.#waiting + (call.waiting === 0 ? 1 : 0) >= maxconn;
  }

  /** Somebody in this hook waits, until the promise settles. */
  waits(call: HookCall, promise: Promise<unknown>): void {
    if (call.waiting++ === 0) this.#waiting++;
    // It must not be counted on for the very one for whom it waits.
    this.#coming.giveUp(call.entry);
    const over = (): void => {
      if (--call.waiting === 0) this.#waiting--;
    };
    promise.then(over, over);
  }
}
