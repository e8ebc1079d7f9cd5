/** Many who listen to few signals: one listener for each signal, as to add and to take away one among n costs n. */

/** Who gives up when a signal aborts. */
export interface Abortable {
  /** The signal has aborted. */
  abort(reason: unknown): void;
}

interface Group {
  readonly all: Set<Abortable>;
  readonly listener: () => void;
}

/** The signals of one pool's callers. */
export class Signals {
  readonly #groups = new Map<AbortSignal, Group>();

  /** From now on `one` hears of it when the signal aborts. */
  add(signal: AbortSignal, one: Abortable): void {
    const group = this.#groups.get(signal);
    if (group !== undefined) return void group.all.add(one);
    const all = new Set([one]);
    const listener = (): void => {
      this.#groups.delete(signal);
      signal.removeEventListener("abort", listener);
      for (const each of all) each.abort(signal.reason);
    };
    this.#groups.set(signal, { all, listener });
    signal.addEventListener("abort", listener);
  }

  /** It does not any more. */
  remove(signal: AbortSignal, one: Abortable): void {
    const group = this.#groups.get(signal);
    if (group === undefined) return;
    group.all.delete(one);
    if (group.all.size > 0) return;
    this.#groups.delete(signal);
    signal.removeEventListener("abort", group.listener);
  }
}
