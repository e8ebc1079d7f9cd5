/** What ThreadedConnectionPool and PersistentConnectionPool have in common: one budget for all workers. */

import { AbstractConnectionPool, insideOf } from "../pool/abstract_pool.ts";
import { BudgetArg } from "../pool/permits.ts";
import { DRAIN_TIME } from "../pool/closing.ts";
import { PoolClosed, PoolError } from "../pool/errors.ts";
import { localArgs, type PoolHandle, seal, unseal } from "./handle.ts";
import { type Member, Membership, Phase, takePlace } from "./coordinator.ts";
import { checkSizes, checkTime, type PoolOptions, splitArgs } from "../pool/options.ts";
import { HEAD, slotOf } from "./layout.ts";
import type { Connection, PostgresOptions } from "../postgres/connection.ts";
import type { WorkerLike } from "../runtime.ts";
import { AtomicWords, SharedBudget } from "./shared_permits.ts";
import { SharedStats, STATS_BYTES } from "./stats.ts";
import { found, isFounded, moveIn, moveOut, reserve, wordsFor } from "./members.ts";
import { sqlOf } from "../sql/pool_sql.ts";
import { postgresConnector } from "../postgres/connector.ts";
import type { PoolSql } from "../sql/sql.ts";
import type { CloseOptions, Connector, PoolStats } from "../pool/types.ts";

/** `resize` cannot go beyond this, or beyond four times the first maxconn if that is more. */
const CAPACITY = 1_024;

/** What the constructor takes: the driver's options, and under `pool` the pool's own. */
export type SharedOptions<C extends object, P = PoolOptions<C>> =
  & Omit<PostgresOptions, "pool">
  & { readonly pool?: P | undefined };

/** What a pool is made of that is shared, and this isolate's place in it. */
export class Seat {
  readonly words: AtomicWords;
  readonly permits: SharedArrayBuffer;
  readonly stats: SharedArrayBuffer;
  readonly budget: SharedBudget;
  readonly token: string;
  readonly freeLife: (() => void) | null;

  constructor(
    permits: SharedArrayBuffer,
    stats: SharedArrayBuffer,
    id: number,
    token: string,
    freeLife: (() => void) | null,
  ) {
    this.words = new AtomicWords(permits);
    this.permits = permits;
    this.stats = stats;
    this.budget = new SharedBudget(this.words, id);
    this.token = token;
    this.freeLife = freeLife;
  }

  /** minconn and maxconn, as they are now. */
  get sizes(): [number, number] {
    return [this.words.load(HEAD.MINCONN), this.words.load(HEAD.LIMIT)];
  }

  /** Makes the pool; when it cannot be made, the place is free again. */
  settle<T>(make: () => T): T {
    try {
      return make();
    } catch (error) {
      moveOut(this.words, this.budget.permits.id);
      this.freeLife?.();
      throw error;
    }
  }

  /** The place of the isolate that makes the pool. */
  static first(minconn: number, maxconn: number): Seat {
    checkSizes(minconn, maxconn);
    const permits = new SharedArrayBuffer(4 * wordsFor(Math.max(CAPACITY, 4 * maxconn)));
    const words = new AtomicWords(permits);
    found(words, minconn, maxconn);
    const id = reserve(words, 0);
    moveIn(words, id);
    return new Seat(permits, new SharedArrayBuffer(STATS_BYTES), id, crypto.randomUUID(), null);
  }

  /** The place that a handle reserves, and the arguments for the constructor. */
  static async join(
    handle: unknown,
    local: Readonly<Record<string, unknown>>,
    pool: string,
  ): Promise<{ readonly seat: Seat; readonly args: unknown[] }> {
    const given = checkHandle(handle, pool);
    const cargo = unseal(given.sealed);
    const args = localArgs(cargo, local);
    const words = new AtomicWords(given.permits);
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
    const place = await takePlace(words, given.id, given.token, given.lock);
    if (place === null) {
      throw new PoolError(
        "this handle was used already or is too old: share() makes a new one for each worker",
        "BAD_HANDLE",
        context,
      );
    }
    const { permits, stats, id, token } = given;
    return { seat: new Seat(permits, stats, id, token, place.freeLife), args };
  }
}

