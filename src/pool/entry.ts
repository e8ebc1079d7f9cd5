/** One connection's states and clocks, and which of them are on their way to those who wait. It knows no pool. */

import type { Clock } from "../clock.ts";
import type { EntryState } from "./types.ts";
import type { PoolLease } from "./lease.ts";

/** Where a connection can go from each state. */
export const NEXT: Readonly<Record<EntryState, readonly EntryState[]>> = {
  connecting: ["idle", "leased", "shared", "closing", "closed"],
  idle: ["leased", "shared", "checking", "closing"],
  checking: ["idle", "leased", "shared", "closing"],
  leased: ["idle", "leased", "shared", "checking", "returning", "closing"],
  shared: ["idle", "leased", "shared", "checking", "returning", "closing"],
  returning: ["idle", "leased", "shared", "checking", "closing"],
  closing: ["closed"],
  closed: [],
};

/** How many entries are in each state: kept by {@linkcode PoolEntry.move} alone. */
export type StateCounts = Record<EntryState, number>;

/** Counts of an empty pool. */
export function noEntries(): StateCounts {
  return {
    connecting: 0,
    idle: 0,
    checking: 0,
    leased: 0,
    shared: 0,
    returning: 0,
    closing: 0,
    closed: 0,
  };
}

/** The states in which an entry is on its way to whoever waits. */
type Way = "connecting" | "checking" | "returning";

function isWay(state: EntryState): state is Way {
  return state === "connecting" || state === "checking" || state === "returning";
}

/**
 * The entries that are on their way, the first that set out first.
 *
 * What gives no sign for too long is `silent`: it may come nevertheless, but whoever waits no longer
 * counts on it. There is no timer for each: the pool's one timer looks at the oldest, and only while
 * somebody waits.
 */
export class Coming {
  /** How many there are in each state that give no sign. */
  readonly silent: Record<Way, number> = { connecting: 0, checking: 0, returning: 0 };
  /** Those that can be counted on; a set keeps the order in which they set out. */
  readonly #line = new Set<PoolEntry>();

  /** How many can be counted on, on whatever way. */
  get count(): number {
    return this.#line.size;
  }

  /** When the oldest of those that can be counted on set out; Infinity when there is none. */
  get oldest(): number {
    for (const one of this.#line) return one.setOutAt;
    return Infinity;
  }

  /** It sets out: for {@linkcode PoolEntry.move} alone. */
  add(one: PoolEntry): void {
    this.#line.add(one);
  }

  /** It has come by `way`, or will not: for {@linkcode PoolEntry.move} alone, too. */
  delete(one: PoolEntry, way: Way): void {
    if (this.#line.delete(one)) return;
    one.silent = false;
    this.silent[way]--;
  }

  /** Counts no more on what set out at `before` or earlier; returns how many connects are among that. */
  doubt(before: number): number {
    let connects = 0;
    for (const one of this.#line) {
      if (one.setOutAt > before) break;
      if (one.state === "connecting") connects++;
      this.giveUp(one);
    }
    return connects;
  }

  /** Counts no more on this one. */
  giveUp(one: PoolEntry): void {
    if (!this.#line.delete(one)) return;
    one.silent = true;
    this.silent[one.state as Way]++;
  }
}

/** The pool's record of one connection. From its making until `closed` it holds one permit. */
export class PoolEntry {
  /** What the connector opened; null while connecting. */
  resource: object | null = null;
  /** The lease on it; set exactly while `leased`. */
  lease: PoolLease | null = null;
  /** How many jobs are in flight on it while it is `shared`. */
  inFlight = 0;
  /** Runs a function as whoever gave the last of them; null when nobody listens. */
  scope: ((fn: () => void) => void) | null = null;
  /** How many of them may be slow, for all that is known of their kind. */
  unproven = 0;
  /** How many jobs it has shown to answer quickly at once: no more are in flight on it. */
  window = 1;
  /** How many were answered in this turn … */
  answers = 0;
  /** … and the first of them. */
  answered: { measured(quick: boolean): void } | null = null;
  /** When it gave its last answer to a job, or got the first one of those in flight. */
  answeredAt = 0;
  /** Whether it has answered nothing since for longer than anybody's patience: nobody counts on it any more. */
  stalled = false;
  /** How many answers all connections had given until then. */
  answersBefore = 0;
  /** Since when it is `shared`. */
  sharedSince = 0;
  /** How often it was lent; counted only where there is a `maxUses`. */
  uses = 0;
  /** Whether `validate` has found it good for the loan that comes next. */
  validated = false;
  /** Set when a job left something behind that must not reach others: it will never be lent again. */
  spoilt = false;
  /** Set when it closed by itself: it will never be lent again. */
  lost: { readonly reason: unknown } | null = null;
  /** Resolves when it is gone; set once it is `closing`. */
  gone: Promise<void> | null = null;
  /** The time of the last return. */
  idleSince = 0;
  /** `wallAhead` as it was known then. */
  wallAhead = 0;
  /** The end of its life; Infinity = none. */
  expiresAt: number = Infinity;
  /** When it was last on its way: when it set out … */
  setOutAt: number;
  /** … and whether it gave no sign for longer than anybody's patience: nobody counts on it any more. */
  silent = false;
  /** Which `renew()` it belongs to. */
  readonly generation: number;

  #state: EntryState = "connecting";
  readonly #counts: StateCounts;
  readonly #coming: Coming;
  readonly #clock: Clock;

  constructor(counts: StateCounts, coming: Coming, clock: Clock, generation: number) {
    this.#counts = counts;
    this.#coming = coming;
    this.#clock = clock;
    this.generation = generation;
    this.setOutAt = clock.now();
    counts.connecting++;
    coming.add(this);
  }

  /** Where it is in its life. */
  get state(): EntryState {
    return this.#state;
  }

  /** The only way from state to state. */
  move(to: EntryState): void {
    const from = this.#state;
    const counts = this.#counts;
    // The two steps of every lease, at a third of the price of the general way.
    if (from === "idle" && to === "leased") {
      counts.idle--;
      counts.leased++;
      this.#state = "leased";
      return;
    }
    if (from === "leased" && to === "idle") {
      counts.leased--;
      counts.idle++;
      this.#state = "idle";
      return;
    }
    if (!NEXT[from].includes(to)) throw new Error(`An entry cannot go from ${from} to ${to}`);
    counts[from]--;
    counts[to]++;
    this.#state = to;
    if (isWay(from)) this.#coming.delete(this, from);
    if (!isWay(to)) return;
    this.setOutAt = this.#clock.now();
    this.#coming.add(this);
  }
}
