/** `pool.transaction`: begin, its function, commit or rollback, with any connector that has these. */

import { HYGIENE_LIMIT } from "./connections.ts";
import { PoolError, type PoolErrorCode } from "./errors.ts";
import { leaseOf, type PoolLease } from "./lease.ts";
import { checkFn, readOptions, TRANSACTION_OPTIONS } from "./options.ts";
import type { PoolState } from "./state.ts";
import { within } from "./timeout.ts";
import {
  behind,
  type ByHand,
  checkSavepoint,
  endedByHand,
  isConflict,
  isLoss,
  notAgain,
  OpenTransaction,
  OUTCOME_UNKNOWN,
  PLAIN,
  planTransaction,
  retrying,
  TRANSACTION_FAILED,
  type TransactionPlan,
} from "./transactions.ts";
import type { GetconnOptions, TransactionOptions, TransactionStatus } from "./types.ts";

/** What a transaction needs of its pool. */
export interface Transacting<C extends object> {
  /** The state of the pool, or of the part at hand. */
  state(): PoolState<C>;
  /** The pool itself: a relay of its `use` would be one more frame between the caller and the stack of a lease. */
  readonly lender: {
    use<T>(fn: (conn: C) => Promise<T>, options: GetconnOptions | undefined): Promise<T>;
  };
  /** Ends a lease whose transaction cannot be rolled back. */
  discard(lease: PoolLease): void;
}

/** Checks what was given, and does it, again where it was asked for. */
export function transact<C extends object, T>(
  pool: Transacting<C>,
  fn: (conn: C) => T | Promise<T>,
  options: TransactionOptions | undefined,
): Promise<T> {
  try {
    const { connector, clock } = pool.state();
    if (connector.begin === undefined || connector.commit === undefined) {
      throw new TypeError("This pool's connector has no begin() and commit()");
    }
    checkFn("transaction", fn);
    if (options === undefined) return new Attempt(pool, fn, PLAIN).run(undefined);
    const read = readOptions("transaction", options, TRANSACTION_OPTIONS);
    const { timeout, signal, ...modes } = read;
    const plan = planTransaction(modes);
    if (plan.nested && connector.savepoint === undefined) {
      throw new TypeError('"nested" needs a connector with savepoint()');
    }
    const wait = { timeout, signal } as GetconnOptions;
    let attempt = new Attempt(pool, fn, plan);
    if (plan.retry === null) return attempt.run(wait);
    const once = () => (attempt = new Attempt(pool, fn, plan)).run(wait);
    return retrying(clock, plan.retry, wait.signal, once, (error) => attempt.mayTryAgain(error));
  } catch (error) {
    return Promise.reject(error);
  }
}

/** A transaction that is made once. */
class Attempt<C extends object, T> {
  readonly #pool: Transacting<C>;
  readonly #fn: (conn: C) => T | Promise<T>;
  readonly #plan: TransactionPlan;
  /** The connection on which it has begun, or tries to; null before there is one. */
  #lease: PoolLease | null = null;
  /** True from the moment when the commit is sent until it is answered. */
  #committing = false;
  /** Whether its function has ended it by hand; undefined while that is the connector's to tell, as it may go on. */
  #byHand: ByHand | undefined = null;

  constructor(
    pool: Transacting<C>,
    fn: (conn: C) => T | Promise<T>,
    plan: TransactionPlan,
  ) {
    this.#pool = pool;
    this.#fn = fn;
    this.#plan = plan;
  }

