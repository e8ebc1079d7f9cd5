/** What a borrower gets, and what a pool of PostgreSQL connections is given. No code. */

import type postgres from "postgres";
import type { Duplex } from "node:stream";
import type { PoolOptions } from "../pool/options.ts";
import type { TransactionStatus } from "../pool/types.ts";

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

/**
 * The options of a pool of PostgreSQL connections: the driver's, and under `pool` the pool's own. Options
 * of the driver that the pool owns, or that would have no effect, are left out.
 */
export interface PostgresOptions extends
  Omit<
    postgres.Options<Record<string, postgres.PostgresType>>,
    | "max"
    | "idle_timeout"
    | "timeout"
    | "max_lifetime"
    | "backoff"
    | "publications"
    | "host"
    | "hostname"
    | "port"
    | "target_session_attrs"
  > {
  /** The pool's own options. */
  readonly pool?: PoolOptions<Connection> | undefined;
  /** One host or several, tried in this order; one that begins with `/` is the folder of a Unix socket. */
  readonly host?: string | readonly string[] | undefined;
  /** The same as `host`. */
  readonly hostname?: string | readonly string[] | undefined;
  /** One port for all hosts, or one for each. */
  readonly port?: number | readonly number[] | undefined;
  /** Which kind of server will do, with libpq's meanings. */
  readonly target_session_attrs?:
    | "any"
    | "read-write"
    | "read-only"
    | "primary"
    | "standby"
    | "prefer-standby"
    | undefined;
  /** `direct`: TLS from the first byte (PostgreSQL 17 and later). */
  readonly sslnegotiation?: "postgres" | "direct" | null | undefined;
  /** How many statements may be on their way on one connection. */
  readonly max_pipeline?: number | undefined;
  /** Opens the transport in place of a TCP connection or Unix socket. */
  readonly socket?: ((options: unknown) => Duplex | Promise<Duplex>) | undefined;
}

/** The types of the driver, which the types here are made of. */
export type { postgres };
