/** First-come first-served waiters. A waiter is offered a value and takes it, or has left before. */

import { LONGEST } from "./options.ts";
import type { Timer } from "./runtime.ts";

/** What a waiter wants and how it is told. */
export interface WaiterOptions<T> {
  /** The key it asked for, or null. */
  readonly key: unknown;
  /** Milliseconds until it gives up; 0 = it never waits for what is not on its way; Infinity = no limit. */
  readonly timeout: number;
  /** Gives up when it aborts. */
  readonly signal: AbortSignal | undefined;
  /** Makes the error for the deadline. */
  readonly expired: (waited: number) => Error;
  /** Called after the waiter has left by its deadline or its signal. */
  readonly left: (waiter: Waiter<T>) => void;
}

/**
 * One caller that waits. It settles once: by `accept`, `refuse`, its deadline or its signal; what
 * comes first wins, and the others have no effect. In the queue it is a node of a linked list, so
 * that leaving from the middle costs the same at any length.
 */
export class Waiter<T> {
  /** Settles with what the waiter got. */
  readonly promise: Promise<T>;
  readonly key: unknown;
  /** True for a caller with `timeout: 0`. */
  readonly impatient: boolean;
  readonly since: number = Date.now();
  settled = false;
  prev: Waiter<T> | null = null;
  next: Waiter<T> | null = null;
  /** The next caller that wants the same key; it shares this one's place in the queue. */
  follower: Waiter<T> | null = null;

  #resolve!: (value: T) => void;
  #reject!: (reason: unknown) => void;
  #timer: Timer | undefined;
  readonly #options: WaiterOptions<T>;

  constructor(options: WaiterOptions<T>) {
    this.#options = options;
    this.key = options.key;
    this.impatient = options.timeout === 0;
    this.promise = new Promise<T>((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    options.signal?.addEventListener("abort", this.#aborted);
    if (options.timeout > 0 && options.timeout <= LONGEST) {
      this.#timer = setTimeout(this.#expired, options.timeout);
    }
  }

  /** Gives the waiter what it waited for; false when it has left. */
  accept(value: T): boolean {
    return this.#settle() && (this.#resolve(value), true);
  }

  /** Sends the waiter away; false when it has left. */
  refuse(reason: unknown): boolean {
    return this.#settle() && (this.#reject(reason), true);
  }

  #settle(): boolean {
    if (this.settled) return false;
    this.settled = true;
    clearTimeout(this.#timer);
    this.#options.signal?.removeEventListener("abort", this.#aborted);
    return true;
  }

  readonly #aborted = (): void => {
    if (this.refuse(this.#options.signal?.reason)) this.#options.left(this);
  };

  readonly #expired = (): void => {
    const error = this.#options.expired(Date.now() - this.since);
    if (this.refuse(error)) this.#options.left(this);
  };
}

/** The queue. Every waiter in it is unsettled: whoever settles one removes it in the same turn. */
export class WaitQueue<T> {
  /** How many connections are wanted: callers of one key count once. */
  size = 0;
  /** How many of them have `timeout: 0`. */
  impatient = 0;
  /** How many callers wait, followers too. */
  callers = 0;

  #head: Waiter<T> | null = null;
  #tail: Waiter<T> | null = null;
  readonly #keyed = new Map<unknown, Waiter<T>>();

  /** The one who waits longest. */
  get first(): Waiter<T> | null {
    return this.#head;
  }

  /** Adds a waiter at the end; one whose key is wanted already joins that place instead. */
  push(waiter: Waiter<T>): void {
    this.callers++;
    if (waiter.key !== null) {
      const leader = this.#keyed.get(waiter.key);
      if (leader !== undefined) {
        waiter.follower = leader.follower;
        leader.follower = waiter;
        return;
      }
      this.#keyed.set(waiter.key, waiter);
    }
    waiter.prev = this.#tail;
    if (this.#tail === null) this.#head = waiter;
    else this.#tail.next = waiter;
    this.#tail = waiter;
    this.#count(waiter, 1);
  }

  /** Takes the longest waiting out, with its followers. */
  shift(): Waiter<T> | null {
    const waiter = this.#head;
    if (waiter === null) return null;
    this.#unlink(waiter);
    if (waiter.key !== null) this.#keyed.delete(waiter.key);
    for (let one: Waiter<T> | null = waiter; one !== null; one = one.follower) this.callers--;
    return waiter;
  }

  /** Takes one caller out; its followers keep its place. */
  remove(waiter: Waiter<T>): void {
    this.callers--;
    if (waiter.key === null) return this.#unlink(waiter);
    const leader = this.#keyed.get(waiter.key);
    if (leader !== waiter) {
      for (let one = leader ?? null; one !== null; one = one.follower) {
        if (one.follower === waiter) one.follower = waiter.follower;
      }
      return;
    }
    const heir = waiter.follower;
    if (heir === null) {
      this.#keyed.delete(waiter.key);
      return this.#unlink(waiter);
    }
    this.#replace(waiter, heir);
  }

  /** The last waiter of those with `timeout: 0`. */
  lastImpatient(): Waiter<T> | null {
    let waiter = this.#tail;
    while (waiter !== null && !waiter.impatient) waiter = waiter.prev;
    return waiter;
  }

  #replace(waiter: Waiter<T>, heir: Waiter<T>): void {
    this.#keyed.set(waiter.key, heir);
    heir.prev = waiter.prev;
    heir.next = waiter.next;
    if (waiter.prev === null) this.#head = heir;
    else waiter.prev.next = heir;
    if (waiter.next === null) this.#tail = heir;
    else waiter.next.prev = heir;
    waiter.prev = waiter.next = waiter.follower = null;
    this.#count(waiter, -1);
    this.#count(heir, 1);
  }

  #unlink(waiter: Waiter<T>): void {
    if (waiter.prev === null) this.#head = waiter.next;
    else waiter.prev.next = waiter.next;
    if (waiter.next === null) this.#tail = waiter.prev;
    else waiter.next.prev = waiter.prev;
    waiter.prev = waiter.next = null;
    this.#count(waiter, -1);
  }

  #count(waiter: Waiter<T>, by: 1 | -1): void {
    this.size += by;
    if (waiter.impatient) this.impatient += by;
  }
}
