/** Errors for a connection that is gone, as programs know them: `code`, `errno`, `address`, `port`. */

/** Why a session is of no use to a request that did not open it, where the host is so strict. */
export const FOREIGN =
  "the connection belongs to another request: Cloudflare Workers allow no socket to be used across requests";

/** The error for this place; `verb` is what was tried. */
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
