/** What ThreadedConnectionPool and PersistentConnectionPool have in common: one cap for all workers. */

import { AbstractConnectionPool, insideOf } from "./abstract_pool.ts";
import { type Clock, currentClock } from "./clock.ts";
import { handPermits } from "./pool/permits.ts";
import { readDrainTime } from "./pool/open_close.ts";
import { PoolClosed, PoolError } from "./pool/errors.ts";
import { localArgs, type PoolHandle, seal, unseal } from "./workers/handle.ts";
import { type Member, Membership, takePlace } from "./workers/coordinator.ts";
import { checkSizes, type PoolOptions, splitArgs } from "./pool/options.ts";
import { HEAD, Phase } from "./workers/layout.ts";
import type { Connection, PostgresOptions } from "./postgres/connection.ts";
import type { WorkerLike } from "./runtime.ts";
import { currentIsolates } from "./workers/isolates.ts";
import { SharedPermits } from "./workers/shared_permits.ts";
import { SharedStats, STATS_BYTES } from "./workers/stats.ts";
import { found, isFounded, moveIn, moveOut, reserve, wordsFor } from "./workers/members.ts";
import { PostgresConnector } from "./postgres/connector.ts";
import { type PoolSql, sqlOf } from "./sql/sql.ts";
import type { CloseOptions, Connector, PoolStats } from "./pool/types.ts";

/** `resize` cannot go beyond this, or beyond four times the first maxconn if that is more. */
const CAPACITY = 1_024;

/** What the constructor takes: how to connect, and under `pool` the pool's own. */
export type SharedOptions<C extends object, P = PoolOptions<C>> =
  & Omit<PostgresOptions, "pool">
  & { readonly pool?: P | undefined };

/** An isolate's place in a pool that is shared. */
interface Place {
  readonly permits: SharedPermits;
  /** What the permits and the statistics stand in. */
  readonly buffers: { readonly permits: SharedArrayBuffer; readonly stats: SharedArrayBuffer };
  readonly token: string;
  readonly freeLife: (() => void) | null;
}

/** The place that `join` has taken for the pool that it is about to make; null outside of that. */
let taken: Place | null = null;

/** The place of the isolate that makes a pool. */
function firstPlace(minconn: number, maxconn: number): Place {
  checkSizes(minconn, maxconn);
  const permits = new SharedArrayBuffer(4 * wordsFor(Math.max(CAPACITY, 4 * maxconn)));
  const words = currentIsolates().words(permits);
  found(words, minconn, maxconn);
  const id = reserve(words, 0);
  moveIn(words, id);
  return {
    permits: new SharedPermits(words, id),
    buffers: { permits, stats: new SharedArrayBuffer(STATS_BYTES) },
    token: crypto.randomUUID(),
    freeLife: null,
  };
}

/**
 * Takes the place that a handle reserves and makes the pool there. When it cannot be made, the place is
 * free again.
 */
export async function joinPool<P>(
  handle: unknown,
  local: Readonly<Record<string, unknown>>,
  kind: string,
  Pool: new (minconn: number, maxconn: number, ...args: never[]) => P,
): Promise<P> {
  const given = checkHandle(handle, kind);
  const cargo = unseal(given.sealed);
  const args = localArgs(cargo, local);
  const words = currentIsolates().words(given.permits);
  const context = {
    pool: String(cargo.pool["name"]),
    counts: {
      connecting: 0,
      idle: 0,
      leased: 0,
      shared: 0,
      waiting: 0,
      maxconn: words.load(HEAD.LIMIT),
    },
  };
  if (words.load(HEAD.PHASE) !== Phase.open) throw new PoolClosed(context);
  // The death of the worker for which it was made would free what another one holds.
  if (given.thread !== null && given.thread !== currentIsolates().ownThread()) {
    throw new PoolError(
      "this handle is for another worker: share(worker) makes one for each, and join() takes it there",
      "BAD_HANDLE",
      context,
    );
  }
  const tenancy = await takePlace(words, given.id, given.token, given.lock);
  if (tenancy === null) {
    throw new PoolError(
      "this handle was used already or is too old: share() makes a new one for each worker",
      "BAD_HANDLE",
      context,
    );
  }
  const permits = new SharedPermits(words, given.id);
  const { freeLife } = tenancy;
  const buffers = { permits: given.permits, stats: given.stats };
  try {
    const { minconn, maxconn } = permits.sizes;
    taken = { permits, buffers, token: given.token, freeLife };
    return new Pool(minconn, maxconn, ...args as never[]);
  } catch (error) {
    moveOut(words, given.id);
    freeLife?.();
    throw error;
  } finally {
    taken = null;
  }
}

