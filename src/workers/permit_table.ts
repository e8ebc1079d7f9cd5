/**
 * The permits that several isolates share: who has which, who lacks one, and how one moves.
 *
 * Everything stands in one array of Int32 words, and everything that decides is one compare-and-swap
 * on one word; so whatever isolate dies between any two steps leaves a state that the others
 * understand. There are no locks and no counters of free permits.
 *
 * - A permit is a word: 0 (free) or its owner's id. Its top byte may name another slot: with the owner
 *   still the old one, the permit is promised to that slot and moves when the session is gone; with the
 *   owner that slot itself, it was handed over and waits to be picked up.
 * - An isolate is a slot. The id is the slot's number and a nonce that changes with each tenant. A
 *   permit whose owner is no tenant any more is as good as free: so everything that a worker held
 *   comes back by the one step that ends its tenancy.
 * - Who lacks permits says so before it looks a last time for a free one; who frees one does so
 *   before it looks for somebody who lacks one. So one of the two sees the other.
 *
 * @module
 */

import {
  BIT_WORDS,
  HEAD,
  idOf,
  isLive,
  isTenant,
  PERMITS,
  SLOT,
  slotAt,
  slotOf,
  SLOTS,
  Tenancy,
  type Words,
} from "./layout.ts";

/** An isolate that has not answered for so long is counted on no more, in milliseconds. */
export const PATIENCE = 100;
/** The part of a permit's word that names its owner. */
const ID = 0xffffff;

/** Permits by slot, as counted in one pass: exact for each permit, not for all of them at one instant. */
export interface Census {
  /** Held, without those promised to others. */
  readonly held: Int32Array;
  /** Promised to or handed over, and not picked up. */
  readonly coming: Int32Array;
  /** Held, for the dead count too. */
  readonly owned: Int32Array;
  free: number;
  /** Held by the dead, or promised or handed over to somebody. */
  moving: number;
  total: number;
}

/** An isolate that lacks permits. */
export interface Need {
  readonly id: number;
  /** What it has or is to get. */
  readonly has: number;
  readonly since: number;
  readonly urgent: boolean;
}

/** The view of one isolate. */
export class PermitTable {
  readonly words: Words;
  readonly id: number;
  readonly slot: number;
  /** The places of the permits that stand for this isolate's connections. */
  readonly mine: number[] = [];
  /** Who was found with a question that it had not answered, and when first by this isolate's own clock. By slot. */
  readonly #unanswered = new Map<number, { readonly answers: number; readonly since: number }>();
  /** The NEWS after which nobody was found to lack a permit. */
  #calm = -1;

  constructor(words: Words, id: number) {
    this.words = words;
    this.id = id;
    this.slot = slotOf(id);
  }

