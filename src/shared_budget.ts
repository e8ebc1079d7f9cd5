/** The budget of a pool that shares its permits with other isolates: the policy over `Permits`. */

import type { Budget } from "./budget.ts";
import { type Need, Permits } from "./permits.ts";
import { HEAD, SLOT, slotAt, type Words } from "./words.ts";
import { bury } from "./slots.ts";

/** An idle connection that was used so recently, in milliseconds, may well be needed here at once. */
const FRESH = 20;
/** The last connection of an isolate is not given up before it was idle for this, in milliseconds, or had its turn. */
const PAUSE = 5;
/** When all permits change hands in turn, none does so faster than this, in milliseconds … */
const SHORTEST_TURN = 20;
/** … or this many times what connecting takes, so that most of the time goes into work … */
const TURN_PER_CONNECT = 6;
/** … but nobody waits for longer than this on account of slow connecting. */
const LONGEST_TURN = 250;
/** With 2 connections here and 1 there the odd one changes hands this often. */
const ODD_TURN = 250;
/** At most so often a saturated isolate counts who is worse off, in milliseconds. */
const LOOK_EVERY = 2;

/** The words of a SharedArrayBuffer. */
export class AtomicWords implements Words {
  readonly array: Int32Array<SharedArrayBuffer>;

  constructor(buffer: SharedArrayBuffer) {
    this.array = new Int32Array(buffer);
  }

  load(at: number): number {
    return Atomics.load(this.array, at);
  }

  store(at: number, value: number): void {
    Atomics.store(this.array, at, value);
  }

  swap(at: number, from: number, to: number): number {
    return Atomics.compareExchange(this.array, at, from, to);
  }

  exchange(at: number, value: number): number {
    return Atomics.exchange(this.array, at, value);
  }

  add(at: number, by: number): void {
    Atomics.add(this.array, at, by);
  }

  or(at: number, bits: number): void {
    Atomics.or(this.array, at, bits);
  }

  and(at: number, bits: number): void {
    Atomics.and(this.array, at, bits);
  }

  wake(at: number): void {
    Atomics.add(this.array, at, 1);
    Atomics.notify(this.array, at);
  }
}

/** The pool's clock: milliseconds that wrap around and fit into a word. */
export function clock(): number {
  return Date.now() | 0;
}

/** One isolate's side of a shared budget. */
export class SharedBudget implements Budget {
  readonly shared: boolean = true;
  readonly permits: Permits;
  /** The number of permits that this isolate lacks, as published. */
  lacks = 0;
  /** All connections opened so far, and the time it took; told by whoever knows. */
  opened: () => { readonly count: number; readonly ms: number } = () => ({ count: 0, ms: 0 });
  /** Told when this isolate begins to lack permits, and each time that it still does. */
  onlack: () => void = () => {};
  /** While true, `resize` changes nothing: another isolate did it, and this one only follows. */
  following = false;

  /** Set by `onactive`, which is called when something happens and this is false. */
  active = false;
  onactive: () => void = () => {};

  readonly #words: Words;
  readonly #idleAt: number;
  #urgent = 0;
  #gained = 0;
  #nextLook = 0;
  #known = { count: 0, ms: 0 };
  #connectTime = 0;

  constructor(words: Words, id: number) {
    this.#words = words;
    this.permits = new Permits(words, id);
    this.#idleAt = slotAt(this.permits.slot, SLOT.IDLE);
  }

  get limit(): number {
    return this.#words.load(HEAD.LIMIT);
  }

  get held(): number {
    return this.permits.mine.length;
  }

  get elsewhere(): number {
    return this.permits.census().total - this.held;
  }

  get prospects(): number {
    return Math.max(0, this.permits.prospects());
  }

  get contended(): boolean {
    return this.permits.othersLack();
  }

  take(): boolean {
    if (!this.active) this.onactive();
    if (this.#words.load(HEAD.PHASE) !== 0 || !this.permits.take()) return false;
    this.#gained = Date.now();
    return true;
  }

  give(): void {
    this.permits.give();
  }

  resize(limit: number): void {
    if (this.following) return;
    if (limit > this.#words.load(HEAD.HIGH)) this.#words.store(HEAD.HIGH, limit);
    this.#words.store(HEAD.LIMIT, limit);
  }

  over(size: number): boolean {
    if (this.#words.load(HEAD.HIGH) === this.limit) return false;
    // What is being closed already gives back what is above the limit first.
    return this.permits.migrate() > this.held - size;
  }

  idle(count: number): void {
    this.#words.store(this.#idleAt, count);
    if (!this.active) this.onactive();
  }

  lack(count: number, urgent: number): boolean {
    if (!this.active) this.onactive();
    if (count === 0) {
      if (this.lacks > 0) this.permits.lack(0, 0, 0);
      this.lacks = this.#urgent = 0;
      return false;
    }
    if (count === this.lacks && urgent === this.#urgent) {
      this.onlack();
      return false;
    }
    this.lacks = count;
    this.#urgent = urgent;
    const now = clock();
    this.permits.lack(count, urgent, now);
    bury(this.#words, now);
    if (this.#words.load(HEAD.PHASE) !== 0) return false;
    if (this.permits.available()) return true;
    this.permits.ask();
    this.onlack();
    return false;
  }

  /** After a while in vain: buries who is dead, and asks again. */
  insist(): void {
    bury(this.#words, clock());
    this.permits.ask(true);
  }

  yields(now: number): boolean {
    if (now < this.#nextLook || !this.permits.othersLack()) return false;
    this.#nextLook = now + LOOK_EVERY;
    const { permits } = this;
    const census = permits.census();
    const need = permits.neediest(census);
    if (need === null) return false;
    const has = census.held[permits.slot] as number;
    return this.#isFair(need, has, permits.average(census), now) && permits.promise(need.id);
  }

  spares(now: number, idleSince: number): boolean {
    const { permits } = this;
    const census = permits.census();
    const need = permits.neediest(census);
    if (need === null) return false;
    const has = census.held[permits.slot] as number;
    const idleFor = now - idleSince;
    const spare = need.urgent || has - need.has >= 2 || idleFor >= FRESH ||
      // The last one: its user may be a loop that comes back at once, and has its turn.
      (need.has === 0 && (idleFor >= PAUSE || now - this.#gained >= this.#turn()));
    return spare && permits.promise(need.id);
  }

  /** Whether one of `has` connections in use here has to go to somebody who has fewer. */
  #isFair(need: Need, has: number, average: number, now: number): boolean {
    const turn = now - this.#gained;
    if (need.has === 0) return has > 1 || turn >= this.#turn();
    // A move that leaves both where the other was helps nobody, unless it is by turns.
    if (has - need.has >= 2) return has > average;
    return has === 2 && need.has === 1 && turn >= ODD_TURN;
  }

  #turn(): number {
    const { count, ms } = this.opened();
    if (count > this.#known.count) {
      const took = (ms - this.#known.ms) / (count - this.#known.count);
      // The first one, or one in a bad moment, is no measure: rather believe the quick ones.
      this.#connectTime = this.#connectTime === 0 ? took : Math.min(took, this.#connectTime * 1.5);
      this.#known = { count, ms };
    }
    const turn = Math.max(SHORTEST_TURN, TURN_PER_CONNECT * this.#connectTime);
    return Math.min(turn, LONGEST_TURN);
  }
}
