/** Who waits, and until when: first-come first-served waiters, their deadlines and their signals. */

import { chanceAfter, type Clock, LONGEST } from "../clock.ts";
import { Alarm } from "./alarm.ts";
import type { PoolEntry } from "./entry.ts";

/** What has a deadline; a node in the list of those that wait for as long. */
export abstract class Deadlined {
  /** When its time began. */
  readonly since: number;
  #list: DeadlineList | null = null;
  #prev: Deadlined | null = null;
  #next: Deadlined | null = null;

  constructor(since: number) {
    this.since = since;
  }

  /** Called when `duration` milliseconds have gone by since it was made, unless `disarm` came first. */
  protected abstract expire(waited: number): void;

  /** Sets the deadline. To be called once, in the turn in which this was made. */
  protected arm(duration: number, deadlines: Deadlines): void {
    const list = deadlines.listOf(duration);
    this.#list = list;
    this.#prev = list.tail;
    if (list.tail === null) list.head = this;
    else list.tail.#next = this;
    list.tail = this;
    list.alarm.set(this.since + duration, this.since);
  }

  /** Lifts the deadline, if there is one. */
  protected disarm(): void {
    const list = this.#list;
    if (list === null) return;
    if (this.#prev === null) list.head = this.#next;
    else this.#prev.#next = this.#next;
    if (this.#next === null) list.tail = this.#prev;
    else this.#next.#prev = this.#prev;
    this.#list = this.#prev = this.#next = null;
    // With nobody left, a timer would keep the process alive for nothing.
    if (list.head !== null) return;
    list.alarm.clear();
    list.owner.delete(list);
  }

  /** Ends those of one list whose time is over. */
  static end(list: DeadlineList, now: number): void {
    if (list.head === null) return;
    const late = now - list.head.since - list.duration;
    // No longer than the duration: whoever comes meanwhile is not ended before its time.
    const chance = list.spared ? 0 : Math.min(chanceAfter(late), list.duration);
    list.spared = chance > 0;
    if (list.spared) return list.alarm.set(now + chance, now);
    for (let one = list.head; one !== null; one = list.head) {
      const end = one.since + list.duration;
      // Timers count in whole milliseconds, and may be a fraction of one early.
      if (end - now >= 1) return list.alarm.set(end, now);
      one.disarm();
      one.expire(now - one.since);
    }
  }
}

interface DeadlineList {
  readonly owner: Deadlines;
  readonly duration: number;
  /** Whose time runs out first. */
  head: Deadlined | null;
  tail: Deadlined | null;
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

  /** The list of those who wait for so long. */
  listOf(duration: number): DeadlineList {
    return this.#lists.get(duration) ?? this.#newList(duration);
  }

  #newList(duration: number): DeadlineList {
    const { clock } = this;
    const ring = (): void => Deadlined.end(list, clock.now());
    const list: DeadlineList = {
      owner: this,
      duration,
      head: null,
      tail: null,
      spared: false,
      alarm: new Alarm(clock, ring, true),
      at: -1,
    };
    this.#lists.set(duration, list);
    this.#byDuration.add(list);
    return list;
  }

  /** The shortest duration for which somebody waits; Infinity when nobody has a deadline. */
  get shortest(): number {
    return this.#byDuration.first?.duration ?? Infinity;
  }

  /** Forgets a list that is empty. */
  delete(list: DeadlineList): void {
    this.#lists.delete(list.duration);
    this.#byDuration.delete(list);
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

/** Who gives up when a signal aborts. */
export interface Abortable {
  /** The signal has aborted. */
  abort(reason: unknown): void;
}

interface Group {
  readonly all: Set<Abortable>;
  readonly listener: () => void;
}

/** The signals of one pool's callers. */
export class Signals {
  readonly #groups = new Map<AbortSignal, Group>();

  /** From now on `one` hears of it when the signal aborts. */
  add(signal: AbortSignal, one: Abortable): void {
    const group = this.#groups.get(signal);
    if (group !== undefined) return void group.all.add(one);
    const all = new Set([one]);
    const listener = (): void => {
      this.#groups.delete(signal);
      signal.removeEventListener("abort", listener);
      for (const each of all) each.abort(signal.reason);
    };
    this.#groups.set(signal, { all, listener });
    signal.addEventListener("abort", listener);
  }

  /** It does not any more. */
  remove(signal: AbortSignal, one: Abortable): void {
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
  /** Called after the waiter has left: by its deadline, after `waited` milliseconds, or by its signal. */
  readonly left: (waiter: Waiter<T>, waited?: number) => void;
}

/**
 * One that waits. It settles once: by `accept`, `refuse`, its deadline or its signal; what
 * comes first wins, and the others have no effect. In the queue it is a node of a linked list, so
 * that leaving from the middle costs the same at any length.
 */
export abstract class Waiter<T> extends Deadlined implements Abortable {
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
    if (options.signal !== undefined) options.signals.add(options.signal, this);
    if (options.timeout > 0 && options.timeout <= LONGEST) {
      this.arm(options.timeout, options.deadlines);
    }
  }

  /** It has what it waited for. Must not throw. */
  protected abstract served(value: T): void;
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

const FIRST_SIZE = 64;

/**
 * Numbers, given out in order and taken back in any, and how many that are still out come before one:
 * each in as many steps as the logarithm of how many there are (a Fenwick tree).
 */
export class Ranks {
  /** At `i`: how many are out of the `i & -i` numbers up to `i`. */
  #tree = new Int32Array(FIRST_SIZE + 1);
  #last = 0;
  #out = 0;

  /** True when there is no number left: whoever has some takes new ones, in order, after `clear`. */
  get full(): boolean {
    return this.#last === this.#tree.length - 1;
  }

  /** Takes all numbers back; now there is room for twice as many as were out. */
  clear(): void {
    let size = FIRST_SIZE;
    while (size < 2 * this.#out + 2) size *= 2;
    this.#tree = new Int32Array(size + 1);
    this.#last = this.#out = 0;
  }

  /** Gives a number behind all others. */
  take(): number {
    const number = ++this.#last;
    this.#out++;
    this.#add(number, 1);
    return number;
  }

  /** Takes one back. */
  give(number: number): void {
    this.#out--;
    this.#add(number, -1);
  }

  /** How many are out up to this one, counted with it. */
  of(number: number): number {
    let rank = 0;
    for (let at = number; at > 0; at -= at & -at) rank += this.#tree[at] as number;
    return rank;
  }

  #add(number: number, by: number): void {
    const tree = this.#tree;
    for (let at = number; at < tree.length; at += at & -at) tree[at]! += by;
  }
}

/** Who runs jobs. */
export interface JobHost {
  /** A job has ended; `spoilt` when its connection must not be used again. */
  ended(job: RunningJob, spoilt: boolean): void;
}

/** A piece of work that may run beside others on one connection, such as a single statement; no more than waiting takes. */
export interface Job {
  /** Runs a function as whoever gave it; null when nobody listens. Kept by the host. */
  scope: ((fn: () => void) => void) | null;

  /** What it is, without values, for `inspect`. */
  readonly shown?: string;

  /** Whether its kind has always been quick of late: then others may be sent behind it. */
  readonly proven: boolean;
  /** Makes what runs. To be called once. Must not throw. */
  begin(): RunningJob;
  /** It will not be begun. Must not throw. */
  refuse(reason: unknown): void;
}

/** A job that has a connection. */
export interface RunningJob {
  /** Where it runs, and who runs it there and hears of its end; both kept by the latter. */
  entry: PoolEntry<object> | null;
  host: JobHost | null;
  /** Whether it counts as one that may be slow. Kept by the host. */
  unproven: boolean;

  /** Starts. At its end it tells its host, exactly once. Must not throw. */
  start(resource: object): void;
  /** Learns, after its end, whether it was quick, for its kind. Must not throw. */
  measured(quick: boolean): void;
}

/** A job that waits, as whoever gave it sees it. */
export interface WaitingJob {
  /** Takes it back and refuses it; false when it does not wait any more. */
  withdraw(reason: unknown): boolean;
}

/** A job that waits for a connection, in the same queue as the callers of getconn. */
export class JobWaiter<T> extends Waiter<T> implements WaitingJob {
  readonly job: Job;
  /** Its neighbours among the jobs that wait; kept by {@linkcode JobLine}. */
  before: JobWaiter<T> | null = null;
  behind: JobWaiter<T> | null = null;
  readonly #line: JobLine<T>;

  /** Stands at the end of `line` until it waits no more. */
  constructor(job: Job, line: JobLine<T>, options: WaiterOptions<T>, since: number) {
    super(options, since);
    this.job = job;
    this.#line = line;
    line.add(this);
  }

  /** Resolves when it waits no more. */
  over(): Promise<void> {
    return new Promise((resolve) => this.onended = () => resolve());
  }

  withdraw(reason: unknown): boolean {
    return this.#line.withdraw(this, reason);
  }

  /** Takes it out to be started; false when it has left. */
  take(): boolean {
    // There is no value: the job is started by whoever takes it.
    return this.accept(undefined as T);
  }

  protected override served(): void {
    this.#line.delete(this);
  }

  protected override refused(reason: unknown): void {
    this.#line.delete(this);
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
  /** Takes one back and refuses it; false when it does not wait any more. */
  readonly withdraw: (one: JobWaiter<T>, reason: unknown) => boolean;

  constructor(withdraw: (one: JobWaiter<T>, reason: unknown) => boolean) {
    this.withdraw = withdraw;
  }

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
