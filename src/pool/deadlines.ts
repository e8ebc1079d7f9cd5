/**
 * Many deadlines on few timers: one for each duration in use, as waiters of one pool mostly wait
 * for equally long. A timer of one's own for each waiter costs 4 µs in Deno.
 */

import { Alarm } from "./alarm.ts";
import { chanceAfter, type Clock } from "../clock.ts";

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
    list.owner.delete(list.duration);
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
}

/** The deadlines of one pool: for each duration that somebody waits for, a list. */
export class Deadlines {
  readonly clock: Clock;
  readonly #lists = new Map<number, DeadlineList>();

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
    };
    this.#lists.set(duration, list);
    return list;
  }

  /** The shortest duration for which somebody waits; Infinity when nobody has a deadline. */
  get shortest(): number {
    return Math.min(...this.#lists.keys());
  }

  /** Forgets a list that is empty. */
  delete(duration: number): void {
    this.#lists.delete(duration);
  }
}
