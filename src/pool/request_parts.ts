/**
 * On hosts where sockets and timers belong to the request that made them (Cloudflare Workers), a pool has a part
 * for each request: its connections, its waiters, its timer. What the parts share is the right to have one more
 * connection. A request that has ended says nothing of it; its timers just stop. So each part shows from time to
 * time that it lives, and what one that does not has left (connects, leases, waiters) is written off.
 */

import type { Clock } from "../clock.ts";
import { bondToRequest, type Timer } from "../runtime.ts";
import type { OtherIsolates, Permits } from "./permits.ts";

/** How often a part shows that its request lives, and gives others what they lack; milliseconds. */
const BEAT = 25;
/** A part that has not shown it for so long is written off; milliseconds. */
const DEAD_AFTER = 500;
/** The same for one with nothing but connections that are idle or being closed: as most requests end. */
const IDLE_DEAD_AFTER = 75;
/** Before so long after its last connect a part with a single connection does not give that away; milliseconds. */
const TURN = 250;

/** What a part is asked to do, in its own request. */
export interface Part {
  /** Whether somebody waits. */
  readonly waits: boolean;
  /** Whether somebody waits, or has a connection, or one is being opened. */
  readonly works: boolean;
  /** Follows what was said to the pool in other requests. */
  follow(): void;
  /** Serves who waits. */
  pump(): void;
  /** Closes what is idle and needed elsewhere. */
  spare(): void;
}

/** All parts of one pool. */
export class RequestParts<W extends Part> {
  limit: number;
  readonly clock: Clock;
  readonly #make: (permits: RequestPermits) => W;
  readonly #parts = new Map<RequestPermits, W>();

  /** `make` makes a part. */
  constructor(limit: number, clock: Clock, make: (permits: RequestPermits) => W) {
    this.limit = limit;
    this.clock = clock;
    this.#make = make;
  }

  /** The part of the request at hand; made when there is none. */
  here(): W {
    for (const [permits, part] of this.#parts) {
      if (permits.isHere()) return part;
    }
    this.writeOff();
    const permits = new RequestPermits(this as RequestParts<Part>, bondToRequest());
    const part = permits.part = this.#make(permits);
    this.#parts.set(permits, part);
    return part;
  }

  /** The shares of all parts. */
  get shares(): Iterable<RequestPermits> {
    return this.#parts.keys();
  }

  /** How many permits are taken by those who live. */
  get held(): number {
    let held = 0;
    for (const permits of this.#parts.keys()) held += permits.held;
    return held;
  }

  /** Writes off who gives no sign of life. Who was only held up comes back by `revive`. */
  writeOff(): void {
    const now = this.clock.now();
    for (const permits of [...this.#parts.keys()]) {
      const patience = permits.part?.works ? DEAD_AFTER : IDLE_DEAD_AFTER;
      if (now - permits.aliveAt >= patience && !permits.isHere()) this.#parts.delete(permits);
    }
  }

  /** A part shows that it lives. */
  revive(permits: RequestPermits): void {
    if (!this.#parts.has(permits)) this.#parts.set(permits, permits.part as W);
  }
}

/** One part's share of the permits. */
export class RequestPermits implements Permits, OtherIsolates {
  readonly others: OtherIsolates = this;
  held = 0;
  idle = 0;
  lacked = 0;
  /** The last sign of life. */
  aliveAt: number;
  /** Since when it lacks a permit, which is its place in the line. */
  #lackedSince = Infinity;
  #openedAt = -Infinity;
  #timer: Timer | undefined;
  /** Whose share it is; set when that is made. */
  part: Part | null = null;
  readonly #all: RequestParts<Part>;
  /** Whether the request at hand is this one's. */
  readonly isHere: () => boolean;

  constructor(all: RequestParts<Part>, isHere: () => boolean) {
    this.#all = all;
    this.isHere = isHere;
    this.aliveAt = all.clock.now();
  }

  get limit(): number {
    return this.#all.limit;
  }

  get elsewhere(): number {
    return this.#all.held - this.held;
  }

  get idleElsewhere(): number {
    let idle = 0;
    for (const one of this.#all.shares) if (one !== this) idle += one.idle;
    return idle;
  }

  prospects(): number {
    let lacked = 0;
    for (const one of this.#all.shares) if (one !== this) lacked += one.lacked;
    return Math.max(0, this.idleElsewhere - lacked);
  }

  get contended(): boolean {
    return this.#neediest() !== null;
  }

  take(): boolean {
    this.#all.revive(this);
    this.#all.writeOff();
    const free = this.limit - this.#all.held;
    // What is free is for those who have waited for longer, if they have no more than this one.
    let before = 0;
    for (const one of this.#all.shares) {
      if (one === this || one.lacked === 0 || one.held > this.held) continue;
      if (one.held < this.held || one.#lackedSince < this.#lackedSince) before++;
    }
    if (free <= before) return false;
    this.held++;
    this.#beat();
    return true;
  }

  give(): void {
    this.held--;
  }

  resize(limit: number): void {
    this.#all.limit = limit;
  }

  tooMany(size: number): boolean {
    return size > this.limit || (size > 0 && this.#all.held > this.limit);
  }

  lack(count: number): boolean {
    if (count > 0 && this.lacked === 0) this.#lackedSince = this.#all.clock.now();
    if (count === 0) this.#lackedSince = Infinity;
    this.lacked = count;
    if (count > 0) this.#beat();
    return false;
  }

  claimReturned(): boolean {
    const need = this.#neediest();
    if (need === null || need.held > 0) return false;
    return this.held > 1 || this.#all.clock.now() - this.#openedAt >= TURN;
  }

  claimIdle(): boolean {
    return this.#neediest() !== null;
  }

  tellIdle(count: number): void {
    this.idle = count;
  }

  tellOpened(): void {
    this.#openedAt = this.#all.clock.now();
  }

  /** The other that lacks a permit, has fewest, and waits for longest. */
  #neediest(): RequestPermits | null {
    let need: RequestPermits | null = null;
    for (const one of this.#all.shares) {
      if (one === this || one.lacked === 0) continue;
      if (
        need === null || one.held < need.held ||
        (one.held === need.held && one.#lackedSince < need.#lackedSince)
      ) need = one;
    }
    return need;
  }

  /** Begins to show that this part lives, for as long as it has or wants anything. */
  #beat(): void {
    const { clock } = this.#all;
    this.aliveAt = clock.now();
    if (this.#timer !== undefined) return;
    const next = (): void => {
      this.#timer = clock.setTimeout(() => {
        this.aliveAt = clock.now();
        this.#timer = undefined;
        this.#all.revive(this);
        const part = this.part as Part;
        part.follow();
        if (this.#neediest() !== null) part.spare();
        if (this.lacked > 0) part.pump();
        if (this.held > 0 || part.waits) next();
      }, BEAT);
    };
    next();
  }
}
