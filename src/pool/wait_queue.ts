/** Who waits, and until when: first-come first-served waiters, their deadlines and their signals. */

import { chanceAfter, type Clock, LONGEST } from "../clock.ts";
import { Alarm } from "./alarm.ts";

/** A waiter, as its deadline and its signal see it. */
interface Waiting {
  /** When its time began. */
  readonly since: number;
  /** Its time is over. */
  expire(waited: number): void;
  /** Gives up, for this reason. */
  withdraw(reason: unknown): void;
}

/** Those who wait for the same time, in the order in which it runs out. */
interface DeadlineList {
  readonly duration: number;
  readonly all: Set<Waiting>;
  /** Whether the last ring came late and ended nobody for that. */
  spared: boolean;
  readonly alarm: Alarm;
  /** Its place among the lists by their durations. */
  at: number;
}

/** The deadlines of one pool: for each duration that somebody waits for, a list. */
export class Deadlines {
  readonly clock: Clock;
  readonly #lists = new Map<number, DeadlineList>();
  readonly #byDuration = new ShortestFirst();

  constructor(clock: Clock) {
    this.clock = clock;
  }

  /** The shortest duration for which somebody waits; Infinity when nobody has a deadline. */
  get shortest(): number {
    return this.#byDuration.first?.duration ?? Infinity;
  }

  /** `one`, whose time begins now, gives up `duration` milliseconds later. */
  add(duration: number, one: Waiting): void {
    const list = this.#lists.get(duration) ?? this.#newList(duration);
    list.all.add(one);
    list.alarm.set(one.since + duration, one.since);
  }

  /** It does not any more. */
  remove(duration: number, one: Waiting): void {
    const list = this.#lists.get(duration);
    if (list === undefined || !list.all.delete(one) || list.all.size > 0) return;
    // With nobody left, a timer would keep the process alive for nothing.
    list.alarm.clear();
    this.#lists.delete(duration);
    this.#byDuration.delete(list);
  }

  #newList(duration: number): DeadlineList {
    const alarm = new Alarm(this.clock, () => this.#end(list), true);
    const list: DeadlineList = { duration, all: new Set(), spared: false, alarm, at: -1 };
    this.#lists.set(duration, list);
    this.#byDuration.add(list);
    return list;
  }

  /** Ends those of one list whose time is over. */
  #end(list: DeadlineList): void {
    const { duration, all, alarm } = list;
    const [first] = all;
    if (first === undefined) return;
    const now = this.clock.now();
    // No longer than the duration: whoever comes meanwhile is not ended before its time.
    const chance = list.spared ? 0 : Math.min(chanceAfter(now - first.since - duration), duration);
    list.spared = chance > 0;
    if (list.spared) return alarm.set(now + chance, now);
    for (const one of all) {
      const end = one.since + duration;
      // Timers count in whole milliseconds, and may be a fraction of one early.
      if (end - now >= 1) return alarm.set(end, now);
      one.expire(now - one.since);
    }
  }
}

/** Lists by their durations, in a heap: who waits until a point in time has a duration of its own, so there may be as many as callers. */
class ShortestFirst {
  readonly #heap: DeadlineList[] = [];

  get first(): DeadlineList | undefined {
    return this.#heap[0];
  }

  add(list: DeadlineList): void {
    this.#up(this.#heap.length, list);
  }

  delete(list: DeadlineList): void {
    const last = this.#heap.pop() as DeadlineList;
    if (last === list) return;
    this.#down(list.at, last);
    this.#up(last.at, last);
  }

  /** Puts it where it belongs, at `at` or nearer to the first. */
  #up(at: number, list: DeadlineList): void {
    const heap = this.#heap;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const above = heap[parent] as DeadlineList;
      if (above.duration <= list.duration) break;
      this.#put(at, above);
      at = parent;
    }
    this.#put(at, list);
  }

  /** The same, at `at` or farther from the first. */
  #down(at: number, list: DeadlineList): void {
    const heap = this.#heap;
    for (let child = 2 * at + 1; child < heap.length; child = 2 * at + 1) {
      const right = heap[child + 1];
      if (right !== undefined && right.duration < heap[child]!.duration) child++;
      const below = heap[child] as DeadlineList;
      if (below.duration >= list.duration) break;
      this.#put(at, below);
      at = child;
    }
    this.#put(at, list);
  }

  #put(at: number, list: DeadlineList): void {
    this.#heap[at] = list;
    list.at = at;
  }
}

interface Group {
  readonly all: Set<Waiting>;
  readonly listener: () => void;
}

