/** Where everything stands in the words that the isolates of a pool share. */

/** The shared words and the few operations on them; each is one atomic step. */
export interface Words {
  /** Reads a word. */
  load(at: number): number;
  /** Writes a word. */
  store(at: number, value: number): void;
  /** Writes `to` where `from` stands; returns what stood there. */
  swap(at: number, from: number, to: number): number;
  /** Writes a word and returns what stood there. */
  exchange(at: number, value: number): number;
  /** Adds to a word. */
  add(at: number, by: number): void;
  /** Sets bits. */
  or(at: number, bits: number): void;
  /** Clears all other bits. */
  and(at: number, bits: number): void;
  /** Wakes the isolate that sleeps on this word; adds 1 to it first. */
  wake(at: number): void;
}

/** How far the closing of the whole pool is. */
export const Phase = { open: 0, draining: 1, closed: 2 } as const;

/** How many isolates can share a pool at one time, slot 0 not counted: it stands for nobody. */
export const SLOTS = 160;

/** Places of the words that are there once. */
export const HEAD = {
  MAGIC: 0,
  /** See {@linkcode Phase}. */
  PHASE: 1,
  /** How many permits there are: those below this place. Written together with the next one, in one step. */
  LIMIT: 2,
  /** How many connections are kept open. */
  MINCONN: 3,
  /** Of `renew()`. */
  GENERATION: 4,
  /** Grows by each thing that all isolates have to do. */
  ORDERS: 5,
  /** The highest limit there ever was: no permit beyond it was ever taken. */
  HIGH: 6,
  /** What opening a connection takes of late, in microseconds. */
  CONNECT_TIME: 7,
  /** One bit for each slot that lacks permits. */
  LACKING: 8,
  /** Grows when a slot begins to lack permits, and when their number changes: who has seen it looks no further. */
  NEWS: 16,
  /** The last number in the line of those that lack permits. */
  LAST_IN_LINE: 17,
  /** No slot from this one on was ever taken: nobody need look there. */
  SLOTS_END: 18,
} as const;
/** How many words the bits of all slots take. */
export const BIT_WORDS: number = SLOTS / 32;
/** How many words are there once. */
export const HEAD_WORDS = 32;

/** Places within a slot. */
export const SLOT = {
  /** Nonce and tenancy, see {@linkcode Tenancy}. */
  TENANT: 0,
  /** The id of the tenant that made this one. */
  PARENT: 1,
  /** How many permits it lacks … */
  WANT: 2,
  /** … since when: its number in the line … */
  SINCE: 3,
  /** … and how many of them for callers that would rather fail than wait. */
  URGENT: 4,
  /** How many of its connections are idle. */
  IDLE: 5,
  /** How many connections it was asked to give up. */
  ASKED: 6,
  /** Where it sleeps. */
  WAKE: 7,
  /** The last order that it has carried out. */
  DONE: 8,
  /** Grows each time that it has looked at what it was asked for. */
  ANSWERS: 9,
} as const;
const SLOT_WORDS = 16;

/** What a slot is: `free`; `reserved` by a handle; `live`: in use; `dead`, and its sessions may not be gone yet. */
export const Tenancy = { free: 0, reserved: 1, live: 2, dead: 3 } as const;

/** Where a slot's word stands. */
export function slotAt(slot: number, word: number): number {
  return HEAD_WORDS + slot * SLOT_WORDS + word;
}
/** Where the permits begin. */
export const PERMITS: number = slotAt(SLOTS, 0);

/** The slot of an id. */
export function slotOf(id: number): number {
  return id & 0xff;
}
/** The id of a slot's tenant with this TENANT word. */
export function idOf(slot: number, tenant: number): number {
  return (tenant & 0xffff00) | slot;
}

/** True when this id's isolate holds its slot, alive or dead. */
export function isTenant(words: Words, id: number): boolean {
  const tenant = words.load(slotAt(slotOf(id), SLOT.TENANT));
  return (tenant & 0xff) !== Tenancy.free && idOf(slotOf(id), tenant) === id;
}

/** True when this id's isolate is alive, as far as anybody knows. */
export function isLive(words: Words, id: number): boolean {
  const tenant = words.load(slotAt(slotOf(id), SLOT.TENANT));
  return (tenant & 0xff) === Tenancy.live && idOf(slotOf(id), tenant) === id;
}
