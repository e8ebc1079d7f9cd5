/** First-come first-served waiters. A waiter is offered a value and takes it, or has left before. */

import { LONGEST } from "../clock.ts";
import { Deadlined, type Deadlines } from "./deadlines.ts";
import { Ranks } from "./ranks.ts";
import type { Abortable, Signals } from "./signals.ts";

/** What a waiter wants and how it is told. */
export interface WaiterOptions<T> {
  /** The key it asked for, or null. */
  readonly key: unknown;
  /** Milliseconds until it gives up; 0 = it never waits for what is not on its way; Infinity = no limit. */
  readonly timeout: number;
  /** Gives up when it aborts. */
  readonly signal: AbortSignal | undefined;
  /** Whether a pool that drains serves it all the same, as what was asked for before. */
  readonly stays?: boolean;
  /** Where its deadline stands among those of others. */
  readonly deadlines: Deadlines;
  /** Where its signal is listened to. */
  readonly signals: Signals;
  /** Makes the error for the deadline. */
  readonly expired: (waited: number) => Error;
  /** Called after the waiter has left: by its deadline, after `waited` milliseconds, or by its signal. */
  readonly left: (waiter: Waiter<T>, waited?: number) => void;
}

/**
 * One that waits. It settles once: by `accept`, `refuse`, its deadline or its signal; what
 * comes first wins, and the others have no effect. In the queue it is a node of a linked list, so
 * that leaving from the middle costs the same at any length.
 */
export abstract class Waiter<T> extends Deadlined implements Abortable {
  readonly key: unknown;
  /** True for a caller with `timeout: 0`. */
  readonly impatient: boolean;
  /** True when a pool that drains serves it all the same. */
  readonly stays: boolean;
  /** Where getconn was called, when leaks are looked for. */
  stack: string | null = null;
  settled = false;
  /** Called once when it settles: with null, or with the reason why it was sent away. */
  onended: ((failure: { readonly error: unknown } | null) => void) | null = null;
  /** Whether it is in a queue; kept by the queue. */
  queued = false;
  prev: Waiter<T> | null = null;
  next: Waiter<T> | null = null;
  /** Its number in the queue, which tells its rank. */
  number = 0;
  /** Set for a place at which somebody does not wait; kept by the queue. */
  hasty: HastyPlace<T> | null = null;
  /** Later callers that want the same key; they share this one's place in the queue. */
  followers: Set<Waiter<T>> | null = null;

  readonly #options: WaiterOptions<T>;

  /** Many may share the same options. */
  constructor(options: WaiterOptions<T>, since: number = options.deadlines.clock.now()) {
    super(since);
    this.#options = options;
    this.key = options.key;
    this.impatient = options.timeout === 0;
    this.stays = options.stays === true;
    if (options.signal !== undefined) options.signals.add(options.signal, this);
    if (options.timeout > 0 && options.timeout <= LONGEST) {
      this.arm(options.timeout, options.deadlines);
    }
  }

  /** It has what it waited for. Must not throw. */
  protected abstract served(value: T): void;
  /** It was sent away. Must not throw. */
  protected abstract refused(reason: unknown): void;