  /** True when another isolate lacks a permit. One load as long as nobody has begun to lack one. */
  othersLack(): boolean {
    const news = this.words.load(HEAD.NEWS);
    if (news === this.#calm) return false;
    for (let i = 0; i < BIT_WORDS; i++) {
      const bits = this.words.load(HEAD.LACKING + i);
      if ((i === this.slot >> 5 ? bits & ~(1 << (this.slot & 31)) : bits) !== 0) return true;
    }
    this.#calm = news;
    return false;
  }

  /** Takes a permit that was handed over, or a free one. */
  take(): boolean {
    const { words, id } = this;
    const granted = this.#granted();
    if (granted >= 0) {
      words.store(granted, id);
      this.mine.push(granted);
      return true;
    }
    // What this isolate holds above the limit itself must not keep it from the free places below.
    if (this.#high() !== PERMITS + words.load(HEAD.LIMIT)) this.migrate();
    const free = this.#aboveLimit() ? -1 : this.#claim();
    if (free >= 0) this.mine.push(free);
    return free >= 0;
  }

  /** True when `take` is worth a try. */
  available(): boolean {
    return this.#granted() >= 0 || (this.census().free > 0 && !this.#aboveLimit());
  }

  /** Gives back a permit whose session is gone: one that is abolished or promised first. */
  give(): void {
    const at = this.#toGive();
    if (at < 0) throw new Error("A permit was given back that nobody had taken");
    if (at >= PERMITS + this.words.load(HEAD.LIMIT)) this.#recall();
    this.#drop(at);
    this.#release(at);
  }

  /** Says how many permits this isolate lacks; after that it has to try `take` once more. */
  lack(want: number, urgent: number, now: number): void {
    const { words, slot } = this;
    const lacks = words.load(slotAt(slot, SLOT.WANT)) > 0;
    words.store(slotAt(slot, SLOT.WANT), want);
    words.store(slotAt(slot, SLOT.URGENT), urgent);
    const bit = 1 << (slot & 31);
    if (want === 0) words.and(HEAD.LACKING + (slot >> 5), ~bit);
    else {
      if (lacks) return;
      words.store(slotAt(slot, SLOT.SINCE), now);
      words.or(HEAD.LACKING + (slot >> 5), bit);
      // After the bit: who has seen this has seen the bit.
      words.add(HEAD.NEWS, 1);
    }
  }

  /** Passes on what was handed over and is not wanted any more. */
  passOn(): void {
    for (let at = this.#granted(); at >= 0; at = this.#granted()) this.#release(at);
  }

  /**
   * Asks others for idle connections, as many as this isolate lacks and nobody has been asked for;
   * `again`: whoever was asked may be busy with something else, so ask the next ones too.
   */
  ask(again = false): void {
    const { words, slot } = this;
    const census = this.census();
    let missing = words.load(slotAt(slot, SLOT.WANT)) - (census.coming[slot] as number);
    let open = 0;
    this.#eachLacking((other) => {
      const want = words.load(slotAt(other, SLOT.WANT)) - (census.coming[other] as number);
      open += Math.max(0, want);
    });
    const end = words.load(HEAD.SLOTS_END);
    for (let other = 1; other < end && !again; other++) {
      if (this.#lives(other)) open -= words.load(slotAt(other, SLOT.ASKED));
    }
    missing = Math.min(missing, open);
    for (let other = 1; missing > 0 && other < end; other++) {
      if (other === slot || !this.#lives(other)) continue;
      const idle = words.load(slotAt(other, SLOT.IDLE)) - words.load(slotAt(other, SLOT.ASKED));
      const asked = Math.min(idle, missing);
      if (asked <= 0) continue;
      words.add(slotAt(other, SLOT.ASKED), asked);
      words.wake(slotAt(other, SLOT.WAKE));
      missing -= asked;
    }
  }

  /** Takes note of what others asked for; true when they did. */
  asked(): boolean {
    const at = slotAt(this.slot, SLOT.ASKED);
    if (this.words.load(at) === 0) return false;
    // First: who sees this one's number unchanged has an unanswered question.
    this.words.add(slotAt(this.slot, SLOT.ANSWERS), 1);
    return this.words.exchange(at, 0) > 0;
  }

  /** Promises one of this isolate's permits, whose connection is to be closed, to `id`. */
  promise(id: number): boolean {
    const { words } = this;
    const end = PERMITS + words.load(HEAD.LIMIT);
    for (const at of this.mine) {
      if (at >= end) continue;
      if (words.swap(at, this.id, this.id | (slotOf(id) << 24)) === this.id) return true;
    }
    return false;
  }

  /** The one that is worst off of those who lack permits that are not on their way. */
  neediest(census: Census, withMe = false): Need | null {
    const { words } = this;
    let worst: Need | null = null;
    this.#eachLacking((slot) => {
      const coming = census.coming[slot] as number;
      if ((slot === this.slot && !withMe) || words.load(slotAt(slot, SLOT.WANT)) <= coming) return;
      const tenant = words.load(slotAt(slot, SLOT.TENANT));
      if ((tenant & 0xff) !== Tenancy.live) return;
      const need: Need = {
        id: idOf(slot, tenant),
        has: (census.held[slot] as number) + coming,
        since: words.load(slotAt(slot, SLOT.SINCE)),
        urgent: words.load(slotAt(slot, SLOT.URGENT)) > 0,
      };
      if (
        worst === null || need.has < worst.has ||
        (need.has === worst.has && (need.since - worst.since | 0) < 0)
      ) worst = need;
    });
    return worst;
  }

  /** How many permits those who lack some hold on average, this isolate included. */
  average(census: Census): number {
    let held = census.held[this.slot] as number;
    let count = 1;
    this.#eachLacking((slot) => {
      if (slot === this.slot) return;
      held += (census.held[slot] as number) + (census.coming[slot] as number);
      count++;
    });
    return held / count;
  }

  /** How many isolates lack permits and have none, nor one on its way. */
  starving(census: Census): number {
    let count = 0;
    this.#eachLacking((slot) => {
      if ((census.held[slot] as number) + (census.coming[slot] as number) === 0) count++;
    });
    return count;
  }

  /** How many permits could be had from elsewhere although none is free: see `OtherIsolates.prospects`. */
  prospects(now: number): number {
    // Meanwhile permits go from the idle to the moving, and from those to who wants them: in this
    // order one of them may count twice, but none is missed.
    let prospects = this.idleElsewhere(now);
    const census = this.census();
    prospects += census.free + census.moving;
    this.#eachLacking((other) => {
      if (other === this.slot || !this.#lives(other)) return;
      prospects -= this.words.load(slotAt(other, SLOT.WANT));
    });
    return prospects;
  }

  /** How many connections others have idle; with `now` those others that do not answer have none. */
  idleElsewhere(now: number | null = null): number {
    let idle = 0;
    for (let other = 1, end = this.words.load(HEAD.SLOTS_END); other < end; other++) {
      if (other === this.slot || !this.#lives(other)) continue;
      if (now !== null && this.#isSilent(other, now)) continue;
      idle += this.words.load(slotAt(other, SLOT.IDLE));
    }
    return idle;
  }

  /** True for an isolate that was asked for its idle connections and does not answer: it computes, or is blocked. */
  #isSilent(slot: number, now: number): boolean {
    const { words } = this;
    if (words.load(slotAt(slot, SLOT.ASKED)) === 0) return false;
    const answers = words.load(slotAt(slot, SLOT.ANSWERS));
    const known = this.#unanswered.get(slot);
    if (known?.answers === answers) return now - known.since >= PATIENCE;
    this.#unanswered.set(slot, { answers, since: now });
    return false;
  }

  /** Moves what this isolate holds above the limit to free places below it; how many are left above. */
  migrate(): number {
    const { words } = this;
    let left = 0;
    for (const from of [...this.mine]) {
      const end = PERMITS + words.load(HEAD.LIMIT);
      if (from < end) continue;
      const to = this.#claim();
      if (to < 0) {
        left++;
        continue;
      }
      this.#drop(from);
      this.mine.push(to);
      words.store(from, 0);
      // The last one above the limit may have kept others from taking.
      this.wakeLacking();
    }
    return left;
  }

  /** Counts all permits, but for the one at `except`; the result is good until the next count. */
  census(except = -1): Census {
    return count(this.words, except);
  }

  /** Wakes everyone who lacks a permit, or has one above the limit, for which there may be a place now. */
  wakeLacking(): void {
    const { words } = this;
    this.#eachLacking((slot) => {
      if (slot !== this.slot) words.wake(slotAt(slot, SLOT.WAKE));
    });
    for (let at = PERMITS + words.load(HEAD.LIMIT), end = this.#high(); at < end; at++) {
      const word = words.load(at);
      if (word !== 0 && slotOf(word) !== this.slot) words.wake(slotAt(slotOf(word), SLOT.WAKE));
    }
  }

  /** The session behind this permit is gone, or it was never used: on to whoever lacks one most. */
  #release(at: number): void {
    const { words } = this;
    if (at < PERMITS + words.load(HEAD.LIMIT)) {
      const need = this.neediest(this.census(at), true);
      if (need !== null) {
        words.store(at, need.id | (slotOf(need.id) << 24));
        if (isLive(words, need.id)) words.wake(slotAt(slotOf(need.id), SLOT.WAKE));
        // It has left meanwhile: so the permit is free, and nobody else knows it.
        else this.wakeLacking();
        return;
      }
    }
    words.store(at, 0);
    // Whoever began to lack one after our look has not seen this one free: or it sees it now.
    this.wakeLacking();
  }

  #eachLacking(fn: (slot: number) => void): void {
    for (let i = 0; i < BIT_WORDS; i++) {
      for (let bits = this.words.load(HEAD.LACKING + i); bits !== 0; bits &= bits - 1) {
        fn(i * 32 + 31 - Math.clz32(bits & -bits));
      }
    }
  }

  /** A permit that was handed over to this isolate; -1 when there is none. */
  #granted(): number {
    const word = this.id | (this.slot << 24);
    for (let at = PERMITS, end = this.#high(); at < end; at++) {
      if (this.words.load(at) === word) return at;
    }
    return -1;
  }

  /** While someone holds a permit that was abolished, it has the right to the next free one. */
  #aboveLimit(): boolean {
    const { words } = this;
    for (let at = PERMITS + words.load(HEAD.LIMIT); at < this.#high(); at++) {
      if (!isFree(words, words.load(at))) return true;
    }
    return false;
  }

  #claim(): number {
    const { words } = this;
    for (let at = PERMITS, end = at + words.load(HEAD.LIMIT); at < end; at++) {
      const word = words.load(at);
      if (isFree(words, word) && words.swap(at, word, this.id) === word) return at;
    }
    return -1;
  }

  #toGive(): number {
    const end = PERMITS + this.words.load(HEAD.LIMIT);
    let last = -1;
    for (const at of this.mine) {
      if (at >= end) return at;
      if (last < 0 || this.words.load(at) !== this.id) last = at;
    }
    return last;
  }

  /**
   * Takes back a promise: the connection that is gone was closed for it, and what had to go first was what stood for one
   * above the limit. Else the promised permit would stand for a connection that nobody closes.
   */
  #recall(): void {
    for (const at of this.mine) {
      const word = this.words.load(at);
      if (word === this.id) continue;
      this.words.swap(at, word, this.id);
      return;
    }
  }

  #lives(slot: number): boolean {
    return (this.words.load(slotAt(slot, SLOT.TENANT)) & 0xff) === Tenancy.live;
  }

  #high(): number {
    return PERMITS + this.words.load(HEAD.HIGH);
  }

  #drop(at: number): void {
    this.mine.splice(this.mine.indexOf(at), 1);
  }
}

