/** What a borrower gets, and what a pool of PostgreSQL connections is given. No code. */

import type postgres from "postgres";
import type { Duplex } from "node:stream";
import type { PoolOptions } from "../pool/options.ts";
import type { TransactionModes, TransactionStatus } from "../pool/types.ts";
import type { OpenTransport } from "./wire/transport.ts";
import type { SslMode, TargetSessionAttrs, TlsVersion } from "./wire/settings.ts";

/** Until when one statement may run; see `limited`. What it does not set is the pool's. */
export interface StatementLimits {
  /**
   * How long it may take from when its connection has it, in milliseconds; 0 = no limit. What stands before it on that
   * connection counts, waiting for a connection does not: that is the pool's `timeout`. Then it is cancelled at the server
   * and rejects with the code `QUERY_TIMEOUT`; when the server does not answer that within 5 s, its session is ended.
   *
   * @default {the pool's `queryTimeout`}
   */
  readonly queryTimeout?: number | undefined;
  /** When it aborts the statement is cancelled in the same way, and rejects with the signal's reason; null is none. */
  readonly signal?: AbortSignal | null | undefined;
}

/** `begin` with its options as an object. */
export interface BeginWithModes {
  /** Commits when `fn` resolves, rolls back when it throws. */
  <T>(
    options: TransactionModes,
    fn: (sql: TransactionHandle) => T | Promise<T>,
  ): Promise<T>;
}

/** What the function of `begin` gets: what postgres.js gives it, and a `begin` that takes `nested: "savepoint"`. */
export interface TransactionHandle extends postgres.TransactionSql {
  /** A part of the transaction that can fail alone, with `nested: "savepoint"`; without that it is refused. */
  begin: BeginWithModes;
}

/**
 * A leased connection: a client of postgres.js for exactly one session at the server, good until putconn takes it
 * back. It can be given to whatever takes such a client.
 *
 * Different from the client that postgres.js makes: `begin`, `listen`, `reserve` and `largeObject` work on this
 * very session; `end` and `subscribe` are refused, as they would reach beyond it.
 */
export interface Connection extends postgres.Sql {
  /** True when the session is closed, or the lease was put back. */
  readonly closed: boolean;
  /** The state of the session's transaction, known without a round trip; `unknown` when closed. */
  readonly transactionStatus: TransactionStatus;
  /** The process id of the server's backend. */
  readonly pid: number;
  /**
   * The `begin` of postgres.js, and with an object in place of its string: committed when `fn` resolves, rolled back when it
   * throws. With `retry` it is tried again after a serialization failure or a deadlock, on this session: what is lost
   * cannot be tried again here, but by `pool.transaction`.
   */
  begin: postgres.Sql["begin"] & BeginWithModes;
  /** Rolls back when a transaction is open; does nothing when none is. */
  rollback(): Promise<void>;
  /** Closes the session. The lease stays lent until it is put back. */
  close(): Promise<void>;
  /** Puts the connection back to the pool; does nothing when it is back. */
  [Symbol.asyncDispose](): Promise<void>;
}

/**
 * How to connect, by libpq's keywords, with libpq's meanings
 * (https://www.postgresql.org/docs/18/libpq-connect.html): psycopg2's keyword arguments. What is given neither
 * here nor in the connection string comes from the service file, then from the environment
 * (`PGHOST`, `PGSSLMODE` …), then from the defaults. docs/conninfo.md has the table of all.
 *
 * All are strings in libpq; numbers and booleans do as well.
 */
