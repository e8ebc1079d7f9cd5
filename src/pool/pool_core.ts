/** Lends connections and takes them back. */

import { chanceAfter } from "../clock.ts";
import {
  ConnectionReturned,
  PoolClosed,
  PoolError,
  type PoolErrorCode,
  type PoolErrorContext,
  stackHere,
} from "./errors.ts";
import { KeyMap } from "./key_map.ts";
import type { PoolState } from "./state.ts";
import { Requests } from "./requests.ts";
import { type ConnectionEvents, Connections } from "./connections.ts";
import { Maintenance } from "./maintenance.ts";
import { leaseOf, type Lender, type PoolLease } from "./lease.ts";
import { checkClose, checkKey, readWaitOptions, type WaitOptions } from "./options.ts";
import { JobWaiter } from "./jobs.ts";
import type { Waiter } from "./wait_queue.ts";
import type { PoolEntry } from "./entry.ts";
import { Sharing, type SharingCore } from "./sharing.ts";
import type { GetconnOptions, RemoveReason } from "./types.ts";

const DONE: Promise<void> = Promise.resolve();
/** What the stack of a lease begins with. */
const CALLED = "getconn was called";

/**
 * Where waiters meet connections: getconn, putconn and `pump`. It makes the parts and hands each what that needs of
 * the others; no part knows another one.
 *
 * Invariants: while someone waits, nothing stays idle; every change that could help a waiter ends in
 * `pump`, or in `#place` for the one connection that became free.
 */
export class PoolCore<C extends object> implements ConnectionEvents, Lender, SharingCore {
  readonly connections: Connections<C>;
  /** What needs a connection, but not one of its own. */
  readonly sharing: Sharing<C>;

  readonly #state: PoolState<C>;
  readonly #maintenance: Maintenance<C>;
  readonly #requests: Requests<C>;
  readonly #keys = new KeyMap<PoolLease>();
  /** When to look whether what is on its way gives no sign. */
  #doubtAt = Infinity;
  /** Whether the last look came late, and found nothing wrong for that. */
  #spared = false;

