/** What a borrower gets. No code. */

import type postgres from "postgres";
import type { TransactionStatus } from "../types.ts";

/**
 * A leased connection: a client of the driver `postgres` for exactly one session at the server, good
 * until putconn takes it back. It can be given to whatever takes a client of the driver.
 *
 * Different from the driver's own client: `begin`, `listen`, `reserve` and `largeObject` work on this
 * very session; `end` and `subscribe` are refused, as they would reach beyond it.
 */
export interface Connection extends postgres.Sql {
  /** True when the session is closed, or the lease was put back. */
  readonly closed: boolean;
  /** The state of the session's transaction, known without a round trip; `unknown` when closed. */
  readonly transactionStatus: TransactionStatus;
  /** The process id of the server's backend. */
  readonly pid: number;
  /** Rolls back when a transaction is open; does nothing when none is. */
  rollback(): Promise<void>;
  /** Closes the session. The lease stays lent until it is put back. */
  close(): Promise<void>;
  /** Puts the connection back to the pool; does nothing when it is back. */
  [Symbol.asyncDispose](): Promise<void>;
}
