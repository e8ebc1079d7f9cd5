/**
 * Whether a pooler stands between a pool and its server.
 *
 * One that works by the transaction gives the server to somebody else at each end of one. Where it does that while a part of
 * the next message is on its way already (PgBouncer 1.18 does), the rest goes to another server: statements get
 * the values of others. So through a pooler one statement is sent at a time, unless the user has said how many.
 */

import { placeOf } from "./wire/startup.ts";
import type { Session } from "./session.ts";

/** Poolers give out keys for cancel requests of their own, with a pid that no server has. */
const QUESTION = "select pg_catalog.pg_backend_pid()";

/** Who can be asked. */
type Asked = Pick<Session, "run" | "started">;

/** What is known of the places of one pool. */
export class Poolers {
  readonly #known = new Map<string, boolean>();

  /** Makes sure that it is known of this session's place. True when this session was asked for it. */
  async ensure(session: Asked): Promise<boolean> {
    const { target, key } = session.started;
    const place = placeOf(target);
    if (this.#known.has(place)) return false;
    const pid = await session.run(QUESTION).then(({ row }) => Number(row[0]), (error) => {
      // Not known there, or not allowed: no server that we know.
      if (/^(?:42|0A)/.test(error?.code)) return null;
      throw error;
    });
    this.#known.set(place, pid !== key.pid);
    return true;
  }

  /** True when there is one in between; known after `ensure`. */
  between({ started }: Asked): boolean {
    return this.#known.get(placeOf(started.target)) !== false;
  }
}
