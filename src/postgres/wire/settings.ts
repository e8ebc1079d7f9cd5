/**
 * What a connect is told: where to, as whom, and how. Types only. src/postgres/options.ts makes it from
 * libpq's keywords, the environment and the driver's options; everything in it is checked already.
 */

import type { OpenTransport, TransportTarget } from "./transport.ts";

/** One place to connect to. */
export interface Target extends TransportTarget {
  /** The address to connect to without asking for that of `host`, whose name a certificate must have; or null. */
  readonly hostaddr: string | null;
}

/** What kind of server will do, in libpq's words. */
export type TargetSessionAttrs =
  | "any"
  | "read-write"
  | "read-only"
  | "primary"
  | "standby"
  | "prefer-standby";

/** libpq's words for how TLS is to be used, from never to certain. */
export type SslMode = "disable" | "allow" | "prefer" | "require" | "verify-ca" | "verify-full";

/** A version of TLS, as libpq and node:tls both name it. */
export type TlsVersion = "TLSv1" | "TLSv1.1" | "TLSv1.2" | "TLSv1.3";

/** How TLS is to be used. Over Unix sockets none is, as in libpq, whatever stands here. */
export interface TlsSettings {
  /** Below `verify-ca` the certificate is looked at only when `files` gives a root certificate. */
  readonly mode: SslMode;
  /** `direct`: TLS from the first byte, with the ALPN `postgresql`. */
  readonly negotiation: "postgres" | "direct";
  /** Whether the host's name is sent in clear (SNI); never for an address. */
  readonly sni: boolean;
  /** Whether a client certificate is shown to a server that asks for one. */
  readonly certmode: "disable" | "allow";
  readonly minVersion: TlsVersion;
  /** Null for no limit. */
  readonly maxVersion: TlsVersion | null;
  /**
   * Reads the files, anew for each connect, as certificates are renewed. Rejects with an error that
   * names keyword, file and reason. `ca` is undefined for the runtime's own roots (`system`).
   */
  readonly files: () => Promise<TlsFiles>;
  /** The option `ssl` given as an object: options of tls.connect, which win over all that is said here. */
  readonly options: Readonly<Record<string, unknown>>;
}

/** Contents, in PEM or whatever node:tls takes, under the names that it has for them. */
export interface TlsFiles {
  readonly ca?: string | undefined;
  readonly cert?: string | undefined;
  readonly key?: string | undefined;
  readonly passphrase?: string | undefined;
  readonly crl?: readonly string[] | undefined;
}

/** A method of authentication in libpq's words; `none` is a server that asks for nothing. */
export type AuthMethod = "none" | "password" | "md5" | "gss" | "sspi" | "scram-sha-256" | "oauth";

/** Which proofs the server may ask for, and how. */
export interface AuthSettings {
  /** `require`: only SCRAM-SHA-256-PLUS, bound to the TLS channel, will do. */
  readonly channelBinding: "disable" | "prefer" | "require";
  /** Methods that the server may use; null for any. */
  readonly methods: ReadonlySet<AuthMethod> | null;
  /** Rounds of hashing that a server may ask for with SCRAM, at most; PostgreSQL's default is 4,096. */
  readonly maxScramIterations: number;
  /**
   * The password for this place, asked for only when the server wants one; null when there is none.
   * It may reject: a function of the user's threw, or gave no string.
   */
  readonly password: (target: Target) => Promise<string | null>;
}

/** What is asked of the TCP socket. */
export interface TcpSettings {
  readonly keepalives: boolean;
  /** Seconds; 0 for the system's default. */
  readonly keepalivesIdle: number;
  /** Seconds between two probes; 0 for the system's default. */
  readonly keepalivesInterval: number;
  /** Probes without an answer after which the connection is lost; 0 for the system's default. */
  readonly keepalivesCount: number;
}

/** What one connect needs. */
export interface ConnectSettings {
  /** Where to connect, in the order in which they were given. */
  readonly targets: readonly Target[];
  /** True to try the targets, and the addresses of each, in random order. */
  readonly loadBalance: boolean;
  /** Which kind of server will do, or null for any. */
  readonly attrs: Exclude<TargetSessionAttrs, "any"> | null;
  /** Milliseconds for one address of one host, or 0 for no limit. */
  readonly connectTimeout: number;
  readonly tcp: TcpSettings;
  readonly tls: TlsSettings;
  readonly auth: AuthSettings;
  /** The protocol's versions that will do, 3.0 to 3.2. */
  readonly minProtocol: "3.0" | "3.2";
  readonly maxProtocol: "3.0" | "3.2";
  readonly user: string;
  readonly database: string;
  /** Further parameters of the startup message: `application_name`, `options`, settings of the server. */
  readonly parameters: Readonly<Record<string, string>>;
  /** The user's own transport, in place of ours. */
  readonly transport: OpenTransport | null;
}
