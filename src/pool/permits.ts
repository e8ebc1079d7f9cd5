/** Permits: the right to have one more connection open. */

/**
 * A number of permits, of which one is taken before a connection is opened and given back after
 * the server has let go of it; so the server never sees more connections than permits.
 */
export interface Permits {
  /** How many permits there are. */
  readonly limit: number;
  /** How many this isolate has taken. */
  readonly held: number;
  /** The isolates with which these permits are shared; null when they are this pool's alone. */
  readonly others: OtherIsolates | null;
  /** Takes one; false when none is free. */
  take(): boolean;
  /** Gives one back. */
  give(): void;
  /** Changes the number; those taken above it come back one by one. */
  resize(limit: number): void;
  /** True when this isolate, which has `size` connections, has to close some after a `resize`. */
  tooMany(size: number): boolean;
}

/** What a pool asks and tells those with whom it shares its permits. */
export interface OtherIsolates {
  /** How many permits they hold. */
  readonly elsewhere: number;
  /** How many of their connections are idle. */
  readonly idleElsewhere: number;
  /** True when one of them lacks a permit. Asked on the hot path. */
  readonly contended: boolean;
  /** What was said last by `lack`. */
  readonly lacked: number;
  /** How many could be had soon although `take` says no: what they have idle or are closing, less what they lack. */
  prospects(): number;
  /**
   * Says how many permits the waiters of this isolate lack, up to `urgent` of them for callers that would
   * rather fail than wait. True when one has become free meanwhile: then try `take` again.
   */
  lack(count: number, urgent: number): boolean;
  /**
   * Whether the connection that came back is to be closed for one of them although somebody waits
   * here. Then its permit is promised: close the connection.
   */
  claimReturned(): boolean;
  /** The same for a connection that is idle since `idleSince`. */
  claimIdle(now: number, idleSince: number): boolean;
  /** Says how many connections are idle here. Told on the hot path. */
  tellIdle(count: number): void;
  /** Says that a connection stands, and for how many milliseconds it was being opened. */
  tellOpened(took: number): void;
}

/** The permits of a pool that lives in one isolate. */
export class LocalPermits implements Permits {
  limit: number;
  held = 0;
  readonly others: null = null;

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

  tooMany(size: number): boolean {
    return size > this.limit;
  }
}

/** Those for the pool that is made next; null for permits of its own. */
let handed: Permits | null = null;

/** Hands permits to the constructor of AbstractConnectionPool: right before `super()`, so that no other pool gets them. */
export function handPermits(permits: Permits): void {
  handed = permits;
}

/** What was handed to the constructor that calls this first of all. */
export function takeHandedPermits(): Permits | null {
  const permits = handed;
  handed = null;
  return permits;
}
