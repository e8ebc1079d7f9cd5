/**
 * Opens, checks, cleans and closes connections, and replaces those that are old. It owns the entries and their
 * permits; it knows no waiters.
 */

import { snapshotContext } from "../runtime.ts";
import { ConnectionReturned, PoolClosed, PoolError, reasonOf } from "./errors.ts";
import type { PoolState } from "./state.ts";
import { guard, type Lender, mark, PoolLease } from "./lease.ts";
import { isThenable } from "./safely.ts";
import { NoAnswer, within } from "./timeout.ts";
import { PoolEntry } from "./entry.ts";
import type { HookCall } from "./hooks.ts";
import type { RemoveReason, TransactionStatus } from "./types.ts";

/** A rollback that takes longer than this, in milliseconds, counts as failed. */
export const HYGIENE_LIMIT = 5_000;
/** An attempt to connect may be given up for another one after so many milliseconds … */
const RECALL_AFTER = 1_000;
/** … and after so many times the time for which it was counted on. */
const RECALL_TIMES = 4;
/** A `configure` or `reset` that takes longer than this, in milliseconds, counts as failed. */
const HOOK_LIMIT = 30_000;
/** This part of `maxLifetime` is left for the successor to come up. */
const GRACE = 0.025;
/** Lives end earlier by up to this part, so that they do not all end at once. */
const JITTER = 0.025;
/** What was lent again within this time, in milliseconds, was so without a pause of the process. */
const ONE_TURN = 0.05;

/** Who is told of what becomes of connections: the side that lends. */
export interface ConnectionEvents {
  /** This entry is connecting, checking or returning no more: lend it or keep it. */
  ready(entry: PoolEntry): void;
  /** An attempt to connect that began at `started` failed; its permit is free again. `silent`: nobody counted on it any more. */
  failed(error: unknown, started: number, silent: boolean): void;
  /** An entry is going or gone: one fewer to count on, or one more permit free. */
  changed(): void;
  /** A shared connection may be given more work. */
  readonly room: () => void;
}

/** One attempt to connect. */
interface Attempt {
  readonly entry: PoolEntry;
  /** Its own: some hosts forbid to share one between requests. */
  readonly abort: AbortController;
  /** How many leases had ended when it was begun. */
  readonly returnsBefore: number;
  /** Whether it was given up for the sake of its permit. */
  recalled: boolean;
  ended: Promise<void>;
  /** Runs a function as whoever it was begun for; null when nobody listens. */
  readonly scope: ((fn: () => void) => void) | null;
}

/** All connections of one pool in one isolate. */
export class Connections<C extends object> {
  /** Connections at hand; the last one in is the first one out. */
  readonly idle: PoolEntry[] = [];
  readonly #state: PoolState<C>;
  readonly #listener: ConnectionEvents;
  /** What the connector has opened and not closed. */
  readonly #open = new WeakSet<object>();
  /** How to end the hooks that run now. */
  readonly #hooks = new Set<(reason: unknown) => void>();
  /** Old connections whose successors are on their way. */
  readonly #aged = new Set<PoolEntry>();
  /** Attempts to connect, the oldest first. */
  readonly #attempts = new Set<Attempt>();
  /** What a hook gets is no lease of the pool: it ends with the hook and cannot be put back. */
  readonly #hookLender: Lender;