  async run(wait: GetconnOptions | undefined): Promise<T> {
    try {
      return await this.#pool.lender.use((conn) => this.#on(conn), wait);
    } catch (error) {
      if (!this.#committing) throw error;
      throw this.#error(...OUTCOME_UNKNOWN, error);
    }
  }

  /** What failed before there was a connection is getconn's to wait for, by its timeout. */
  mayTryAgain(error: unknown): boolean {
    const lease = this.#lease;
    if (lease === null || this.#committing) return false;
    if (!(isConflict(error) || isLost(lease) && isLoss(error))) return false;
    const { connector } = this.#pool.state();
    const how = this.#byHand === undefined ? connector.ended?.(lease.resource) : this.#byHand;
    if (how != null) throw this.#error(...notAgain(how, "transaction"), error);
    return true;
  }

  async #on(conn: C): Promise<T> {
    const { connector } = this.#pool.state();
    const lease = this.#lease = leaseOf(conn) as PoolLease;
    const { resource, holder } = lease;
    const status = (): TransactionStatus | undefined => connector.status?.(resource);
    const { mode, nested } = this.#plan;
    // Not as a method of this, which is nobody's business.
    const fn = this.#fn;
    if (nested) {
      if (!lease.keyed) {
        throw new TypeError(
          '"nested" needs the same connection for both calls, and here each has one of its own: ' +
            "use begin of the connection, or a PersistentConnectionPool",
        );
      }
      if (holder instanceof OpenTransaction && holder.here) {
        checkSavepoint(this.#plan);
        return await connector.savepoint!(conn, () => fn(conn));
      }
    }
    // From the look to the mark nobody else can run: two of one connection exclude each other.
    if (holder !== null || isOpen(status())) throw this.#inTransaction();
    // Nobody but the function has a connection without a key.
    const open = new OpenTransaction(!lease.keyed);
    lease.holder = open;
    let begun = false;
    try {
      const ahead = mode === undefined ? connector.beginAhead?.(resource) ?? null : null;
      if (
        ahead === null && await busy(lease, () => connector.begin?.(resource, mode)) === false
      ) throw this.#inTransaction();
      begun = true;
      this.#byHand = undefined;
      const run = (): T | Promise<T> => open.run(() => fn(conn));
      const result = await (ahead === null ? run() : behind(ahead, run));
      lease.assertOpen();
      // What is still at work in it must not go on behind the commit, by itself.
      open.end();
      // A statement that nobody waited for may still fail: then it is the commit that tells.
      const done = status() === "inerror" ? false : await this.#commit(lease);
      if (done === "ended") throw this.#error(...endedByHand("transaction"));
      if (done === false) {
        throw this.#error(...TRANSACTION_FAILED, connector.failedBy?.(resource));
      }
      return result;
    } catch (error) {
      open.end();
      if (begun) this.#byHand = connector.ended?.(resource) ?? null;
      // Under a key it may stay lent; else putconn finds the transaction open and rolls it back.
      if (begun && lease.keyed) await this.#undo(lease);
      throw error;
    } finally {
      lease.holder = null;
    }
  }

  /** A rejection by a server that is still there is its answer; with any other it has given none. */
  async #commit(lease: PoolLease): Promise<boolean | "ended" | void> {
    const { connector } = this.#pool.state();
    // On one that is lost already nothing is sent.
    const gone = (): boolean =>
      isLost(lease) || !lease.open || connector.status?.(lease.resource) === "unknown";
    this.#committing = !gone();
    try {
      const done = await busy(lease, () => connector.commit?.(lease.resource));
      this.#committing = false;
      return done;
    } catch (error) {
      this.#committing &&= gone();
      throw error;
    }
  }

  /** Rolls back on a lease that stays; one that cannot be rolled back does not stay. */
  async #undo(lease: PoolLease): Promise<void> {
    const { connector, clock } = this.#pool.state();
    const { resource } = lease;
    const stays = (): boolean =>
      lease.open && (connector.status?.(resource) ?? "idle") !== "unknown";
    if (!stays() || connector.status?.(resource) === "idle") return;
    try {
      await within(clock, HYGIENE_LIMIT, busy(lease, () => connector.rollback?.(resource)));
    } catch {
      if (stays()) this.#pool.discard(lease);
    }
  }

  #inTransaction(): PoolError {
    return this.#error(
      "the connection is in a transaction already, or reserved",
      "IN_TRANSACTION",
    );
  }

  #error(message: string, code: PoolErrorCode, cause?: unknown): PoolError {
    return new PoolError(message, code, { ...this.#pool.state().errorContext(), cause });
  }
}

/** Does a step of a transaction. */
async function busy<T>(lease: PoolLease, step: () => T): Promise<Awaited<T>> {
  lease.busy = true;
  try {
    return await step();
  } finally {
    lease.busy = false;
  }
}

/** Whether the connection was lost. */
function isLost({ entry }: PoolLease): boolean {
  return (entry as { lost: unknown }).lost !== null;
}

function isOpen(status: TransactionStatus | undefined): boolean {
  return status === "intrans" || status === "inerror";
}
