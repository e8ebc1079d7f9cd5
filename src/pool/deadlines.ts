/**
 * Many deadlines on few timers: one for each duration in use, as waiters of one pool mostly wait
 * for equally long. A timer of one's own for each waiter costs 4 µs in Deno.
 */

import type { Timer } from "../runtime.ts";

/** What has a deadline; a node in the list of those that wait for as long. */
export abstract class Deadlined {
  /** When its time began, by the clock that nobody sets. */
  readonly since: number = performance.now();
  #list: DeadlineList | null = null;
  #prev: Deadlined | null = null;
  #next: Deadlined | null = null;

  /** Called when `duration` milliseconds have gone by since it was made, unless `disarm` came first. */
  protected abstract expire(): void;

  /** Sets the deadline. To be called once, in the turn in which this was made. */
  protected arm(duration: number, deadlines: Deadlines): void {
    const list = deadlines.listOf(duration);
    this.#list = list;
    this.#prev = list.tail;
    if (list.tail === null) list.head = this;
    else list.tail.#next = this;
    list.tail = this;
    list.timer ??= setTimeout(Deadlined.#tick, duration, list);
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
    clearTimeout(list.timer);
    list.owner.delete(list.duration);
  }

  static #tick(list: DeadlineList): void {
    const now = performance.now();
    for (let one = list.head; one !== null; one = list.head) {
      const left = one.since + list.duration - now;
      // Timers count in whole milliseconds, and may be a fraction of one early.
      if (left >= 1) {
        list.timer = setTimeout(Deadlined.#tick, left, list);
        return;
      }
      one.disarm();
      one.expire();
    }
  }
}

interface DeadlineList {
  readonly owner: Deadlines;
  readonly duration: number;
  /** Whose time runs out first. */
  head: Deadlined | null;
  tail: Deadlined | null;
  timer: Timer | undefined;
}

/** The deadlines of one pool: for each duration that somebody waits for, a list. */
export class Deadlines {
  readonly #lists = new Map<number, DeadlineList>();

  /** The list of those who wait for so long. */
  listOf(duration: number): DeadlineList {
    let list = this.#lists.get(duration);
    if (list === undefined) {
      list = { owner: this, duration, head: null, tail: null, timer: undefined };
      this.#lists.set(duration, list);
    }
    return list;
  }

  /** Forgets a list that is empty. */
  delete(duration: number): void {
    this.#lists.delete(duration);
  }
}