  constructor(state: PoolState<C>) {
    this.#state = state;
    this.#requests = new Requests(state, () => this.left(), () => this.sharing);
    this.connections = new Connections(state, this);
    this.sharing = new Sharing(state, this.connections, this.#requests, this);
    this.#maintenance = new Maintenance(state, this.connections, {
      wake: () => this.#wake(),
      weaken: (key, handle) => this.#keys.weaken(key, handle),
      // Where the state cannot be known, the work of a borrower who is gone may go on.
      putBack: (lease) => void this.takeBack(lease, state.connector.status === undefined),
      reclaim: (lease) => this.#reclaim(lease),
    });
  }

  /** getconn of all pools. `key` null: a connection of one's own. */
  getconn(key: unknown, options: GetconnOptions | undefined): Promise<C> {
    const state = this.#state;
    state.counters.requestsNum++;
    if (this.#state.phase !== "open") return this.#fail(new PoolClosed(state.errorContext()));
    let wait: WaitOptions | null = null;
    try {
      if (options !== undefined) wait = readWaitOptions("getconn", options);
      else if (key !== null) {
        checkKey("getconn", key, "the options come second, getconn(null, options)");
      }
    } catch (error) {
      return this.#fail(error);
    }
    if (key !== null) {
      const handle = this.#lentUnder(key);
      if (handle !== null) return Promise.resolve(handle);
    }
    return this.#obtain(key, wait, false, state.tellsWhere ? stackHere(CALLED) : null);
  }

  /**
   * getconn for what was asked for as one call and gives back by itself: a pool that drains finishes it, as it does
   * jobs. `admitted`: it was let in before.
   */
  borrow(wait: WaitOptions, admitted: boolean): Promise<C> {
    const state = this.#state;
    state.counters.requestsNum++;
    if (state.phase !== "open" && !(admitted && state.phase === "draining")) {
      return this.#fail(new PoolClosed(state.errorContext()));
    }
    return this.#obtain(null, wait, true, state.tellsWhere ? stackHere(CALLED) : null);
  }

  /**
   * Lets a call in that will ask for a connection later: a pool that drains waits for it. Returns how to say that it
   * has asked, or will not; null when the pool is closing.
   */
  admit(): (() => void) | null {
    if (this.#state.phase !== "open") return null;
    const state = this.#state;
    state.admitted++;
    return () => {
      state.admitted--;
      this.left();
    };
  }

  /** `stack` is taken by whoever calls this: V8 tells of ten frames, and the caller's own shall be among them. */
  #obtain(
    key: unknown,
    wait: WaitOptions | null,
    stays: boolean,
    stack: string | null,
  ): Promise<C> {
    const state = this.#state;
    const now = state.clock.now();
    // Nobody is served before those who wait: for a check, say, while something else is at hand.
    const entry = this.#requests.queue.size === 0 ? this.connections.atHand(now) : null;
    if (entry === null) return this.#wait(key, wait, stays, stack);
    try {
      const lease = this.#lend(entry, key, now, stack);
      const handle = lease.handle as C;
      this.#lent(lease, handle, 0);
      return Promise.resolve(handle);
    } catch (error) {
      return this.#fail(error);
    }
  }

  /** putconn of all pools. */
  putconn(conn: unknown, key: unknown, close: boolean): Promise<void> {
    if (this.#state.phase === "closed") return Promise.reject(this.refusal());
    try {
      checkKey("putconn", key, "it is putconn(conn, key, close), and close is true or false");
      checkClose(close);
    } catch (error) {
      return Promise.reject(error);
    }
    const lease = leaseOf(conn);
    if (lease?.lender === this && lease.reclaimedAfter !== null) {
      return Promise.reject(lease.returned());
    }
    if (lease === undefined || lease.lender !== this || !lease.open) {
      return this.#reject(
        "trying to put unkeyed connection: it is back already, or another pool's",
        "UNKEYED_CONNECTION",
      );
    }
    if (key !== null && this.#keys.get(key) !== lease) {
      return this.#reject(
        "trying to put a connection under a key for which it was not lent",
        "WRONG_KEY",
      );
    }
    return this.takeBack(lease, close);
  }

  takeBack(lease: PoolLease, close = false): Promise<void> {
    const entry = lease.entry as PoolEntry;
    const now = this.#state.clock.now();
    const status = this.#end(lease, entry, now);
    if (!this.#serving) return this.connections.retire(entry, "closed");
    if (close) return this.connections.retire(entry, "discarded");
    if (status === "unknown") return this.connections.retire(entry, "lost");
    if (status === "active") return this.connections.retire(entry, "dirty");
    if (status !== "idle" || this.#state.options.reset !== undefined) return this.clean(entry);
    return this.place(entry, now);
  }

  /** Takes a connection from its borrower, and closes it: what it runs is cancelled by that. */
  #reclaim(lease: PoolLease): void {
    const entry = lease.entry as PoolEntry;
    lease.reclaimedAfter = this.#state.options.reclaimAfter;
    this.#end(lease, entry, this.#state.clock.now());
    void this.connections.retire(entry, "reclaimed", lease.returned());
    // Somebody may wait for a permit that will be free soon.
    this.pump();
  }

  errorContext(): PoolErrorContext {
    return this.#state.errorContext();
  }

  refusal(): Error {
    const Refusal = this.#state.phase === "closed" ? PoolClosed : ConnectionReturned;
    return new Refusal(this.errorContext());
  }

  /** Serves waiters, opens what is missing, and sends away who cannot be served. */
  pump(): void {
    // Another request can open nothing for this one, whose own timer will come.
    if (!this.#serving || this.#state.isHere?.() === false) return;
    const now = this.#state.clock.now();
    this.#serve(now);
    let wanted: number;
    do {
      wanted = this.#requests.wanted();
      // A pool that drains is not refilled.
      if (this.#state.phase !== "open") wanted = Math.min(wanted, this.#requests.queue.staying);
      for (; wanted > 0 && this.connections.open(); wanted--) {
        this.#state.backoff.begun(this.#state.clock.now());
      }
    } while (this.#requests.lack(wanted));
    const recallIn = wanted > 0 ? this.connections.recall() : Infinity;
    this.sharing.fill();
    this.#requests.refuseImpatient();
    // A time that has passed is no time to wait for: what is under way or full will call again.
    let wakeIn = Infinity;
    for (
      const one of [this.#requests.retryIn(), this.sharing.overdueIn(), recallIn, this.#doubtIn()]
    ) {
      if (one > 0) wakeIn = Math.min(wakeIn, one);
    }
    this.#maintenance.arm(now + wakeIn, now);
    this.#maintenance.hold(wakeIn !== Infinity && this.#requests.queue.size > 0);
  }

  /**
   * In how many milliseconds to look whether what is on its way gives no sign. Not at once in any case: what
   * has come meanwhile may not be heard of before the event loop has had a turn.
   */
  #doubtIn(): number {
    const left = this.#requests.patienceEndsIn;
    if (left === Infinity) return Infinity;
    const now = this.#state.clock.now();
    // What was said before stands, or those who come one after the other would put it off for ever.
    if (!this.#spared) this.#doubtAt = Math.min(this.#doubtAt, now + Math.max(1, Math.ceil(left)));
    return Math.max(1, Math.ceil(this.#doubtAt - now));
  }

  /** At each tick of the maintenance. */
  #wake(): void {
    const now = this.#state.clock.now();
    if (now >= this.#doubtAt) {
      // What has come while the loop was blocked or the process frozen is yet to be heard of.
      const chance = this.#spared ? 0 : chanceAfter(now - this.#doubtAt);
      this.#spared = chance > 0;
      this.#doubtAt = this.#spared ? now + Math.min(chance, this.#state.growth.patience) : Infinity;
      if (!this.#spared) this.#requests.doubt();
    }
    this.pump();
  }

  ready(entry: PoolEntry): void {
    const opened = entry.state === "connecting";
    const now = this.#state.clock.now();
    if (opened) this.#requests.connected(entry.setOutAt);
    void this.place(entry, now);
    if (opened) {
      this.connections.settled();
      this.#state.watchers.notify(null);
    }
    this.pump();
  }

  failed(error: unknown, started: number, silent: boolean): void {
    if (this.#requests.failed(error, started, silent)) {
      this.#state.watchers.notify({ error });
      this.sharing.failed(error);
    }
    this.pump();
  }

  changed(): void {
    this.#state.watchers.notify(null);
    this.pump();
  }

  readonly room = (): void => this.sharing.fill();

  /** For how long the first of those who wait has; 0 when nobody does. Milliseconds. */
  get longestWait(): number {
    const { first } = this.#requests.queue;
    return first === null ? 0 : this.#state.clock.now() - first.since;
  }

  /** Who waits, the longest first. */
  *waiters(): Iterable<Waiter<C>> {
    for (let one = this.#requests.queue.first; one !== null; one = one.next) yield one;
  }

  /** Somebody has left the queue without a connection: what was spared for a caller can take jobs again. */
  left(): void {
    this.sharing.fill();
    this.#letGo();
    // It may have been the last one that close() waited for.
    if (this.#state.phase === "draining") this.#state.watchers.notify(null);
  }

  /** When nobody waits any more, nobody keeps the process alive for what comes next. */
  #letGo(): void {
    if (this.#requests.queue.size === 0) this.#maintenance.hold(false);
  }

  /** Tries to connect now, whatever the back-off says. */
  hurry(): void {
    const { backoff, clock } = this.#state;
    const now = clock.now();
    backoff.revive(now);
    backoff.retryAt = Math.min(backoff.retryAt, now);
    this.pump();
  }

  /** Looks now for what has become one too many or too old. */
  tidy(): void {
    const now = this.#state.clock.now();
    this.#maintenance.arm(now, now);
  }

  /** True while there is somebody to serve: a pool that drains finishes what it was asked for before. */
  get #serving(): boolean {
    if (this.#state.phase !== "draining") return this.#state.phase === "open";
    return this.#requests.queue.staying + this.#state.admitted > 0;
  }

  /** Refuses new callers and waiters; what is lent may come back. */
  drain(): void {
    if (this.#state.phase !== "open") return;
    this.#state.phase = "draining";
    this.#requests.refuseAll(true);
    this.left();
    this.connections.retireIdle("closed");
    // What is on its way back will be lent to nobody: a reset that waits for close() must not be waited for.
    this.connections.retireReturning();
    // A job may have counted on one of them.
    this.pump();
  }

  /** Ends everything; resolves when every connection is gone. */
  async end(): Promise<void> {
    this.#state.phase = "closed";
    this.#maintenance.stop();
    this.#requests.refuseAll();
    this.#state.watchers.notify(null);
    for (const { lease } of this.#state.entries) {
      if (lease === null) continue;
      lease.open = false;
      lease.tellOver({ reason: this.refusal() });
    }
    this.#keys.clear();
    await this.connections.closeAll();
  }

  /** The handle lent under `key`, whatever its state; null when none is. */
  under(key: unknown): C | null {
    return (this.#keys.get(key)?.handle ?? this.#keys.keptBy(key)) as C | null;
  }

  /** The handle lent under `key`; a lost connection is put away, so that it gets replaced. */
  #lentUnder(key: unknown): C | null {
    const lease = this.#keys.get(key);
    if (lease === undefined) return null;
    const status = this.connections.status(lease.entry as PoolEntry);
    if (status !== "unknown") return this.under(key);
    void this.takeBack(lease);
    // A listener may have asked for the key meanwhile.
    return this.#lentUnder(key);
  }

  #lend(entry: PoolEntry, key: unknown, now: number, stack: string | null): PoolLease {
    const lease = this.connections.lend(entry, this, key, now);
    if (key !== null) this.#keys.set(key, lease);
    if (stack !== null) lease.stack = stack;
    this.#maintenance.lent(now);
    return lease;
  }

  /** Tells of it, when the borrower has it: a listener may call anything. */
  #lent(lease: PoolLease, handle: C, waited: number): void {
    const state = this.#state;
    if (state.heard("acquire")) state.tell("acquire", { conn: handle, key: lease.key, waited });
  }

  /** Revokes the lease; returns the state in which the connection came back. */
  #end(lease: PoolLease, entry: PoolEntry, now: number): string {
    const state = this.#state;
    lease.open = false;
    lease.handle = null;
    entry.lease = null;
    if (lease.keyed) this.#keys.delete(lease.key);
    lease.tellOver(lease.reclaimedAfter === null ? null : { reason: lease.returned() });
    const used = now - lease.since;
    state.counters.usageMs += used;
    state.growth.returned(used);
    let status = this.connections.status(entry);
    if (lease.busy && status !== "unknown") status = "active";
    if (status !== "idle") state.counters.returnsBad++;
    if (state.heard("release")) state.tell("release", { key: lease.key, used, shared: false });
    if (lease.watched || lease.reported || lease.reclaimedAfter !== null) {
      this.#maintenance.returned(lease, used);
    }
    return status;
  }

  /** Rolls back, and so on. */
  async clean(entry: PoolEntry): Promise<void> {
    if (await this.connections.clean(entry)) await this.place(entry, this.#state.clock.now());
  }

  /** Gives a fit connection to the next waiter, puts it at hand, or closes it when it is one too many. */
  place(entry: PoolEntry, now: number): Promise<void> {
    const { connections } = this;
    const state = this.#state;
    const { others } = state.permits;
    const reason = this.judge(entry, now);
    if (reason !== null || (this.#requests.queue.size > 0 && others?.claimReturned())) {
      const gone = connections.retire(entry, reason ?? "yielded");
      // This one may have counted for a waiter that now lacks a permit.
      if (this.#requests.queue.size > 0) this.pump();
      return gone;
    }
    if (state.options.validate !== undefined && !entry.validated && this.#isLoan(entry)) {
      void connections.check(entry, true);
      return DONE;
    }
    for (let waiter = this.#requests.next(); waiter !== null; waiter = this.#requests.next()) {
      if (!this.#give(entry, waiter, now) && entry.state !== "closing") continue;
      // With one caller less, jobs may have more.
      this.sharing.fill();
      this.#letGo();
      return entry.gone ?? DONE;
    }
    const { maxIdle } = state.options;
    if (maxIdle === 0 && state.idleSurplus >= 0) return connections.retire(entry, "idle");
    connections.keep(entry, now);
    let end = entry.expiresAt;
    if (maxIdle > 0 && (state.size > state.minconn || others !== null)) {
      end = Math.min(end, now + maxIdle);
    }
    this.#maintenance.arm(end, now);
    if (others?.contended) connections.spareIdle();
    return DONE;
  }

  /** Whether somebody waits for it. More statements on one that is shared already are no loan. */
  #isLoan(entry: PoolEntry): boolean {
    const { first } = this.#requests.queue;
    return first !== null && !(entry.state === "shared" && first instanceof JobWaiter);
  }

  /** Why a connection must not be lent again, or null. */
  judge(entry: PoolEntry, now: number): RemoveReason | null {
    return this.#serving ? this.connections.judge(entry, now) : "closed";
  }

  /** Lends to a waiter that was taken from the queue, and to all who wait for the same key. */
  #give(entry: PoolEntry, waiter: Waiter<C>, now: number): boolean {
    if (waiter instanceof JobWaiter) return this.sharing.serve(entry, waiter, now);
    let lease: PoolLease;
    try {
      lease = this.#lend(entry, waiter.key, now, waiter.stack);
    } catch (error) {
      this.#requests.disappoint(waiter, error);
      return false;
    }
    const handle = lease.handle as C;
    const at = this.#state.clock.now();
    if (this.#requests.satisfy(waiter, handle, at)) this.#lent(lease, handle, at - waiter.since);
    else void this.takeBack(lease);
    return true;
  }

  #wait(
    key: unknown,
    options: WaitOptions | null,
    stays: boolean,
    stack: string | null,
  ): Promise<C> {
    const { hooks } = this.#state;
    const vain = this.#state.vainInHook("getconn()");
    if (vain !== null) return this.#fail(vain);
    // Others wait, and nothing can be done for them: this one stands behind them.
    const still = this.#requests.queue.size > 0 && this.#state.still;
    const waiter = this.#requests.enter(key, options, stays, stack);
    if (hooks.here !== null) hooks.waits(hooks.here, waiter.promise);
    if (!still || waiter.impatient) this.pump();
    this.#requests.refuseAbove(waiter);
    this.#requests.announce(waiter);
    return waiter.promise;
  }

  #serve(now: number): void {
    const { connections } = this;
    const { queue } = this.#requests;
    const { counts, coming: { silent } } = this.#state;
    // Each check that gives no sign lets two others begin.
    while (queue.size * (1 + silent.checking) > counts.checking - silent.checking) {
      const entry = this.connections.atHand(now);
      if (entry !== null) {
        this.#give(entry, this.#requests.next() as Waiter<C>, now);
        continue;
      }
      const next = connections.idle[connections.idle.length - 1];
      if (next === undefined || this.#ratherOpens(next)) return;
      void connections.check(next, true);
    }
  }

  /**
   * Whether to open another connection instead of checking this one: one that was used since then gives no
   * sign, so that this one is likely to be dead too.
   */
  #ratherOpens(entry: PoolEntry): boolean {
    const { coming, permits, entries } = this.#state;
    if (coming.silent.checking === 0 || this.#state.backoff.failing) return false;
    if (permits.held + this.#state.elsewhere >= permits.limit) return false;
    for (const one of entries) {
      if (one.silent && one.state === "checking" && one.idleSince >= entry.idleSince) return true;
    }
    return false;
  }

  #reject(message: string, code: PoolErrorCode): Promise<never> {
    return Promise.reject(new PoolError(message, code, this.errorContext()));
  }

  #fail(error: unknown): Promise<never> {
    this.#state.counters.requestsErrors++;
    return Promise.reject(error);
  }
}
