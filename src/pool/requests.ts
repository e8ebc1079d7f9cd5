/** Who waits, and what is opened for them: the queue, the refusals, and the pace of reconnecting. */

import {
  hintOf,
  PoolClosed,
  PoolError,
  PoolExhausted,
  PoolTimeout,
  reasonOf,
  stackHere,
  TooManyWaiting,
} from "./errors.ts";
import type { PoolContext } from "./state.ts";
import { holders } from "./describe.ts";
import type { WaitEnd } from "./events.ts";
import { Deadlines } from "./deadlines.ts";
import { ownPause, Reconnect } from "./reconnect.ts";
import { type Job, type JobLine, JobWaiter } from "./job.ts";
import type { WaitOptions } from "./options.ts";
import { Signals } from "./signals.ts";
import { Caller, type Waiter, type WaiterOptions, WaitQueue } from "./wait_queue.ts";

/**
 * The side of the pool that wants connections.
 *
 * Invariant: a waiter with `timeout: 0` stays in the queue only while a connection is on its way to it.
 */
export class Demand<C extends object> {
  readonly queue: WaitQueue<C> = new WaitQueue();
  readonly #context: PoolContext<C>;
  readonly #onleft: () => void;
  readonly #reconnect: Reconnect;
  readonly #deadlines: Deadlines;
  readonly #signals = new Signals();
  /** All jobs wait in the same way. */
  readonly #jobOptions: WaiterOptions<C>;
  /** What was said last of those who hold the connections, and when. */
  #holders = "";
  #holdersAt = -Infinity;
  /** When the newest connect was begun that has come up. */
  #provenAt = -Infinity;

