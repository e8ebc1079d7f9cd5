/** Who has how many of the shared permits. */

import {
  HEAD,
  isTenant,
  PERMITS,
  SLOT,
  slotAt,
  slotOf,
  SLOTS,
  Tenancy,
  type Words,
} from "./layout.ts";

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

/** Nobody has anything. */
export function emptyCensus(): Census {
  return {
    held: new Int32Array(SLOTS),
    coming: new Int32Array(SLOTS),
    owned: new Int32Array(SLOTS),
    free: 0,
    moving: 0,
    total: 0,
  };
}

/** True for a permit that nobody has, or somebody who is no tenant any more. */
export function isFree(words: Words, word: number): boolean {
  return word === 0 || !isTenant(words, word & ID);
}

/** Counts all permits, but for the one at `except`, into `census`. */
export function count(words: Words, census: Census, except: number): Census {
  for (const counts of [census.held, census.coming, census.owned]) counts.fill(0);
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
