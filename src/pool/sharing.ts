/** Lets many jobs run at once on a few connections: the counterpart of lending. */

import type { PoolContext } from "./state.ts";
import type { Demand } from "./requests.ts";
import { PoolClosed } from "./errors.ts";
import type { Fitness } from "./fitness.ts";
import { type Job, JobWaiter } from "./job.ts";
import type { PoolEntry } from "./entry.ts";
import type { Supply } from "./connections.ts";
import { snapshotContext } from "../runtime.ts";
import type { RemoveReason } from "./types.ts";

/** A connection that has not answered for so long gets new jobs only when all others are full. Milliseconds. */
const STALLED_AFTER = 50;

type Entry = PoolEntry<object>;

/** What sharing needs of the desk at which connections are lent. */
export interface Desk<C extends object> {
  readonly supply: Supply<C>;
  /** New callers are let in only while it is `open`. */
  readonly phase: "open" | "draining" | "closed";
  /** Finds idle connections that can be used at once. */
  readonly fitness: Fitness<C>;
  /** Why a connection must not be used again, or null. */
  unfit(entry: Entry, now: number): RemoveReason | null;
  /** Takes back a connection that is fit for anybody. */
  place(entry: Entry, now: number): Promise<void>;
  /** Takes back a connection that has to be rolled back. */
  clean(entry: Entry): Promise<void>;
  /** Serves who waits, as far as possible. */
  pump(): void;
  /** Somebody left the queue without a connection. */
  left(): void;
}

/**
 * Runs jobs on shared connections.
 *
 * A job gets an idle connection; else, as long as the pool may grow, a new one; else the connection
 * with the fewest jobs in flight. While callers of getconn wait, as many shared connections as they
 * need take no new jobs; jobs without a connection wait in the callers' own queue, so that neither
 * side starves.
 *
 * Invariant: what is in `#shared` is in the state `shared`, or has jobs in flight that will fail.
 */
export class Sharing<C extends object> {
  /** How many jobs one connection takes. */
  depth: number = Infinity;

  readonly #context: PoolContext<C>;
  readonly #demand: Demand<C>;
  readonly #desk: Desk<C>;
  readonly #shared: Entry[] = [];
  /** Jobs that wait for a connection, the oldest first. */
  readonly #waiting = new Set<JobWaiter<C>>();
  /** Runs a function as whoever gave the last job: a host asks at `release` which request that is. */
  #scope: ((fn: () => void) => void) | null = null;
  /** Connections whose jobs are to be counted after this turn. */
  readonly #toSettle = new Set<Entry>();

  constructor(context: PoolContext<C>, demand: Demand<C>, desk: Desk<C>) {
    this.#context = context;
    this.#demand = demand;
    this.#desk = desk;
  }

  /** How many jobs wait for a connection. */
  get waiting(): number {
    return this.#waiting.size;
  }

