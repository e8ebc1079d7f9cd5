/** Who inside the pool wants to know that something has changed. */

/** Why no connection came up; null when something else has changed. */
export type Failure = { readonly error: unknown } | null;

/** Told of every connection that stands, every failure, and every connection that is gone. */
export class Watchers {
  readonly #all = new Set<(failure: Failure) => void>();

  /** Calls `fn` at each change, until the returned function is called. */
  add(fn: (failure: Failure) => void): () => void {
    this.#all.add(fn);
    return () => this.#all.delete(fn);
  }

  /** Tells everybody. */
  notify(failure: Failure): void {
    for (const watcher of [...this.#all]) watcher(failure);
  }
}
