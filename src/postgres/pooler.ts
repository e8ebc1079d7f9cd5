/**
 * Whether a pooler stands between a session and its server.
 *
 * One that works by the transaction gives the server to somebody else at each end of one. Where it does that while a part of
 * the next message is on its way already (PgBouncer 1.18 does), the rest goes to another server: statements get
 * the values of others. So through a pooler one statement is sent at a time, unless the user has said how many.
 */

import type { Session } from "./session.ts";

/** Poolers give out keys for cancel requests of their own, with a pid that no server has. */
const QUESTION = "select pg_catalog.pg_backend_pid()";

/**
 * Asks the server, in the one round trip of a new session; nothing may be sent behind it before that is known. With
 * `pid`, what the server has said already.
 */
export async function isPooled(
  session: Pick<Session, "run" | "started">,
  pid?: string | null,
): Promise<boolean> {
  try {
    if (pid === undefined) pid = (await session.run(QUESTION)).row[0];
    return typeof pid !== "string" || Number(pid) !== session.started.key.pid;
  } catch (error) {
    // Not known there, or not allowed: no server that we know.
    if (/^(?:42|0A)/.test(String((error as { code?: unknown })?.code))) return true;
    throw error;
  }
}
