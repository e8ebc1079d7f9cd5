/** psycopg2's PersistentConnectionPool. */

import { AsyncLocalStorage } from "node:async_hooks";
import { insideOf } from "./abstract_pool.ts";
import { PoolError } from "./pool/errors.ts";
import type { PoolHandle } from "./workers/handle.ts";
import { leaseOf, type PoolLease, unlessLost } from "./pool/lease.ts";
import {
  checkClose,
  checkFn,
  type PoolOptions,
  readWaitOptions,
  splitArgs,
} from "./pool/options.ts";
import type { Connection, ConninfoFunction } from "./postgres/connection.ts";
import { joinPool, SharedConnectionPool, type SharedOptions } from "./shared_pool.ts";
import type { GetconnOptions, TransactionOptions } from "./pool/types.ts";

/** The pool's own options, and what a key is. */
export interface PersistentPoolOptions<C extends object> extends PoolOptions<C> {
  /**
   * Who gets one connection: each `worker`, as each thread in psycopg2; or each async `context`, that is each
   * call of {@linkcode PersistentConnectionPool.run}, for servers that handle many requests in one isolate.
   *
   * @default {"worker"}
   */
  readonly scope?: "worker" | "context" | undefined;
}

/**
 * Who holds a connection, and why: this worker, or a call of `run`.
 *
 * Invariant: while `claims` is above 0 the connection stays lent, but for the end of the run; when it falls to 0, and
 * getconn does not keep it, it is put back.
 */
class Holder {
  /** What getconn gave, and was not put back; once that is lost, nothing is kept for it. */
  explicit: object | null = null;
  /** How many calls of `use` and getconn are under way. */
  claims = 0;
  /** Whether the connection is to be closed when it is put back. */
  discard = false;
  /** Refuses what waits when the run ends; null until something may wait. */
  abort: AbortController | null = null;
  /** Whether the run has ended: from then on nothing is lent here. */
  ended = false;
}

/**
 * A pool that gives each worker one connection and always the same, until it is put back; and that all workers
 * of a process share, as a ThreadedConnectionPool.
 *
 * It makes its own keys: getconn and putconn have no parameter `key`.
 *
 * @typeParam C What borrowers get.
 *
 * @example One connection for each request of a server
 * ```ts
 * import { PersistentConnectionPool } from "@getconn/pool";
 * import { env } from "node:process";
 *
 * await using pool = new PersistentConnectionPool(0, 10, env.DATABASE_URL, {
 *   pool: { scope: "context", timeout: 5_000 },
 * });
 *
 * async function userName() {
 *   const sql = await pool.getconn(); // wherever it is called in one request, the same
 *   return (await sql`select current_user as name`)[0]?.name;
 * }
 *
 * // In Deno: Deno.serve(handler). What a request holds in the end is put back.
 * const handler = () => pool.run(async () => Response.json([await userName(), await userName()]));
 * console.log(await (await handler()).json());
 * ```
 */
