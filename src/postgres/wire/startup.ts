/** From an open transport to the first ReadyForQuery: who we are, whether we may, and what the server says of itself. */

import type { OpenTransport, Transport, TransportTarget } from "./transport.ts";

/** A host of the list, in the order in which they are tried. */
export interface StartupHost extends TransportTarget {
  /** An address to connect to in place of asking for the host's; the certificate is still checked against `host`. */
  readonly address?: string | undefined;
}

/** How far TLS is asked for and checked, in libpq's words; it never is on a Unix socket. */
export type SslMode = "disable" | "allow" | "prefer" | "require" | "verify-ca" | "verify-full";

/** TLS of a session. Certificates and keys are PEM. */
export interface TlsOptions {
  /**
   * - `disable`: no TLS.
   * - `allow`: without TLS first, with TLS when the server refuses that.
   * - `prefer`: with TLS first; without it when the server has none, or refuses the login.
   * - `require`: with TLS; the certificate is not checked, unless `ca` is given, which makes it `verify-ca` as in libpq.
   * - `verify-ca`: the certificate is signed by somebody whom we trust.
   * - `verify-full`: that, and it is the host's.
   */
  readonly mode: SslMode;
  /** TLS from the first byte, with ALPN `postgresql` (PostgreSQL 17); only where `mode` is `require` or more. */
  readonly direct: boolean;
  /** Whom to trust; without it the runtime's list. */
  readonly ca?: string | undefined;
  /** Our own certificate. */
  readonly cert?: string | undefined;
  /** Its private key. */
  readonly key?: string | undefined;
  /** Whether the host's name is told before the encryption (SNI). */
  readonly sni: boolean;
  /** What else is given to `connect` of `node:tls`, which it overrides. */
  readonly more: Readonly<Record<string, unknown>>;
}

/** How a server may ask who we are, in libpq's words; `none`: it does not ask. */
export type AuthMethod = "password" | "md5" | "gss" | "sspi" | "scram-sha-256" | "oauth" | "none";

/** Which kind of server will do, in libpq's words. */
export type TargetSessionAttrs =
  | "any"
  | "read-write"
  | "read-only"
  | "primary"
  | "standby"
  | "prefer-standby";

/** What it takes to open sessions. All is checked by whoever makes it; what may be a secret is a function, so that nothing prints it. */
export interface StartupOptions {
  /** Where to connect; at least one. */
  readonly hosts: readonly StartupHost[];
  /** Tries the hosts, and the addresses of each, in random order, anew at each connect. */
  readonly shuffle: boolean;
  /** Milliseconds for one address of a host, from dialling to the last step; 0 = no limit. */
  readonly connectTimeout: number;
  /** Which kind of server will do. */
  readonly attrs: TargetSessionAttrs;
  /** The role. */
  readonly user: string;
  /** The database. */
  readonly database: string;
  /** Asked when the server wants one, once for each connection; null or "" = there is none. */
  readonly password: (host: StartupHost) => string | null | Promise<string | null>;
  /** The server's settings and `options`, `application_name`, `replication`, beside user and database; sent as they are, "" too. */
  readonly settings: Readonly<Record<string, string>>;
  /** TLS. */
  readonly tls: TlsOptions;
  /** The only methods that the server may ask for, or null for any. */
  readonly requireAuth: readonly AuthMethod[] | null;
  /** Whether the login is bound to the TLS session: never, where both can, always. */
  readonly channelBinding: "disable" | "prefer" | "require";
  /** How many rounds of hashing a server may ask for, at most. PostgreSQL's default is 4,096. */
  readonly maxScramIterations: number;
  /** The oldest protocol that will do. */
  readonly minProtocol: "3.0" | "3.2";
  /** The newest protocol to ask for; a server that has an older one answers so. */
  readonly maxProtocol: "3.0" | "3.2";
  /** Makes the error of what the server refuses with, from the fields of its ErrorResponse by their letters. */
  readonly serverError: (fields: ReadonlyMap<string, string>) => Error;
}

/** What startup needs of the world around it; a simulation brings its own. */
export interface StartupWorld {
  /** Opens a transport to one host or address. */
  readonly open: OpenTransport;
  /** The addresses of a name, or null where `open` takes names. */
  readonly lookup: ((host: string) => Promise<readonly string[]>) | null;
  /** Calls `fn` after so many milliseconds, unless the returned function is called before. */
  readonly after: (milliseconds: number, fn: () => void) => () => void;
  /** A number from 0 to below 1. */
  readonly random: () => number;
  /** So many bytes that nobody can guess. */
  readonly randomBytes: (length: number) => Uint8Array;
}

/** A session that has been opened; its transport is paused and has told everything but what is in `rest`. */
export interface Started {
  /** What it speaks through. */
  readonly transport: Transport;
  /** The host at which it is. */
  readonly host: StartupHost;
  /** What a cancel request must show; the secret has 4 to 256 bytes, none where the server gave no key. */
  readonly key: { readonly pid: number; readonly secret: Uint8Array };
  /** What the server has told of its settings. */
  readonly parameters: Map<string, string>;
  /** The transaction state of the first ReadyForQuery: `I`. */
  readonly status: number;
  /** Bytes that have come behind it. */
  readonly rest: Uint8Array | null;
  /** True when it is encrypted. */
  readonly encrypted: boolean;
  /** The protocol's version, such as `3.2`. */
  readonly protocol: "3.0" | "3.2";
  /**
   * The kind of server that it must stay, for {@linkcode misfit}; `any` where there is no such wish, and where
   * `prefer-standby` had to take what there was.
   */
  readonly attrs: TargetSessionAttrs;
  /** Asks the server, on a connection of its own, to cancel what this session runs; `due` is asked last whether that is still wanted. */
  readonly cancel: (signal: AbortSignal, due: () => boolean) => Promise<void>;
}

/**
 * Why a server is not of the kind that is wanted, in libpq's words; null when it is, or does not tell
 * (before PostgreSQL 14). To be asked again when a living session hears of a changed parameter:
 * a server was promoted, or became read-only.
 */
export function misfit(
  attrs: TargetSessionAttrs,
  parameters: ReadonlyMap<string, string>,
): string | null {
  const hot = parameters.get("in_hot_standby");
  const byDefault = parameters.get("default_transaction_read_only");
  if (hot === undefined || byDefault === undefined) return null;
  return misfitOf(attrs, hot === "on", hot === "on" || byDefault === "on");
}

/** The meanings of the kinds. A hot standby is read-only whatever the default is. */
export function misfitOf(
  attrs: TargetSessionAttrs,
  standby: boolean,
  readOnly: boolean,
): string | null {
  switch (attrs) {
    case "read-write":
      return readOnly ? "session is read-only" : null;
    case "read-only":
      return readOnly ? null : "session is not read-only";
    case "primary":
      return standby ? "server is in hot standby mode" : null;
    case "standby":
    case "prefer-standby":
      return standby ? null : "server is not in hot standby mode";
    case "any":
      return null;
  }
}