  /** `onleft` is called when somebody has left the queue without a connection. */
  constructor(context: PoolContext<C>, onleft: () => void) {
    this.#context = context;
    this.#reconnect = new Reconnect(() => context.clock.random());
    this.#deadlines = new Deadlines(context.clock);
    const { timeout } = context.options;
    this.#jobOptions = {
      key: null,
      timeout: timeout === 0 ? Infinity : timeout,
      signal: undefined,
      stays: true,
      deadlines: this.#deadlines,
      signals: this.#signals,
      expired: this.#timeout,
      left: this.#left,
    };
    this.#onleft = onleft;
  }

  /** Queues a caller; whoever calls this lets the supply catch up and then calls `refuseAbove`. */
  enter(key: unknown, options: WaitOptions | null, stays: boolean): Caller<C> {
    const waiter = new Caller<C>({
      key,
      timeout: options?.timeout ?? this.#context.options.timeout,
      signal: options?.signal,
      stays,
      deadlines: this.#deadlines,
      signals: this.#signals,
      expired: this.#timeout,
      left: this.#left,
    });
    if (this.#context.options.leakAfter > 0) {
      waiter.stack = stackHere("getconn was called");
    }
    this.#enter(waiter, options?.timeout ?? this.#context.options.timeout);
    return waiter;
  }

  /** Queues a job that has no connection. Without a `timeout` of the pool it waits for as long as it takes. */
  enterJob(job: Job, line: JobLine<C>, now: number): JobWaiter<C> {
    this.#context.counters.requestsNum++;
    const waiter = new JobWaiter<C>(job, line, this.#jobOptions, now);
    this.#enter(waiter, this.#jobOptions.timeout);
    return waiter;
  }

  #enter(waiter: Waiter<C>, timeout: number): void {
    const reconnect = this.#reconnect;
    this.#context.counters.requestsQueued++;
    // Someone asks: what the background has given up is worth another try.
    if (reconnect.gaveUp) reconnect.reset();
    if (reconnect.troubled) reconnect.asked(timeout);
    this.queue.push(waiter);
    this.#counted();
  }

  /** Takes out a job, to be started or sent away at once. */
  leave(waiter: JobWaiter<C>): void {
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
    this.#context.counters.requestsWaitMs += now - waiter.since;
    return true;
  }

  /** Sends away a waiter that was taken out, and all who wait for the same key. */
  disappoint(waiter: Waiter<C>, error: unknown): void {
    for (const one of [waiter, ...waiter.followers ?? []]) {
      if (one.refuse(error)) this.#context.counters.requestsErrors++;
    }
  }

  /** True while connecting fails. */
  get failing(): boolean {
    return this.#reconnect.failures > 0;
  }

  /**
   * How many connections to open now: for waiters, as many as will not be served sooner by what
   * comes back, but one for each that does not wait; and up to minconn. While connecting fails, or gives no sign, one at a
   * time, and one for each caller that does not wait and has nobody before it that does.
   */
  wanted(): number {
    const { states, pace } = this.#context;
    const { count: coming, fresh } = this.#context.coming;
    const wanted = Math.max(
      pace.wanted(this.queue.size - coming, fresh.connecting, states.leased),
      this.queue.lastImpatient - coming,
      this.#missing,
    );
    if (!this.#reconnect.troubled) return wanted;
    const due = this.#trying && fresh.connecting === 0 &&
      this.#context.clock.now() >= this.#reconnect.retryAt;
    // Who stays for a shared connection has had its attempt.
    const urgent = this.queue.impatientFirst(coming + wanted) - coming - states.shared;
    return Math.min(wanted, Math.max(due ? 1 : 0, urgent));
  }

  /** In how many milliseconds the background wants to try again; Infinity when nothing is missing. */
  retryIn(): number {
    if (!this.#reconnect.troubled || !this.#trying) return Infinity;
    if (this.queue.size <= this.#context.coming.count && this.#missing <= 0) return Infinity;
    return Math.ceil(this.#reconnect.retryAt - this.#context.clock.now());
  }

  /**
   * In how many milliseconds what is on its way will have given no sign for too long; Infinity when
   * nobody counts on it. May be in the past.
   */
  get patienceEndsIn(): number {
    const { coming, minconn, size, states } = this.#context;
    const counts = this.queue.size > 0 || size - states.connecting < minconn;
    return counts ? coming.oldest + this.#patience - this.#context.clock.now() : Infinity;
  }

  /** After one that gave no sign nobody counts on the next one for longer than the floor between attempts for who waits. */
  get #patience(): number {
    const { patience } = this.#context.pace;
    if (this.#reconnect.silences === 0) return patience;
    return Math.min(patience, ownPause(this.queue.impatient > 0 ? 0 : this.#shortest));
  }

  /** Counts no more on what is on its way for too long. */
  doubt(): void {
    const { coming, pace } = this.#context;
    const now = this.#context.clock.now();
    if (coming.doubt(now - this.#patience) === 0) return;
    this.#reconnect.silent(now, pace.patience, this.#shortest);
  }

  /** A connect begins. */
  begun(): void {
    this.#reconnect.begun(this.#context.clock.now());
  }

  /** Notes that a connect has come up that began at `started`. */
  connected(started: number): void {
    this.#provenAt = Math.max(this.#provenAt, started);
    this.#reconnect.reset();
  }

  /** Ends the pause before the next attempt. */
  hurry(): void {
    this.#reconnect.reset();
  }

  /** Notes that a connect failed that began at `started`; false when that is no news. `silent`: it had given no sign for long. */
  failed(error: unknown, started: number, silent: boolean): boolean {
    const context = this.#context;
    const now = context.clock.now();
    const took = now - started;
    const reconnect = this.#reconnect;
    // One that was begun later has come up.
    const news = !silent || started > this.#provenAt;
    if (!news) {
      if (context.heard("connectfailed")) {
        context.tell("connectfailed", { error, attempt: reconnect.failures, retryIn: 0, took });
      }
      return false;
    }
    context.failure = { error };
    reconnect.permanent = this.#isPermanent(error);
    const retryIn = reconnect.failed(now, this.#shortest);
    // Before anything is opened anew, by a listener perhaps: who would not wait has had its attempt.
    if (reconnect.permanent) this.#refuseAllFor({ error });
    else this.refuseImpatient({ error });
    if (context.heard("connectfailed")) {
      context.tell("connectfailed", { error, attempt: reconnect.failures, retryIn, took });
    }
    if (reconnect.gaveUp || now - reconnect.since < context.options.reconnectTimeout) return true;
    reconnect.gaveUp = true;
    if (context.heard("reconnectfailed")) {
      context.tell("reconnectfailed", { error, after: Math.round(now - reconnect.since) });
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
    const { coming, states } = this.#context;
    // While connecting fails the one attempt under way tells for all.
    if (this.#reconnect.troubled && coming.fresh.connecting > 0 && failure === null) return;
    // A shared connection takes no more jobs while someone waits, so it is on its way.
    let places = coming.count + states.shared;
    if (failure === null) {
      places += coming.silent.connecting + coming.silent.checking;
      // What others have idle they give up for somebody who lacks it.
      places += this.#freed + this.#context.prospects;
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
    const { others } = this.#context.permits;
    if (others === null) return false;
    const lacking = Math.max(0, Math.min(wanted, this.queue.size - this.#context.coming.count));
    return others.lack(lacking, Math.min(lacking, this.queue.impatient));
  }

  /** After a waiter was served or has left: what is not lacked any more shall not be brought. */
  lackLess(): void {
    const { others } = this.#context.permits;
    if (others === null || others.lacked === 0) return;
    const missing = this.queue.size - this.#context.coming.count;
    const lacking = Math.max(0, Math.min(others.lacked, missing));
    if (lacking < others.lacked) others.lack(lacking, Math.min(lacking, this.queue.impatient));
  }

  /** Sends `waiter` away when more than `maxWaiting` callers wait for what is not on its way. */
  refuseAbove(waiter: Waiter<C>): void {
    const { maxWaiting } = this.#context.options;
    if (maxWaiting === 0 || waiter.settled) return;
    const { connecting, checking, returning } = this.#context.states;
    if (this.queue.callers - connecting - checking - returning <= maxWaiting) return;
    this.#remove(waiter);
    waiter.refuse(new TooManyWaiting(this.#context.errorContext(), maxWaiting));
    this.#onleft();
  }

  /** Tells of a waiter that was neither served nor refused at once. */
  announce(waiter: Waiter<C>): void {
    const context = this.#context;
    if (waiter.settled || !context.heard("wait")) return;
    const { promise: ended, resolve } = Promise.withResolvers<WaitEnd>();
    waiter.onended = (failure) => {
      const waited = context.clock.now() - waiter.since;
      resolve(Object.freeze({ served: failure === null, error: failure?.error, waited }));
    };
    const shared = waiter instanceof JobWaiter;
    context.tell("wait", { key: waiter.key, shared, waiting: context.waiting, ended });
  }

  /** Sends everybody away, but with `draining` who stays then: the pool is closed. */
  refuseAll(draining = false): void {
    const staying: Waiter<C>[] = [];
    for (let waiter = this.next(); waiter !== null; waiter = this.next()) {
      if (draining && waiter.stays) staying.push(waiter);
      else this.disappoint(waiter, new PoolClosed(this.#context.errorContext()));
    }
    for (const waiter of staying) this.queue.push(waiter);
    this.#counted();
    this.lackLess();
  }

  /** Asks the connector, whose own failure means no. */
  #isPermanent(error: unknown): boolean {
    const { connector } = this.#context;
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

  /** How many connections there are too few for minconn. */
  get #missing(): number {
    const { minconn, size, coming } = this.#context;
    const there = size - coming.silent.connecting;
    return there >= minconn ? 0 : minconn - there - this.#context.elsewhere;
  }

  /** The shortest time for which somebody waits; Infinity when nobody has a deadline. */
  get #shortest(): number {
    return this.queue.size === 0 ? Infinity : this.#deadlines.shortest;
  }

  /** Permits that will be free once the server has let go of what is being closed. */
  get #freed(): number {
    const { states, permits } = this.#context;
    return Math.max(0, Math.min(states.closing, permits.limit - permits.held + states.closing));
  }

  /** The background gives up after `reconnectTimeout`, but not on somebody who waits. */
  get #trying(): boolean {
    return !this.#reconnect.gaveUp || this.queue.size > 0;
  }

  #counted(): void {
    this.#context.waiting = this.queue.callers;
    if (this.queue.size === 0) this.#context.pace.calm();
  }

  #remove(waiter: Waiter<C>): void {
    this.queue.remove(waiter);
    this.#counted();
    this.#context.counters.requestsErrors++;
    this.lackLess();
  }

  readonly #left = (waiter: Waiter<C>, waited?: number): void => {
    this.#remove(waiter);
    this.#onleft();
    if (waited !== undefined && this.#context.heard("timeout")) {
      this.#context.tell("timeout", { waited });
    }
  };

  readonly #timeout = (waited: number): Error => {
    const { failure, entries, elsewhere, clock } = this.#context;
    const now = clock.now();
    // Callers that gave up together look at the leases once.
    if (now - this.#holdersAt > 1) {
      this.#holders = holders(entries, elsewhere, now);
      this.#holdersAt = now;
    }
    let why = this.#holders;
    if (failure !== null) {
      const { error } = failure;
      why += `; the last attempt to connect failed: ${reasonOf(error)}${hintOf(error)}`;
    } else if (this.#context.options.leakAfter === 0) {
      why += "; the option leakAfter reports where a connection that is not put back was borrowed";
    }
    return new PoolTimeout(this.#context.errorContext(failure?.error), waited, why);
  };

  #noneFree(attempt: { readonly error: unknown } | null): Error {
    const context = this.#context;
    const { permits } = context;
    const failure = attempt ?? context.failure;
    if (failure !== null && (attempt !== null || permits.held < permits.limit)) {
      const { error } = failure;
      const message = `no connection could be opened: ${reasonOf(error)}${hintOf(error)}`;
      return new PoolError(message, "CONNECT_FAILED", context.errorContext(failure.error));
    }
    if (context.heard("exhausted")) context.tell("exhausted", { waiting: this.queue.callers });
    return new PoolExhausted(context.errorContext(failure?.error));
  }
}
