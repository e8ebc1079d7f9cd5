/**
 * What happens by the clock: idle and old connections are closed, leases that nobody puts back are reported, and taken
 * back when they are garbage. One timer, which lets the process end unless somebody waits for it, and none while there
 * is nothing to do.
 */

import { Alarm } from "./alarm.ts";
import type { Connections } from "./connections.ts";
import type { PoolLease } from "./lease.ts";
import type { PoolState } from "./state.ts";

/** A look at all connections is followed by a pause this many times as long. */
const LOOK_SHARE = 100;
/**
 * A lease that is younger, in milliseconds, is not watched. To watch one costs as much as a whole lease, and hardly any
 * lives so long: until then the pool itself keeps the handle, so that it cannot vanish unseen.
 */
const WATCH_AFTER = 1_000;

/** What maintenance needs of the connections. */
type MaintainedConnections = Pick<Connections<object>, "idle" | "replaceAged" | "retire">;

/** What maintenance asks of the core. */
interface MaintenanceCore {
  /** Called at every tick. */
  wake(): void;
  /** Puts back a lease whose borrower is gone. */
  putBack(lease: PoolLease): void;
  /** Takes a lease from a borrower who holds it for too long. */
  reclaim(lease: PoolLease): void;
  /** Makes a key, and no more the pool, keep the handle that is lent under it. */
  weaken(key: object, handle: object): void;
}

function isCollectable(key: unknown): key is object {
  return (typeof key === "object" && key !== null) || typeof key === "function";
}

/** Looks after the connections and the leases of one pool. */
export class Maintenance<C extends object> {
  readonly #state: PoolState<C>;
  readonly #connections: MaintainedConnections;
  readonly #core: MaintenanceCore;
  readonly #alarm: Alarm;
  /** How long after a loan to look after its lease. */
  readonly #lookAfter: number;
  /** Tells of leases that are garbage. */
  #registry: FinalizationRegistry<PoolLease> | undefined;

  constructor(state: PoolState<C>, connections: MaintainedConnections, core: MaintenanceCore) {
    this.#state = state;
    this.#connections = connections;
    this.#core = core;
    const { leakAfter, reclaimAfter } = state.options;
    this.#lookAfter = Math.min(WATCH_AFTER, leakAfter || WATCH_AFTER, reclaimAfter || WATCH_AFTER);
    this.#alarm = new Alarm(
      state.clock,
      // Not in the context of whoever set it: a request, or a hook, that may be over.
      () => state.inContext(() => this.#tick()),
      false,
    );
  }

  /** Makes sure of a tick no later than `at`. */
  arm(at: number, now: number = this.#state.clock.now()): void {
    if (this.#state.phase !== "closed") this.#alarm.set(at, now);
  }

  /** Keeps the process alive for the next tick, or no more: somebody may wait for nothing else. */
  hold(on: boolean): void {
    this.#alarm.hold(on);
  }

  /** A lease was given out: looks after it in time. */
  lent(now: number): void {
    this.arm(now + this.#lookAfter, now);
  }

  /** A lease that is watched or was reported has come back, or was reclaimed. */
  returned(lease: PoolLease, held: number): void {
    if (lease.watched) this.#registry?.unregister(lease);
    if (lease.reported || lease.reclaimedAfter !== null) this.#tellLeak(lease, held, true);
  }

  /** No more ticks. */
  stop(): void {
    this.#alarm.clear();
  }

  #tick(): void {
    const { clock } = this.#state;
    const now = clock.now();
    this.#retireIdle(now);
    this.#core.wake();
    const next = Math.min(this.#lookForLeaks(now), this.#nextExpiry());
    // With very many connections not at every millisecond: a look takes some time, and may take a hundredth of all.
    this.arm(Math.max(next, now + LOOK_SHARE * (clock.now() - now)), now);
  }

  #retireIdle(now: number): void {
    const connections = this.#connections;
    for (const entry of [...connections.idle]) {
      if (connections.replaceAged(entry, now)) void connections.retire(entry, "lifetime");
    }
    const { maxIdle } = this.#state.options;
    // Those idle for longest stand first. What others have is counted once: to count takes all of theirs.
    let surplus = this.#surplus;
    for (const entry of [...connections.idle]) {
      if (surplus <= 0 || (maxIdle > 0 && now < entry.idleSince + maxIdle)) break;
      surplus--;
      void connections.retire(entry, "idle");
    }
  }

  #nextExpiry(): number {
    const { idle } = this.#connections;
    const { maxIdle } = this.#state.options;
    let next = Infinity;
    for (const entry of idle) next = Math.min(next, entry.expiresAt);
    const [first] = idle;
    if (first === undefined || maxIdle === 0 || this.#surplus <= 0) return next;
    return Math.min(next, first.idleSince + maxIdle);
  }

  /** How many idle connections are too many, once they have been idle for long enough. */
  get #surplus(): number {
    const { minconn, options, size, idleSurplus } = this.#state;
    // psycopg2's rule: minconn stay idle, however many are lent.
    if (options.maxIdle === 0) return idleSurplus;
    if (options.maxIdle === Infinity) return 0;
    return size + this.#state.elsewhere - minconn;
  }

  /** Reports and begins to watch the leases that are due; returns when to look again. */
  #lookForLeaks(now: number): number {
    const { leakAfter, reclaimAfter } = this.#state.options;
    let next = Infinity;
    for (const { lease } of [...this.#state.entries]) {
      if (lease === null) continue;
      if (reclaimAfter > 0 && !lease.own) {
        if (now >= lease.since + reclaimAfter) {
          this.#core.reclaim(lease);
          continue;
        }
        next = Math.min(next, lease.since + reclaimAfter);
      }
      if (leakAfter > 0 && !lease.reported) {
        if (now >= lease.since + leakAfter) {
          lease.reported = true;
          this.#tellLeak(lease, now - lease.since, false);
        } else next = Math.min(next, lease.since + leakAfter);
      }
      if (!lease.open || lease.handle === null) continue;
      // What is lent under a key can be had again by it, for ever, unless the key itself is garbage.
      if (lease.keyed && !isCollectable(lease.key)) continue;
      if (now >= lease.since + WATCH_AFTER) this.#watch(lease, lease.handle);
      else next = Math.min(next, lease.since + WATCH_AFTER);
    }
    return next;
  }

  #watch(lease: PoolLease, handle: object): void {
    this.#registry ??= new FinalizationRegistry((lost) => this.#collected(lost));
    this.#registry.register(handle, lease, lease);
    lease.watched = true;
    const { key } = lease;
    if (isCollectable(key)) {
      this.#core.weaken(key, handle);
      lease.weaken(key);
    }
    // From now on the borrower alone keeps it.
    lease.handle = null;
  }

  #collected(lease: PoolLease): void {
    if (!lease.open) return;
    lease.watched = lease.reported = false;
    this.#tellLeak(lease, this.#state.clock.now() - lease.since, true, true);
    // A listener may have closed the pool.
    if (lease.open) this.#core.putBack(lease);
  }

  #tellLeak(lease: PoolLease, held: number, returned: boolean, collected = false): void {
    if (!this.#state.heard("leak")) return;
    const reclaimed = lease.reclaimedAfter !== null;
    const stack = lease.stack ?? "";
    this.#state.tell("leak", { held, stack, returned, collected, reclaimed });
  }
}
