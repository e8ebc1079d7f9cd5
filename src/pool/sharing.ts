/** Many statements on few connections: lets many jobs run at once on a shared connection. */

import { queueMicrotask } from "../clock.ts";
import type { PoolState } from "./state.ts";
import { PoolClosed } from "./errors.ts";
import {
  type Job,
  type JobHost,
  JobLine,
  JobWaiter,
  type RunningJob,
  type WaitingJob,
} from "./jobs.ts";
import type { Connections } from "./connections.ts";
import type { PoolEntry } from "./entry.ts";
import type { Requests } from "./requests.ts";
import { snapshotContext } from "../runtime.ts";
import type { RemoveReason } from "./types.ts";

/** An answer is late after this many times what the quickest took of late, and so many milliseconds more. */
const LATE_TIMES = 3;
const LATE_SLACK = 5;
/** How much of a reading enters what counts as usual, and of a slower one what counts as the quickest of late. */
const SHARE = 1 / 64;
/** Among more connections than these not all are compared for each job. */
const MOST_COMPARED = 8;

/** What sharing needs of the connections. */
type SharedConnections = Pick<Connections<object>, "atHand" | "share" | "status" | "retire">;

/** What sharing needs of those who wait. */
type SharingRequests<C extends object> = Pick<
  Requests<C>,
  "queue" | "enterJob" | "takeOut" | "next" | "refuseAbove" | "announce"
>;

/** What sharing asks of the core. */
export interface SharingCore {
  /** Why a connection must not be used again, or null. */
  judge(entry: PoolEntry, now: number): RemoveReason | null;
  /** Takes back a connection that is fit for anybody. */
  place(entry: PoolEntry, now: number): Promise<void>;
  /** Takes back a connection that has to be rolled back. */
  clean(entry: PoolEntry): Promise<void>;
  /** Serves who waits, as far as possible. */
  pump(): void;
}

/**
 * Runs jobs on shared connections.
 *
 * A job gets an idle connection; else, as long as the pool may grow, a new one; else the connection
 * with the fewest jobs in flight, of those that have room. What finds no room waits in the callers'
 * own queue, where every connection may take it, so that neither side starves. While callers of
 * getconn wait, as many shared connections as they need take no new jobs.
 *
 * Room is what keeps quick jobs from waiting behind slow ones, as what is sent cannot be moved. A
 * connection has room while it has answered just now; up to its window, which begins with one job, grows
 * with each quick answer that filled it, and falls to one when an answer is late; and only behind jobs
 * whose kind is proven quick. What is late is measured by the quickest answers of late: the way to the
 * server may be long.
 *
 * Invariant: what is in `#shared` is in the state `shared`, or has jobs in flight that will fail.
 */
export class Sharing<C extends object> implements JobHost {
  /** How many jobs one connection takes. */
  depth: number = Infinity;

  readonly #state: PoolState<C>;
  readonly #connections: SharedConnections;
  readonly #requests: SharingRequests<C>;
  readonly #core: SharingCore;
  readonly #shared: PoolEntry[] = [];
  /** How long the quickest answers take of late, on a connection that has nothing else to do. Milliseconds. */
  #roundTrip = Infinity;
  /** How much more each further answer takes, which may be our own work: the process is busy, and no server slow. */
  #perAnswer = 0.05;
  /** How many jobs are in flight on all connections: one process has the work with all of them. */
  #inFlight = 0;
  /** How many answers there were. */
  #answers = 0;
  /** Where the search for a connection begins, when there are many. */
  #next = 0;
  /** Jobs that wait for a connection, the oldest first. */
  readonly #waiting = new JobLine<C>();
  /** Connections whose jobs are to be counted after this turn. */
  readonly #toSettle = new Set<PoolEntry>();

  constructor(
    state: PoolState<C>,
    connections: SharedConnections,
    requests: SharingRequests<C>,
    core: SharingCore,
  ) {
    this.#state = state;
    this.#connections = connections;
    this.#requests = requests;
    this.#core = core;
  }

  /** How many jobs wait for a connection. */
  get waiting(): number {
    return this.#waiting.size;
  }

