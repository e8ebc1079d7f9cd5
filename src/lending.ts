/** Lends connections and takes them back. */

import { ConnectionReturned, PoolClosed, PoolError, type PoolErrorContext } from "./errors.ts";
import type { PoolContext } from "./context.ts";
import { Demand } from "./demand.ts";
import { Housekeeper } from "./housekeeper.ts";
import { KeyMap } from "./key_map.ts";
import { type Lender, loanOf, type PoolLoan } from "./lease.ts";
import { objectionTo } from "./options.ts";
import { JobWaiter } from "./job.ts";
import type { PoolEntry } from "./pool_entry.ts";
import { type Desk, Sharing } from "./sharing.ts";
import { Supply, type SupplyListener } from "./supply.ts";
import type { GetconnOptions, RemoveReason } from "./types.ts";
import type { Waiter } from "./wait_queue.ts";

/**
 * - `open`: lends.
 * - `draining`: lends no more, takes back.
 * - `closed`: neither.
 */
export type PoolPhase = "open" | "draining" | "closed";

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
  /** What needs a connection, but not one of its own. */
  readonly sharing: Sharing<C>;

  readonly #context: PoolContext<C>;
  readonly #housekeeper: Housekeeper<C>;
  readonly #demand: Demand<C>;
  readonly #keys = new KeyMap<PoolLoan>();
  /** Told of every connection that stands, every failure, and every one that is gone. */
  readonly #watchers = new Set<(failure: { readonly error: unknown } | null) => void>();

  constructor(context: PoolContext<C>) {
    this.#context = context;
    this.#demand = new Demand(context);
    this.supply = new Supply(context, this);
    this.sharing = new Sharing(context, this.#demand, this);
    this.#housekeeper = new Housekeeper(context, this.supply, this.#demand, {
      wake: () => this.pump(),
      reclaim: (loan) => void this.#reclaim(loan),
    });
  }

  /** getconn of all pools. `key` null: a connection of one's own. */
  getconn(key: unknown, options: GetconnOptions | undefined): Promise<C> {
    const context = this.#context;
    context.counters.requestsNum++;
    if (this.phase !== "open") return this.#fail(new PoolClosed(context.errorContext()));
    if (options !== undefined) {
      const objection = objectionTo(options);
      if (objection !== null) return this.#fail(objection.error);
    }
    if (key !== null) {
      const handle = this.#lentUnder(key);
      if (handle !== null) return Promise.resolve(handle);
    }
    const now = Date.now();
    // Nobody is served before those who wait: for a check, say, while something else is at hand.
    const entry = this.#demand.queue.size === 0 ? this.atHand(now) : null;
    if (entry === null) return this.#wait(key, options);
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
    const context = this.#context;
    if (this.phase === "closed") return Promise.reject(new PoolClosed(context.errorContext()));
    const loan = loanOf(conn);
    if (loan === undefined || loan.lender !== this || !loan.open) {
      const message = "trying to put unkeyed connection";
      return Promise.reject(new PoolError(message, "UNKEYED_CONNECTION", context.errorContext()));
    }
    if (key !== null && this.#keys.get(key) !== loan) {
      const message = "trying to put a connection under a key for which it was not lent";
      return Promise.reject(new PoolError(message, "WRONG_KEY", context.errorContext()));
    }
    return this.takeBack(loan, close);
  }

  /** What stands behind a lease. */
  resourceOf(conn: C): object {
    return (loanOf(conn)?.entry as PoolEntry<object>).resource as object;
  }

  takeBack(loan: PoolLoan, close = false): Promise<void> {
    const entry = loan.entry as PoolEntry<object>;
    const now = Date.now();
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
    const context = this.#context.errorContext();
    return this.phase === "closed" ? new PoolClosed(context) : new ConnectionReturned(context);
  }

  /** Serves waiters, opens what is missing, and sends away who cannot be served. */
  pump(): void {
    if (!this.#serving) return;
    const now = Date.now();
    this.#serve(now);
    let wanted: number;
    do {
      wanted = this.#demand.wanted();
      // A pool that drains is not refilled.
      if (this.phase !== "open") wanted = Math.min(wanted, this.sharing.waiting);
      while (wanted > 0 && this.supply.open()) wanted--;
    } while (this.#demand.lack(wanted));
    this.sharing.fill();
    this.#demand.refuseImpatient();
    // A time that has passed is no time to wait for: what is under way or full will call again.
    const retryIn = this.#demand.retryIn();
    if (retryIn > 0) this.#housekeeper.arm(now + retryIn, now);
    this.#housekeeper.hold(retryIn !== Infinity && this.#demand.queue.size > 0);
  }

  ready(entry: PoolEntry<object>): void {
    const opened = entry.state === "connecting";
    const now = Date.now();
    if (opened) {
      this.#demand.connected();
      this.#housekeeper.succession.arrived(entry, now);
    }
    void this.place(entry, now);
    if (opened) {
      this.#housekeeper.succession.settled();
      this.#notify(null);
    }
    this.pump();
  }

  failed(error: unknown, took: number): void {
    this.#demand.failed(error, took);
    this.#notify({ error });
    this.sharing.failed(error);
    this.pump();
  }

  changed(): void {
    this.#notify(null);
    this.pump();
  }

  /** Tries to connect now, whatever the back-off says. */
  hurry(): void {
    this.#demand.hurry();
    this.pump();
  }

  /** Looks now for what has become one too many or too old. */
  tidy(): void {
    const now = Date.now();
    this.#housekeeper.arm(now, now);
  }

  /** Calls `fn` after every connection that stands, fails or is gone, until the returned function is called. */
  watch(fn: (failure: { readonly error: unknown } | null) => void): () => void {
    this.#watchers.add(fn);
    return () => this.#watchers.delete(fn);
  }

  /** True while there is somebody to serve: a pool that drains runs the jobs that it has taken. */
  get #serving(): boolean {
    return this.phase === "open" || (this.phase === "draining" && this.sharing.waiting > 0);
  }

  /** True while new callers are let in. */
  get open(): boolean {
    return this.phase === "open";
  }

  /** True while something is lent, or jobs are not done. */
  get busy(): boolean {
    const { leased, states } = this.#context;
    return leased + states.shared + this.sharing.waiting > 0;
  }

  /** Refuses new callers and waiters; what is lent may come back. */
  drain(): void {
    if (this.phase !== "open") return;
    this.phase = "draining";
    this.#demand.refuseAll(true);
    this.#notify(null);
    this.supply.retireIdle("closed");
  }

  /** Ends everything; resolves when every connection is gone. */
  async end(): Promise<void> {
    this.phase = "closed";
    this.#housekeeper.stop();
    this.#demand.refuseAll();
    this.#notify(null);
    for (const { loan } of this.supply.entries) if (loan !== null) loan.open = false;
    this.#keys.clear();
    await this.supply.closeAll();
  }

  /** The handle lent under `key`, whatever its state; null when none is. */
  under(key: unknown): C | null {
    return (this.#keys.get(key)?.handle ?? null) as C | null;
  }

  /** The handle lent under `key`; a lost connection is put away, so that it gets replaced. */
  #lentUnder(key: unknown): C | null {
    const loan = this.#keys.get(key);
    if (loan === undefined) return null;
    const entry = loan.entry as PoolEntry<object>;
    if (this.supply.status(entry) !== "unknown") return loan.handle as C;
    void this.takeBack(loan);
    return null;
  }

  /** The idle connection to lend now; null when there is none, or it has to be checked first. */
  atHand(now: number): PoolEntry<object> | null {
    const { idle } = this.supply;
    while (idle.length > 0) {
      const entry = idle[idle.length - 1] as PoolEntry<object>;
      if (this.#housekeeper.succession.over(entry, now)) {
        void this.supply.retire(entry, "lifetime");
      } else if (this.supply.status(entry) === "unknown") {
        void this.supply.retire(entry, "lost");
      } else if (this.#suspicious(entry, now)) {
        return null;
      } else {
        idle.pop();
        this.#context.budget.idle(idle.length);
        return entry;
      }
    }
    return null;
  }

  /** Idle for so long, by a clock that may have jumped, that it may be dead. */
  #suspicious(entry: PoolEntry<object>, now: number): boolean {
    const { checkAfter } = this.#context.options;
    const idleFor = now - entry.idleSince;
    if (idleFor >= 0 && idleFor <= checkAfter && checkAfter !== 0) return false;
    return checkAfter !== Infinity && this.#context.connector.check !== undefined;
  }

  #lend(entry: PoolEntry<object>, key: unknown, now: number, stack?: string | null): PoolLoan {
    const loan = this.supply.lend(entry, this, key, now);
    if (key !== null) this.#keys.set(key, loan);
    const { leakAfter } = this.#context.options;
    if (leakAfter > 0) loan.stack = stack ?? new Error("getconn was called").stack ?? "";
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
    if (loan.key !== null) this.#keys.delete(loan.key);
    // The wall clock may have been set back.
    const used = Math.max(0, now - loan.since);
    context.counters.usageMs += used;
    context.pace.returned(used);
    const status = this.supply.status(entry);
    if (status !== "idle") context.counters.returnsBad++;
    if (context.heard("release")) context.tell("release", { key: loan.key, used });
    if (loan.watched || loan.reported) this.#housekeeper.leaks.returned(loan, used);
    return status;
  }

  /** Takes back a lease whose borrower is gone. Where the state cannot be known, its work may go on. */
  #reclaim(loan: PoolLoan): Promise<void> {
    return this.takeBack(loan, this.#context.connector.status === undefined);
  }

  /** Rolls back, and so on. */
  async clean(entry: PoolEntry<object>): Promise<void> {
    if (await this.supply.clean(entry)) await this.place(entry, Date.now());
  }

  /** Gives a fit connection to the next waiter, puts it at hand, or closes it when it is one too many. */
  place(entry: PoolEntry<object>, now: number): Promise<void> {
    const { supply } = this;
    const context = this.#context;
    const reason = this.unfit(entry, now);
    if (reason !== null) return supply.retire(entry, reason);
    const { budget } = context;
    if (this.#demand.queue.size > 0 && budget.yields(now)) {
      const gone = supply.retire(entry, "yielded");
      // This one counted for a waiter that now lacks a permit.
      this.pump();
      return gone;
    }
    for (let waiter = this.#demand.next(); waiter !== null; waiter = this.#demand.next()) {
      if (this.#give(entry, waiter, now) || entry.state === "closing") return entry.gone ?? DONE;
    }
    const { maxIdle } = context.options;
    if (maxIdle === 0 && supply.idle.length >= context.minconn) return supply.retire(entry, "idle");
    supply.keep(entry, now);
    let end = entry.expiresAt;
    if (maxIdle > 0 && (context.size > context.minconn || budget.shared)) {
      end = Math.min(end, now + maxIdle);
    }
    this.#housekeeper.arm(end, now);
    if (budget.contended) supply.spareIdle();
    return DONE;
  }

  /** Why a connection must not be lent again, or null. */
  unfit(entry: PoolEntry<object>, now: number): RemoveReason | null {
    if (!this.#serving) return "closed";
    if (entry.spoilt) return "dirty";
    if (entry.lost !== null) return "lost";
    if (entry.generation !== this.supply.generation) return "renewed";
    if (this.#housekeeper.succession.over(entry, now)) return "lifetime";
    return this.#context.budget.over(this.#context.size) ? "resized" : null;
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
    const waited = performance.now() - waiter.since;
    if (this.#demand.satisfy(waiter, handle)) this.#lent(loan, handle, waited);
    else void this.takeBack(loan);
    return true;
  }

  #wait(key: unknown, options: GetconnOptions | undefined): Promise<C> {
    const waiter = this.#demand.enter(key, options);
    this.pump();
    this.#demand.refuseAbove(waiter);
    this.#demand.announce(waiter);
    return waiter.promise;
  }

  #serve(now: number): void {
    const { supply } = this;
    const { queue } = this.#demand;
    for (let checking = this.#context.states.checking; queue.size > checking;) {
      const entry = this.atHand(now);
      if (entry !== null) {
        this.#give(entry, this.#demand.next() as Waiter<C>, now);
      } else if (supply.idle.length > 0) {
        checking++;
        void supply.check(supply.idle[supply.idle.length - 1] as PoolEntry<object>);
      } else return;
    }
  }

  #notify(failure: { readonly error: unknown } | null): void {
    for (const watcher of [...this.#watchers]) watcher(failure);
  }

  #fail(error: unknown): Promise<never> {
    this.#context.counters.requestsErrors++;
    return Promise.reject(error);
  }
}
