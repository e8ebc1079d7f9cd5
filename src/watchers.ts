/** The parts of a pool that want to know of every change of its connections. */

/** A failure to connect. */
export type Failure = { readonly error: unknown };

/** Told of every connection that stands, every failure, and every one that is gone. */
export class Watchers {
  readonly #all = new Set<(failure: Failure | null) => void>();

  /** Calls `fn` at each change, until the returned function is called. */
  add(fn: (failure: Failure | null) => void): () => void {
    this.#all.add(fn);
    return () => this.#all.delete(fn);
  }

  /** Tells all; what they add or take away meanwhile counts from the next time on. */
  tell(failure: Failure | null): void {
    for (const watcher of [...this.#all]) watcher(failure);
  }
}
