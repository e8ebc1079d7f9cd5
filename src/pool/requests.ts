/** Who waits, and what is opened for them: the queue, the refusals, and how failures to connect are told. */

import {
  hintOf,
  PoolClosed,
  PoolError,
  PoolExhausted,
  PoolTimeout,
  reasonOf,
  TooManyWaiting,
} from "./errors.ts";
import type { PoolState } from "./state.ts";
import { holders, opening } from "./describe.ts";
import type { WaitEnd } from "./events.ts";
import { type Job, type JobLine, JobWaiter } from "./jobs.ts";
import {
  Caller,
  Deadlines,
  Signals,
  type Waiter,
  type WaiterOptions,
  WaitQueue,
} from "./wait_queue.ts";
import { ownPause } from "./growth.ts";
import type { WaitOptions } from "./options.ts";

/** What is to be known of the connections that jobs share. */
interface Shared {
  readonly soonFree: number;
  readonly oldest: number;
  doubt(before: number): void;
}

/**
 * The side of the pool that wants connections.
 *
 * Invariant: a waiter with `timeout: 0` stays in the queue only while a connection is on its way to it.
 */
export class Requests<C extends object> {
  readonly queue: WaitQueue<C> = new WaitQueue();
  readonly #state: PoolState<C>;
  readonly #onleft: () => void;
  readonly #shared: () => Shared;
  readonly #deadlines: Deadlines;
  readonly #signals = new Signals();
  /** All jobs wait in the same way. */
  readonly #jobOptions: WaiterOptions<C>;
  /** What was said last of those who hold the connections, and when. */
  #holders = "";
  /** Whether anybody held one. */
  #isHeld = false;
  #holdersAt = -Infinity;
  /** When the newest connect was begun that has come up. */
  #provenAt = -Infinity;