/** A pool of which every worker can have a part; the cap holds for all parts together. */
export abstract class SharedConnectionPool<C extends object = Connection>
  extends AbstractConnectionPool<C> {
  readonly #seat: Seat;
  readonly #membership: Membership;
  readonly #stats: SharedStats<C>;
  readonly #args: readonly unknown[];
  readonly #pool: Readonly<Record<string, unknown>>;
  #gentle: Promise<void> | null = null;
  /** Pool options beside those of AbstractConnectionPool, for the handle. */
  protected readonly extra: Readonly<Record<string, unknown>> = {};
  /** Which pool can join by a handle of this one. */
  protected abstract readonly kind: string;

  /** As AbstractConnectionPool's. */
  constructor(minconn: number, maxconn: number, ...args: unknown[]) {
    const seat = args[0] instanceof Seat ? args.shift() as Seat : Seat.first(minconn, maxconn);
    super(minconn, maxconn, new BudgetArg(seat.budget), ...args);
    const { pool, rest } = splitArgs(args);
    this.#args = rest;
    this.#pool = { ...pool as object, name: this.options.name };
    this.#seat = seat;
    const { context, lending } = insideOf<C>(this);
    this.#stats = new SharedStats(seat.stats, seat.budget.permits);
    this.#stats.clear();
    const member: Member = {
      closeAll: () => super.closeall(),
      drain: () => super.close({ timeout: Infinity }),
      resize: (least, most) => super.resize(least, most),
      renew: () => super.renew(),
      pump: () => lending.pump(),
      spareIdle: () => lending.supply.spareIdle(),
      publish: () => this.#stats.publish(context),
    };
    const { words, budget, token, freeLife } = seat;
    this.#membership = new Membership(words, budget, token, freeLife, member);
    if (slotOf(budget.permits.id) !== 1) this.#membership.listen();
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
    const { context } = insideOf<C>(this);
    if (this.closed || this.#membership.phase !== Phase.open) {
      throw new PoolClosed(context.errorContext());
    }
    const { sealed } = seal(this.#args, { ...this.#pool, ...this.extra });
    const { id, lock } = this.#membership.invite(worker);
    if (id === 0) {
      throw new PoolError(
        "too many workers share this pool",
        "UNSUPPORTED",
        context.errorContext(),
      );
    }
    const { permits, stats, token } = this.#seat;
    const pool = this.kind;
    return { kind: "@getconn/pool", pool, permits, stats, id, token, lock, sealed };
  }

  /**
   * Closes the whole pool now, in all workers: waiters get PoolClosed, connections idle or in use are closed.
   *
   * @returns when the server has let go of every connection of every worker, or after 15 s
   * @throws {PoolClosed} when it is closed already, as in psycopg2
   */
  override closeall(): Promise<void> {
    if (this.#membership.phase === Phase.closed) return super.closeall();
    const local = super.closeall();
    this.#membership.announce(Phase.closed);
    return local.then(() => this.#membership.leave());
  }

  /**
   * Closes the whole pool gently, in all workers: no new callers, waiters get PoolClosed, leases may come back
   * for `timeout` milliseconds (default 30 000), then as closeall. Calling it again changes nothing.
   */
  override close(options: CloseOptions = {}): Promise<void> {
    try {
      checkTime("timeout", options.timeout ?? DRAIN_TIME);
    } catch (error) {
      return Promise.reject(error);
    }
    if (this.#gentle === null && this.#membership.phase !== Phase.open) return super.close(options);
    return this.#gentle ??= this.#close(options.timeout ?? DRAIN_TIME);
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
    const { words } = this.#seat;
    const most = words.array.length - wordsFor(0);
    if (maxconn > most) {
      throw new RangeError(`maxconn cannot grow beyond ${most}, received ${maxconn}`);
    }
    if (!this.closed) words.store(HEAD.MINCONN, minconn);
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
    const { words } = this.#seat;
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

  /** PostgreSQL through postgres.js. */
  protected override defaultConnector(): Connector<C> {
    return postgresConnector() as unknown as Connector<C>;
  }

  async #close(timeout: number): Promise<void> {
    const end = performance.now() + timeout;
    const local = super.close({ timeout });
    this.#membership.announce(Phase.draining);
    await local;
    await this.#membership.alone(end - performance.now());
    this.#membership.announce(Phase.closed);
    await this.#membership.leave();
  }
}

function checkHandle(handle: unknown, pool: string): PoolHandle {
  const given = handle as Partial<PoolHandle> | null | undefined;
  if (
    typeof given !== "object" || given === null || given.kind !== "@getconn/pool" ||
    !(given.permits instanceof SharedArrayBuffer) || !(given.sealed instanceof Uint8Array) ||
    !isFounded(new AtomicWords(given.permits))
  ) throw new TypeError("join() needs a handle from share(), sent by postMessage");
  if (given.pool !== pool) {
    throw new TypeError(`join() of ${pool} was given a handle of ${given.pool}`);
  }
  return given as PoolHandle;
}
