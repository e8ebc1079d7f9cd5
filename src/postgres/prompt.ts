/**
 * Sends a message when the microtasks at hand are done, not at the end of the turn.
 *
 * The driver keeps what it has built for `setImmediate`, to send more at once. On a lease mostly one
 * statement runs at a time, and then this is mere waiting. Nothing tells the driver to send, so while it
 * takes a statement, which it does without a pause, `setImmediate` is ours: a message of its own comes
 * to us, everything else goes on to where it was meant to go.
 */

import type { DriverQuery, Handler } from "./driver.ts";

type Callback = (...args: unknown[]) => void;

interface Immediates {
  setImmediate: (callback: Callback, ...args: unknown[]) => unknown;
  clearImmediate: (immediate: unknown) => void;
}

const scope = globalThis as unknown as Immediates;

/** Where a write of the driver goes; null while no statement is being taken. */
let taker: Prompt | null = null;
let later: Immediates["setImmediate"];

function take(callback: Callback, ...args: unknown[]): unknown {
  // The driver's function by its name; under another one, as after minifying, it gets its immediate.
  if (taker === null || callback.name !== "nextWrite") return later(callback, ...args);
  return taker.keep(callback);
}

/**
 * An immediate that was cleared already, so that it can be cleared again; undefined where
 * `setImmediate` cannot be replaced: a hardened realm forbids it, and some hosts have none.
 */
function spentImmediate(): unknown {
  try {
    const { setImmediate, clearImmediate } = scope;
    scope.setImmediate = setImmediate;
    const spent = setImmediate(() => {});
    clearImmediate(spent);
    return spent;
  } catch {
    return undefined;
  }
}

/** One session's messages on their way out. */
export class Prompt {
  /** The driver's way to send what it has built; null when there is nothing. */
  #write: Callback | null = null;
  /** What the driver gets for its write, and clears when that is done. */
  readonly #spent: unknown = spentImmediate();

  /** Lets the driver take a statement. */
  run(execute: Handler, query: DriverQuery): void {
    if (taker !== null || this.#spent === undefined) return execute(query);
    taker = this;
    later = scope.setImmediate;
    scope.setImmediate = take;
    try {
      execute(query);
    } finally {
      scope.setImmediate = later;
      taker = null;
    }
  }

  /** Takes the driver's write, to call it soon. */
  keep(write: Callback): unknown {
    this.#write = write;
    queueMicrotask(this.#send);
    return this.#spent;
  }

  /** Forgets it: it was done, or can be done no more. */
  drop(): void {
    this.#write = null;
  }

  readonly #send = (): void => {
    const write = this.#write;
    this.#write = null;
    write?.();
  };
}
