/** The permits of a pool that shares them with other isolates: the policy over the table. */

import { type Clock, currentClock } from "../clock.ts";
import type { OtherIsolates, Permits } from "../pool/permits.ts";
import { type Census, type Need, PATIENCE, PermitTable } from "./permit_table.ts";
import { HEAD, HEAD_WORDS, Phase, SLOT, slotAt, type Words } from "./layout.ts";
import { bury, type DeadSince } from "./members.ts";

/** An idle connection that was used so recently, in milliseconds, may well be needed here at once. */
const FRESH = 20;
/** The last connection of an isolate is not given up before it was idle for this, in milliseconds, or had its turn. */
const PAUSE = 5;
/** When all permits change hands in turn, none does so faster than this, in milliseconds … */
const SHORTEST_TURN = 20;
/** … nor than this many times what connecting takes, so that most of the time goes into work … */
const TURN_PER_CONNECT = 6;
/**
 * … and so many connections of all that there are may be on their way from hand to hand, on average: each
 * costs the machine what many statements cost. So the more permits there are, the longer is a turn …
 */
const CONNECTING_AT_ONCE = 1 / 10;
/** … but not for so long that all permits together change hands less often than once in this time, in milliseconds … */
const LONGEST_PAUSE = 250;
/** … nor that those who have none wait for longer than this, in milliseconds … */
const LONGEST_WAIT = 2_000;
/** … unless they are so many that all permits together would change hands more often than once in this time … */
const SHORTEST_PAUSE = 125;
/** … or one of a few in this. */
const LONGEST_TURN = 250;
/** With 2 connections here and 1 there the odd one changes hands this often. */
const ODD_TURN = 250;
/** At most so often a saturated isolate counts who is worse off, in milliseconds. */
const LOOK_EVERY = 2;

/** The words of a SharedArrayBuffer. */
export class AtomicWords implements Words {
  readonly array: Int32Array<SharedArrayBuffer>;
  readonly #pairs: BigInt64Array<SharedArrayBuffer>;

  constructor(buffer: SharedArrayBuffer) {
    this.array = new Int32Array(buffer);
    this.#pairs = new BigInt64Array(buffer, 0, HEAD_WORDS / 2);
  }

