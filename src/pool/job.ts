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

function ignore(): void {}

/** A job that waits for a connection, in the same queue as the callers of getconn. */
export class JobWaiter<T> extends Waiter<T> {
  readonly job: Job;
  readonly #left: (waiter: JobWaiter<T>) => void;

  /** `left` is called when it waits no more, before the job hears of it. */
  constructor(job: Job, options: WaiterOptions<T>, left: (waiter: JobWaiter<T>) => void) {
    super(options);
    this.job = job;
    this.#left = left;
    // The job is told by `refuse`; of the promise nobody knows.
    this.promise.catch(ignore);
  }

  /** Sends the job away; false when it has left. */
  override refuse(reason: unknown): boolean {
    if (!super.refuse(reason)) return false;
    this.#left(this);
    this.job.refuse(reason);
    return true;
  }

  /** Takes it out to be started; false when it has left. */
  take(): boolean {
    // There is no value: the job is started by whoever takes it.
    if (!this.accept(undefined as T)) return false;
    this.#left(this);
    return true;
  }
}