/** The signals of one pool's callers. */
export class Signals {
  readonly #groups = new Map<AbortSignal, Group>();

  /** From now on `one` hears of it when the signal aborts. */
  add(signal: AbortSignal, one: Waiting): void {
    const group = this.#groups.get(signal);
    if (group !== undefined) return void group.all.add(one);
    const all = new Set([one]);
    const listener = (): void => {
      this.#groups.delete(signal);
      signal.removeEventListener("abort", listener);
      for (const each of all) each.withdraw(signal.reason);
    };
    this.#groups.set(signal, { all, listener });
    signal.addEventListener("abort", listener);
  }

  /** It does not any more. */
  remove(signal: AbortSignal, one: Waiting): void {
    const group = this.#groups.get(signal);
    if (group === undefined) return;
    group.all.delete(one);
    if (group.all.size > 0) return;
    this.#groups.delete(signal);
    signal.removeEventListener("abort", group.listener);
  }
}

/** What a waiter wants and how it is told. */
export interface WaiterOptions<T> {
  /** The key it asked for, or null. */
  readonly key: unknown;
  /** Milliseconds until it gives up; 0 = it never waits for what is not on its way; Infinity = no limit. */
  readonly timeout: number;
  /** Gives up when it aborts. */
  readonly signal: AbortSignal | undefined;
  /** Where getconn was called, when leaks are looked for. */
  readonly stack?: string | null;
  /** Whether a pool that drains serves it all the same, as what was asked for before. */
  readonly stays?: boolean;
  /** Where its deadline stands among those of others. */
  readonly deadlines: Deadlines;
  /** Where its signal is listened to. */
  readonly signals: Signals;
  /** Makes the error for the deadline. */
  readonly expired: (waited: number) => Error;
  /** Called when the waiter gives up, before it hears of it, who may call back in. */
  readonly leave: (waiter: Waiter<T>) => void;
  /** Called behind it: it gave up by its deadline, after `waited` milliseconds, or for a reason of its own. */
  readonly left?: (waited?: number) => void;
}

/**
 * One that waits. It settles once: by `accept`, `refuse`, its deadline or its signal; what
 * comes first wins, and the others have no effect. In the queue it is a node of a linked list, so
 * that leaving from the middle costs the same at any length.
 */
export abstract class Waiter<T> implements Waiting {
  readonly since: number;
  settled = false;
  /** Called once when it settles: with null, or with the reason why it was sent away. */
  onended: ((failure: { readonly error: unknown } | null) => void) | null = null;
  /** Whether it is in a queue; kept by the queue. */
  queued = false;
  prev: Waiter<T> | null = null;
  next: Waiter<T> | null = null;
  /** Grows from place to place. */
  number = 0;
  /** How many of those who share its place have `timeout: 0`. */
  hurried = 0;
  /** Later callers that want the same key; they share this one's place in the queue. */
  followers: Set<Waiter<T>> | null = null;

  readonly #options: WaiterOptions<T>;

  /** Many may share the same options. */
  constructor(options: WaiterOptions<T>, since: number = options.deadlines.clock.now()) {
    this.since = since;
    this.#options = options;
    const { signal, signals, timeout, deadlines } = options;
    if (signal !== undefined) signals.add(signal, this);
    if (timeout > 0 && timeout <= LONGEST) deadlines.add(timeout, this);
  }

  /** It has settled, and nobody has heard of it yet. Must not throw. */
  protected settling(): void {}
  /** It has what it waited for. Must not throw. */
  protected served(_value: T): void {}
  /** It was sent away. Must not throw. */
  protected abstract refused(reason: unknown): void;

  get key(): unknown {
    return this.#options.key;
  }

  /** True for a caller with `timeout: 0`. */
  get impatient(): boolean {
    return this.#options.timeout === 0;
  }

  /** Where getconn was called, when leaks are looked for. */
  get stack(): string | null {
    return this.#options.stack ?? null;
  }