  constructor(state: PoolState<C>, listener: ConnectionEvents) {
    this.#state = state;
    this.#listener = listener;
    this.#hookLender = {
      errorContext: () => state.errorContext(),
      refusal: () => new ConnectionReturned(state.errorContext()),
      takeBack: () => Promise.resolve(),
    };
  }

  /** Starts to open a connection; false when no permit is free. */
  open(): boolean {
    if (this.#ended || !this.#state.permits.take()) return false;
    const { counts, coming, growth, clock, generation, heard } = this.#state;
    const entry = new PoolEntry(counts, coming, clock, generation);
    this.#state.entries.add(entry);
    const abort = new AbortController();
    // Who listens may want to know for whom it is opened.
    const scope = heard("connect") || heard("connectfailed") ? snapshotContext() : null;
    const attempt: Attempt = {
      entry,
      abort,
      scope,
      returnsBefore: growth.returns,
      recalled: false,
      ended: Promise.resolve(),
    };
    this.#attempts.add(attempt);
    // Else what comes from the socket would run in the context of the caller for whom it was opened, and hold it.
    attempt.ended = this.#state.inContext(() => this.#connect(attempt))
      .finally(() => this.#attempts.delete(attempt));
    return true;
  }

  /**
   * Gives up an attempt to connect that gives no sign, for the sake of its permit. The oldest is left alone: where
   * every connect is slow, it is the one that comes through.
   *
   * @returns in how many milliseconds there may be one that is old enough for that; Infinity when there is none
   */
  recall(): number {
    const now = this.#state.clock.now();
    const least = Math.max(RECALL_AFTER, RECALL_TIMES * this.#state.growth.patience);
    let oldest = true;
    for (const attempt of this.#attempts) {
      const { entry, recalled } = attempt;
      // What is being configured is open: no signal reaches it.
      if (!entry.silent || entry.resource !== null) continue;
      // One at a time: its permit is on its way.
      if (recalled) return Infinity;
      if (oldest) {
        oldest = false;
        continue;
      }
      const age = now - entry.setOutAt;
      if (age < least) return Math.ceil(least - age);
      attempt.recalled = true;
      attempt.abort.abort(new NoAnswer(Math.round(age)));
      return Infinity;
    }
    return Infinity;
  }

  /** Makes the borrower's handle. When the connector cannot, the connection is closed and the reason thrown. */
  lend(entry: PoolEntry, lender: Lender, key: unknown, now: number): PoolLease {
    const lease = new PoolLease(lender, entry, key, now);
    try {
      lease.handle = this.#handle(entry, lease);
    } catch (error) {
      lease.open = false;
      void this.retire(entry, "dirty", error);
      throw error;
    }
    entry.move("leased");
    entry.validated = false;
    if (this.#state.options.maxUses > 0) entry.uses++;
    entry.lease = lease;
    this.#hold(entry, true);
    return lease;
  }

  /** Lets jobs run on a connection. */
  share(entry: PoolEntry): void {
    entry.move("shared");
    entry.validated = false;
    this.#hold(entry, true);
  }

  /** Puts a connection at hand. */
  keep(entry: PoolEntry, now: number): void {
    entry.move("idle");
    entry.validated = false;
    entry.idleSince = now;
    entry.wallAhead = this.#state.wallAhead;
    this.idle.push(entry);
    this.#state.permits.others?.tellIdle(this.idle.length);
    this.#hold(entry, false);
  }

  /** Takes the idle connection to use now; null when there is none, or it has to be checked first. */
  atHand(now: number): PoolEntry | null {
    const { idle } = this;
    while (idle.length > 0) {
      const entry = idle[idle.length - 1] as PoolEntry;
      if (this.replaceAged(entry, now)) {
        void this.retire(entry, "lifetime");
      } else if (this.status(entry) === "unknown") {
        void this.retire(entry, "lost");
      } else if (this.#state.options.validate !== undefined || this.#isDue(entry, now)) {
        return null;
      } else {
        idle.pop();
        this.#state.permits.others?.tellIdle(idle.length);
        return entry;
      }
    }
    return null;
  }

  /** Why a connection must not be used again, or null. One that is old may get its successor by this. */
  judge(entry: PoolEntry, now: number): RemoveReason | null {
    if (entry.spoilt) return "dirty";
    if (entry.lost !== null) return "lost";
    if (entry.generation !== this.#state.generation) return "renewed";
    if (this.replaceAged(entry, now)) return "lifetime";
    const { maxUses } = this.#state.options;
    if (maxUses > 0 && entry.uses >= maxUses) return "uses";
    return this.#state.permits.tooMany(this.#state.size) ? "resized" : null;
  }

  /**
   * Finds out by a round trip whether an idle connection is alive; then it is ready or gone. `loan`: somebody is to get it,
   * so `validate` has a say, and the round trip is made only where it is due.
   */
  async check(entry: PoolEntry, loan = false): Promise<void> {
    const { clock, connector, options: { checkTimeout, validate } } = this.#state;
    const asks = !loan || (entry.state === "idle" && this.#isDue(entry, clock.now()));
    if (entry.state === "idle") this.#takeFromIdle(entry);
    // It may have been checked by itself just now.
    if (entry.state !== "checking") entry.move("checking");
    try {
      const answer = asks ? connector.check?.(entry.resource as object) : undefined;
      await within(clock, checkTimeout, answer);
    } catch (error) {
      if (entry.lost === null && entry.state === "checking") {
        entry.lost = { reason: error };
        this.#state.counters.connectionsLost++;
        if (error instanceof NoAnswer) this.#distrust(entry);
      }
    }
    if (entry.state !== "checking") return;
    let failure = entry.lost;
    if (failure === null && loan && validate !== undefined) {
      try {
        await this.#validate(entry, validate);
      } catch (error) {
        failure = { reason: error };
      }
      if (entry.state !== "checking") return;
    }
    if (failure === null) return this.#listener.ready(entry);
    void this.retire(entry, "unhealthy", failure.reason);
    this.#listener.changed();
  }

  /** Asks the hook whether it may be lent; throws when it may not. */
  async #validate(entry: PoolEntry, validate: (conn: C) => unknown): Promise<void> {
    const { checkTimeout } = this.#state.options;
    await this.#state.inContext(() => this.#hook("validate", entry, validate, checkTimeout));
    entry.validated = true;
  }

  /** Checks all that are idle now, each by a round trip; resolves when it is known of all. */
  async checkIdle(): Promise<void> {
    if (this.#state.connector.check === undefined) return;
    await Promise.all([...this.idle].map((entry) => this.check(entry)));
  }

  /**
   * A connection gave no answer, as when a firewall has dropped it without a word. What was idle for
   * even longer has the same fate: to wait for one after the other would use up a caller's deadline.
   */
  #distrust(dead: PoolEntry): void {
    for (const entry of [...this.idle]) {
      if (entry.idleSince <= dead.idleSince) void this.retire(entry, "unhealthy");
    }
  }

  /** The transaction state; a connector that cannot tell has lost the connection. */
  status(entry: PoolEntry): TransactionStatus {
    if (entry.lost !== null) return "unknown";
    try {
      return this.#state.connector.status?.(entry.resource as object) ?? "idle";
    } catch {
      return "unknown";
    }
  }

  /**
   * Makes a connection that came back fit for the next borrower: rolls back, resets. True when it
   * is fit; otherwise it is being closed.
   */
  async clean(entry: PoolEntry): Promise<boolean> {
    const { connector, options, clock } = this.#state;
    const resource = entry.resource as object;
    let failure: unknown;
    entry.move("returning");
    try {
      if (this.status(entry) !== "idle") {
        await within(clock, HYGIENE_LIMIT, connector.rollback?.(resource));
      }
      if (options.reset !== undefined && entry.state === "returning") {
        const { reset } = options;
        await this.#state.inContext(() => this.#hook("reset", entry, reset));
      }
      const status = this.status(entry);
      if (entry.state === "returning" && status === "idle") return true;
      failure = new Error(`the connection is ${status} after its rollback`);
    } catch (error) {
      // Whatever went wrong, nobody shall get this connection again.
      failure = error;
    }
    const gone = entry.lost === null
      ? this.retire(entry, "dirty", failure)
      : this.retire(entry, "lost");
    // Who counted on it may take a free permit now, instead of waiting until this one is free.
    this.#listener.changed();
    await gone;
    return false;
  }

  /** After a connection that came up has found its place: one old connection may go, as it may be the successor. */
  settled(): void {
    for (const old of this.#aged) {
      this.#aged.delete(old);
      if (old.gone !== null) continue;
      if (old.state === "idle") void this.retire(old, "lifetime");
      // It is in somebody's hands: then it goes when it comes back.
      else old.expiresAt = -Infinity;
      return;
    }
  }

  /**
   * Ends the life of a connection that has reached its age: true when it is to be closed now. When it would be
   * missed, a successor is begun first, and the old one serves until that stands, or at most until `maxLifetime`.
   */
  replaceAged(entry: PoolEntry, now: number): boolean {
    if (now < entry.expiresAt) return false;
    if (this.#aged.delete(entry)) return true;
    const { minconn, size, waiting, options } = this.#state;
    const grace = options.maxLifetime * GRACE;
    // Much too late: the process was frozen, or it was lent for long.
    if (now - entry.expiresAt >= grace) return true;
    if (size - this.#leaving > minconn && waiting === 0) return true;
    if (!this.#state.backoff.failing && !this.open()) return true;
    this.#aged.add(entry);
    entry.expiresAt += grace;
    return false;
  }

  /**
   * Closes a connection; resolves when the server has let go of it and its permit is free. `error`
   * made it unfit; without it, it is the loss, if there was one.
   */
  retire(entry: PoolEntry, reason: RemoveReason, error?: unknown): Promise<void> {
    if (entry.gone !== null) return entry.gone;
    if (entry.state === "idle") this.#takeFromIdle(entry);
    entry.move("closing");
    entry.lease = null;
    return entry.gone = this.#close(entry, reason, error ?? entry.lost?.reason);
  }

  /** Closes idle connections, the one that is idle for longest first: all, or those above maxconn. */
  retireIdle(reason: RemoveReason, all = true): Promise<unknown> {
    const retired: Promise<void>[] = [];
    const { permits } = this.#state;
    for (const entry of [...this.idle]) {
      if (!all && !permits.tooMany(this.#state.size)) break;
      retired.push(this.retire(entry, reason));
    }
    return Promise.all(retired);
  }

  /** Closes what is being checked, rolled back or reset. */
  retireReturning(): void {
    for (const entry of [...this.#state.entries]) {
      if (entry.state === "returning" || entry.state === "checking") {
        void this.retire(entry, "closed");
      }
    }
  }

  /** Closes idle connections whose permits are needed more by other isolates. */
  spareIdle(): void {
    const { idle } = this;
    const { permits: { others }, clock } = this.#state;
    const now = clock.now();
    for (let entry = idle[0]; entry !== undefined; entry = idle[0]) {
      if (!others?.claimIdle(now, entry.idleSince)) return;
      void this.retire(entry, "yielded");
    }
  }

  /** Gives up every attempt to connect and closes every connection; resolves when all are gone. */
  async closeAll(): Promise<void> {
    for (const { abort } of this.#attempts) abort.abort(new Error("the pool is closed"));
    for (const entry of this.#state.entries) {
      if (entry.resource !== null) void this.retire(entry, "closed");
    }
    // A hook may never settle, or wait for the pool to be closed.
    for (const end of this.#hooks) end(new PoolClosed(this.#state.errorContext()));
    await Promise.all([...this.#attempts].map(({ ended }) => ended));
    await Promise.all([...this.#state.entries].map((entry) => entry.gone));
  }

  /** Nothing is opened any more. */
  get #ended(): boolean {
    return this.#state.phase === "closed";
  }

  /** Not where an attempt is at hand: what lives as long as the connection would keep all of it. */
  #hearsLossOf(entry: PoolEntry): (reason: unknown) => void {
    return (reason) => this.#lost(entry, reason);
  }

  async #connect(attempt: Attempt): Promise<void> {
    const { connector, args, options, counters } = this.#state;
    const { entry, abort: { signal } } = attempt;
    counters.connectionsNum++;
    try {
      const resource: unknown = await connector.open({
        args,
        signal,
        onlost: this.#hearsLossOf(entry),
        onshares: this.#listener.room,
      });
      if ((typeof resource !== "object" && typeof resource !== "function") || resource === null) {
        throw new TypeError("The connector's open() must resolve with an object");
      }
      // Closed twice, or lent to two: whoever opens has to open another one.
      if (this.#open.has(resource)) {
        throw new TypeError("The connector's open() gave what is open in this pool already");
      }
      this.#open.add(resource);
      entry.resource = resource;
    } catch (error) {
      return this.#failed(attempt, error);
    }
    if (this.#ended) return await this.retire(entry, "closed");
    let reason: RemoveReason = "dirty";
    try {
      if (this.#isUnknown(entry) && entry.lost === null) {
        throw new TypeError("The connector's open() gave a connection that is closed or lost");
      }
      if (options.configure !== undefined) {
        await this.#hook("configure", entry, options.configure);
      }
      if (options.validate !== undefined && entry.state === "connecting") {
        // Where a new one is no good either, the next one is not: there is a pause before it.
        reason = "unhealthy";
        await this.#validate(entry, options.validate);
      }
      if (entry.lost !== null) throw entry.lost.reason;
    } catch (error) {
      counters.connectionsErrors++;
      const { silent } = entry;
      const failure = entry.lost?.reason ?? error;
      const gone = this.retire(entry, entry.lost === null ? reason : "lost", failure);
      // Before the permit is free: else the next attempt would begin without the pause after a failure.
      if (!this.#ended) this.#listener.failed(failure, entry.setOutAt, silent);
      return await gone;
    }
    if (entry.state !== "connecting") return;
    this.#opened(attempt);
  }

  /** Whether the connector says so; one that cannot say anything has not. */
  #isUnknown(entry: PoolEntry): boolean {
    try {
      return this.#state.connector.status?.(entry.resource as object) === "unknown";
    } catch {
      return false;
    }
  }

  #opened({ entry, scope, returnsBefore }: Attempt): void {
    const { growth, waiting, counters, permits, clock, options: { maxLifetime } } = this.#state;
    const now = clock.now();
    if (maxLifetime > 0) {
      entry.expiresAt = now + maxLifetime * (1 - GRACE - clock.random() * JITTER);
    }
    const took = now - entry.setOutAt;
    this.#state.wallAhead = clock.wall() - now;
    counters.connectionsMs += took;
    permits.others?.tellOpened(took);
    growth.connected(took, returnsBefore, waiting - 1);
    this.#state.failure = null;
    if (this.#state.heard("connect")) {
      const tell = (): void => this.#state.tell("connect", { took });
      if (scope === null) tell();
      else scope(tell);
    }
    this.#listener.ready(entry);
  }

  #failed({ entry, recalled, scope }: Attempt, error: unknown): void {
    const { silent, setOutAt } = entry;
    entry.move("closed");
    this.#state.entries.delete(entry);
    this.#state.permits.give();
    this.#state.counters.connectionsErrors++;
    // What was given up for another attempt tells nothing about the server.
    if (this.#ended || recalled) return this.#listener.changed();
    const tell = (): void => this.#listener.failed(error, setOutAt, silent);
    if (scope === null) tell();
    else scope(tell);
  }

  #lost(entry: PoolEntry, reason: unknown): void {
    if (entry.lost !== null || entry.state === "closing" || entry.state === "closed") return;
    entry.lost = { reason };
    this.#state.counters.connectionsLost++;
    if (entry.state === "leased") entry.lease?.tellOver(entry.lost);
    // In every other state someone has it in hand and will see the mark.
    else if (entry.state !== "connecting") {
      void this.retire(entry, "lost");
      this.#listener.changed();
    }
    if (this.#state.heard("lost")) this.#state.tell("lost", { error: reason });
  }

  async #close(entry: PoolEntry, reason: RemoveReason, error: unknown): Promise<void> {
    try {
      const why = reason === "reclaimed" ? error as Error : undefined;
      await this.#state.connector.close(entry.resource as object, why);
    } catch {
      // By contract a rejection counts as closed: there is nothing more that could be done.
    }
    this.#open.delete(entry.resource as object);
    entry.move("closed");
    this.#state.entries.delete(entry);
    this.#state.permits.give();
    if (this.#state.heard("remove")) this.#state.tell("remove", { reason, error });
    this.#listener.changed();
  }

  async #hook(
    name: HookCall["name"],
    entry: PoolEntry,
    hook: (conn: C) => unknown,
    limit = HOOK_LIMIT,
  ): Promise<void> {
    const state = this.#state;
    const lease = new PoolLease(this.#hookLender, entry, null, 0);
    let end: (() => void) | undefined;
    try {
      const call = state.hooks.call(name, entry, () => hook(this.#handle(entry, lease) as C));
      end = call.end;
      const { result } = call;
      const answer = isThenable(result)
        ? await this.#untilClosed(Promise.resolve(result), limit)
        : result;
      if (name === "validate" && answer === false) throw new Error("it returned false");
    } catch (error) {
      throw new PoolError(
        `${name} failed: ${reasonOf(error)}`,
        "BAD_HOOK",
        state.errorContext(error),
      );
    } finally {
      end?.();
      lease.open = false;
    }
    const status = this.status(entry);
    if (status !== "idle") {
      throw new PoolError(
        `${name} must leave the connection idle, it is ${status}`,
        "BAD_HOOK",
        state.errorContext(),
      );
    }
  }

  /** Waits for a hook, within its limit and until the pool is closed. */
  async #untilClosed(work: Promise<unknown>, limit: number): Promise<unknown> {
    const { promise: closed, reject } = Promise.withResolvers<never>();
    this.#hooks.add(reject);
    try {
      return await within(this.#state.clock, limit, Promise.race([work, closed]));
    } finally {
      this.#hooks.delete(reject);
    }
  }

  #handle(entry: PoolEntry, lease: PoolLease): object {
    const resource = entry.resource as object;
    const { connector } = this.#state;
    if (connector.lend === undefined) return guard(resource, lease);
    return mark(connector.lend(resource, lease), lease);
  }

  /** Whether the process stays alive for a connection is nothing that the pool depends on. */
  #hold(entry: PoolEntry, on: boolean): void {
    const { connector } = this.#state;
    try {
      if (on) connector.ref?.(entry.resource as object);
      else connector.unref?.(entry.resource as object);
    } catch {
      // A connection that is just being lost may not be there any more.
    }
  }

  #takeFromIdle(entry: PoolEntry): void {
    const { idle } = this;
    // Mostly the one that was idle for longest goes, or the one at hand.
    if (idle[0] === entry) idle.shift();
    else if (idle[idle.length - 1] === entry) idle.pop();
    else {
      const at = idle.indexOf(entry);
      if (at >= 0) idle.splice(at, 1);
    }
    this.#state.permits.others?.tellIdle(this.idle.length);
  }

  /** Idle for so long, frozen time included, that it may be dead. A wall clock that was set back tells nothing, and counts as too long. */
  #isDue(entry: PoolEntry, now: number): boolean {
    const state = this.#state;
    const { checkAfter } = state.options;
    if (checkAfter === Infinity || state.connector.check === undefined) return false;
    let idleFor = now - entry.idleSince;
    // To look at the wall clock is a fifth of a lease, and between two leases in one turn nothing is frozen.
    if (idleFor >= ONE_TURN) {
      state.wallAhead = state.clock.wall() - now;
      idleFor += state.wallAhead - entry.wallAhead;
    }
    // The wall clock counts in whole milliseconds, the other one does not.
    return !(idleFor > -1 && idleFor <= checkAfter && checkAfter !== 0);
  }

  /** Those that are on their way out and still there. */
  get #leaving(): number {
    let count = 0;
    for (const old of this.#aged) if (old.gone === null) count++;
    return count;
  }
}