  /** Reads the word at an even place and the next one, as they stand at one instant. */
  loadPair(at: number): readonly [number, number] {
    const pair = new Int32Array(BigInt64Array.of(Atomics.load(this.#pairs, at / 2)).buffer);
    return [pair[0]!, pair[1]!];
  }

  /** Writes both in one step. */
  storePair(at: number, first: number, second: number): void {
    const pair = new BigInt64Array(Int32Array.of(first, second).buffer);
    Atomics.store(this.#pairs, at / 2, pair[0]!);
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

  /** Sleeps on a word that is `seen` until it is woken; null when the word is another one already. */
  sleep(at: number, seen: number): Promise<unknown> | null {
    // Pending, it keeps nothing alive on any runtime.
    const { async, value } = Atomics.waitAsync(this.array, at, seen);
    return async ? value : null;
  }
}

/** One isolate's side of shared permits. */
export class SharedPermits implements Permits, OtherIsolates {
  readonly others: OtherIsolates = this;
  readonly words: AtomicWords;
  readonly table: PermitTable;
  lacked = 0;
  /** Told when this isolate begins to lack permits, and each time that it still does. */
  onlack: () => void = () => {};

  /** Set by `onactive`, which is called when something happens and this is false. */
  active = false;
  onactive: () => void = () => {};

  readonly #clock: Clock = currentClock();
  readonly #idleAt: number;
  #urgent = 0;
  /** The most that was lacked since this isolate began to: so much was announced and asked for. */
  #most = 0;
  /** Since when this isolate counts on others for what it lacks, without having got any; NaN when it does not. */
  #hopedSince = NaN;
  /** When the newest connection stood: then its turn began. */
  #turnSince = 0;
  /** By how many milliseconds the last turn was longer than it should have been. */
  #debt = 0;
  #nextLook = 0;
  /** How many isolates lack permits and have none, when this one counted last. */
  #starving = 0;
  readonly #deadSince: DeadSince = new Map();
  /** The NEWS after which nothing here was above the limit. */
  #fits = -1;

  constructor(words: AtomicWords, id: number) {
    this.words = words;
    this.table = new PermitTable(words, id);
    this.#idleAt = slotAt(this.table.slot, SLOT.IDLE);
  }

  get limit(): number {
    return this.words.load(HEAD.LIMIT);
  }

  get held(): number {
    return this.table.mine.length;
  }

  get elsewhere(): number {
    return this.table.census().total - this.held;
  }

  get idleElsewhere(): number {
    return this.table.idleElsewhere();
  }

  prospects(): number {
    const now = this.#clock.now();
    return now - this.#hopedSince >= PATIENCE ? 0 : Math.max(0, this.table.prospects(now));
  }

  /** In how many milliseconds what is counted on to come from others, and does not, stops counting; Infinity when nothing is. */
  get hopeEndsIn(): number {
    const left = this.#hopedSince + PATIENCE - this.#clock.now();
    return left > 0 ? left : Infinity;
  }

  get contended(): boolean {
    return this.table.othersLack();
  }

  take(): boolean {
    if (!this.active) this.onactive();
    if (this.#closed || !this.table.take()) return false;
    this.#lastInLine();
    this.#hopedSince = NaN;
    return true;
  }

  give(): void {
    this.table.give();
  }

  /** The sizes of the whole pool, both of one `setSizes`. */
  get sizes(): { readonly minconn: number; readonly maxconn: number } {
    const [maxconn, minconn] = this.words.loadPair(HEAD.LIMIT);
    return { minconn, maxconn };
  }

  /** Changes them for all isolates. */
  setSizes(minconn: number, maxconn: number): void {
    const { words } = this;
    // Before the limit: nobody may take a permit where others do not look.
    for (let high = words.load(HEAD.HIGH); high < maxconn; high = words.load(HEAD.HIGH)) {
      words.swap(HEAD.HIGH, high, maxconn);
    }
    words.storePair(HEAD.LIMIT, maxconn, minconn);
    words.add(HEAD.NEWS, 1);
  }

  /** Does nothing: `setSizes` has done it, here or in another isolate. */
  resize(): void {}

  tooMany(size: number): boolean {
    // Every connection that comes back passes here. A reading that is a moment too old does no harm:
    // whoever changes the limit tells all isolates.
    const news = this.words.array[HEAD.NEWS] as number;
    if (news === this.#fits) return false;
    const above = this.words.load(HEAD.HIGH) === this.limit ? 0 : this.table.migrate();
    if (above === 0) this.#fits = news;
    // What is being closed already gives back what is above the limit first.
    return above > this.held - size;
  }

  /** Takes places below the limit for what is above it: until then nobody takes a free one. */
  fit(): void {
    if (this.words.load(HEAD.HIGH) !== this.limit) this.table.migrate();
  }

  tellIdle(count: number): void {
    this.words.store(this.#idleAt, count);
    if (!this.active) this.onactive();
  }

  lack(wanted: number, impatient: number): boolean {
    if (!this.active) this.onactive();
    // More than all there are is nothing that anybody could give up, and a longer queue no news.
    const count = Math.min(wanted, Math.max(0, this.limit - this.held));
    const urgent = Math.min(impatient, count);
    if (count === 0) {
      if (this.lacked > 0) this.table.lack(0, 0, 0);
      this.lacked = this.#urgent = this.#most = 0;
      this.#hopedSince = NaN;
      return false;
    }
    const news = count > this.#most || urgent > this.#urgent;
    if (count !== this.lacked || urgent !== this.#urgent) {
      this.lacked = count;
      this.#urgent = urgent;
      this.table.lack(count, urgent, this.#most === 0 ? this.#number() : 0);
    }
    // Most changes are those of one statement that ends and the next one that is asked for.
    if (!news) {
      if (urgent > 0) this.#hope();
      this.onlack();
      return false;
    }
    this.#most = Math.max(this.#most, count);
    this.#hope();
    this.bury();
    if (this.#closed) return false;
    if (this.table.available()) return true;
    this.table.ask();
    this.onlack();
    return false;
  }

  /** While the pool drains what was asked for before is still served. */
  get #closed(): boolean {
    return this.words.load(HEAD.PHASE) === Phase.closed;
  }

  /** After a while in vain: buries who is dead, and asks again. */
  insist(): void {
    this.#hope();
    this.bury();
    this.table.ask(true);
  }

  /** Frees what the dead had, as far as they have been dead for long enough. */
  bury(): void {
    bury(this.words, this.#deadSince, this.#clock.now());
  }

  claimReturned(): boolean {
    if (!this.table.othersLack()) return false;
    // Turns go by a clock that nobody sets.
    const now = this.#clock.now();
    if (now < this.#nextLook) return false;
    this.#nextLook = now + LOOK_EVERY;
    return this.#promise(
      now,
      (need, has, census) => this.#isFair(need, has, this.table.average(census), now),
    );
  }

  tellOpened(took: number): void {
    this.#turnSince = this.#clock.now();
    // All isolates go by the same time, so that their turns are equally long.
    const old = this.words.load(HEAD.CONNECT_TIME);
    const time = Math.round(took * 1_000);
    // The first one, or one in a bad moment, is no measure: rather believe the quick ones.
    const next = old === 0 ? time : old + (Math.min(time, 2 * old) - old) / (time < old ? 2 : 8);
    this.words.store(HEAD.CONNECT_TIME, Math.max(1, next));
  }

  claimIdle(now: number, idleSince: number): boolean {
    const idleFor = now - idleSince;
    const at = this.#clock.now();
    return this.#promise(
      at,
      (need, has) =>
        need.urgent || has - need.has >= 2 || idleFor >= FRESH ||
        // The last one: its user may be a loop that comes back at once, and has its turn.
        (need.has === 0 && (idleFor >= PAUSE || this.#lateness(at) >= 0)),
    );
  }

  /** Notes since when there has been something to hope for. */
  #hope(): void {
    const now = this.#clock.now();
    if (this.table.prospects(now) <= 0) this.#hopedSince = NaN;
    else if (Number.isNaN(this.#hopedSince)) this.#hopedSince = now;
  }

  /** Whether one of `has` connections in use here has to go to somebody who has fewer. */
  #isFair(need: Need, has: number, average: number, now: number): boolean {
    if (need.has === 0) return has > 1 || this.#lateness(now) >= 0;
    // A move that leaves both where the other was helps nobody, unless it is by turns.
    if (has - need.has >= 2) return has > average;
    return has === 2 && need.has === 1 && now - this.#turnSince >= Math.max(ODD_TURN, this.#turn());
  }

  /** Promises one of the connections here to the one that is worst off elsewhere, if `when` says so. */
  #promise(now: number, when: (need: Need, has: number, census: Census) => boolean): boolean {
    const { table } = this;
    const census = table.census();
    const need = table.neediest(census);
    if (need === null) return false;
    this.#starving = table.starving(census);
    const has = census.held[table.slot] as number;
    if (!when(need, has, census) || !table.promise(need.id)) return false;
    this.#lastInLine();
    // One long statement is paid for with half of the next turn at most: those who wait here get theirs in any case,
    // and when nobody lacked anything meanwhile there was nothing to pay for.
    if (has === 1) this.#debt = Math.min(Math.max(0, this.#lateness(now)), this.#turn() / 2);
    return true;
  }

  /**
   * Whoever got or gave away a permit and still lacks one begins to wait anew: else an isolate that
   * is never without waiters would be the one that waits for longest for ever.
   */
  #lastInLine(): void {
    this.words.store(slotAt(this.table.slot, SLOT.SINCE), this.#number());
  }

  /** The next number in the line; two that take one at the same instant may have the same. */
  #number(): number {
    this.words.add(HEAD.LAST_IN_LINE, 1);
    return this.words.load(HEAD.LAST_IN_LINE);
  }

  /** For how many milliseconds this isolate's turn has been over. */
  #lateness(now: number): number {
    return now - this.#turnSince - this.#turn() + this.#debt;
  }

  #turn(): number {
    const connectTime = this.words.load(HEAD.CONNECT_TIME) / 1_000;
    const { limit } = this;
    const fitting = connectTime * Math.max(TURN_PER_CONNECT, limit / CONNECTING_AT_ONCE);
    const rounds = Math.max(1, Math.ceil(this.#starving / limit));
    const longest = Math.max(
      LONGEST_TURN,
      SHORTEST_PAUSE * limit,
      Math.min(LONGEST_PAUSE * limit, LONGEST_WAIT / rounds),
    );
    return Math.min(Math.max(SHORTEST_TURN, fitting), longest);
  }
}
