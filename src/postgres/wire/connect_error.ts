/** Why no session could be opened, and whether trying again can help; and the errors of one that is gone. */

/** The code of whatever was thrown; undefined when it has none. */
export function codeOf(error: unknown): unknown {
  return (error as { code?: unknown } | null | undefined)?.code;
}

/** What is wrong, for programs. */
export type ConnectErrorCode =
  | "CONNECT_TIMEOUT"
  | "CONNECTION_CLOSED"
  | "TLS_REFUSED"
  | "AUTH_REFUSED"
  | "UNFIT_SERVER"
  | "UNSUPPORTED";

/** A failure to open a session that is neither the server's word nor the socket's. */
export class ConnectError extends Error {
  /**
   * - `CONNECT_TIMEOUT`: no session within the limit.
   * - `CONNECTION_CLOSED`: the server closed it without a word.
   * - `TLS_REFUSED`: no TLS where it is asked for, or not the one that is.
   * - `AUTH_REFUSED`: the server asks for, or leaves out, what the options forbid; or it does not know the password.
   * - `UNFIT_SERVER`: not the kind of server that `target_session_attrs` asks for.
   * - `UNSUPPORTED`: a wish that nothing here can fulfil.
   */
  readonly code: ConnectErrorCode;
  declare cause?: unknown;

  /** Never with a password in it. */
  constructor(code: ConnectErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "ConnectError";
    this.code = code;
  }
}

/** When the limit ran out it was not the server that gave no answer, but this: to be told instead. Other errors as they are. */
export function lateBy(error: unknown, what: string, hint: string): unknown {
  if (!(error instanceof ConnectError) || error.code !== "CONNECT_TIMEOUT") return error;
  return Object.assign(new ConnectError(error.code, `${error.message}: ${what}`), { hint });
}

/** What shows that the server at the other end is not the one that is meant, or that somebody is between. */
export function untrusted(error: Error): ConnectError {
  const hint = "is it the server that you mean, does it know this password, and is nobody between?";
  return Object.assign(new ConnectError("AUTH_REFUSED", error.message, error), { hint });
}

/** Errors that were the server's own word. */
const fromServer: WeakSet<Error> = new WeakSet();

/** Remembers that the server has refused a login with this. */
export function markServerError(error: Error): Error {
  fromServer.add(error);
  return error;
}

/** True for what a server has refused a login with. */
export function isServerError(error: unknown): boolean {
  return error instanceof Error && fromServer.has(error);
}

/** SQLSTATE classes and codes that stay until somebody changes something; all others may heal. */
const PERMANENT = new Set([
  // Not this user, not this password, no such database, no right to it.
  "28000",
  "28P01",
  "3D000",
  "42501",
  // A setting that the server does not know, or a value that it does not take.
  "42704",
  "22023",
  "42601",
  "42602",
  "55P02",
  // A protocol or an option of it that it does not have.
  "0A000",
]);
/** Of PgBouncer, which has one code for everything. */
const POOLER =
  /no such (?:database|user)|unsupported startup (?:parameter|option)|authentication failed/;
/** It says this for every failure to log in at the server behind it, with the last one in it. */
const POOLER_WAITS = "server login has been failing";
/** The names that runtimes have for a certificate that is not good, and for a permission that is missing. */
const NOT_TRUSTED = /CERT|SELF_SIGNED|UNABLE_TO_|ALTNAME|HOSTNAME_MISMATCH|^EACCES$|^EPERM$/;

/**
 * True for a failure to connect that will come again until somebody changes the settings, here or at the server:
 * a wrong password, an unknown database or role, a certificate that is not trusted, an option that the server refuses.
 * False for what may heal by itself: refused, timed out, starting up, too many connections.
 */
export function isPermanent(error: unknown): boolean {
  if (error instanceof AggregateError) {
    const last = error.errors.at(-1);
    // After such a refusal no other host was asked.
    if (isServerError(last) && isPermanent(last)) return true;
    return error.errors.length > 0 && error.errors.every(isPermanent);
  }
  if (!(error instanceof Error)) return false;
  // Deno's word for what a program was not permitted to do; a TypeError is a setting that cannot be sent.
  if (error.name === "NotCapable" || error instanceof TypeError) return true;
  const code = codeOf(error);
  if (typeof code !== "string") return false;
  if (error instanceof ConnectError) {
    return code === "TLS_REFUSED" || code === "AUTH_REFUSED" || code === "UNSUPPORTED";
  }
  if (code === "08P01") {
    return POOLER.test(error.message) && !error.message.includes(POOLER_WAITS);
  }
  return PERMANENT.has(code) || NOT_TRUSTED.test(code);
}

/** Why a session is of no use to a request that did not open it, where the host is so strict. */
export const FOREIGN =
  "the connection belongs to another request: Cloudflare Workers allow no socket to be used across requests";

/**
 * The error of a connection that is gone, or not to be had in time, as programs know it: with `code`, `errno`, `address` and
 * `port`. `verb` is what was tried.
 */
export function connectionError(
  code: "CONNECTION_CLOSED" | "CONNECTION_DESTROYED" | "CONNECT_TIMEOUT",
  place: { readonly host: string; readonly port: number; readonly path: string | null },
  verb: string,
  cause?: unknown,
): Error {
  const where = place.path ?? `${place.host}:${place.port}`;
  const error = new Error(`${verb} ${code} ${where}`, cause === undefined ? undefined : { cause });
  const more = { code, errno: code, address: place.path ?? place.host };
  return Object.assign(error, place.path === null ? { ...more, port: place.port } : more);
}
