/** Work that needs a connection, but not one of its own: what it is, and how it waits for one. */

import type { PoolEntry } from "./entry.ts";
import { Waiter, type WaiterOptions } from "./wait_queue.ts";

/** Who runs jobs. */
export interface JobHost {
  /** A job has ended; `spoilt` when its connection must not be used again. */
  ended(job: RunningJob, spoilt: boolean): void;
}

/** A piece of work that may run beside others on one connection, such as a single statement; no more than waiting takes. */
export interface Job {
  /** Runs a function as whoever gave it; null when nobody listens. Kept by the host. */
  scope: ((fn: () => void) => void) | null;

  /** What it is, without values, for `inspect`. */
  readonly shown?: string;

  /** Whether its kind has always been quick of late: then others may be sent behind it. */
  readonly proven: boolean;
  /** Makes what runs. To be called once. Must not throw. */
  begin(): RunningJob;
  /** It will not be begun. Must not throw. */
  refuse(reason: unknown): void;
}

/** A job that has a connection. */
export interface RunningJob {
  /** Where it runs, and who runs it there and hears of its end; both kept by the latter. */
  entry: PoolEntry | null;
  host: JobHost | null;
  /** Whether it counts as one that may be slow. Kept by the host. */
  unproven: boolean;

  /** Starts. At its end it tells its host, exactly once. Must not throw. */
  start(resource: object): void;
  /** Learns, after its end, whether it was quick, for its kind. Must not throw. */
  measured(quick: boolean): void;
}

/** A job that waits, as whoever gave it sees it. */
export interface WaitingJob {
  /** Takes it back and refuses it; false when it does not wait any more. */
  withdraw(reason: unknown): boolean;
}

/** A job that waits for a connection, in the same queue as the callers of getconn. */
export class JobWaiter<T> extends Waiter<T> implements WaitingJob {
  readonly job: Job;
  /** Its neighbours among the jobs that wait; kept by {@linkcode JobLine}. */
  before: JobWaiter<T> | null = null;
  behind: JobWaiter<T> | null = null;
  readonly #line: JobLine<T>;

  /** Stands at the end of `line` until it waits no more. */
  constructor(job: Job, line: JobLine<T>, options: WaiterOptions<T>, since: number) {
    super(options, since);
    this.job = job;
    this.#line = line;
    line.add(this);
  }

  /** Resolves when it waits no more. */
  whenOver(): Promise<void> {
    return new Promise((resolve) => this.onended = () => resolve());
  }

  /** Takes it out to be started; false when it has left. */
  take(): boolean {
    // There is no value: the job is started by whoever takes it.
    return this.accept(undefined as T);
  }

  protected override settling(): void {
    this.#line.delete(this);
  }

  protected override refused(reason: unknown): void {
    this.job.refuse(reason);
  }
}

/** The jobs that wait, in their order, without the callers between them. */
export class JobLine<T> {
  /** How many. */
  size = 0;
  /** The one that waits longest. */
  first: JobWaiter<T> | null = null;
  #last: JobWaiter<T> | null = null;

  /** At the end. */
  add(one: JobWaiter<T>): void {
    one.before = this.#last;
    if (this.#last === null) this.first = one;
    else this.#last.behind = one;
    this.#last = one;
    this.size++;
  }

  /** From anywhere. To be called once for each. */
  delete(one: JobWaiter<T>): void {
    if (one.before === null) this.first = one.behind;
    else one.before.behind = one.behind;
    if (one.behind === null) this.#last = one.before;
    else one.behind.before = one.before;
    one.before = one.behind = null;
    this.size--;
  }
}
