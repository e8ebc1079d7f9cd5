/** LISTEN on a leased session. */

import { callSafely } from "../pool/safely.ts";
import { bindContext } from "../runtime.ts";
import type { Scope } from "./scope.ts";

/** What `listen` resolves to, as in the driver. */
export interface Listening {
  readonly state: unknown;
  readonly unlisten: () => Promise<unknown>;
}

/** The most bytes of an identifier; the server cuts a longer one, and tells of notifications by what is left. */
const MOST_BYTES = 63;

/** A name as an identifier of SQL. */
export function quoted(name: string): string {
  return `"${name.replace(/"/g, '""')}"`;
}

/** Throws when nothing could ever be heard. */
export function checkListen(channel: unknown, fn: unknown): void {
  if (typeof channel !== "string" || typeof fn !== "function") {
    throw new TypeError("listen takes a channel and a function");
  }
  const bytes = new TextEncoder().encode(channel).length;
  if (bytes === 0 || bytes > MOST_BYTES) {
    throw new RangeError(`the name of a channel has 1 to ${MOST_BYTES} bytes, not ${bytes}`);
  }
}

/**
 * Listens on the lease's own session, until `unlisten` or the end of the lease. A session on which
 * somebody still listens at putconn is closed, as its next borrower must not inherit that.
 */
export async function listen(
  scope: Scope,
  channel: string,
  fn: (payload: string) => void,
  onlisten?: () => void,
): Promise<Listening> {
  scope.assert();
  checkListen(channel, fn);
  const { session } = scope;
  const { listeners } = session;
  const told = bindContext(fn);
  const name = quoted(channel);
  const callback = (payload: string): unknown => {
    // Through the scope, so that a lease that listens is in use for as long.
    return scope.lease.open && scope.leaseHandle !== undefined ? told(payload) : undefined;
  };
  listeners.add(channel, callback);
  let result: { state: unknown };
  try {
    result = await session.command(`listen ${name}`) as { state: unknown };
  } catch (error) {
    listeners.remove(channel, callback);
    throw error;
  }
  if (onlisten !== undefined) callSafely("onlisten", onlisten);
  return {
    state: result.state,
    unlisten: async () => {
      scope.assert();
      if (!listeners.remove(channel, callback)) return undefined;
      let done = false;
      try {
        const result = await session.command(`unlisten ${name}`);
        // Within a transaction it counts when that is committed.
        done = session.lastState === "idle";
        return result;
      } finally {
        if (!done) listeners.doubt();
      }
    },
  };
}
