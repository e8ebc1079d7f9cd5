/** What `pool.sql` needs of its pool. */

import { ignore } from "../pool/safely.ts";
import type { PoolState } from "../pool/state.ts";
import { PoolClosed, PoolError, type PoolErrorCode } from "../pool/errors.ts";
import { leaseOf, type PoolLease } from "../pool/lease.ts";
import type { WaitOptions } from "../pool/options.ts";
import type { PoolCore } from "../pool/pool_core.ts";
import type { Connection } from "../postgres/connection.ts";
import { genericError } from "../postgres/errors.ts";
import type { Session } from "../postgres/session.ts";

/** A lease that `pool.sql` took for one of its calls. */
export class SqlLease {
  /** What it is for, as borrowers see it. */
  readonly conn: Connection;
  /** The session itself. */
  readonly session: Session;
  /** The pool's side of it. */
  readonly lease: PoolLease;
  readonly #core: PoolCore<Connection>;

  constructor(conn: Connection, core: PoolCore<Connection>) {
    this.conn = conn;
    this.#core = core;
    this.lease = leaseOf(conn)!;
    this.session = this.lease.resource as Session;
  }

  /** Puts it back; does nothing when it is back. */
  giveBack(close = false): void {
    if (this.lease.open) this.#core.takeBack(this.lease, close).catch(ignore);
  }
}

/**
 * A refusal of a closed pool as the driver says it, by its code: `ended` for what was asked for afterwards. What the
 * pool says is the cause. Everything else as it is.
 */
export function asDriver(reason: unknown, ended: boolean): unknown {
  if (!(reason instanceof PoolClosed)) return reason;
  const code = ended ? "CONNECTION_ENDED" : "CONNECTION_DESTROYED";
  return Object.assign(genericError(code, reason.message), { errno: code, cause: reason });
}

/** How a lease is asked for. */
interface BorrowOptions {
  /** Whether failures to connect are waited for. */
  readonly patient?: boolean;
  /** Ends the wait. */
  readonly signal?: AbortSignal | undefined;
  /** Whether it was let in before: then a pool that drains takes it still. */
  readonly admitted?: boolean;
}

/** What is inside of a pool. */
export interface Inside {
  /** What its parts share. */
  readonly state: PoolState<Connection>;
  /** What lends its connections. */
  readonly core: PoolCore<Connection>;
}

/** The pool, as `pool.sql` sees it. */
export class SqlAccess {
  readonly #inside: () => Inside;

  /** `inside` gives what is inside of the pool: where requests own their sockets, of each another one. */
  constructor(inside: () => Inside) {
    this.#inside = inside;
  }

  /** What the parts of the pool share. */
  get state(): PoolState<Connection> {
    return this.#inside().state;
  }

  /** What lends its connections. */
  get core(): PoolCore<Connection> {
    return this.#inside().core;
  }

  /** True once the pool refuses new callers. */
  get closed(): boolean {
    return this.state.phase !== "open";
  }

  /**
   * Takes a lease. Without a `timeout` of the pool it waits without limit, as the driver does; like
   * there, a failure to connect is the caller's, unless some connection stands that may come back.
   * With `patient` it is not. A pool that drains serves it all the same when it came before.
   */
  async borrow(
    { patient = false, signal, admitted = false }: BorrowOptions = {},
  ): Promise<SqlLease> {
    const { timeout } = this.state.options;
    if (timeout > 0 && !patient) {
      signal?.throwIfAborted();
      return await this.#lease({ timeout, signal }, admitted);
    }
    const giveUp = new AbortController();
    const abort = (): void => giveUp.abort(signal!.reason);
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
    const unwatch = patient ? ignore : this.state.watchers.add((failure) => {
      if (failure !== null && this.state.size === 0) giveUp.abort(failure.error);
    });
    try {
      const options = { timeout: Infinity, signal: giveUp.signal };
      options.signal.throwIfAborted();
      if (!patient) return await this.#lease(options, admitted);
      return new SqlLease(await this.core.getconn(null, options), this.core);
    } finally {
      unwatch();
      signal?.removeEventListener("abort", abort);
    }
  }

  async #lease(wait: WaitOptions, admitted: boolean): Promise<SqlLease> {
    const ended = this.closed;
    try {
      return new SqlLease(await this.core.borrow(wait, admitted), this.core);
    } catch (error) {
      throw asDriver(error, ended && !admitted);
    }
  }

  /** What calls get once the end has begun. */
  ended(): Error {
    return asDriver(new PoolClosed(this.state.errorContext()), true) as Error;
  }

  /** A PoolError of this pool. */
  error(message: string, code: PoolErrorCode): Error {
    return new PoolError(message, code, this.state.errorContext());
  }
}
