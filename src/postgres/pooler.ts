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

/** Asks the server; one round trip. */
export async function isPooled(session: Pick<Session, "run" | "started">): Promise<boolean> {
  try {
    const { row: [pid] } = await session.run(QUESTION);
    return Number(pid) !== session.started.key.pid;
  } catch (error) {
    // Not known there, or not allowed: no server that we know.
    if (/^(?:42|0A)/.test(String((error as { code?: unknown })?.code))) return true;
    throw error;
  }
}
