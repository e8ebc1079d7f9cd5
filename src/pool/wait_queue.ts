/** First-come first-served waiters. A waiter is offered a value and takes it, or has left before. */

import { LONGEST } from "../clock.ts";
import { Deadlined, type Deadlines } from "./deadlines.ts";

/** What a waiter wants and how it is told. */
export interface WaiterOptions<T> {
  /** The key it asked for, or null. */
  readonly key: unknown;
  /** Milliseconds until it gives up; 0 = it never waits for what is not on its way; Infinity = no limit. */
  readonly timeout: number;
  /** Gives up when it aborts. */
  readonly signal: AbortSignal | undefined;
  /** Where its deadline stands among those of others. */
  readonly deadlines: Deadlines;
  /** Makes the error for the deadline. */
  readonly expired: (waited: number) => Error;
  /** Called after the waiter has left: by its deadline, after `waited` milliseconds, or by its signal. */
  readonly left: (waiter: Waiter<T>, waited?: number) => void;
}

/**
 * One caller that waits. It settles once: by `accept`, `refuse`, its deadline or its signal; what
 * comes first wins, and the others have no effect. In the queue it is a node of a linked list, so
 * that leaving from the middle costs the same at any length.
 */
export class Waiter<T> extends Deadlined {
  /** Settles with what the waiter got. */
  readonly promise: Promise<T>;
  readonly key: unknown;
  /** True for a caller with `timeout: 0`. */
  readonly impatient: boolean;
  /** Where getconn was called, when leaks are looked for. */
  stack: string | null = null;
  settled = false;
  /** Called once when it settles: with null, or with the reason why it was sent away. */
  onended: ((failure: { readonly error: unknown } | null) => void) | null = null;
  /** Whether it is in a queue; kept by the queue. */
  queued = false;
  prev: Waiter<T> | null = null;
  next: Waiter<T> | null = null;
  /** Later callers that want the same key; they share this one's place in the queue. */
  followers: Set<Waiter<T>> | null = null;

  #resolve!: (value: T) => void;
  #reject!: (reason: unknown) => void;
  readonly #options: WaiterOptions<T>;
  #aborted: (() => void) | null = null;

