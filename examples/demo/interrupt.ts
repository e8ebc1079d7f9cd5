/** Ctrl-C: the first ends the run in good order, the second at once. */

import process from "node:process";

/** The user stopped the demo before there was anything to audit. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
}

const SIGNALS = ["SIGINT", "SIGTERM"] as const;
/** What a shell reports for a process that Ctrl-C ended. */
export const INTERRUPTED = 130;

/** Listens to Ctrl-C as long as it is in use. */
export class Interrupt {
  /** True once the user wants an end. */
  happened = false;
  readonly #promise = Promise.withResolvers<void>();
  readonly #listener = (): void => {
    if (this.happened) process.exit(INTERRUPTED);
    this.happened = true;
    this.#promise.resolve();
  };

  constructor() {
    for (const signal of SIGNALS) process.on(signal, this.#listener);
  }

  /** Waits for this time, or for Ctrl-C. */
  async orAfter(ms: number): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const time = new Promise<void>((resolve) => timer = setTimeout(resolve, ms));
    await Promise.race([this.#promise.promise, time]);
    clearTimeout(timer);
  }

  /** Waits for this work; Ctrl-C does not, and throws {@linkcode Interrupted}. */
  during<T>(work: Promise<T>): Promise<T> {
    const interrupted = this.#promise.promise.then((): never => {
      throw new Interrupted("stopped before the load began");
    });
    return Promise.race([work, interrupted]);
  }

  /** Ctrl-C works as usual again. */
  [Symbol.dispose](): void {
    for (const signal of SIGNALS) process.off(signal, this.#listener);
  }
}
