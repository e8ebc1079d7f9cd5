/** What is known of each transfer that was ever sent: the audit's side of the story. */

/**
 * - `sent`: on its way.
 * - `acknowledged`: COMMIT was answered: the transfer must be there.
 * - `failed`: COMMIT was never sent, or refused: the transfer must not be there.
 * - `unknown`: COMMIT was sent and the connection broke before its answer, or the worker ended before
 *   it could tell: only the server knows.
 */
export type Outcome = "sent" | "acknowledged" | "failed" | "unknown";

/** Transfers by their unique id. */
export class Ledger {
  readonly #outcomes = new Map<number, Outcome>();

  /** Writes down what has become of a transfer. */
  set(id: number, outcome: Outcome): void {
    this.#outcomes.set(id, outcome);
  }

  /** What is known of this transfer; undefined when nobody has sent it. */
  get(id: number): Outcome | undefined {
    return this.#outcomes.get(id);
  }

  /** How many transfers have come to this. */
  count(outcome: Outcome): number {
    let count = 0;
    for (const each of this.#outcomes.values()) if (each === outcome) count++;
    return count;
  }

  /** Takes over what another ledger knows. */
  add(other: Iterable<readonly [id: number, outcome: Outcome]>): void {
    for (const [id, outcome] of other) this.#outcomes.set(id, outcome);
  }

  /** Gives away all that it knows, as an array that a worker can post. */
  take(): [id: number, outcome: Outcome][] {
    const all = [...this.#outcomes];
    this.#outcomes.clear();
    return all;
  }

  /**
   * Closes the books of a source that can tell nothing more: of these transfers, those without a
   * verdict are unknown from now on.
   *
   * @returns how many those are
   */
  close(ids: Iterable<number>): number {
    let unknown = 0;
    for (const id of ids) {
      const outcome = this.#outcomes.get(id) ?? "sent";
      if (outcome !== "sent") continue;
      this.#outcomes.set(id, "unknown");
      unknown++;
    }
    return unknown;
  }

  /** All transfers. */
  [Symbol.iterator](): IterableIterator<[number, Outcome]> {
    return this.#outcomes.entries();
  }
}