  /** `onleft` is called when somebody has left the queue without a connection. */
  constructor(state: PoolState<C>, onleft: () => void, shared: () => Shared) {
    this.#state = state;
    this.#shared = shared;
    this.#deadlines = new Deadlines(state.clock);
    const { timeout } = state.options;
    this.#jobOptions = {
      key: null,
      timeout: timeout === 0 ? Infinity : timeout,
      signal: undefined,
      stays: true,
      deadlines: this.#deadlines,
      signals: this.#signals,
      expired: this.#timeout,
      leave: this.#leave,
      left: this.#left,
    };
    this.#onleft = onleft;
  }

  /** Queues a caller; whoever calls this pumps and then calls `refuseAbove`. */
  enter(
    key: unknown,
    options: WaitOptions | null,
    stays: boolean,
    stack: string | null,
  ): Caller<C> {
    const waiter = new Caller<C>({
      key,
      timeout: options?.timeout ?? this.#state.options.timeout,
      signal: options?.signal,
      stack,
      stays,
      deadlines: this.#deadlines,
      signals: this.#signals,
      expired: this.#timeout,
      leave: this.#leave,
      left: this.#left,
    });
    this.#enter(waiter, options?.timeout ?? this.#state.options.timeout);
    return waiter;
  }

  /** Queues a job that has no connection. Without a `timeout` of the pool it waits for as long as it takes. */
  enterJob(job: Job, line: JobLine<C>, now: number): JobWaiter<C> {
    this.#state.counters.requestsNum++;
    const waiter = new JobWaiter<C>(job, line, this.#jobOptions, now);
    this.#enter(waiter, this.#jobOptions.timeout);
    return waiter;
  }

  #enter(waiter: Waiter<C>, timeout: number): void {
    const { backoff } = this.#state;
    this.#state.counters.requestsQueued++;
    // Someone asks: what the background has given up is worth another try.
    if (backoff.gaveUp) backoff.revive(waiter.since);
    if (backoff.troubled) backoff.asked(timeout);
    this.queue.push(waiter);
    this.#counted();
  }

  /** Takes out a job, to be started or sent away at once. */
  takeOut(waiter: JobWaiter<C>): void {
    this.queue.remove(waiter);
    this.#counted();
    this.lackLess();
  }

  /** Takes out who waits longest; to be given a connection at once. */
  next(): Waiter<C> | null {
    const waiter = this.queue.shift();
    this.#counted();
    return waiter;
  }

  /** Hands a connection to a waiter that was taken out, and to all who wait for the same key; false when all have left. */
  satisfy(waiter: Waiter<C>, handle: C, now: number): boolean {
    let taken = this.#accepts(waiter, handle, now);
    if (waiter.followers !== null) {
      for (const one of waiter.followers) taken = this.#accepts(one, handle, now) || taken;
    }
    this.lackLess();
    return taken;
  }

  #accepts(waiter: Waiter<C>, handle: C, now: number): boolean {
    if (!waiter.accept(handle)) return false;
    this.#state.counters.requestsWaitMs += now - waiter.since;
    return true;
  }

  /** Sends away a waiter that was taken out, and all who wait for the same key. */
  disappoint(waiter: Waiter<C>, error: unknown): void {
    for (const one of [waiter, ...waiter.followers ?? []]) {
      if (one.refuse(error)) this.#state.counters.requestsErrors++;
    }
  }

  /**
   * How many connections to open now: for waiters, as many as will not be served sooner by what
   * comes back, but one for each that does not wait; and up to minconn. While connecting fails, or gives no sign, one at a
   * time, and one for each caller that does not wait and has nobody before it that does.
   */
  wanted(): number {
    const { counts, growth, permits } = this.#state;
    const { count: coming } = this.#state.coming;
    const wanted = Math.max(
      growth.wanted(this.queue.size - coming, this.#connecting, counts.leased),
      // One more than there can ever be says as much as any number above.
      this.queue.lastImpatient(coming + permits.limit + 1) - coming,
      this.#missing,
    );
    if (!this.#state.backoff.troubled) return wanted;
    const due = this.#trying && this.#connecting === 0 &&
      this.#state.clock.now() >= this.#state.backoff.retryAt;
    // Who stays for a shared connection has had its attempt.
    const urgent = this.queue.impatientFirst(coming + wanted) - coming - counts.shared;
    return Math.min(wanted, Math.max(due ? 1 : 0, urgent));
  }

  /** In how many milliseconds the background wants to try again; Infinity when nothing is missing. */
  retryIn(): number {
    if (!this.#state.backoff.troubled || !this.#trying) return Infinity;
    if (this.queue.size <= this.#state.coming.count && this.#missing <= 0) return Infinity;
    return Math.ceil(this.#state.backoff.retryAt - this.#state.clock.now());
  }

  /**
   * In how many milliseconds what is on its way will have given no sign for too long; Infinity when
   * nobody counts on it. May be in the past.
   */
  get patienceEndsIn(): number {
    const { coming, minconn, size, counts } = this.#state;
    const wanted = this.queue.size > 0 || size - counts.connecting < minconn;
    if (!wanted) return Infinity;
    const shared = this.queue.impatient > 0 ? this.#shared().oldest : Infinity;
    return Math.min(coming.oldest, shared) + this.#patience - this.#state.clock.now();
  }

  /** After one that gave no sign nobody counts on the next one for longer than the floor between attempts for who waits. */
  get #patience(): number {
    const { patience } = this.#state.growth;
    if (this.#state.backoff.silences === 0) return patience;
    return Math.min(patience, ownPause(this.queue.impatient > 0 ? 0 : this.#shortest));
  }

  /** Counts no more on what is on its way for too long. */
  doubt(): void {
    const { coming, growth } = this.#state;
    const now = this.#state.clock.now();
    const before = now - this.#patience;
    this.#shared().doubt(before);
    if (coming.doubt(before) === 0) return;
    this.#state.backoff.silent(now, growth.patience, this.#shortest);
  }

  /** Notes that a connect has come up that began at `started`. */
  connected(started: number): void {
    this.#provenAt = Math.max(this.#provenAt, started);
    this.#state.backoff.reset();
  }

  /** Notes that a connect failed that began at `started`; false when that is no news. `silent`: it had given no sign for long. */
  failed(error: unknown, started: number, silent: boolean): boolean {
    const state = this.#state;
    const now = state.clock.now();
    const took = now - started;
    const { backoff } = this.#state;
    // One that was begun later has come up.
    const news = !silent || started > this.#provenAt;
    if (!news) {
      if (state.heard("connectfailed")) {
        state.tell("connectfailed", { error, attempt: backoff.failures, retryIn: 0, took });
      }
      return false;
    }
    state.failure = { error };
    backoff.permanent = this.#isPermanent(error);
    const retryIn = backoff.failed(now, this.#shortest);
    // Before anything is opened anew, by a listener perhaps: who would not wait has had its attempt.
    if (backoff.permanent) this.#refuseAllFor({ error });
    else this.refuseImpatient({ error });
    if (state.heard("connectfailed")) {
      state.tell("connectfailed", { error, attempt: backoff.failures, retryIn, took });
    }
    if (backoff.gaveUp || now - backoff.since < state.options.reconnectTimeout) return true;
    backoff.gaveUp = true;
    if (state.heard("reconnectfailed")) {
      state.tell("reconnectfailed", { error, after: Math.round(now - backoff.since) });
    }
    return true;
  }

  /**
   * A caller with `timeout: 0` waits for nothing but a connection or a permit that is on its way to
   * it, for a connect or a check even when that gives no sign and nothing else can be had. After a failure to
   * connect it does not wait for a permit either: it has had its attempt.
   */
  refuseImpatient(failure: { readonly error: unknown } | null = null): void {
    if (this.queue.impatient === 0) return;
    const { coming } = this.#state;
    // While connecting fails the one attempt under way tells for all.
    if (this.#state.backoff.troubled && this.#connecting > 0 && failure === null) return;
    let places = coming.count + this.#shared().soonFree;
    if (failure === null) {
      places += coming.silent.connecting + coming.silent.checking;
      // What others have idle they give up for somebody who lacks it.
      places += this.#freed + this.#state.prospects();
    }
    for (const waiter of this.queue.impatientBeyond(places)) {
      // A listener may have let it go meanwhile.
      if (waiter.settled) continue;
      this.#remove(waiter);
      waiter.refuse(this.#noneFree(failure));
      this.#onleft();
    }
  }

  /** After `wanted` connections could not be opened: true when there is a permit for one after all. */
  lack(wanted: number): boolean {
    const { others } = this.#state.permits;
    if (others === null) return false;
    const lacking = Math.max(0, Math.min(wanted, this.queue.size - this.#state.coming.count));
    return others.lack(lacking, this.queue.impatient);
  }

  /** After a waiter was served or has left: what is not lacked any more shall not be brought. */
  lackLess(): void {
    const { others } = this.#state.permits;
    if (others === null || others.lacked === 0) return;
    const missing = this.queue.size - this.#state.coming.count;
    const lacking = Math.max(0, Math.min(others.lacked, missing));
    if (lacking < others.lacked) others.lack(lacking, this.queue.impatient);
  }

  /** Sends `waiter` away when more than `maxWaiting` callers wait for what is not on its way. */
  refuseAbove(waiter: Waiter<C>): void {
    const { maxWaiting } = this.#state.options;
    if (maxWaiting === 0 || waiter.settled) return;
    const { connecting, checking, returning } = this.#state.counts;
    if (this.queue.callers - connecting - checking - returning <= maxWaiting) return;
    this.#remove(waiter);
    waiter.refuse(new TooManyWaiting(this.#state.errorContext(), maxWaiting));
    this.#onleft();
  }

  /** Tells of a waiter that was neither served nor refused at once. */
  announce(waiter: Waiter<C>): void {
    const state = this.#state;
    if (waiter.settled || !state.heard("wait")) return;
    const { promise: ended, resolve } = Promise.withResolvers<WaitEnd>();
    const { onended } = waiter;
    waiter.onended = (failure) => {
      onended?.(failure);
      const waited = state.clock.now() - waiter.since;
      resolve(Object.freeze({ served: failure === null, error: failure?.error, waited }));
    };
    const shared = waiter instanceof JobWaiter;
    state.tell("wait", { key: waiter.key, shared, waiting: state.waiting, ended });
  }

  /** Sends everybody away, but with `draining` who stays then: the pool is closed. */
  refuseAll(draining = false): void {
    const staying: Waiter<C>[] = [];
    for (let waiter = this.next(); waiter !== null; waiter = this.next()) {
      if (draining && waiter.stays) staying.push(waiter);
      else this.disappoint(waiter, new PoolClosed(this.#state.errorContext()));
    }
    for (const waiter of staying) this.queue.push(waiter);
    this.#counted();
    this.lackLess();
  }

  /** Asks the connector, whose own failure means no. */
  #isPermanent(error: unknown): boolean {
    const { connector } = this.#state;
    try {
      return connector.permanent?.(error) === true;
    } catch {
      return false;
    }
  }

  /** Waiting does not help: tells everybody who waits now. */
  #refuseAllFor(failure: { readonly error: unknown }): void {
    // Whoever comes meanwhile, from a listener, has an attempt of its own.
    const all: Waiter<C>[] = [];
    for (let waiter = this.next(); waiter !== null; waiter = this.next()) all.push(waiter);
    if (all.length === 0) return;
    for (const waiter of all) {
      // As in the driver, its calls get the failure itself.
      this.disappoint(waiter, waiter.stays ? failure.error : this.#noneFree(failure));
    }
    this.lackLess();
    this.#onleft();
  }

  /** How many connects can be counted on. */
  get #connecting(): number {
    const { counts, coming } = this.#state;
    return counts.connecting - coming.silent.connecting;
  }

  /** How many connections there are too few for minconn. */
  get #missing(): number {
    const { minconn, size, coming } = this.#state;
    const there = size - coming.silent.connecting;
    return there >= minconn ? 0 : minconn - there - this.#state.elsewhere;
  }

  /** The shortest time for which somebody waits; Infinity when nobody has a deadline. */
  get #shortest(): number {
    return this.queue.size === 0 ? Infinity : this.#deadlines.shortest;
  }

  /** Permits that will be free once the server has let go of what is being closed. */
  get #freed(): number {
    const { counts, permits } = this.#state;
    return Math.max(0, Math.min(counts.closing, permits.limit - permits.held + counts.closing));
  }

  /** The background gives up after `reconnectTimeout`, but not on somebody who waits. */
  get #trying(): boolean {
    return !this.#state.backoff.gaveUp || this.queue.size > 0;
  }

  #counted(): void {
    this.#state.waiting = this.queue.callers;
    if (this.queue.size === 0) this.#state.growth.calm();
  }

  #remove(waiter: Waiter<C>): void {
    this.queue.remove(waiter);
    this.#counted();
    this.#state.counters.requestsErrors++;
    this.lackLess();
  }

  readonly #leave = (waiter: Waiter<C>): void => this.#remove(waiter);

  readonly #left = (waited?: number): void => {
    this.#onleft();
    if (waited !== undefined && this.#state.heard("timeout")) {
      this.#state.tell("timeout", { waited });
    }
  };

  readonly #timeout = (waited: number): Error => {
    const { failure, entries, elsewhere, clock } = this.#state;
    const now = clock.now();
    // Callers that gave up together look at the leases once.
    if (now - this.#holdersAt > 1) {
      this.#holders = holders(entries, elsewhere, now);
      this.#isHeld = this.#holders !== "";
      if (!this.#isHeld) this.#holders = opening(entries, now);
      this.#holdersAt = now;
    }
    let why = this.#holders;
    if (failure !== null) {
      const { error } = failure;
      why += `; the last attempt to connect failed: ${reasonOf(error)}${hintOf(error)}`;
    } else if (this.#isHeld && !this.#state.tellsWhere) {
      why += "; the option leakAfter reports where a connection that is not put back was borrowed";
    }
    return new PoolTimeout(this.#state.errorContext(failure?.error), waited, why);
  };

  #noneFree(attempt: { readonly error: unknown } | null): Error {
    const state = this.#state;
    const { permits } = state;
    const failure = attempt ?? state.failure;
    if (failure !== null && (attempt !== null || permits.held < permits.limit)) {
      const { error } = failure;
      const message = `no connection could be opened: ${reasonOf(error)}${hintOf(error)}`;
      return new PoolError(message, "CONNECT_FAILED", state.errorContext(failure.error));
    }
    if (state.heard("exhausted")) state.tell("exhausted", { waiting: this.queue.callers });
    return new PoolExhausted(state.errorContext(failure?.error));
  }
}
