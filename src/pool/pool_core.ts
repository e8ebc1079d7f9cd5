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
import type { PoolContext, PoolPhase } from "./state.ts";
import { Demand } from "./requests.ts";
import { Fitness } from "./fitness.ts";
import { Housekeeper } from "./maintenance.ts";
import { KeyMap } from "./key_map.ts";
import { type Lender, loanOf, type PoolLoan } from "./lease.ts";
import { checkKey, readWaitOptions, type WaitOptions } from "./options.ts";
import { JobWaiter } from "./job.ts";
import type { PoolEntry } from "./entry.ts";
import { type Desk, Sharing } from "./sharing.ts";
import { Supply, type SupplyListener } from "./connections.ts";
import type { GetconnOptions, RemoveReason } from "./types.ts";
import type { Waiter } from "./wait_queue.ts";
import { Watchers } from "./watchers.ts";

const DONE: Promise<void> = Promise.resolve();

/**
 * The desk at which connections are lent.
 *
 * Invariants: while someone waits, nothing stays idle; every change that could help a waiter ends in
 * `pump`, or in `#place` for the one connection that became free.
 */
export class Lending<C extends object> implements SupplyListener, Lender, Desk<C> {
  phase: PoolPhase = "open";
  readonly supply: Supply<C>;
  readonly fitness: Fitness<C>;
  /** What needs a connection, but not one of its own. */
  readonly sharing: Sharing<C>;
  /** Who wants to know of every change of the connections. */
  readonly watchers: Watchers = new Watchers();

  readonly #context: PoolContext<C>;
  readonly #housekeeper: Housekeeper<C>;
  readonly #demand: Demand<C>;
  readonly #keys = new KeyMap<PoolLoan>();
  /** When to look whether what is on its way gives no sign. */
  #doubtAt = Infinity;
  /** Whether the last look came late, and found nothing wrong for that. */
  #spared = false;

  constructor(context: PoolContext<C>) {
    this.#context = context;
    this.#demand = new Demand(context, () => this.left());
    this.supply = new Supply(context, this);
    this.sharing = new Sharing(context, this.#demand, this);
    this.#housekeeper = new Housekeeper(context, this.supply, this.#demand, {
      wake: () => this.#wake(),
      weaken: (key, handle) => this.#keys.weaken(key, handle),
      // Where the state cannot be known, the work of a borrower who is gone may go on.
      reclaim: (loan) => void this.takeBack(loan, context.connector.status === undefined),
    });
    this.fitness = new Fitness(context, this.supply, this.#housekeeper.succession);
  }

  /** getconn of all pools. `key` null: a connection of one's own. */
  getconn(key: unknown, options: GetconnOptions | undefined): Promise<C> {
    const context = this.#context;
    context.counters.requestsNum++;
    if (this.phase !== "open") return this.#fail(new PoolClosed(context.errorContext()));
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
    return this.#obtain(key, wait, false);
  }

  /**
   * getconn for what was asked for as one call and gives back by itself: a pool that drains finishes it, as it does
   * jobs. `admitted`: it was let in before.
   */
  borrow(wait: WaitOptions, admitted: boolean): Promise<C> {
    this.#context.counters.requestsNum++;
    if (this.phase !== "open" && !(admitted && this.phase === "draining")) {
      return this.#fail(new PoolClosed(this.#context.errorContext()));
    }
    return this.#obtain(null, wait, true);
  }

  /**
   * Lets a call in that will ask for a connection later: a pool that drains waits for it. Returns how to say that it
   * has asked, or will not; null when the pool is closing.
   */
  admit(): (() => void) | null {
    if (this.phase !== "open") return null;
    const context = this.#context;
    context.admitted++;
    return () => {
      context.admitted--;
      this.left();
    };
  }