/** One for all tables of an isolate: what was counted is used before the next count. */
const CENSUS: Census = {
  held: new Int32Array(SLOTS),
  coming: new Int32Array(SLOTS),
  owned: new Int32Array(SLOTS),
  free: 0,
  moving: 0,
  total: 0,
};

/** True for a permit that nobody has, or somebody who is no tenant any more. */
function isFree(words: Words, word: number): boolean {
  return word === 0 || !isTenant(words, word & ID);
}

/** Counts all permits, but for the one at `except`. */
function count(words: Words, except: number): Census {
  const census = CENSUS;
  const slots = words.load(HEAD.SLOTS_END);
  census.held.fill(0, 0, slots);
  census.coming.fill(0, 0, slots);
  census.owned.fill(0, 0, slots);
  census.free = census.moving = census.total = 0;
  const limit = PERMITS + words.load(HEAD.LIMIT);
  for (let at = PERMITS, end = at + words.load(HEAD.HIGH); at < end; at++) {
    const word = words.load(at);
    if (at === except) continue;
    if (isFree(words, word)) {
      if (at < limit) census.free++;
      continue;
    }
    const owner = slotOf(word);
    const target = word >>> 24;
    const lives = (words.load(slotAt(owner, SLOT.TENANT)) & 0xff) === Tenancy.live;
    census.total++;
    (census.owned[owner] as number)++;
    if (!lives) census.moving++;
    else if (target === 0) (census.held[owner] as number)++;
    else {
      (census.coming[target] as number)++;
      census.moving++;
    }
  }
  return census;
}
