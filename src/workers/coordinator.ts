/** One isolate among those that share a pool: how it hears of the others, and of their deaths. */

import { HEAD, idOf, isLive, isTenant, Phase, SLOT, slotAt, slotOf, Tenancy } from "./layout.ts";
import { type Clock, currentClock } from "../clock.ts";
import { ignore } from "../pool/safely.ts";
import type { Timer } from "../runtime.ts";
import { currentIsolates, type Isolates } from "./isolates.ts";
import type { AtomicWords, SharedPermits } from "./shared_permits.ts";
import { died, moveIn, moveOut, QUARANTINE, reserve, tenants } from "./members.ts";

/** Nobody waits for other isolates for longer than this, in milliseconds. */
const PATIENCE = 15_000;
/** Who lacks a permit looks again by itself after this, in milliseconds, then after twice as long … */
const FIRST_LOOK = 10;
/** … and so on up to this. */
const LAST_LOOK = 100;
/** Numbers are published this often while they change, in milliseconds. */
const PUBLISH_EVERY = 100;

/** What a membership asks of the pool in its isolate. */
export interface Member {
  /** Closes everything here. */
  closeAll(): Promise<void>;
  /** Refuses new callers and lets leases come back. */
  drain(): Promise<void>;
  /** Takes over sizes that another isolate has set. */
  resize(minconn: number, maxconn: number): Promise<void>;
  /** Replaces the connections of this isolate. */
  renew(): Promise<void>;
  /** Serves waiters: there may be a permit. */
  pump(): void;
  /** Gives up idle connections that others need more. */
  spareIdle(): void;
  /** Publishes the numbers of this isolate; true when they have changed. */
  publish(): boolean;
}

/** This isolate's place in the shared words. */
export class Membership {
  readonly #clock: Clock = currentClock();
  readonly #isolates: Isolates = currentIsolates();
  readonly #words: AtomicWords;
  readonly #permits: SharedPermits;
  readonly #id: number;
  readonly #token: string;
  readonly #member: Member;
  #freeLife: (() => void) | null;
  #phase = 0;
  #generation: number;
  #following: Promise<void> | null = null;
  #listening = false;
  /** It has given up its part, and stays for those that it watches over. */
  #departed = false;
  #ended = false;
  #look: Timer | undefined;
  #lookAfter = FIRST_LOOK;
  #publish: Timer | undefined;
  /** Those that have a handle and have not joined, of whom a lock will tell. */
  readonly #invited = new Set<number>();
  readonly #unwatch = new Map<number, () => void>();
  readonly #burials = new Set<Timer>();

  constructor(
    permits: SharedPermits,
    token: string,
    freeLife: (() => void) | null,
    member: Member,
  ) {
    const { words } = permits;
    this.#words = words;
    this.#permits = permits;
    this.#id = permits.table.id;
    this.#token = token;
    this.#freeLife = freeLife;
    this.#member = member;
    this.#generation = words.load(HEAD.GENERATION);
    permits.onlack = () => this.#lookLater();
    permits.onactive = () => this.#publishLater();
    if (permits.lacked > 0) this.#lookLater();
  }