export interface ConnectKeywords {
  /** One host or several, tried in this order; one that begins with `/` is the folder of a Unix socket. */
  readonly host?: string | readonly string[] | undefined;
  /** Addresses to connect to without asking for those of `host`. */
  readonly hostaddr?: string | readonly string[] | undefined;
  /** One port for all hosts, or one for each. */
  readonly port?: number | string | readonly (number | string)[] | undefined;
  /** The database; without it, it has the user's name. The same as `database`. */
  readonly dbname?: string | undefined;
  /** The role; without it, the operating system's user. The same as `username`. */
  readonly user?: string | undefined;
  /** A function is asked at each connect. */
  readonly password?: string | (() => string | Promise<string>) | undefined;
  /** The password file in place of `~/.pgpass`. */
  readonly passfile?: string | undefined;
  /** A section of the service file, whose values count where none are given. */
  readonly service?: string | undefined;
  /** The service file in place of `~/.pg_service.conf`. */
  readonly servicefile?: string | undefined;
  /**
   * Seconds for one address of one host; 0 for no limit.
   *
   * @default {30}
   */
  readonly connect_timeout?: number | string | null | undefined;
  /** UTF8, or `auto`. */
  readonly client_encoding?: string | undefined;
  /** Options of the server's command line, such as `-c search_path=app`. */
  readonly options?: string | undefined;
  /** The name in pg_stat_activity. */
  readonly application_name?: string | undefined;
  /** The same where no other is given. */
  readonly fallback_application_name?: string | undefined;
  /** Whether TCP keepalives are sent. */
  readonly keepalives?: boolean | 0 | 1 | "0" | "1" | undefined;
  /** Seconds without traffic before a keepalive. @default {60} */
  readonly keepalives_idle?: number | string | undefined;
  /** Seconds between two keepalives, where the runtime can. */
  readonly keepalives_interval?: number | string | undefined;
  /** Keepalives without an answer, where the runtime can. */
  readonly keepalives_count?: number | string | undefined;
  /** Milliseconds for what was sent, where the runtime can. */
  readonly tcp_user_timeout?: number | string | undefined;
  /** How far TLS is asked for and checked. postgres.js's `ssl` is another way to say it. */
  readonly sslmode?: SslMode | undefined;
  /** `direct`: TLS from the first byte (PostgreSQL 17 and later). */
  readonly sslnegotiation?: "postgres" | "direct" | null | undefined;
  /** The file of our certificate. */
  readonly sslcert?: string | undefined;
  /** The file of its private key. */
  readonly sslkey?: string | undefined;
  /** What the key is encrypted with. */
  readonly sslpassword?: string | undefined;
  /** Whether our certificate is shown to a server that asks for one. */
  readonly sslcertmode?: "disable" | "allow" | undefined;
  /** The file of those whom we trust, or `system`. */
  readonly sslrootcert?: string | undefined;
  /** A file of revoked certificates. */
  readonly sslcrl?: string | undefined;
  /** A folder of them. */
  readonly sslcrldir?: string | undefined;
  /** Whether the server's name is sent in clear. */
  readonly sslsni?: boolean | 0 | 1 | "0" | "1" | undefined;
  /** The oldest TLS that will do. @default {"TLSv1.2"} */
  readonly ssl_min_protocol_version?: TlsVersion | undefined;
  /** The newest one. */
  readonly ssl_max_protocol_version?: TlsVersion | undefined;
  /** The oldest protocol of PostgreSQL that will do. */
  readonly min_protocol_version?: "3.0" | "3.2" | "latest" | undefined;
  /** The newest one to ask for. */
  readonly max_protocol_version?: "3.0" | "3.2" | "latest" | undefined;
  /** Whether the login is bound to the TLS session. @default {"prefer"} */
  readonly channel_binding?: "disable" | "prefer" | "require" | undefined;
  /** How the server may ask who we are: a list of methods, or of those that it may not use, each after `!`. */
  readonly require_auth?: string | undefined;
  /** Which kind of server will do. */
  readonly target_session_attrs?: TargetSessionAttrs | null | undefined;
  /** `random`: hosts, and the addresses of each, in random order, anew at each connect. */
  readonly load_balance_hosts?: "disable" | "random" | undefined;
  /** As whom the server of a Unix socket must run: refused, as no runtime tells. */
  readonly requirepeer?: string | undefined;
  /** There is no GSSAPI here: `require` is refused. */
  readonly gssencmode?: "disable" | "prefer" | undefined;
}

/**
 * What gives a connection string, or an object of keywords, at each connect: for addresses and secrets that
 * change. It may take as long as one connect may; what it throws fails that connect.
 */
export type ConninfoFunction = () =>
  | string
  | ConnectKeywords
  | Promise<string | ConnectKeywords>;

/**
 * The options of a pool of PostgreSQL connections: libpq's keywords, postgres.js's own, and under `pool` the
 * pool's. Options of postgres.js that the pool owns, or that would have no effect, are left out. Two names
 * for one thing with different values are refused.
 */
export interface PostgresOptions extends
  ConnectKeywords,
  Pick<
    postgres.Options<Record<string, postgres.PostgresType>>,
    | "ssl"
    | "path"
    | "database"
    | "username"
    | "pass"
    | "prepare"
    | "no_prepare"
    | "fetch_types"
    | "debug"
    | "types"
    | "transform"
    | "connection"
    | "keep_alive"
    | "onnotice"
    | "onclose"
    | "onparameter"
  > {
  /** The pool's own options. */
  readonly pool?: PoolOptions<Connection> | undefined;
  /** The connection string, or a function that gives one, where it is no argument of its own. */
  readonly dsn?: string | ConninfoFunction | undefined;
  /** The same as `host`. */
  readonly hostname?: string | readonly string[] | undefined;
  /** The same as `dbname`. */
  readonly db?: string | undefined;
  /**
   * How many statements may be on their way on one connection. Not given, it is one where a pooler stands in between:
   * one that works by the transaction may give a part of the next statement to another server.
   *
   * @default {1024}
   */
  readonly max_pipeline?: number | undefined;
  /** How long one statement may take; see {@linkcode StatementLimits.queryTimeout}. @default {0} */
  readonly queryTimeout?: number | undefined;
  /** Hears every notification that comes on any connection. */
  readonly onnotify?: ((channel: string, payload: string) => void) | undefined;
  /** Opens a stream in place of a TCP connection or Unix socket; TLS is put on it. */
  readonly socket?: ((options: unknown) => Duplex | Promise<Duplex>) | undefined;
  /** Opens what bytes go through where there is no TCP, such as a WebSocket; in place of `socket`. */
  readonly transport?: OpenTransport | undefined;
  /**
   * How many rounds of hashing a server may ask for at a login by SCRAM. PostgreSQL's own default is 4,096.
   *
   * @default {100000}
   */
  readonly scram_max_iterations?: number | undefined;
}

/** The types of postgres.js, which the types here are made of. */
export type { postgres };
