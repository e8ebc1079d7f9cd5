/** psycopg2's PersistentConnectionPool. */

import { AsyncLocalStorage } from "node:async_hooks";
import { insideOf } from "./pool/abstract_pool.ts";
import { PoolError } from "./pool/errors.ts";
import type { PoolHandle } from "./workers/handle.ts";
import { loanOf, type PoolLoan } from "./pool/lease.ts";
import { type PoolOptions, splitArgs } from "./pool/options.ts";
import type { Connection } from "./postgres/connection.ts";
import { joinPool, SharedConnectionPool, type SharedOptions } from "./workers/shared_pool.ts";
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

/** Who holds a connection, and why. */
class Holder {
  /** Whether getconn was called, and not putconn. */
  explicit = false;
  /** How many calls of `use` are under way. */
  uses = 0;
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
   * @param url `postgres://user:password@host:port/database`; without it the options and PGHOST and the like count.
   * @param options The driver's options, and under `pool` the pool's own.
   */
  constructor(
    minconn: number,
    maxconn: number,
    url?: string,
    options?: SharedOptions<C, PersistentPoolOptions<C>>,
  );
  /** Without a URL. */
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
    const conn = await super.getconn(holder, options);
    holder.explicit = true;
    return conn;
  }

  /**
   * Puts the connection of this worker or context back; without an argument too.
   *
   * @param conn The connection, or the options below.
   * @param close Closes the connection in any case.
   * @throws {PoolClosed} when the pool is closed
   * @throws {PoolError} "trying to put unkeyed connection" when none is held, or this is another one
   */
  override async putconn(conn?: C | null, close = false): Promise<void> {
    const holder = this.#holder();
    const held = holder === null ? null : insideOf<C>(this).lending.under(holder);
    if (this.closed || (held !== null && (conn ?? held) === held)) {
      if (holder !== null) holder.explicit = false;
      return await super.putconn(held ?? conn as C, held === null ? null : holder, close);
    }
    throw new PoolError("trying to put unkeyed connection", "UNKEYED_CONNECTION", this.#context);
  }

  /**
   * With `scope: "context"`: runs `fn` in a context of its own, and puts back in the end what it still holds.
   *
   * @returns what `fn` returned
   * @throws what `fn` throws
   * @throws {PoolError} UNSUPPORTED when the scope is `worker`
   */
  async run<T>(fn: () => T | Promise<T>): Promise<T> {
    if (this.#contexts === null) {
      throw new PoolError('run() needs the scope "context"', "UNSUPPORTED", this.#context);
    }
    const holder = new Holder();
    try {
      return await this.#contexts.run(holder, fn);
    } finally {
      await this.#putBack(holder);
    }
  }

  /**
   * Runs `fn` with the connection of this worker or context. What was held before stays held; otherwise the
   * connection is put back when the last `use` ends.
   *
   * @returns what `fn` returned
   * @throws what getconn or `fn` throws
   */
  override async use<T>(fn: (conn: C) => T | Promise<T>, options?: GetconnOptions): Promise<T> {
    const holder = this.#holder();
    if (holder === null) return await this.run(() => this.use(fn, options));
    holder.uses++;
    try {
      return await fn(await super.getconn(holder, options));
    } finally {
      if (--holder.uses === 0 && !holder.explicit) await this.#putBack(holder);
    }
  }

  /**
   * As `use`, within a transaction: committed when `fn` succeeds, rolled back when it throws.
   *
   * @throws {PoolError} IN_TRANSACTION when the connection of this worker or context is in a transaction
   * @throws what AbstractConnectionPool.transaction throws
   */
  override transaction<T>(
    fn: (conn: C) => T | Promise<T>,
    options?: TransactionOptions,
  ): Promise<T> {
    return this.use(async (conn) => {
      const { context } = insideOf<C>(this);
      const { connector } = context;
      const { resource } = loanOf(conn) as PoolLoan;
      const isIdle = (): boolean => (connector.status?.(resource) ?? "idle") === "idle";
      if (!isIdle()) {
        throw new PoolError(
          "the connection of this worker is in a transaction already",
          "IN_TRANSACTION",
          this.#context,
        );
      }
      try {
        return await super.transaction(fn, options);
      } catch (error) {
        // putconn would do it, but the connection may stay held.
        if (loanOf(conn)?.open && !isIdle()) await connector.rollback?.(resource).catch(() => {});
        throw error;
      }
    }, options);
  }

  /** Who asks; null outside of every context. */
  #holder(): Holder | null {
    return this.#contexts === null ? this.#worker : this.#contexts.getStore() ?? null;
  }

  async #putBack(holder: Holder): Promise<void> {
    const held = insideOf<C>(this).lending.under(holder);
    holder.explicit = false;
    if (held !== null) await loanOf(held)?.putconn();
  }

  get #context(): ConstructorParameters<typeof PoolError>[2] {
    return insideOf<C>(this).context.errorContext();
  }
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
