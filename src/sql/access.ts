/** What `pool.sql` needs of its pool. */

import type { PoolContext } from "../pool/state.ts";
import { PoolError, type PoolErrorCode } from "../pool/errors.ts";
import type { Job } from "../pool/job.ts";
import { loanOf, type PoolLoan } from "../pool/lease.ts";
import type { Lending } from "../pool/pool_core.ts";
import type { Failure } from "../pool/watchers.ts";
import type { Connection } from "../postgres/connection.ts";
import type { Session } from "../postgres/session.ts";

function ignore(): void {}

/** A lease that `pool.sql` took for one of its calls. */
export class SqlLease {
  /** What it is for, as borrowers see it. */
  readonly conn: Connection;
  /** The session itself. */
  readonly session: Session;
  /** The loan. */
  readonly loan: PoolLoan;
  readonly #lending: Lending<Connection>;

  constructor(conn: Connection, lending: Lending<Connection>) {
    this.conn = conn;
    this.#lending = lending;
    this.loan = loanOf(conn)!;
    this.session = this.loan.resource as Session;
  }

  /** Puts it back; does nothing when it is back. */
  giveBack(close = false): void {
    if (this.loan.open) this.#lending.takeBack(this.loan, close).catch(ignore);
  }
}

/** The pool, as `pool.sql` sees it. */
export class SqlDesk {
  readonly context: PoolContext<Connection>;
  readonly #lending: Lending<Connection>;

  constructor(context: PoolContext<Connection>, lending: Lending<Connection>) {
    this.context = context;
    this.#lending = lending;
  }

  /** Runs a statement on a shared session; `again` when it was taken before. */
  submit(job: Job, again: boolean): ((reason: unknown) => boolean) | null {
    return this.#lending.sharing.submit(job, again);
  }

  /** How many statements one session takes. */
  set depth(depth: number) {
    this.#lending.sharing.depth = depth;
  }

  /** True once the pool refuses new callers. */
  get closed(): boolean {
    return this.#lending.phase !== "open";
  }

  /** Calls `fn` after every change of the connections. Returns how to take that back. */
  watch(fn: (failure: Failure) => void): () => void {
    return this.#lending.watchers.add(fn);
  }

  /**
   * Takes a lease. Without a `timeout` of the pool it waits without limit, as the driver does; like
   * there, a failure to connect is the caller's, unless some connection stands that may come back.
   * With `patient` it is not. A `signal` ends the wait.
   */
  async borrow(patient = false, signal?: AbortSignal): Promise<SqlLease> {
    const { timeout } = this.context.options;
    if (timeout > 0 && !patient) {
      return new SqlLease(await this.#lending.getconn(null, { signal }), this.#lending);
    }
    const giveUp = new AbortController();
    const abort = (): void => giveUp.abort(signal!.reason);
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
    const unwatch = patient ? ignore : this.#lending.watchers.add((failure) => {
      if (failure !== null && this.context.size === 0) giveUp.abort(failure.error);
    });
    try {
      const options = { timeout: Infinity, signal: giveUp.signal };
      return new SqlLease(await this.#lending.getconn(null, options), this.#lending);
    } finally {
      unwatch();
      signal?.removeEventListener("abort", abort);
    }
  }

  /** A PoolError of this pool. */
  error(message: string, code: PoolErrorCode): Error {
    return new PoolError(message, code, this.context.errorContext());
  }
}