  /**
   * Runs a job as soon as possible; `again` when it was taken before, and is finished also while the pool closes.
   * Returns what takes it back while it waits; null when it does not.
   */
  submit(job: Job, again = false): WaitingJob | null {
    const { phase } = this.#state;
    if (phase !== "open" && !(again && phase === "draining")) {
      job.refuse(new PoolClosed(this.#state.errorContext()));
      return null;
    }
    // A host asks at `release` which request that is.
    if (this.#state.heard("release")) job.scope = snapshotContext();
    const now = this.#state.clock.now();
    let entry = this.#requests.queue.size === 0 ? this.#connections.atHand(now) : null;
    const fresh = entry !== null;
    if (entry !== null) this.#share(entry);
    else if (!this.#mayGrow) {
      // After an answer whoever awaited it comes again before the answer is counted: not before those who wait.
      this.#fill(now);
      // Those who wait have found none just now.
      if (this.#waiting.size === 0 || this.#state.coming.count > 0) entry = this.#roomiest(now);
    }
    if (entry !== null) {
      this.#start(entry, job, now);
      if (fresh) this.#tellShare();
      return null;
    }
    return this.#wait(job, now);
  }

  /** Gives a connection to a job that was taken out of the queue, and to its fair share of the others. */
  serve(entry: PoolEntry, waiter: JobWaiter<C>, now: number): boolean {
    const waiting = this.#waiting.size;
    if (!waiter.take()) return false;
    this.#share(entry);
    this.#begin(entry, waiter, now);
    // What is on its way takes its part of those who wait.
    const part = Math.ceil(waiting / (1 + this.#state.coming.count));
    const { queue } = this.#requests;
    const most = Math.min(part, this.depth, entry.window);
    while (
      entry.inFlight < most && entry.unproven === 0 && queue.first instanceof JobWaiter &&
      this.#takesMore(entry)
    ) {
      const next = queue.first;
      this.#requests.next();
      if (next.take()) this.#begin(entry, next, now);
    }
    this.#tellShare();
    return true;
  }

  /** An attempt to connect failed. As in the driver, nobody who set no limit waits for the next one. */
  failed(error: unknown): void {
    if (this.#state.options.timeout > 0 || this.#state.size > 0) return;
    const waiting: JobWaiter<C>[] = [];
    for (let one = this.#waiting.first; one !== null; one = one.behind) waiting.push(one);
    for (const one of waiting) one.withdraw(error);
  }

  /** Starts the jobs that may wait no longer for something better. */
  fill(): void {
    if (this.#waiting.size > 0) this.#fill(this.#state.clock.now());
  }

  #fill(now: number): void {
    if (this.#waiting.size === 0) return;
    const { failure } = this.#state;
    // Other isolates have idle connections, and give up what is wanted here.
    const { coming } = this.#state;
    if (coming.count === 0 && this.#state.prospects() > 0 && failure === null) return;
    for (let waiter = this.#waiting.first; waiter !== null; waiter = this.#waiting.first) {
      if (coming.count > 0 && this.#patienceWith(waiter) > 0) return;
      const entry = this.#roomiest(now);
      if (entry === null) return;
      this.#requests.takeOut(waiter);
      if (waiter.take()) this.#begin(entry, waiter, now);
    }
  }

  /**
   * In how many milliseconds the oldest job will have waited for so long that what is on its way to
   * it may hang; Infinity when nothing is, or that time is over.
   */
  overdueIn(): number {
    const oldest = this.#waiting.first;
    const left = oldest === null || this.#state.coming.count === 0 ? 0 : this.#patienceWith(oldest);
    return left > 0 ? Math.ceil(left) : Infinity;
  }

  #patienceWith(waiter: JobWaiter<C>): number {
    return waiter.since + this.#state.growth.patience - this.#state.clock.now();
  }

  get #mayGrow(): boolean {
    const { permits, failure, elsewhere } = this.#state;
    if (failure !== null) return false;
    return permits.held + elsewhere < permits.limit || this.#state.prospects() > 0;
  }

  #wait(job: Job, now: number): WaitingJob | null {
    const { hooks, counters } = this.#state;
    const vain = this.#state.vainInHook("pool.sql");
    if (vain !== null) {
      counters.requestsNum++;
      counters.requestsErrors++;
      job.refuse(vain);
      return null;
    }
    // Others wait, nothing is on its way and nothing can be: all has been done for those, and this one stands behind them.
    const still = this.#waiting.size > 0 && this.#state.still;
    const waiter = this.#requests.enterJob(job, this.#waiting, now);
    if (hooks.here !== null) hooks.waits(hooks.here, waiter.whenOver());
    if (!still) {
      this.#core.pump();
      this.fill();
    }
    this.#requests.refuseAbove(waiter);
    this.#requests.announce(waiter);
    return waiter.settled ? null : waiter;
  }

  /**
   * The shared connection to which a new job goes: the one with the fewest, after those that are
   * left alone for callers of getconn. Null when none may take one.
   */
  #roomiest(now: number): PoolEntry | null {
    // Callers that want a connection of their own, and for whom none is on its way.
    const callers = this.#requests.queue.size - this.#waiting.size;
    const spared = Math.max(0, callers - this.#state.coming.count);
    const shared = this.#shared;
    if (spared >= shared.length) return null;
    if (spared === 0) return this.#best(now);
    const byLoad = shared.map((entry) => ({ entry, load: this.#load(entry, now) }))
      .sort((a, b) => a.load - b.load);
    const next = byLoad[spared];
    return next === undefined || next.load === Infinity ? null : next.entry;
  }

  /** The connection with the least load; among many, a good one. */
  #best(now: number): PoolEntry | null {
    const shared = this.#shared;
    const { length } = shared;
    let best: PoolEntry | null = null;
    let bestLoad = Infinity;
    let compared = 0;
    for (let i = 0; i < length && (compared < MOST_COMPARED || best === null); i++) {
      const entry = shared[(this.#next + i) % length]!;
      // No better, whatever else there is to say of it.
      const its = entry.inFlight < bestLoad ? this.#load(entry, now) : bestLoad;
      if (its === Infinity) continue;
      compared++;
      if (its >= bestLoad) continue;
      best = entry;
      bestLoad = its;
    }
    this.#next = (this.#next + 1) % Math.max(1, length);
    return best;
  }

  /** How bad a connection is for one more job; Infinity when it has no room. */
  #load(entry: PoolEntry, now: number): number {
    if (entry.state !== "shared") return Infinity;
    if (entry.inFlight === 0) {
      if (!this.#isClean(entry)) return Infinity;
    } else if (
      entry.inFlight >= entry.window || entry.inFlight >= this.depth || entry.unproven > 0 ||
      now - entry.answeredAt > this.#lateAfter(this.#inFlight)
    ) return Infinity;
    // Also where all is answered: the server may not be done with it, or a cancel request be on its way.
    if (!this.#takesMore(entry)) return Infinity;
    const reason = this.#core.judge(entry, now);
    if (reason !== null) {
      // Said once: the answer may have begun a successor.
      if (reason === "lifetime") entry.expiresAt = -Infinity;
      return Infinity;
    }
    return entry.inFlight;
  }

  /** After how many milliseconds so many answers are late. */
  #lateAfter(answers: number): number {
    // A connect takes more than one round trip: so the first answer of all cannot be late and count as usual.
    const usual = Math.min(this.#roundTrip, this.#state.growth.connect);
    return LATE_SLACK + LATE_TIMES * ((usual === Infinity ? 0 : usual) + answers * this.#perAnswer);
  }

  #share(entry: PoolEntry): void {
    this.#connections.share(entry);
    if (!this.#shared.includes(entry)) this.#shared.push(entry);
    entry.sharedSince = this.#state.clock.now();
  }

  #tellShare(): void {
    const { counts } = this.#state;
    if (this.#state.heard("share")) this.#state.tell("share", { shared: counts.shared });
  }

  #begin(entry: PoolEntry, waiter: JobWaiter<C>, now: number): void {
    this.#state.counters.requestsWaitMs += Math.max(0, now - waiter.since);
    this.#start(entry, waiter.job, now);
  }

  #start(entry: PoolEntry, job: Job, now: number): void {
    // With answers that are not yet counted its time goes on.
    if (entry.inFlight++ === 0 && entry.answers === 0) this.#beginTime(entry, now);
    this.#inFlight++;
    if (job.scope !== null) entry.scope = job.scope;
    const running = job.begin();
    running.entry = entry;
    running.host = this;
    running.unproven = !job.proven;
    if (running.unproven) entry.unproven++;
    running.start(entry.resource as object);
  }

  /** How many shared connections can be counted on to be free soon, as no more jobs are begun while someone waits. */
  get soonFree(): number {
    let n = 0;
    for (const { state, stalled } of this.#shared) if (state === "shared" && !stalled) n++;
    return n;
  }

  /** Since when the one of those is at work that has given no answer for longest; Infinity when there is none. */
  get oldest(): number {
    let oldest = Infinity;
    for (const { stalled, answeredAt } of this.#shared) {
      if (!stalled) oldest = Math.min(oldest, answeredAt);
    }
    return oldest;
  }

  /** Counts no more on what has given no answer since `before`. */
  doubt(before: number): void {
    for (const entry of this.#shared) if (entry.answeredAt <= before) entry.stalled = true;
  }

  #beginTime(entry: PoolEntry, now: number): void {
    entry.answeredAt = now;
    entry.stalled = false;
    entry.answersBefore = this.#answers;
  }

  ended(job: RunningJob, spoilt: boolean): void {
    const entry = job.entry!;
    entry.inFlight--;
    this.#inFlight--;
    this.#answers++;
    if (job.unproven) entry.unproven--;
    if (spoilt) entry.spoilt = true;
    // What is answered in one turn was under way together: the time before it is the first one's.
    if (entry.answers++ === 0) entry.answered = job;
    else job.measured(true);
    // After this turn: the engine is in the middle of the answers.
    if (this.#toSettle.size === 0) queueMicrotask(this.#settleAll);
    this.#toSettle.add(entry);
  }

  readonly #settleAll = (): void => {
    const entries = [...this.#toSettle];
    this.#toSettle.clear();
    const now = this.#state.clock.now();
    // All before the first is released: what that starts elsewhere begins a new time there.
    for (const entry of entries) this.#measure(entry, now);
    for (const entry of entries) {
      if (entry.inFlight === 0 || entry.state !== "shared") this.#release(entry, now);
    }
    this.fill();
  };

  /** Learns from the answers of one turn how many jobs a connection can be given at once. */
  #measure(entry: PoolEntry, now: number): void {
    const { answers, answered } = entry;
    entry.answers = 0;
    entry.answered = null;
    const took = now - entry.answeredAt;
    const all = this.#answers - entry.answersBefore;
    this.#beginTime(entry, now);
    const quick = took <= this.#lateAfter(this.#inFlight + answers);
    answered?.measured(quick);
    if (!quick) entry.window = 1;
    else if (entry.inFlight + answers >= entry.window) {
      entry.window = Math.min(entry.window + answers, this.depth);
    }
    if (all > 1) {
      if (quick) this.#perAnswer += (took / all - this.#perAnswer) * SHARE;
    } else if (entry.inFlight === 0) this.#roundTrip = quickest(this.#roundTrip, took);
  }

  /** Nothing is in flight any more: the connection is everybody's again. */
  #release(entry: PoolEntry, now: number): void {
    if (entry.state === "shared") {
      if (this.#connections.status(entry) === "active") return this.#waitForQuiet(entry);
      if (!this.#isClean(entry)) {
        this.#forget(entry);
        // Whoever heard of it may have closed the pool.
        return entry.state === "shared" ? void this.#core.clean(entry) : undefined;
      }
    }
    this.#forget(entry);
    if (entry.state === "shared") void this.#core.place(entry, now);
  }

  /** What the connector says of it. */
  #takesMore(entry: PoolEntry): boolean {
    return this.#state.connector.shares?.(entry.resource as object) !== false;
  }

  /** False when the last job has left a transaction open. */
  #isClean(entry: PoolEntry): boolean {
    const status = this.#connections.status(entry);
    return status !== "intrans" && status !== "inerror";
  }

  #forget(entry: PoolEntry): void {
    const at = this.#shared.indexOf(entry);
    if (at < 0) return;
    this.#shared.splice(at, 1);
    if (!this.#state.heard("release")) return;
    const used = this.#state.clock.now() - entry.sharedSince;
    const tell = (): void => this.#state.tell("release", { key: null, used, shared: true });
    const { scope } = entry;
    entry.scope = null;
    if (scope === null) tell();
    else scope(tell);
  }

  /** The jobs are settled, but the server is not done with them: such as rows that could not be read. */
  #waitForQuiet(entry: PoolEntry): void {
    const { connector } = this.#state;
    const look = (): void => {
      if (entry.state !== "shared" || entry.inFlight > 0) return;
      if (this.#connections.status(entry) === "active") {
        this.#forget(entry);
        void this.#connections.retire(entry, "dirty");
      } else this.#release(entry, this.#state.clock.now());
    };
    const quiet = connector.quiet?.(entry.resource as object) ?? Promise.resolve();
    quiet.then(look, look);
  }
}

/** The quickest of late: a quicker reading counts at once, a slower one little by little. */
function quickest(before: number, reading: number): number {
  return reading < before ? reading : before + (reading - before) * SHARE;
}