  /** Gives the waiter what it waited for; false when it has left. */
  accept(value: T): boolean {
    if (!this.#settle()) return false;
    this.served(value);
    this.onended?.(null);
    return true;
  }

  /** Sends the waiter away; false when it has left. */
  refuse(reason: unknown): boolean {
    if (!this.#settle()) return false;
    this.refused(reason);
    this.onended?.({ error: reason });
    return true;
  }

  #settle(): boolean {
    if (this.settled) return false;
    this.settled = true;
    this.disarm();
    const { signal, signals } = this.#options;
    if (signal !== undefined) signals.remove(signal, this);
    return true;
  }

  abort(reason: unknown): void {
    if (this.refuse(reason)) this.#options.left(this);
  }

  protected override expire(time: number): void {
    const waited = Math.round(time);
    if (this.refuse(this.#options.expired(waited))) this.#options.left(this, waited);
  }
}

/** A caller that waits, by a promise. */
export class Caller<T> extends Waiter<T> {
  /** Settles with what the caller got. */
  readonly promise: Promise<T>;
  #resolve!: (value: T) => void;
  #reject!: (reason: unknown) => void;

  constructor(options: WaiterOptions<T>) {
    super(options);
    this.promise = new Promise<T>((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  protected override served(value: T): void {
    this.#resolve(value);
  }

  protected override refused(reason: unknown): void {
    this.#reject(reason);
  }
}

/** A place at which at least one caller has `timeout: 0`; these are in a list of their own, in the queue's order. */
interface HastyPlace<T> {
  /** Whose place it is. */
  place: Waiter<T>;
  /** How many of its callers do not wait. */
  callers: number;
  prev: HastyPlace<T> | null;
  next: HastyPlace<T> | null;
}

/**
 * The queue. Every waiter in it is unsettled: whoever settles one removes it in the same turn.
 *
 * Nothing here takes more steps than the logarithm of its length, but for what is handed out.
 */
export class WaitQueue<T> {
  /** How many connections are wanted: callers of one key count once. */
  size = 0;
  /** How many callers wait, followers too. */
  callers = 0;
  /** How many callers have `timeout: 0`, followers too. */
  impatient = 0;
  /** How many callers stay while the pool drains. */
  staying = 0;

  #head: Waiter<T> | null = null;
  #tail: Waiter<T> | null = null;
  readonly #keyed = new Map<unknown, Waiter<T>>();
  readonly #ranks = new Ranks();
  #hastyPlaces = 0;
  #firstHasty: HastyPlace<T> | null = null;
  #lastHasty: HastyPlace<T> | null = null;

  /** The one who waits longest. */
  get first(): Waiter<T> | null {
    return this.#head;
  }

  /** Adds a waiter at the end; one whose key is wanted already joins that place instead. */
  push(waiter: Waiter<T>): void {
    this.callers++;
    if (waiter.stays) this.staying++;
    waiter.queued = true;
    if (waiter.key !== null) {
      const leader = this.#keyed.get(waiter.key);
      if (leader !== undefined) {
        (leader.followers ??= new Set()).add(waiter);
        if (waiter.impatient) this.#hurry(leader);
        return;
      }
      this.#keyed.set(waiter.key, waiter);
    }
    waiter.prev = this.#tail;
    if (this.#tail === null) this.#head = waiter;
    else this.#tail.next = waiter;
    this.#tail = waiter;
    this.size++;
    if (this.#ranks.full) this.#renumber();
    else waiter.number = this.#ranks.take();
    if (waiter.impatient) this.#hurry(waiter);
  }

  /** Takes the longest waiting out, with its followers. */
  shift(): Waiter<T> | null {
    const waiter = this.#head;
    if (waiter === null) return null;
    this.#unlink(waiter);
    if (waiter.key !== null) this.#keyed.delete(waiter.key);
    this.#forget(waiter, waiter);
    if (waiter.followers !== null) {
      for (const one of waiter.followers) this.#forget(one, waiter);
    }
    return waiter;
  }

  /** Takes one caller out; its followers keep its place. Does nothing when it is out already. */
  remove(waiter: Waiter<T>): void {
    if (!waiter.queued) return;
    if (waiter.key === null) {
      this.#forget(waiter, waiter);
      return this.#unlink(waiter);
    }
    const leader = this.#keyed.get(waiter.key) ?? waiter;
    this.#forget(waiter, leader);
    if (leader !== waiter) {
      leader.followers?.delete(waiter);
      return;
    }
    for (const heir of waiter.followers ?? []) return this.#replace(waiter, heir);
    this.#keyed.delete(waiter.key);
    this.#unlink(waiter);
  }

  /** The last place that belongs to a caller with `timeout: 0`, counted from 1; 0 when there is none. */
  get lastImpatient(): number {
    return this.#lastHasty === null ? 0 : this.#ranks.of(this.#lastHasty.place.number);
  }

  /** How many of the first places, up to `most`, belong to callers with `timeout: 0`. */
  impatientFirst(most: number): number {
    if (this.#hastyPlaces === this.size) return Math.min(most, this.size);
    let count = 0;
    for (let one = this.#head; one?.hasty && count < most; one = one.next) count++;
    return count;
  }

  /** The callers with `timeout: 0` that are not among the first `places`, in the order of the queue. */
  impatientBeyond(places: number): Waiter<T>[] {
    const beyond: Waiter<T>[] = [];
    for (let one = this.#lastHasty; one !== null; one = one.prev) {
      const { place } = one;
      if (this.#ranks.of(place.number) <= places) break;
      const followers = [...place.followers ?? []].reverse();
      for (const each of [...followers, place]) if (each.impatient) beyond.push(each);
    }
    return beyond.reverse();
  }

  /** `waiter` is out; its place is, or was, that of `place`. */
  #forget(waiter: Waiter<T>, place: Waiter<T>): void {
    this.callers--;
    if (waiter.stays) this.staying--;
    waiter.queued = false;
    if (!waiter.impatient) return;
    this.impatient--;
    const hasty = place.hasty as HastyPlace<T>;
    if (--hasty.callers > 0) return;
    place.hasty = null;
    this.#hastyPlaces--;
    if (hasty.prev === null) this.#firstHasty = hasty.next;
    else hasty.prev.next = hasty.next;
    if (hasty.next === null) this.#lastHasty = hasty.prev;
    else hasty.next.prev = hasty.prev;
  }

  /** One more caller of this place does not wait. */
  #hurry(place: Waiter<T>): void {
    this.impatient++;
    if (place.hasty !== null) {
      place.hasty.callers++;
      return;
    }
    // Nearly always the last: only who joins a place of others stands further in front.
    let before = this.#lastHasty;
    while (before !== null && before.place.number > place.number) before = before.prev;
    const next = before === null ? this.#firstHasty : before.next;
    const hasty: HastyPlace<T> = { place, callers: 1, prev: before, next };
    if (before === null) this.#firstHasty = hasty;
    else before.next = hasty;
    if (next === null) this.#lastHasty = hasty;
    else next.prev = hasty;
    place.hasty = hasty;
    this.#hastyPlaces++;
  }

  #replace(waiter: Waiter<T>, heir: Waiter<T>): void {
    this.#keyed.set(waiter.key, heir);
    heir.followers = waiter.followers;
    heir.followers?.delete(heir);
    heir.number = waiter.number;
    heir.hasty = waiter.hasty;
    if (heir.hasty !== null) heir.hasty.place = heir;
    heir.prev = waiter.prev;
    heir.next = waiter.next;
    if (waiter.prev === null) this.#head = heir;
    else waiter.prev.next = heir;
    if (waiter.next === null) this.#tail = heir;
    else waiter.next.prev = heir;
    waiter.prev =
      waiter.next =
      waiter.followers =
      waiter.hasty =
        null;
  }

  #unlink(waiter: Waiter<T>): void {
    if (waiter.prev === null) this.#head = waiter.next;
    else waiter.prev.next = waiter.next;
    if (waiter.next === null) this.#tail = waiter.prev;
    else waiter.next.prev = waiter.prev;
    waiter.prev = waiter.next = null;
    this.size--;
    this.#ranks.give(waiter.number);
  }

  /** Numbers all anew: as many were pushed before as are numbered now, or more. */
  #renumber(): void {
    this.#ranks.clear();
    for (let one = this.#head; one !== null; one = one.next) one.number = this.#ranks.take();
  }
}