  /** Reserves a place for a worker and begins to watch it; 0 when there is no place. */
  invite(worker: unknown): { readonly id: number; readonly lock: boolean } {
    const sign = this.#isolates.deathSign(worker);
    const id = reserve(this.#words, this.#id);
    if (id === 0) return { id, lock: false };
    if (sign === "lock") this.#invited.add(id);
    else this.#unwatch.set(id, this.#isolates.onExit(worker, () => this.#gone(id)));
    this.listen();
    return { id, lock: sign === "lock" };
  }

  /** Hears of what others want, from now on. */
  listen(): void {
    if (this.#listening) return;
    this.#listening = true;
    void this.#hear();
  }

  /** Lets this isolate follow where the whole pool closes; returns how far that is. */
  catchUp(): number {
    if (!this.#ended) this.#followPhase();
    return this.#words.load(HEAD.PHASE);
  }

  /** Begins to close the whole pool, gently or at once. */
  announce(phase: number): void {
    if (this.#words.load(HEAD.PHASE) < phase) this.#words.store(HEAD.PHASE, phase);
    this.#phase = Math.max(this.#phase, phase);
    this.#wakeAll();
  }

  /** Resolves when no other isolate has a connection, or after `patience` milliseconds. */
  async alone(patience: number = PATIENCE): Promise<void> {
    const others = (): boolean => {
      this.#permits.bury();
      return tenants(this.#words).some((id) => id !== this.#id);
    };
    await this.#until(() => !others(), patience);
  }

  /** After the last connection of this isolate is gone: ends its part, and watches until all have. */
  async leave(): Promise<void> {
    this.#moveOut();
    await this.alone();
    this.#end();
  }

  /**
   * After the last connection of this isolate is gone: the others go on without it. While workers live
   * that it has made, it keeps its place: nobody else hears of their deaths, and they end with it.
   */
  depart(): void {
    if (this.#departed || this.#ended) return;
    this.#departed = true;
    if (this.#watches()) {
      this.#rest();
      this.#permits.table.passOn();
      this.#wakeAll();
      this.listen();
    } else {
      this.#moveOut();
      this.#end();
    }
  }

  /** Nothing here changes any more. */
  #rest(): void {
    this.#clock.clearTimeout(this.#look);
    this.#clock.clearTimeout(this.#publish);
    this.#permits.active = true;
    this.#member.publish();
  }

  #moveOut(): void {
    this.#rest();
    moveOut(this.#words, this.#id);
    this.#freeLife?.();
    this.#freeLife = null;
    this.#wakeAll();
  }

  #end(): void {
    this.#ended = true;
    this.#words.wake(slotAt(slotOf(this.#id), SLOT.WAKE));
    for (const stop of this.#unwatch.values()) stop();
    for (const timer of this.#burials) this.#clock.clearTimeout(timer);
  }

  /** Whether there are workers, or invitations, that nobody else watches over; forgets those that are gone. */
  #watches(): boolean {
    for (const id of this.#invited) if (!isTenant(this.#words, id)) this.#invited.delete(id);
    for (const [id, stop] of this.#unwatch) {
      if (isTenant(this.#words, id)) continue;
      stop();
      this.#unwatch.delete(id);
    }
    return this.#invited.size + this.#unwatch.size + this.#burials.size > 0;
  }

  /** After new sizes or a new generation were written: resolves when all isolates have followed. */
  async order(own: Promise<void>): Promise<void> {
    this.#words.add(HEAD.ORDERS, 1);
    const order = this.#words.load(HEAD.ORDERS);
    this.#wakeAll();
    await own;
    await this.#until(
      () =>
        tenants(this.#words).every((id) =>
          id === this.#id || !isLive(this.#words, id) ||
          (this.#words.load(slotAt(slotOf(id), SLOT.DONE)) - order | 0) >= 0
        ),
      PATIENCE,
    );
  }

  /** Notes that this isolate has begun a new generation itself. */
  generationIs(generation: number): void {
    this.#generation = generation;
  }

  async #hear(): Promise<void> {
    const at = slotAt(slotOf(this.#id), SLOT.WAKE);
    while (!this.#ended) {
      const seen = this.#words.load(at);
      this.#heard();
      const woken = this.#words.sleep(at, seen);
      if (woken !== null) await woken;
    }
  }

  #heard(): void {
    this.#welcome();
    const watches = this.#watches();
    this.#followPhase();
    if (this.#phase === Phase.closed) return;
    // What was asked for before the end may wait for a permit of somebody who has finished.
    if (this.#phase === Phase.draining) return this.#member.pump();
    this.#followOrders();
    if (this.#departed) {
      if (watches) return;
      this.#moveOut();
      return this.#end();
    }
    if (this.#permits.table.asked()) {
      this.#member.spareIdle();
      // Who asked in vain has to know: its caller may rather fail than wait.
      this.#permits.table.wakeLacking();
    }
    this.#permits.fit();
    this.#member.pump();
    if (this.#permits.lacked === 0) this.#permits.table.passOn();
  }

  /** The lock of a worker can be waited for once the worker has it. */
  #welcome(): void {
    for (const id of this.#invited) {
      if (!isLive(this.#words, id)) continue;
      this.#invited.delete(id);
      const name = lifeName(this.#token, id);
      this.#unwatch.set(id, this.#isolates.onLifeEnd(name, () => this.#gone(id)));
    }
  }

  #followPhase(): void {
    const phase = this.#words.load(HEAD.PHASE);
    if (phase <= this.#phase) return;
    this.#phase = phase;
    if (this.#departed) void this.leave();
    else if (phase === Phase.draining) void this.#leaveAfter(this.#member.drain());
    else void this.#leaveAfter(this.#member.closeAll());
  }

  async #leaveAfter(closed: Promise<void>): Promise<void> {
    try {
      await closed;
    } catch {
      // Closed by this isolate's own program at the same time: whoever did it leaves.
      return;
    }
    await this.leave();
  }

  #followOrders(): void {
    const done = slotAt(slotOf(this.#id), SLOT.DONE);
    const order = this.#words.load(HEAD.ORDERS);
    if (order === this.#words.load(done) || this.#following !== null) return;
    this.#following = this.#follow().catch(ignore).then(() => {
      this.#words.store(done, order);
      this.#following = null;
      this.#wakeAll();
      this.#words.wake(slotAt(slotOf(this.#id), SLOT.WAKE));
    });
  }

  async #follow(): Promise<void> {
    const { minconn, maxconn } = this.#permits.sizes;
    const work = [this.#member.resize(minconn, maxconn)];
    const generation = this.#words.load(HEAD.GENERATION);
    if (generation !== this.#generation) {
      this.#generation = generation;
      work.push(this.#member.renew());
    }
    await Promise.all(work);
  }

  #gone(id: number): void {
    this.#unwatch.delete(id);
    if (this.#ended) return;
    died(this.#words, id);
    this.#permits.bury();
    // An unlucky waiter looks by itself; this is for a pool in which nobody waits now.
    const timer: Timer = this.#clock.setTimeout(() => {
      this.#burials.delete(timer);
      this.#permits.bury();
      this.#permits.table.wakeLacking();
      this.#heard();
    }, QUARANTINE + 1);
    this.#clock.hold(timer, false);
    this.#burials.add(timer);
  }

  #lookLater(): void {
    if (this.#look !== undefined || this.#phase === Phase.closed || this.#departed) return;
    this.#look = this.#clock.setTimeout(() => {
      this.#look = undefined;
      if (this.#permits.lacked === 0) {
        this.#lookAfter = FIRST_LOOK;
        return;
      }
      this.#lookAfter = Math.min(this.#lookAfter * 2, LAST_LOOK);
      this.#permits.insist();
      this.#member.pump();
    }, Math.ceil(Math.min(this.#lookAfter, this.#permits.hopeEndsIn)));
  }

  #publishLater(): void {
    if (this.#phase !== Phase.open || this.#departed) return;
    this.#permits.active = true;
    this.#publish = this.#clock.setTimeout(() => {
      this.#permits.active = false;
      if (this.#member.publish()) this.#publishLater();
    }, PUBLISH_EVERY);
    this.#clock.hold(this.#publish, false);
  }

  async #until(test: () => boolean, patience: number): Promise<void> {
    const clock = this.#clock;
    for (const end = clock.now() + patience; !test() && clock.now() < end;) {
      await new Promise<void>((resolve) => clock.setTimeout(resolve, 5));
    }
  }

  #wakeAll(): void {
    for (let slot = 1, end = this.#words.load(HEAD.SLOTS_END); slot < end; slot++) {
      const tenant = this.#words.load(slotAt(slot, SLOT.TENANT));
      if ((tenant & 0xff) !== Tenancy.live || idOf(slot, tenant) === this.#id) continue;
      this.#words.wake(slotAt(slot, SLOT.WAKE));
    }
  }
}

/** Takes the place that a handle names; null when it is not to be had. */
export async function takePlace(
  words: AtomicWords,
  id: number,
  token: string,
  lock: boolean,
): Promise<{ readonly freeLife: (() => void) | null } | null> {
  const freeLife = lock ? await currentIsolates().holdLife(lifeName(token, id)) : null;
  if ((lock && freeLife === null) || !moveIn(words, id)) {
    freeLife?.();
    return null;
  }
  // The creator watches only those who live.
  const parent = words.load(slotAt(slotOf(id), SLOT.PARENT));
  words.wake(slotAt(slotOf(parent), SLOT.WAKE));
  return { freeLife };
}

function lifeName(token: string, id: number): string {
  return `@getconn/pool ${token} ${id}`;
}