export class PersistentConnectionPool<C extends object = Connection>
  extends SharedConnectionPool<C> {
  /** Handles of this pool are for this class. */
  protected readonly kind: string = "PersistentConnectionPool";
  /** What the handle has to hold beside the other options. */
  protected override readonly extra: Readonly<Record<string, unknown>>;
  readonly #worker = new Holder();
  readonly #contexts: AsyncLocalStorage<Holder> | null;

  /**
   * Takes what psycopg2's takes. Throws a TypeError or RangeError that names option, rule and value.
   *
   * @param minconn How many connections are kept open in all workers together.
   * @param maxconn How many may ever be open at once in all workers together.
   * @param dsn How to connect, as libpq has it: `dbname=test user=postgres`, or
   * `postgres://user:password@host:port/database`; or a function that gives one, asked at each connect.
   * What it leaves open is in the options, the service file, the environment (PGHOST and the like), the defaults.
   * @param options libpq's keywords and postgres.js's options, which win over `dsn`; under `pool` the pool's own.
   */
  constructor(
    minconn: number,
    maxconn: number,
    dsn?: string | ConninfoFunction | null,
    options?: SharedOptions<C, PersistentPoolOptions<C>>,
  );
  /** Without a connection string. */
  constructor(
    minconn: number,
    maxconn: number,
    options: SharedOptions<C, PersistentPoolOptions<C>>,
  );
  constructor(minconn: number, maxconn: number, ...args: unknown[]) {
    const { scope, rest } = takeScope(args);
    super(minconn, maxconn, ...rest);
    this.extra = { scope };
    this.#contexts = scope === "context" ? new AsyncLocalStorage() : null;
  }

  /**
   * Joins a pool from a worker.
   *
   * @param handle What `share` made for this worker.
   * @param options Options that differ in this worker, and those that could not be sent: the same as
   * the last argument of the constructor.
   * @throws {TypeError} for anything but a handle, or when options are missing that could not be sent
   * @throws {PoolError} BAD_HANDLE when the handle was used already, or is for another worker
   * @throws {PoolClosed} when the pool is closed
   */
  static join<C extends object = Connection>(
    handle: PoolHandle,
    options: Readonly<Record<string, unknown>> = {},
  ): Promise<PersistentConnectionPool<C>> {
    return joinPool(handle, options, "PersistentConnectionPool", PersistentConnectionPool<C>);
  }

  /**
   * The connection of this worker, or with `scope: "context"` of this call of `run`: the same each time, until
   * putconn. One that was lost is replaced.
   *
   * @throws {PoolError} UNSUPPORTED outside of `run` when the scope is `context`
   * @throws {PoolError} RUN_ENDED when the `run` of the caller has ended, or ends before it gets a connection
   * @throws what AbstractConnectionPool.getconn throws
   */
  override async getconn(options?: GetconnOptions): Promise<C> {
    const holder = this.#holder();
    if (holder === null) {
      throw new PoolError(
        'getconn() was called outside of pool.run(), and the scope is "context"',
        "UNSUPPORTED",
        this.#context,
      );
    }
    holder.claims++;
    let conn: C;
    try {
      conn = await this.#lent(holder, options);
    } catch (error) {
      await this.#unclaim(holder);
      throw error;
    }
    holder.explicit = conn;
    holder.claims--;
    return conn;
  }

  /**
   * Puts the connection of this worker or context back; without an argument too. While a `use` of it is under way it
   * stays lent to that, and is put back when the last one ends.
   *
   * @param conn The connection that is held; it may be left out.
   * @param close Closes the connection in any case.
   * @throws {PoolClosed} when the pool is closed
   * @throws {PoolError} UNKEYED_CONNECTION when none is held, or this is another one
   */
  override async putconn(conn?: C | null, close = false): Promise<void> {
    const { state, core } = insideOf<C>(this);
    if (state.phase === "closed") return await super.putconn(conn as C, null, close);
    checkClose(close);
    const holder = this.#holder();
    const held = holder === null ? null : core.under(holder);
    if (holder !== null && held !== null && (conn ?? held) === held) {
      holder.explicit = null;
      if (close) holder.discard = true;
      if (holder.claims === 0) await this.#putBack(holder);
      return;
    }
    throw new PoolError(
      "trying to put unkeyed connection: it is back already, or another pool's",
      "UNKEYED_CONNECTION",
      this.#context,
    );
  }

  /**
   * With `scope: "context"`: runs `fn` in a context of its own, and puts back in the end what it still holds. What
   * `fn` has left behind gets no connection any more: a getconn that still waits is refused, so is every later one.
   *
   * @returns what `fn` returned
   * @throws what `fn` throws
   * @throws {PoolError} UNSUPPORTED when the scope is `worker`
   */
  async run<T>(fn: () => T | Promise<T>): Promise<T> {
    if (this.#contexts === null) {
      throw new PoolError('run() needs the scope "context"', "UNSUPPORTED", this.#context);
    }
    checkFn("run", fn);
    const holder = new Holder();
    try {
      return await this.#contexts.run(holder, fn);
    } finally {
      holder.ended = true;
      holder.abort?.abort(this.#runEnded());
      await this.#putBack(holder);
    }
  }

  /**
   * Runs `fn` with the connection of this worker or context. What was held before stays held; otherwise the
   * connection is put back when the last `use` ends.
   *
   * @returns what `fn` returned
   * @throws what getconn or `fn` throws
   * @throws {PoolError} CONNECTION_LOST when the connection was lost and `fn` did not end by itself
   */
  override async use<T>(fn: (conn: C) => T | Promise<T>, options?: GetconnOptions): Promise<T> {
    checkFn("use", fn);
    const holder = this.#holder();
    if (holder === null) return await this.run(() => this.use(fn, options));
    holder.claims++;
    try {
      const conn = await this.#lent(holder, options);
      return await unlessLost(
        insideOf<C>(this).state.clock,
        leaseOf(conn) as PoolLease,
        () => fn(conn),
      );
    } finally {
      await this.#unclaim(holder);
    }
  }

  /**
   * As `use`, within a transaction: committed when `fn` succeeds, rolled back when it throws. There is one at a time:
   * a second one of the same worker or context would share the first one's session, so it is refused at once. One that
   * `fn` calls, directly or somewhere deep, is a savepoint when it asks for that by `nested: "savepoint"`.
   *
   * There is one session for a worker or context, so what its other tasks do meanwhile, by `use` or by what getconn
   * gave them, is a part of the transaction, and goes with it when it is rolled back. Tasks that must not share that
   * have a `run` each.
   *
   * @example A function that needs a transaction, whoever calls it
   * ```ts
   * import { PersistentConnectionPool } from "@getconn/pool";
   * import { assertEquals } from "@std/assert";
   *
   * await using pool = new PersistentConnectionPool(0, 4, Deno.env.get("DATABASE_URL"), {
   *   pool: { scope: "context", timeout: 5_000 },
   * });
   * const save = (n: number) =>
   *   pool.transaction(async (conn) => {
   *     await conn`insert into saved values (${n})`;
   *     if (n === 2) throw new Error("not this one");
   *   }, { nested: "savepoint" });
   *
   * const saved = await pool.run(() =>
   *   pool.transaction(async (conn) => {
   *     await conn`create temporary table saved (n int) on commit drop`;
   *     await save(1);
   *     await save(2).catch(() => {}); // it alone is taken back
   *     await save(3);
   *     return (await conn`select n from saved order by n`).map(({ n }) => n);
   *   })
   * );
   * assertEquals(saved, [1, 3]);
   * ```
   *
   * @throws {PoolError} IN_TRANSACTION when the connection of this worker or context is in a transaction
   * @throws {TypeError} when it is nested, and was given what only a whole transaction can have
   * @throws what AbstractConnectionPool.transaction throws
   */
  override transaction<T>(
    fn: (conn: C) => T | Promise<T>,
    options?: TransactionOptions,
  ): Promise<T> {
    return super.transaction(fn, options);
  }

  /** The connection of `holder`, which has a claim; what comes after the end of its run is put back, and refused. */
  async #lent(holder: Holder, options: GetconnOptions | undefined): Promise<C> {
    if (holder.ended) throw this.#runEnded();
    const waits = this.#contexts !== null && insideOf<C>(this).core.under(holder) === null;
    const conn = await super.getconn(holder, waits ? untilEnd(holder, options) : options);
    if (!holder.ended) return conn;
    await this.#putBack(holder);
    throw this.#runEnded();
  }

  #runEnded(): PoolError {
    return new PoolError(
      "the pool.run() to which this call belongs has ended: await in it whatever needs a connection",
      "RUN_ENDED",
      this.#context,
    );
  }

  /** Who asks; null outside of every context. */
  #holder(): Holder | null {
    return this.#contexts === null ? this.#worker : this.#contexts.getStore() ?? null;
  }

  async #unclaim(holder: Holder): Promise<void> {
    if (--holder.claims > 0) return;
    const held = insideOf<C>(this).core.under(holder);
    if (held !== null && held !== holder.explicit) await this.#putBack(holder);
  }

  async #putBack(holder: Holder): Promise<void> {
    const { core } = insideOf<C>(this);
    const lease = leaseOf(core.under(holder));
    const { discard } = holder;
    holder.explicit = null;
    holder.discard = false;
    if (lease?.open) await core.takeBack(lease, discard);
  }

  get #context(): ConstructorParameters<typeof PoolError>[2] {
    return insideOf<C>(this).state.errorContext();
  }
}

/** The options of a getconn in a run, which waits no longer than until the end of that. */
function untilEnd(holder: Holder, options: GetconnOptions | undefined): GetconnOptions | undefined {
  let own: GetconnOptions | undefined;
  try {
    own = readWaitOptions("getconn", options);
  } catch {
    // As they are: getconn says what is wrong with them, and counts it.
    return options;
  }
  holder.abort ??= new AbortController();
  const { signal } = holder.abort;
  return {
    timeout: own.timeout,
    signal: own.signal ? AbortSignal.any([own.signal, signal]) : signal,
  };
}

function takeScope(args: readonly unknown[]): { scope: "worker" | "context"; rest: unknown[] } {
  const { pool } = splitArgs(args);
  if (typeof pool !== "object" || pool === null || !("scope" in pool)) {
    return { scope: "worker", rest: [...args] };
  }
  const { scope = "worker", ...others } = pool;
  if (scope !== "worker" && scope !== "context") {
    const shown = typeof scope === "string" ? "another string" : typeof scope;
    throw new TypeError(`"pool.scope" must be "worker" or "context", received ${shown}`);
  }
  return { scope, rest: [...args.slice(0, -1), { ...args.at(-1) as object, pool: others }] };
}
