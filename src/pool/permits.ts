/** Permits: the right to have one more connection open. */

/**
 * A number of permits, of which one is taken before a connection is opened and given back after
 * the server has let go of it; so the server never sees more connections than permits.
 *
 * The isolates that share a budget have to agree who gets a permit; a pool in one isolate has not,
 * and its answers to the second half of these methods are constants.
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

  /** True when this isolate, which has `size` connections, has to close some after a `resize`. */
  over(size: number): boolean;
  /** True when there are other isolates. */
  readonly shared: boolean;
  /** How many permits other isolates hold. */
  readonly elsewhere: number;
  /** How many connections are idle in other isolates. */
  readonly idleElsewhere: number;
  /** How many could be had soon although `take` says no: what others have idle or are closing, less what they lack. */
  readonly prospects: number;
  /** Notes how many connections are idle. Called on the hot path. */
  idle(count: number): void;
  /**
   * Notes how many permits the waiters of this isolate lack, `urgent` of them for callers that would
   * rather fail than wait. True when one has become free meanwhile: then try `take` again.
   */
  lack(count: number, urgent: number): boolean;
  /** What was noted last. */
  readonly lacks: number;
  /** True when another isolate lacks a permit. Called on the hot path. */
  readonly contended: boolean;
  /**
   * Whether the connection that came back is to be closed for another isolate although somebody waits
   * here. Then its permit is promised: close the connection.
   */
  yields(): boolean;
  /** The same for a connection that is idle since `idleSince`. */
  spares(now: number, idleSince: number): boolean;
  /** Notes that a connection stands, and for how many milliseconds it was being opened. */
  opened(took: number): void;
}

/** The budget of a pool that lives in one isolate. */
export class LocalBudget implements Budget {
  limit: number;
  held = 0;
  readonly shared: boolean = false;
  readonly elsewhere: number = 0;
  readonly idleElsewhere: number = 0;
  readonly prospects: number = 0;
  readonly lacks: number = 0;
  readonly contended: boolean = false;

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

  over(size: number): boolean {
    return size > this.limit;
  }

  idle(): void {}

  lack(): boolean {
    return false;
  }

  yields(): boolean {
    return false;
  }

  spares(): boolean {
    return false;
  }

  opened(): void {}
}

/**
 * What a pool that joins others passes to the constructor of AbstractConnectionPool before its
 * arguments, in place of a budget of its own.
 */
export class BudgetArg {
  readonly budget: Budget;

  constructor(budget: Budget) {
    this.budget = budget;
  }
}
