/** Work that needs a connection, but not one of its own. */

import type { PoolEntry } from "./entry.ts";
import { Waiter, type WaiterOptions } from "./wait_queue.ts";

/** Who runs jobs. */
export interface JobHost {
  /** A job has ended; `spoilt` when its connection must not be used again. */
  ended(job: Job, spoilt: boolean): void;
}

/** A piece of work that may run beside others on one connection, such as a single statement. */
export abstract class Job {
  /** Where it runs, and who runs it there; both kept by the latter. */
  entry: PoolEntry<object> | null = null;
  host: JobHost | null = null;
  /** Runs a function as whoever gave it; null when nobody listens. */
  scope: ((fn: () => void) => void) | null = null;
  /** Whether it counts as one that may be slow. */
  unproven = false;

  /** Whether its kind has always been quick of late: then others may be sent behind it. */
  abstract readonly proven: boolean;
  /** Begins. At its end it calls {@linkcode Job.finished} exactly once. Must not throw. */
  abstract start(resource: object): void;
  /** Learns, after its end, whether it was quick, for its kind. Must not throw. */
  abstract measured(quick: boolean): void;
  /** It will not be begun. Must not throw. */
  abstract refuse(reason: unknown): void;

  /** It has ended; with true the connection must not be used again. */
  protected finished(spoilt: boolean): void {
    this.host!.ended(this, spoilt);
  }
}

/** A job that waits for a connection, in the same queue as the callers of getconn. */
export class JobWaiter<T> extends Waiter<T> {
  readonly job: Job;
  /** Its neighbours among the jobs that wait; kept by {@linkcode JobLine}. */
  before: JobWaiter<T> | null = null;
  behind: JobWaiter<T> | null = null;
  readonly #line: JobLine<T>;
  #over: (() => void) | null = null;

  /** Stands at the end of `line` until it waits no more. */
  constructor(job: Job, line: JobLine<T>, options: WaiterOptions<T>, since: number) {
    super(options, since);
    this.job = job;
    this.#line = line;
    line.add(this);
  }

  /** Resolves when it waits no more. */
  over(): Promise<void> {
    return new Promise((resolve) => this.#over = resolve);
  }

  /** Takes it out to be started; false when it has left. */
  take(): boolean {
    // There is no value: the job is started by whoever takes it.
    return this.accept(undefined as T);
  }

  protected override served(): void {
    this.#line.delete(this);
    this.#over?.();
  }

  protected override refused(reason: unknown): void {
    this.served();
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