/** A pool of which every worker can have a part; the cap holds for all parts together. */
export abstract class SharedConnectionPool<C extends object = Connection>
  extends AbstractConnectionPool<C> {
  readonly #clock: Clock = currentClock();
  readonly #place: Place;
  readonly #membership: Membership;
  readonly #stats: SharedStats<C>;
  readonly #args: readonly unknown[];
  readonly #pool: Readonly<Record<string, unknown>>;
  #gentle: Promise<void> | null = null;
  #leaving: Promise<void> | null = null;
  /** Pool options beside those of AbstractConnectionPool, for the handle. */
  protected readonly extra: Readonly<Record<string, unknown>> = {};
  /** Which pool can join by a handle of this one. */
  protected abstract readonly kind: string;

  /** As AbstractConnectionPool's. */
  constructor(minconn: number, maxconn: number, ...args: unknown[]) {
    const place = taken ?? firstPlace(minconn, maxconn);
    taken = null;
    const { pool, rest } = splitArgs(args);
    const { permits, buffers, token, freeLife } = place;
    handPermits(permits);
    super(minconn, maxconn, ...args);
    this.#place = place;
    this.#args = rest;
    this.#pool = { ...pool as object, name: this.options.name };
    const { state, core } = insideOf<C>(this);
    this.#stats = new SharedStats(buffers.stats, permits.table);
    const member: Member = {
      closeAll: () => super.closeall(),
      drain: () => this.#drain(Infinity),
      resize: (least, most) => super.resize(least, most),
      renew: () => super.renew(),
      pump: () => core.pump(),
      spareIdle: () => core.connections.spareIdle(),
      publish: () => this.#stats.publish(state),
    };
    this.#membership = new Membership(permits, token, freeLife, member);
    if (permits.table.slot !== 1) this.#membership.listen();
  }

  /**
   * Makes a handle by which one worker can join this pool, and begins to watch the worker: when it ends, in
   * whatever way, what it had returns to the others within a second. Send the handle by `postMessage`.
   *
   * What cannot be sent, such as functions among the options, has to be given to `join`. The handle
   * holds what is needed to connect: treat it as a secret.
   *
   * @param worker The Web Worker, or the Worker of node:worker_threads, that will join.
   * @throws {TypeError} for anything that is no worker
   * @throws {PoolClosed} when the pool is closed
   */
  share(worker: WorkerLike): PoolHandle {
    const { state } = insideOf<C>(this);
    if (this.closed || this.#membership.catchUp() !== Phase.open) {
      throw new PoolClosed(state.errorContext());
    }
    const { sealed } = seal(this.#args, { ...this.#pool, ...this.extra });
    const { id, lock } = this.#membership.invite(worker);
    if (id === 0) {
      throw new PoolError(
        "too many workers share this pool",
        "UNSUPPORTED",
        state.errorContext(),
      );
    }
    const { buffers, token } = this.#place;
    const thread = currentIsolates().threadOf(worker);
    return { kind: "@getconn/pool", pool: this.kind, ...buffers, id, token, thread, lock, sealed };
  }

  /**
   * Gives up this worker's part of the pool; the others go on. New callers and waiters here get PoolClosed, leases
   * may come back for `timeout` milliseconds (default 30 000) and are closed then, and `minconn` is the others' to keep.
   * From the call on this pool is closed as far as this worker is concerned: `close()` then waits for the same
   * and closes nothing of the others. Calling it again changes nothing; in a pool that is being closed it is as
   * `close()`. A worker that has left can join again by a new handle. The isolate that made the pool can
   * leave, too: it goes on to watch over the workers with which it has shared.
   *
   * @example A worker that does without the database from now on
   * ```ts
   * import { ThreadedConnectionPool } from "@getconn/pool";
   * import { env } from "node:process";
   *
   * const pool = new ThreadedConnectionPool(0, 10, env.DATABASE_URL); // in a worker: await ThreadedConnectionPool.join(handle)
   * await pool.use((sql) => sql`select 1`);
   * await pool.leave({ timeout: 5_000 });
   * console.log(pool.closed); // true: in this worker
   * ```
   *
   * @returns when the server has let go of every connection of this worker
   * @throws {TypeError | RangeError} for a `timeout` that is no time, and for an option that there is not
   */
  async leave(options: CloseOptions = {}): Promise<void> {
    const timeout = readDrainTime("leave", options);
    if (this.#leaving === null && this.#membership.catchUp() !== Phase.open) {
      return await this.#drain(timeout);
    }
    return await (this.#leaving ??= this.#drain(timeout).then(() => this.#membership.depart()));
  }

  /**
   * Closes the whole pool now, in all workers: waiters get PoolClosed, connections idle or in use are closed.
   *
   * @returns when the server has let go of every connection of every worker, or after 15 s
   * @throws {PoolClosed} when it is closed already, as in psycopg2
   */
  override closeall(): Promise<void> {
    if (this.#leaving !== null || this.#membership.catchUp() === Phase.closed) {
      return super.closeall();
    }
    const local = super.closeall();
    this.#membership.announce(Phase.closed);
    return local.then(() => this.#membership.leave());
  }

  /**
   * Closes the whole pool gently, in all workers: no new callers, waiters get PoolClosed, leases may come back
   * for `timeout` milliseconds (default 30 000), then as closeall. Calling it again changes nothing.
   *
   * @returns when the server has let go of every connection of every worker, at most 15 s after `timeout`
   * @throws {TypeError | RangeError} for a `timeout` that is no time, and for an option that there is not
   */
  override async close(options: CloseOptions = {}): Promise<void> {
    const timeout = readDrainTime("close", options);
    if (this.#leaving !== null) return await this.#leaving;
    if (this.#gentle === null && this.#membership.catchUp() !== Phase.open) {
      return await this.#drain(timeout);
    }
    return await (this.#gentle ??= this.#close(timeout));
  }

  /** The whole pool's numbers now, and in `workers` those of each isolate; frozen. */
  override stats(): PoolStats {
    return this.#stats.all(super.stats());
  }

  /**
   * Changes the sizes for all workers. Idle connections above maxconn are closed now, leased ones when they come back.
   *
   * @returns when all workers have closed their idle ones
   * @throws {RangeError} for sizes that the constructor would not take, or far above the first maxconn
   * @throws {PoolClosed} when the pool is closed
   */
  override async resize(minconn: number, maxconn: number): Promise<void> {
    checkSizes(minconn, maxconn);
    const { words } = this.#place.permits;
    const most = words.array.length - wordsFor(0);
    if (maxconn > most) {
      throw new RangeError(`maxconn cannot grow beyond ${most}, received ${maxconn}`);
    }
    if (!this.closed) this.#place.permits.setSizes(minconn, maxconn);
    const local = super.resize(minconn, maxconn);
    await this.#membership.order(local);
  }

  /**
   * Replaces every connection of every worker: idle ones now, leased ones when they come back.
   *
   * @returns when the idle ones are gone
   * @throws {PoolClosed} when the pool is closed
   */
  override async renew(): Promise<void> {
    const { words } = this.#place.permits;
    if (!this.closed) {
      words.add(HEAD.GENERATION, 1);
      this.#membership.generationIs(words.load(HEAD.GENERATION));
    }
    await this.#membership.order(super.renew());
  }

  /** A client of postgres.js that is served by this isolate's part of the pool. */
  get sql(): PoolSql {
    return sqlOf(this as unknown as AbstractConnectionPool<Connection>);
  }

  /** PostgreSQL. */
  protected override defaultConnector(): Connector<C> {
    return new PostgresConnector() as unknown as Connector<C>;
  }

  /** Closes this isolate's part gently. */
  #drain(timeout: number): Promise<void> {
    return insideOf<C>(this).closing.gently(timeout);
  }

  async #close(timeout: number): Promise<void> {
    const end = this.#clock.now() + timeout;
    const local = this.#drain(timeout);
    this.#membership.announce(Phase.draining);
    await local;
    await this.#membership.alone(end - this.#clock.now());
    this.#membership.announce(Phase.closed);
    await this.#membership.leave();
  }
}

function checkHandle(handle: unknown, pool: string): PoolHandle {
  const given = handle as Partial<PoolHandle> | null | undefined;
  if (
    typeof given !== "object" || given === null || given.kind !== "@getconn/pool" ||
    !(given.permits instanceof SharedArrayBuffer) || !(given.sealed instanceof Uint8Array) ||
    !isFounded(currentIsolates().words(given.permits))
  ) throw new TypeError("join() needs a handle from share(), sent by postMessage");
  if (given.pool !== pool) {
    throw new TypeError(`join() of ${pool} was given a handle of ${given.pool}`);
  }
  return given as PoolHandle;
}