  /** Runs a job as soon as possible. Returns how to take it back while it waits; null when it does not. */
  submit(job: Job): ((reason: unknown) => boolean) | null {
    const desk = this.#desk;
    if (desk.phase !== "open") {
      job.refuse(new PoolClosed(this.#context.errorContext()));
      return null;
    }
    if (this.#context.heard("release")) this.#scope = snapshotContext();
    const now = this.#context.clock.now();
    let entry = this.#demand.queue.size === 0 ? desk.fitness.atHand(now) : null;
    const fresh = entry !== null;
    if (entry !== null) this.#share(entry);
    else if (!this.#mayGrow) {
      // After an answer whoever awaited it comes again before the answer is counted: not before those who wait.
      this.fill();
      entry = this.#roomiest(now);
    }
    if (entry !== null) {
      this.#start(entry, job, now);
      if (fresh) this.#tellShare();
      return null;
    }
    return this.#wait(job);
  }

  /** Gives a connection to a job that was taken out of the queue, and to its fair share of the others. */
  serve(entry: Entry, waiter: JobWaiter<C>, now: number): boolean {
    const waiting = this.#waiting.size;
    if (!waiter.take()) return false;
    this.#share(entry);
    this.#begin(entry, waiter, now);
    // What is on its way takes its part of those who wait.
    const part = Math.ceil(waiting / (1 + this.#context.coming.count));
    const { queue } = this.#demand;
    while (entry.inFlight < Math.min(part, this.depth) && queue.first instanceof JobWaiter) {
      const next = queue.first;
      this.#demand.next();
      if (next.take()) this.#begin(entry, next, now);
    }
    this.#tellShare();
    return true;
  }

  /** An attempt to connect failed. As in the driver, nobody who set no limit waits for the next one. */
  failed(error: unknown): void {
    if (this.#context.options.timeout > 0 || this.#context.size > 0) return;
    for (const waiter of [...this.#waiting]) this.#remove(waiter, error);
  }

  /** Starts the jobs that may wait no longer for something better. */
  fill(): void {
    if (this.#waiting.size === 0) return;
    const { failure } = this.#context;
    // Other isolates have idle connections, and give up what is wanted here.
    const { coming, prospects } = this.#context;
    if (coming.count === 0 && prospects > 0 && failure === null) return;
    const now = this.#context.clock.now();
    for (const waiter of this.#waiting) {
      if (coming.count > 0 && this.#patienceWith(waiter) > 0) return;
      const entry = this.#roomiest(now);
      if (entry === null) return;
      this.#demand.leave(waiter);
      if (waiter.take()) this.#begin(entry, waiter, now);
    }
  }

  /**
   * In how many milliseconds the oldest job will have waited for so long that what is on its way to
   * it may hang; Infinity when nothing is, or that time is over.
   */
  overdueIn(): number {
    const oldest = this.#waiting.values().next().value;
    const left = oldest === undefined || this.#context.coming.count === 0
      ? 0
      : this.#patienceWith(oldest);
    return left > 0 ? Math.ceil(left) : Infinity;
  }

  #patienceWith(waiter: JobWaiter<C>): number {
    return waiter.since + this.#context.pace.patience - this.#context.clock.now();
  }

  get #mayGrow(): boolean {
    const { permits, failure, elsewhere } = this.#context;
    if (failure !== null) return false;
    return permits.held + elsewhere < permits.limit || this.#context.prospects > 0;
  }

  #wait(job: Job): ((reason: unknown) => boolean) | null {
    const waiter = this.#demand.enterJob(job, (left) => this.#waiting.delete(left));
    this.#waiting.add(waiter);
    this.#desk.pump();
    this.fill();
    this.#demand.refuseAbove(waiter);
    return waiter.settled ? null : (reason) => this.#remove(waiter, reason);
  }

  #remove(waiter: JobWaiter<C>, reason: unknown): boolean {
    if (waiter.settled) return false;
    this.#demand.leave(waiter);
    const refused = waiter.refuse(reason);
    if (refused) this.#context.counters.requestsErrors++;
    this.#desk.left();
    return refused;
  }

  /**
   * The shared connection to which a new job goes: the one with the fewest, after those that are
   * left alone for callers of getconn. Null when none may take one.
   */
  #roomiest(now: number): Entry | null {
    // Callers that want a connection of their own, and for whom none is on its way.
    const callers = this.#demand.queue.size - this.#waiting.size;
    const spared = Math.max(0, callers - this.#context.coming.count);
    const shared = this.#shared;
    if (spared >= shared.length) return null;
    if (spared === 0) {
      let best: Entry | null = null;
      let bestLoad = Infinity;
      for (const entry of shared) {
        const load = this.#load(entry, now);
        if (load < bestLoad) [best, bestLoad] = [entry, load];
      }
      return best;
    }
    const byLoad = shared.map((entry) => ({ entry, load: this.#load(entry, now) }))
      .sort((a, b) => a.load - b.load);
    const next = byLoad[spared];
    return next === undefined || next.load === Infinity ? null : next.entry;
  }

  /** How bad a connection is for one more job; Infinity when it takes none. */
  #load(entry: Entry, now: number): number {
    if (entry.inFlight >= this.depth || entry.state !== "shared") return Infinity;
    if (entry.inFlight === 0 && !this.#clean(entry)) return Infinity;
    const reason = this.#desk.unfit(entry, now);
    if (reason !== null) {
      // Said once: the answer may have begun a successor.
      if (reason === "lifetime") entry.expiresAt = -Infinity;
      return Infinity;
    }
    return now - entry.answeredAt > STALLED_AFTER ? 1e6 + entry.inFlight : entry.inFlight;
  }

  #share(entry: Entry): void {
    this.#desk.supply.share(entry);
    if (!this.#shared.includes(entry)) this.#shared.push(entry);
    entry.sharedSince = this.#context.clock.now();
  }

  #tellShare(): void {
    const { states } = this.#context;
    if (this.#context.heard("share")) this.#context.tell("share", { shared: states.shared });
  }

  #begin(entry: Entry, waiter: JobWaiter<C>, now: number): void {
    this.#context.counters.requestsWaitMs += this.#context.clock.now() - waiter.since;
    this.#start(entry, waiter.job, now);
  }

  #start(entry: Entry, job: Job, now: number): void {
    if (entry.inFlight++ === 0) entry.answeredAt = now;
    job.start(entry.resource as object, (spoilt) => this.#done(entry, spoilt));
  }

  #done(entry: Entry, spoilt: boolean): void {
    entry.inFlight--;
    if (spoilt) entry.spoilt = true;
    // After this turn: the driver is in the middle of the answer.
    if (this.#toSettle.size === 0) queueMicrotask(this.#settleAll);
    this.#toSettle.add(entry);
  }

  readonly #settleAll = (): void => {
    const entries = [...this.#toSettle];
    this.#toSettle.clear();
    const now = this.#context.clock.now();
    for (const entry of entries) {
      entry.answeredAt = now;
      if (entry.inFlight === 0 || entry.state !== "shared") this.#release(entry, now);
    }
    this.fill();
  };

  /** Nothing is in flight any more: the connection is everybody's again. */
  #release(entry: Entry, now: number): void {
    if (entry.state === "shared") {
      if (this.#desk.supply.status(entry) === "active") return this.#waitForQuiet(entry);
      if (!this.#clean(entry)) {
        this.#forget(entry);
        // Whoever heard of it may have closed the pool.
        return entry.state === "shared" ? void this.#desk.clean(entry) : undefined;
      }
    }
    this.#forget(entry);
    if (entry.state === "shared") void this.#desk.place(entry, now);
  }

  /** False when the last job has left a transaction open. */
  #clean(entry: Entry): boolean {
    const status = this.#desk.supply.status(entry);
    return status !== "intrans" && status !== "inerror";
  }

  #forget(entry: Entry): void {
    const at = this.#shared.indexOf(entry);
    if (at < 0) return;
    this.#shared.splice(at, 1);
    if (!this.#context.heard("release")) return;
    const used = this.#context.clock.now() - entry.sharedSince;
    const tell = (): void => this.#context.tell("release", { key: null, used, shared: true });
    if (this.#scope === null) tell();
    else this.#scope(tell);
  }

  /** The jobs are settled, but the server is not done with them: such as rows that could not be read. */
  #waitForQuiet(entry: Entry): void {
    const { connector } = this.#context;
    const look = (): void => {
      if (entry.state !== "shared" || entry.inFlight > 0) return;
      if (this.#desk.supply.status(entry) === "active") {
        this.#forget(entry);
        void this.#desk.supply.retire(entry, "dirty");
      } else this.#release(entry, this.#context.clock.now());
    };
    const quiet = connector.quiet?.(entry.resource as object) ?? Promise.resolve();
    quiet.then(look, look);
  }
}