  constructor(options: WaiterOptions<T>) {
    super(options.deadlines.clock);
    this.#options = options;
    this.key = options.key;
    this.impatient = options.timeout === 0;
    this.promise = new Promise<T>((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    if (options.signal !== undefined) {
      this.#aborted = () => this.#abort();
      options.signal.addEventListener("abort", this.#aborted);
    }
    if (options.timeout > 0 && options.timeout <= LONGEST) {
      this.arm(options.timeout, options.deadlines);
    }
  }

  /** Gives the waiter what it waited for; false when it has left. */
  accept(value: T): boolean {
    if (!this.#settle()) return false;
    this.#resolve(value);
    this.onended?.(null);
    return true;
  }

  /** Sends the waiter away; false when it has left. */
  refuse(reason: unknown): boolean {
    if (!this.#settle()) return false;
    this.#reject(reason);
    this.onended?.({ error: reason });
    return true;
  }

  #settle(): boolean {
    if (this.settled) return false;
    this.settled = true;
    this.disarm();
    if (this.#aborted !== null) {
      this.#options.signal?.removeEventListener("abort", this.#aborted);
    }
    return true;
  }

  #abort(): void {
    if (this.refuse(this.#options.signal?.reason)) this.#options.left(this);
  }

  protected override expire(time: number): void {
    const waited = Math.round(time);
    if (this.refuse(this.#options.expired(waited))) this.#options.left(this, waited);
  }
}

/** The queue. Every waiter in it is unsettled: whoever settles one removes it in the same turn. */
export class WaitQueue<T> {
  /** How many connections are wanted: callers of one key count once. */
  size = 0;
  /** How many callers wait, followers too. */
  callers = 0;

  #head: Waiter<T> | null = null;
  #tail: Waiter<T> | null = null;
  readonly #keyed = new Map<unknown, Waiter<T>>();
  /** The callers with `timeout: 0`, followers too. */
  readonly #impatient = new Set<Waiter<T>>();

  /** The one who waits longest. */
  get first(): Waiter<T> | null {
    return this.#head;
  }

  /** How many callers have `timeout: 0`. */
  get impatient(): number {
    return this.#impatient.size;
  }

  /** Adds a waiter at the end; one whose key is wanted already joins that place instead. */
  push(waiter: Waiter<T>): void {
    this.callers++;
    waiter.queued = true;
    if (waiter.impatient) this.#impatient.add(waiter);
    if (waiter.key !== null) {
      const leader = this.#keyed.get(waiter.key);
      if (leader !== undefined) {
        (leader.followers ??= new Set()).add(waiter);
        return;
      }
      this.#keyed.set(waiter.key, waiter);
    }
    waiter.prev = this.#tail;
    if (this.#tail === null) this.#head = waiter;
    else this.#tail.next = waiter;
    this.#tail = waiter;
    this.size++;
  }

  /** Takes the longest waiting out, with its followers. */
  shift(): Waiter<T> | null {
    const waiter = this.#head;
    if (waiter === null) return null;
    this.#unlink(waiter);
    if (waiter.key !== null) this.#keyed.delete(waiter.key);
    this.#forget(waiter);
    if (waiter.followers !== null) { for (const one of waiter.followers) this.#forget(one); }
    return waiter;
  }

  /** Takes one caller out; its followers keep its place. Does nothing when it is out already. */
  remove(waiter: Waiter<T>): void {
    if (!waiter.queued) return;
    this.#forget(waiter);
    if (waiter.key === null) return this.#unlink(waiter);
    const leader = this.#keyed.get(waiter.key);
    if (leader !== waiter) {
      leader?.followers?.delete(waiter);
      return;
    }
    for (const heir of waiter.followers ?? []) return this.#replace(waiter, heir);
    this.#keyed.delete(waiter.key);
    this.#unlink(waiter);
  }

  /** The last place that belongs to a caller with `timeout: 0`, counted from 1; 0 when there is none. */
  get lastImpatient(): number {
    if (this.#impatient.size === 0) return 0;
    let place = this.size;
    let one = this.#tail;
    while (one !== null && !one.impatient && !followedByImpatient(one)) {
      one = one.prev;
      place--;
    }
    return place;
  }

  /** How many of the first places, up to `most`, belong to callers with `timeout: 0`. */
  impatientFirst(most: number): number {
    let count = 0;
    for (let one = this.#head; one?.impatient && count < most; one = one.next) count++;
    return count;
  }

  /** The callers with `timeout: 0` that are not among the first `places`. */
  impatientBeyond(places: number): Waiter<T>[] {
    if (this.#impatient.size === 0) return [];
    const served = new Set<Waiter<T>>();
    for (let one = this.#head; one !== null && served.size < places; one = one.next) {
      served.add(one);
    }
    return [...this.#impatient].filter((waiter) => !served.has(this.#placeOf(waiter)));
  }

  #placeOf(waiter: Waiter<T>): Waiter<T> {
    return waiter.key === null ? waiter : this.#keyed.get(waiter.key) ?? waiter;
  }

  #forget(waiter: Waiter<T>): void {
    this.callers--;
    waiter.queued = false;
    if (waiter.impatient) this.#impatient.delete(waiter);
  }

  #replace(waiter: Waiter<T>, heir: Waiter<T>): void {
    this.#keyed.set(waiter.key, heir);
    heir.followers = waiter.followers;
    heir.followers?.delete(heir);
    heir.prev = waiter.prev;
    heir.next = waiter.next;
    if (waiter.prev === null) this.#head = heir;
    else waiter.prev.next = heir;
    if (waiter.next === null) this.#tail = heir;
    else waiter.next.prev = heir;
    waiter.prev = waiter.next = waiter.followers = null;
  }

  #unlink(waiter: Waiter<T>): void {
    if (waiter.prev === null) this.#head = waiter.next;
    else waiter.prev.next = waiter.next;
    if (waiter.next === null) this.#tail = waiter.prev;
    else waiter.next.prev = waiter.prev;
    waiter.prev = waiter.next = null;
    this.size--;
  }
}

function followedByImpatient<T>(waiter: Waiter<T>): boolean {
  for (const one of waiter.followers ?? []) if (one.impatient) return true;
  return false;
}
