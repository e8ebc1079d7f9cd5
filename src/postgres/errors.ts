/** Errors in the driver's own shape. */

/** An error that is no connection's fault. */
export function genericError(code: string, message: string): Error {
  return Object.assign(new Error(`${code}: ${message}`), { code });
}

/** What to do about the commonest failures, by the code of the server or of the system. */
const HINTS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "is the server running there, and are host and port right?",
  ENOTFOUND: "is the host's name right?",
  ENOENT: "is the server running there, and are the socket's folder and port right?",
  ETIMEDOUT: "is the server running there, and does a firewall let us through?",
  CONNECT_TIMEOUT: "is the server running there, and does a firewall let us through?",
  "28P01": "are user and password right (options, connection string, PGPASSWORD, ~/.pgpass)?",
  "28000": "is the user right, and does pg_hba.conf let it in from here?",
  "3D000": "create it, or name another one as dbname",
  "53300":
    "give the pool a smaller maxconn, the server a larger max_connections, or put PgBouncer between",
  "57P03": "it is starting or stopping: with pool: { timeout } getconn waits for it",
  TLS_REFUSED: "turn TLS on at the server, or give up on it with sslmode=disable (ssl: false)",
  AUTH_REFUSED:
    "give password, a line in ~/.pgpass, or change what require_auth and channel_binding ask for",
  "57014":
    "it was cancelled, or took longer than statement_timeout: set local statement_timeout gives one transaction more",
  "40P01": "run the transaction again, and lock in the same order everywhere",
  "40001": "run the transaction again",
  "42601": "the character is counted in the text as it was sent: error.query",
};

/** Gives an error that tells what happened a hint at what to do, where it has none of its own. */
export function withHint<T>(error: T): T {
  const first = error instanceof AggregateError ? error.errors[0] : error;
  const { code } = (first ?? {}) as { code?: unknown };
  if (!(error instanceof Error) || typeof code !== "string" || !Object.hasOwn(HINTS, code)) {
    return error;
  }
  const one = error as Error & { hint?: string };
  // The server's own on a deadlock only says where to read on.
  if ((!one.hint || code === "40P01") && Object.isExtensible(one)) {
    Object.defineProperty(one, "hint", {
      value: one.hint ? `${HINTS[code]}. ${one.hint}` : HINTS[code],
      writable: true,
      configurable: true,
      enumerable: true,
    });
  }
  return error;
}
