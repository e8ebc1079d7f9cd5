/** For how long this isolate stands still: stopped, blocked, or not given the processor. */

/** In milliseconds. */
const BEAT = 20;

/** Counts the time that is missing between beats. */
export class Stalls {
  #missed = 0;
  #last = performance.now();
  readonly #beat = setInterval(() => {
    this.#missed = this.total;
    this.#last = performance.now();
  }, BEAT);

  /** All the time that is missing by now, in milliseconds. */
  get total(): number {
    return this.#missed + Math.max(0, performance.now() - this.#last - BEAT);
  }

  /** No more beats. */
  [Symbol.dispose](): void {
    clearInterval(this.#beat);
  }
}
