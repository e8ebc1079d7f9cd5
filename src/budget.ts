/** Permits: the right to have one more connection open. */

/**
 * A number of permits, of which one is taken before a connection is opened and given back after
 * the server has let go of it; so the server never sees more connections than permits.
 */
export interface Budget {
  /** How many permits there are. */
  readonly limit: number;
  /** How many this isolate has taken. */
  readonly held: number;
  /** Takes one; false when none is free. */
  take(): boolean;
  /** Gives one back. */
  give(): void;
  /** Changes the number; those taken above it come back one by one. */
  resize(limit: number): void;
}

/** The budget of a pool that lives in one isolate. */
export class LocalBudget implements Budget {
  limit: number;
  held = 0;

  constructor(limit: number) {
    this.limit = limit;
  }

  take(): boolean {
    if (this.held >= this.limit) return false;
    this.held++;
    return true;
  }

  give(): void {
    if (this.held === 0) throw new Error("A permit was given back that nobody had taken");
    this.held--;
  }

  resize(limit: number): void {
    this.limit = limit;
  }
}