  /** True when a pool that drains serves it all the same. */
  get stays(): boolean {
    return this.#options.stays === true;
  }

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
    this.#tell(reason);
    return true;
  }

  /** The waiter gives up, for this reason; false when it has left. */
  withdraw(reason: unknown, waited?: number): boolean {
    if (!this.#settle()) return false;
    this.#options.leave(this);
    this.#tell(reason);
    // Whoever gave up first hears of it first: what is free for others now comes behind it.
    this.#options.left?.(waited);
    return true;
  }

  expire(time: number): void {
    const waited = Math.round(time);
    this.withdraw(this.#options.expired(waited), waited);
  }

  #tell(reason: unknown): void {
    this.refused(reason);
    this.onended?.({ error: reason });
  }

  #settle(): boolean {
    if (this.settled) return false;
    this.settled = true;
    const { signal, signals, timeout, deadlines } = this.#options;
    deadlines.remove(timeout, this);
    if (signal !== undefined) signals.remove(signal, this);
    this.settling();
    return true;
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

/**
 * The queue. Every waiter in it is unsettled: whoever settles one removes it in the same turn.
 *
 * However long it is, nothing here takes more steps than there are connections, but for what is handed out.
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
  /** Places at which somebody has `timeout: 0`: no more than are on their way to those, however many share one. */
  readonly #hasty = new Set<Waiter<T>>();
  #lastNumber = 0;

  /** The one who waits longest. */
  get first(): Waiter<T> | null {
    return this.#head;
  }

  /** Adds a waiter at the end; one whose key is wanted already joins that place instead. */
  push(waiter: Waiter<T>): void {
    this.callers++;
    if (waiter.stays) this.staying++;
    waiter.queued = true;
    const place = this.#placeOf(waiter);
    if (waiter.impatient) {
      this.impatient++;
      if (place.hurried++ === 0) this.#hasty.add(place);
    }
    if (place !== waiter) {
      (place.followers ??= new Set()).add(waiter);
      return;
    }
    if (waiter.key !== null) this.#keyed.set(waiter.key, waiter);
    waiter.prev = this.#tail;
    if (this.#tail === null) this.#head = waiter;
    else this.#tail.next = waiter;
    this.#tail = waiter;
    this.size++;
    waiter.number = ++this.#lastNumber;
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
    const place = this.#placeOf(waiter);
    this.#forget(waiter, place);
    if (place !== waiter) {
      place.followers?.delete(waiter);
      return;
    }
    for (const heir of waiter.followers ?? []) return this.#replace(waiter, heir);
    this.#keyed.delete(waiter.key);
    this.#unlink(waiter);
  }

  /** The last place that belongs to a caller with `timeout: 0`, counted from 1, or `most` if that is less; 0 when there is none. */
  lastImpatient(most: number): number {
    // As in every burst of those: the one who comes is the last.
    if (this.#tail !== null && this.#tail.hurried > 0) return Math.min(most, this.size);
    let unseen = this.#hasty.size;
    let places = 0;
    for (let one = this.#head; one !== null && unseen > 0 && places < most; one = one.next) {
      places++;
      if (one.hurried > 0) unseen--;
    }
    return places;
  }

  /** How many of the first places, up to `most`, belong to callers with `timeout: 0`. */
  impatientFirst(most: number): number {
    if (this.#hasty.size === this.size) return Math.min(most, this.size);
    let count = 0;
    for (let one = this.#head; one !== null && one.hurried > 0 && count < most; one = one.next) {
      count++;
    }
    return count;
  }

  /** The callers with `timeout: 0` that are not among the first `places`, in the order of the queue. */
  impatientBeyond(places: number): Waiter<T>[] {
    if (this.size <= places) return [];
    let first = this.#head as Waiter<T>;
    for (let before = 0; before < places; before++) first = first.next as Waiter<T>;
    return [...this.#hasty].filter(({ number }) => number >= first.number)
      .sort((one, other) => one.number - other.number)
      .flatMap((place) => [place, ...place.followers ?? []].filter(({ impatient }) => impatient));
  }

  /** Whose place a waiter has, or would have: its own, or that of the first who wants the same key. */
  #placeOf(waiter: Waiter<T>): Waiter<T> {
    return waiter.key === null ? waiter : this.#keyed.get(waiter.key) ?? waiter;
  }

  /** `waiter` is out; its place is, or was, that of `place`. */
  #forget(waiter: Waiter<T>, place: Waiter<T>): void {
    this.callers--;
    if (waiter.stays) this.staying--;
    waiter.queued = false;
    if (!waiter.impatient) return;
    this.impatient--;
    if (--place.hurried === 0) this.#hasty.delete(place);
  }

  #replace(waiter: Waiter<T>, heir: Waiter<T>): void {
    this.#keyed.set(waiter.key, heir);
    heir.followers = waiter.followers;
    heir.followers?.delete(heir);
    heir.number = waiter.number;
    heir.hurried = waiter.hurried;
    waiter.hurried = 0;
    if (this.#hasty.delete(waiter)) this.#hasty.add(heir);
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
