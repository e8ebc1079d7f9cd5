/** Virtual time: everything that would happen by the clock happens in its order, at once. */

import type { Clock } from "../../src/clock.ts";

/** Whose the servers' doings are: nothing of the code that is tested runs in them, unless they touch an isolate. */
export const SERVERS: object = {};

interface Event {
  readonly at: number;
  readonly order: number;
  /** Whose it is; null for what belongs to the world itself. */
  readonly owner: object | null;
  fn: (() => void) | null;
}

type Timer = ReturnType<typeof setTimeout>;

// Taken now: a test may put a fake in its place.
const { setImmediate } = globalThis as unknown as { setImmediate(fn: () => void): void };

/** A turn of the runtime's own loop: when it comes, no microtask is left. */
export function realTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** A clock that goes on only when `step` is called. */
export class VirtualClock implements Clock {
  /** What `wall` is ahead of `now`; a test may move it. */
  wallAhead = 1_700_000_000_000;
  readonly random: () => number;
  /** Whether nothing but servers has done anything in the last step. */
  quiet = false;
  #now = 0;
  #order = 0;
  /** A binary heap by time, and by order within it. */
  readonly #heap: Event[] = [];
  #live = 0;

  constructor(random: () => number) {
    this.random = random;
  }

  now(): number {
    return this.#now;
  }

  wall(): number {
    return this.#now + this.wallAhead;
  }

  setTimeout(fn: () => void, ms: number): Timer {
    // As the runtimes do it: whole milliseconds, and at least one.
    return this.#add(fn, Math.max(1, Math.trunc(ms))) as unknown as Timer;
  }

  clearTimeout(timer: Timer | undefined): void {
    const event = timer as unknown as Event | undefined;
    if (event === undefined || event.fn === null) return;
    event.fn = null;
    this.#live--;
  }

  hold(): void {}

  /** Calls back after so many milliseconds; returns how to call that off. */
  after(ms: number, fn: () => void, owner: object | null = null): () => void {
    const event = this.#add(fn, ms, owner);
    return () => this.clearTimeout(event as unknown as Timer);
  }

  /** A timer of somebody's; of the others it is told apart by `step` and `drop`. */
  timer(fn: () => void, ms: number, owner: object): Timer {
    return this.#add(fn, Math.max(1, Math.trunc(ms)), owner) as unknown as Timer;
  }

  /** Nothing happens for so long, and what was due meanwhile comes late. */
  freeze(ms: number): void {
    this.#now += ms;
  }

  /** Calls off all that is somebody's. */
  drop(owner: object): void {
    for (const event of this.#heap) {
      if (event.owner === owner) this.clearTimeout(event as unknown as Timer);
    }
  }

  /** How many timers are set. */
  get pending(): number {
    return this.#live;
  }

  /** When the next thing happens; Infinity when nothing will. */
  get nextAt(): number {
    this.#skip();
    return this.#heap[0]?.at ?? Infinity;
  }

  /** Does the next thing; false when there is none, or not before `until`, or when it is not another one's than `not`. */
  step(until: number = Infinity, not: object | null = null): boolean {
    this.#skip();
    const event = this.#heap[0];
    if (event === undefined || event.at > until) return false;
    const { owner } = event;
    if (not !== null && (owner === null || owner === SERVERS || owner === not)) return false;
    this.#pop();
    this.#live--;
    this.#now = Math.max(this.#now, event.at);
    const { fn } = event;
    event.fn = null;
    this.quiet = owner === SERVERS;
    fn!();
    return true;
  }

  #add(fn: () => void, ms: number, owner: object | null = null): Event {
    const delay = Number.isFinite(ms) ? Math.max(0, ms) : 0;
    const event = { at: this.#now + delay, order: this.#order++, owner, fn };
    this.#live++;
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const up = (at - 1) >> 1;
      if (before(heap[up]!, event)) break;
      heap[at] = heap[up]!;
      at = up;
    }
    heap[at] = event;
    return event;
  }

  #skip(): void {
    while (this.#heap.length > 0 && this.#heap[0]!.fn === null) this.#pop();
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let at = 0;
    for (;;) {
      let down = 2 * at + 1;
      if (down >= heap.length) break;
      if (down + 1 < heap.length && before(heap[down + 1]!, heap[down]!)) down++;
      if (before(last, heap[down]!)) break;
      heap[at] = heap[down]!;
      at = down;
    }
    heap[at] = last;
  }
}

function before(a: Event, b: Event): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}
