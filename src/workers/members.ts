/** Who may share the permits: tenancies of slots, from the handle to the death. */

import {
  HEAD,
  idOf,
  isTenant,
  PERMITS,
  SLOT,
  slotAt,
  slotOf,
  SLOTS,
  Tenancy,
  type Words,
} from "./layout.ts";

/** What a fresh array of words says of itself. */
const MAGIC = 0x706f6f6c;
/**
 * The sessions of a dead worker are closed by the runtime, not by us, and we cannot see it done: its
 * permits return after this time, in milliseconds. Measured: they were gone 15 to 22 ms after the death.
 */
export const QUARANTINE = 500;

/** How many words a pool with so many permits needs. */
export function wordsFor(capacity: number): number {
  return PERMITS + capacity;
}

/** Makes the words of a new pool. */
export function found(words: Words, minconn: number, maxconn: number): void {
  words.store(HEAD.LIMIT, maxconn);
  words.store(HEAD.HIGH, maxconn);
  words.store(HEAD.MINCONN, minconn);
  words.store(HEAD.SLOTS_END, 1);
  words.store(HEAD.MAGIC, MAGIC);
}

/** True for the words of a pool. */
export function isFounded(words: Words): boolean {
  return words.load(HEAD.MAGIC) === MAGIC;
}

/** Reserves a slot for an isolate that `parent` invites; returns the id, or 0 when no slot is free. */
export function reserve(words: Words, parent: number): number {
  // Invitations that nobody took up are revoked when all slots are gone.
  return claim(words, parent, Tenancy.free) || claim(words, parent, Tenancy.reserved);
}

function claim(words: Words, parent: number, from: number): number {
  for (let slot = 1; slot < SLOTS; slot++) {
    const at = slotAt(slot, SLOT.TENANT);
    const tenant = words.load(at);
    if ((tenant & 0xff) !== from) continue;
    const next = ((tenant + 0x100) & 0xffff00) | Tenancy.reserved;
    // Before it is taken: whoever has a slot is seen by all.
    for (let end = words.load(HEAD.SLOTS_END); end <= slot; end = words.load(HEAD.SLOTS_END)) {
      words.swap(HEAD.SLOTS_END, end, slot + 1);
    }
    if (words.swap(at, tenant, next) !== tenant) continue;
    // Nobody looks at the other words of a slot that is not live.
    for (const word of [SLOT.WANT, SLOT.URGENT, SLOT.IDLE, SLOT.ASKED]) {
      words.store(slotAt(slot, word), 0);
    }
    words.and(HEAD.LACKING + (slot >> 5), ~(1 << (slot & 31)));
    words.store(slotAt(slot, SLOT.PARENT), parent);
    words.store(slotAt(slot, SLOT.DONE), words.load(HEAD.ORDERS));
    return idOf(slot, next);
  }
  return 0;
}

/** Makes a reserved slot live; false when that was done before, or the invitation is void. */
export function moveIn(words: Words, id: number): boolean {
  return move(words, id, Tenancy.reserved, Tenancy.live);
}

/** Ends a tenancy whose sessions are all gone. What its permits say is void with it. */
export function moveOut(words: Words, id: number): void {
  move(words, id, Tenancy.live, Tenancy.free);
}

/**
 * Notes that an isolate has died, and with it those that it made; their permits return by `bury`. The
 * youngest go first: so whoever is marked has no descendant that is not, also when we die here.
 */
export function died(words: Words, id: number): void {
  if (!isTenant(words, id)) return;
  for (let slot = 1, end = words.load(HEAD.SLOTS_END); slot < end; slot++) {
    const tenant = words.load(slotAt(slot, SLOT.TENANT));
    const other = idOf(slot, tenant);
    // Deno, Bun and Node end the workers of a worker with it.
    if (other === id || (tenant & 0xff) === Tenancy.free) continue;
    if (words.load(slotAt(slot, SLOT.PARENT)) === id) died(words, other);
  }
  move(words, id, Tenancy.reserved, Tenancy.free);
  move(words, id, Tenancy.live, Tenancy.dead);
}

/**
 * When an isolate first saw each of the dead, by its own clock that nobody sets: isolates have no such
 * clock in common, and the one that they have jumps. By slot.
 */
export type DeadSince = Map<number, { readonly id: number; readonly since: number }>;

/** Frees the slots, and so the permits, of those whom this isolate has known for dead for long enough. */
export function bury(words: Words, deadSince: DeadSince, now: number): void {
  for (let slot = 1, end = words.load(HEAD.SLOTS_END); slot < end; slot++) {
    const tenant = words.load(slotAt(slot, SLOT.TENANT));
    if ((tenant & 0xff) !== Tenancy.dead) continue;
    const id = idOf(slot, tenant);
    const known = deadSince.get(slot);
    if (known?.id !== id) deadSince.set(slot, { id, since: now });
    if (known?.id !== id || now - known.since < QUARANTINE) continue;
    // Before the slot is free: else the bit might be its next tenant's.
    words.and(HEAD.LACKING + (slot >> 5), ~(1 << (slot & 31)));
    move(words, id, Tenancy.dead, Tenancy.free);
  }
}

/** The ids of all isolates that live, or died and are not buried. */
export function tenants(words: Words): number[] {
  const ids: number[] = [];
  for (let slot = 1, end = words.load(HEAD.SLOTS_END); slot < end; slot++) {
    const tenant = words.load(slotAt(slot, SLOT.TENANT));
    if ((tenant & 0xff) >= Tenancy.live) ids.push(idOf(slot, tenant));
  }
  return ids;
}

function move(words: Words, id: number, from: number, to: number): boolean {
  const base = id & 0xffff00;
  return words.swap(slotAt(slotOf(id), SLOT.TENANT), base | from, base | to) === (base | from);
}