  #obtain(key: unknown, wait: WaitOptions | null, stays: boolean): Promise<C> {
    const context = this.#context;
    const now = context.clock.now();
    // Nobody is served before those who wait: for a check, say, while something else is at hand.
    const entry = this.#demand.queue.size === 0 ? this.fitness.atHand(now) : null;
    if (entry === null) return this.#wait(key, wait, stays);
    try {
      const loan = this.#lend(entry, key, now);
      const handle = loan.handle as C;
      this.#lent(loan, handle, 0);
      return Promise.resolve(handle);
    } catch (error) {
      return this.#fail(error);
    }
  }

  /** putconn of all pools. */
  putconn(conn: unknown, key: unknown, close: boolean): Promise<void> {
    if (this.phase === "closed") return Promise.reject(this.refusal());
    try {
      checkKey("putconn", key, "it is putconn(conn, key, close), and close is true or false");
      if (typeof close !== "boolean") throw new TypeError("putconn takes true or false for close");
    } catch (error) {
      return Promise.reject(error);
    }
    const loan = loanOf(conn);
    if (loan === undefined || loan.lender !== this || !loan.open) {
      return this.#reject(
        "trying to put unkeyed connection: it is back already, or another pool's",
        "UNKEYED_CONNECTION",
      );
    }
    if (key !== null && this.#keys.get(key) !== loan) {
      return this.#reject(
        "trying to put a connection under a key for which it was not lent",
        "WRONG_KEY",
      );
    }
    return this.takeBack(loan, close);
  }

  takeBack(loan: PoolLoan, close = false): Promise<void> {
    const entry = loan.entry as PoolEntry<object>;
    const now = this.#context.clock.now();
    const status = this.#end(loan, entry, now);
    if (!this.#serving) return this.supply.retire(entry, "closed");
    if (close) return this.supply.retire(entry, "discarded");
    if (status === "unknown") return this.supply.retire(entry, "lost");
    if (status === "active") return this.supply.retire(entry, "dirty");
    if (status !== "idle" || this.#context.options.reset !== undefined) return this.clean(entry);
    return this.place(entry, now);
  }

  context(): PoolErrorContext {
    return this.#context.errorContext();
  }

  refusal(): Error {
    const Refusal = this.phase === "closed" ? PoolClosed : ConnectionReturned;
    return new Refusal(this.context());
  }

  /** Serves waiters, opens what is missing, and sends away who cannot be served. */
  pump(): void {
    // Another request can open nothing for this one, whose own timer will come.
    if (!this.#serving || this.#context.isHere?.() === false) return;
    const now = this.#context.clock.now();
    this.#serve(now);
    let wanted: number;
    do {
      wanted = this.#demand.wanted();
      // A pool that drains is not refilled.
      if (this.phase !== "open") wanted = Math.min(wanted, this.#demand.queue.staying);
      for (; wanted > 0 && this.supply.open(); wanted--) this.#demand.begun();
    } while (this.#demand.lack(wanted));
    const recallIn = wanted > 0 ? this.supply.recall() : Infinity;
    this.sharing.fill();
    this.#demand.refuseImpatient();
    // A time that has passed is no time to wait for: what is under way or full will call again.
    let wakeIn = Infinity;
    for (
      const one of [this.#demand.retryIn(), this.sharing.overdueIn(), recallIn, this.#doubtIn()]
    ) {
      if (one > 0) wakeIn = Math.min(wakeIn, one);
    }
    this.#housekeeper.arm(now + wakeIn, now);
    this.#housekeeper.hold(wakeIn !== Infinity && this.#demand.queue.size > 0);
  }

  /**
   * In how many milliseconds to look whether what is on its way gives no sign. Not at once in any case: what
   * has come meanwhile may not be heard of before the event loop has had a turn.
   */
  #doubtIn(): number {
    const left = this.#demand.patienceEndsIn;
    if (left === Infinity) return Infinity;
    const now = this.#context.clock.now();
    // What was said before stands, or those who come one after the other would put it off for ever.
    if (!this.#spared) this.#doubtAt = Math.min(this.#doubtAt, now + Math.max(1, Math.ceil(left)));
    return Math.max(1, Math.ceil(this.#doubtAt - now));
  }

  /** At each tick of the housekeeper. */
  #wake(): void {
    const now = this.#context.clock.now();
    if (now >= this.#doubtAt) {
      // What has come while the loop was blocked or the process frozen is yet to be heard of.
      const chance = this.#spared ? 0 : chanceAfter(now - this.#doubtAt);
      this.#spared = chance > 0;
      this.#doubtAt = this.#spared ? now + Math.min(chance, this.#context.pace.patience) : Infinity;
      if (!this.#spared) this.#demand.doubt();
    }
    this.pump();
  }

  ready(entry: PoolEntry<object>): void {
    const opened = entry.state === "connecting";
    const now = this.#context.clock.now();
    if (opened) {
      this.#demand.connected(entry.setOutAt);
      this.#housekeeper.succession.arrived(entry, now);
    }
    void this.place(entry, now);
    if (opened) {
      this.#housekeeper.succession.settled();
      this.watchers.notify(null);
    }
    this.pump();
  }

  failed(error: unknown, started: number, silent: boolean): void {
    if (this.#demand.failed(error, started, silent)) {
      this.watchers.notify({ error });
      this.sharing.failed(error);
    }
    this.pump();
  }

  changed(): void {
    this.watchers.notify(null);
    this.pump();
  }

  readonly room = (): void => this.sharing.fill();

  /** Somebody has left the queue without a connection: what was spared for a caller can take jobs again. */
  left(): void {
    this.sharing.fill();
    // It may have been the last one that close() waited for.
    if (this.phase === "draining") this.watchers.notify(null);
  }

  /** Tries to connect now, whatever the back-off says. */
  hurry(): void {
    this.#demand.hurry();
    this.pump();
  }

  /** Looks now for what has become one too many or too old. */
  tidy(): void {
    const now = this.#context.clock.now();
    this.#housekeeper.arm(now, now);
  }

  /** True while there is somebody to serve: a pool that drains finishes what it was asked for before. */
  get #serving(): boolean {
    if (this.phase !== "draining") return this.phase === "open";
    return this.#demand.queue.staying + this.#context.admitted > 0;
  }

  /** Refuses new callers and waiters; what is lent may come back. */
  drain(): void {
    if (this.phase !== "open") return;
    this.phase = "draining";
    this.#demand.refuseAll(true);
    this.left();
    this.supply.retireIdle("closed");
    // What is on its way back will be lent to nobody: a reset that waits for close() must not be waited for.
    this.supply.retireReturning();
    // A job may have counted on one of them.
    this.pump();
  }

  /** Ends everything; resolves when every connection is gone. */
  async end(): Promise<void> {
    this.phase = "closed";
    this.#housekeeper.stop();
    this.#demand.refuseAll();
    this.watchers.notify(null);
    for (const { loan } of this.supply.entries) {
      if (loan === null) continue;
      loan.open = false;
      loan.over({ reason: this.refusal() });
    }
    this.#keys.clear();
    await this.supply.closeAll();
  }

  /** The handle lent under `key`, whatever its state; null when none is. */
  under(key: unknown): C | null {
    return (this.#keys.get(key)?.handle ?? this.#keys.keptBy(key)) as C | null;
  }

  /** The handle lent under `key`; a lost connection is put away, so that it gets replaced. */
  #lentUnder(key: unknown): C | null {
    const loan = this.#keys.get(key);
    if (loan === undefined) return null;
    const status = this.supply.status(loan.entry as PoolEntry<object>);
    if (status !== "unknown") return this.under(key);
    void this.takeBack(loan);
    // A listener may have asked for the key meanwhile.
    return this.#lentUnder(key);
  }

  #lend(entry: PoolEntry<object>, key: unknown, now: number, stack?: string | null): PoolLoan {
    const loan = this.supply.lend(entry, this, key, now);
    if (key !== null) this.#keys.set(key, loan);
    const { leakAfter } = this.#context.options;
    if (leakAfter > 0) loan.stack = stack ?? stackHere("getconn was called");
    this.#housekeeper.lent(now);
    return loan;
  }

  /** Tells of it, when the borrower has it: a listener may call anything. */
  #lent(loan: PoolLoan, handle: C, waited: number): void {
    const context = this.#context;
    if (context.heard("acquire")) context.tell("acquire", { conn: handle, key: loan.key, waited });
  }

  /** Revokes the loan; returns the state in which the connection came back. */
  #end(loan: PoolLoan, entry: PoolEntry<object>, now: number): string {
    const context = this.#context;
    loan.open = false;
    loan.handle = null;
    entry.loan = null;
    if (loan.keyed) this.#keys.delete(loan.key);
    loan.over(null);
    const used = now - loan.since;
    context.counters.usageMs += used;
    context.pace.returned(used);
    let status = this.supply.status(entry);
    if (loan.busy && status !== "unknown") status = "active";
    if (status !== "idle") context.counters.returnsBad++;
    if (context.heard("release")) context.tell("release", { key: loan.key, used, shared: false });
    if (loan.watched || loan.reported) this.#housekeeper.leaks.returned(loan, used);
    return status;
  }

  /** Rolls back, and so on. */
  async clean(entry: PoolEntry<object>): Promise<void> {
    if (await this.supply.clean(entry)) await this.place(entry, this.#context.clock.now());
  }

  /** Gives a fit connection to the next waiter, puts it at hand, or closes it when it is one too many. */
  place(entry: PoolEntry<object>, now: number): Promise<void> {
    const { supply } = this;
    const context = this.#context;
    const { others } = context.permits;
    const reason = this.unfit(entry, now);
    if (reason !== null || (this.#demand.queue.size > 0 && others?.claimReturned())) {
      const gone = supply.retire(entry, reason ?? "yielded");
      // This one may have counted for a waiter that now lacks a permit.
      if (this.#demand.queue.size > 0) this.pump();
      return gone;
    }
    for (let waiter = this.#demand.next(); waiter !== null; waiter = this.#demand.next()) {
      if (!this.#give(entry, waiter, now) && entry.state !== "closing") continue;
      // With one caller less, jobs may have more.
      this.sharing.fill();
      return entry.gone ?? DONE;
    }
    const { maxIdle } = context.options;
    if (maxIdle === 0 && context.idleSurplus >= 0) return supply.retire(entry, "idle");
    supply.keep(entry, now);
    let end = entry.expiresAt;
    if (maxIdle > 0 && (context.size > context.minconn || others !== null)) {
      end = Math.min(end, now + maxIdle);
    }
    this.#housekeeper.arm(end, now);
    if (others?.contended) supply.spareIdle();
    return DONE;
  }

  /** Why a connection must not be lent again, or null. */
  unfit(entry: PoolEntry<object>, now: number): RemoveReason | null {
    return this.#serving ? this.fitness.objection(entry, now) : "closed";
  }

  /** Lends to a waiter that was taken from the queue, and to all who wait for the same key. */
  #give(entry: PoolEntry<object>, waiter: Waiter<C>, now: number): boolean {
    if (waiter instanceof JobWaiter) return this.sharing.serve(entry, waiter, now);
    let loan: PoolLoan;
    try {
      loan = this.#lend(entry, waiter.key, now, waiter.stack);
    } catch (error) {
      this.#demand.disappoint(waiter, error);
      return false;
    }
    const handle = loan.handle as C;
    const at = this.#context.clock.now();
    if (this.#demand.satisfy(waiter, handle, at)) this.#lent(loan, handle, at - waiter.since);
    else void this.takeBack(loan);
    return true;
  }

  #wait(key: unknown, options: WaitOptions | null, stays: boolean): Promise<C> {
    const { hooks } = this.#context;
    const vain = this.#context.vainInHook("getconn()");
    if (vain !== null) return this.#fail(vain);
    const waiter = this.#demand.enter(key, options, stays);
    if (hooks.here !== null) hooks.waits(hooks.here, waiter.promise);
    this.pump();
    this.#demand.refuseAbove(waiter);
    this.#demand.announce(waiter);
    return waiter.promise;
  }

  #serve(now: number): void {
    const { supply } = this;
    const { queue } = this.#demand;
    const { fresh, silent } = this.#context.coming;
    // Each check that gives no sign lets two others begin.
    while (queue.size * (1 + silent.checking) > fresh.checking) {
      const entry = this.fitness.atHand(now);
      if (entry !== null) {
        this.#give(entry, this.#demand.next() as Waiter<C>, now);
        continue;
      }
      const next = supply.idle[supply.idle.length - 1];
      if (next === undefined || this.#ratherOpens(next)) return;
      void supply.check(next);
    }
  }

  /**
   * Whether to open another connection instead of checking this one: one that was used since then gives no
   * sign, so that this one is likely to be dead too.
   */
  #ratherOpens(entry: PoolEntry<object>): boolean {
    const { coming, permits, entries } = this.#context;
    if (coming.silent.checking === 0 || this.#demand.failing) return false;
    if (permits.held + this.#context.elsewhere >= permits.limit) return false;
    for (const one of entries) {
      if (one.silent && one.state === "checking" && one.idleSince >= entry.idleSince) return true;
    }
    return false;
  }

  #reject(message: string, code: PoolErrorCode): Promise<never> {
    return Promise.reject(new PoolError(message, code, this.context()));
  }

  #fail(error: unknown): Promise<never> {
    this.#context.counters.requestsErrors++;
    return Promise.reject(error);
  }
}
