/** One connection's states and clocks. It knows no pool. */

import type { Clock } from "../clock.ts";
import type { Comer, Coming, Way } from "./coming.ts";
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

/** The states in which it is on its way to whoever waits. */
const WAYS: Readonly<Partial<Record<EntryState, Way>>> = {
  connecting: "connecting",
  checking: "checking",
  returning: "returning",
};

/** The pool's record of one connection. From its making until `closed` it holds one permit. */
export class PoolEntry<R extends object> implements Comer {
  /** What the connector opened; null while connecting. */
  resource: R | null = null;
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
  way: Way | null = null;
  setOutAt = 0;
  silent = false;
  /** Which `renew()` it belongs to. */
  readonly generation: number;
  /** How many leases had ended when it was begun. */
  readonly returnsBefore: number;

  #state: EntryState = "connecting";
  readonly #counts: StateCounts;
  readonly #coming: Coming;
  readonly #clock: Clock;

  constructor(
    counts: StateCounts,
    coming: Coming,
    clock: Clock,
    generation: number,
    returnsBefore: number,
  ) {
    this.#counts = counts;
    this.#coming = coming;
    this.#clock = clock;
    this.generation = generation;
    this.returnsBefore = returnsBefore;
    counts.connecting++;
    coming.add(this, "connecting", clock.now());
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
    this.#coming.delete(this);
    const way = WAYS[to];
    if (way !== undefined) this.#coming.add(this, way, this.#clock.now());
  }
}
