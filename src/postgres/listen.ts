/** LISTEN on a leased session. */

import type { Scope } from "./scope.ts";

/** What `listen` resolves to, as in the driver. */
export interface Listening {
  readonly state: unknown;
  readonly unlisten: () => Promise<unknown>;
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
  const { session } = scope;
  const { listeners } = session;
  const name = `"${String(channel).replace(/"/g, '""')}"`;
  const callback = (payload: string): void => {
    // Through the scope, so that a lease that listens is in use for as long.
    if (scope.loan.open && scope.owner !== undefined) fn(payload);
  };
  listeners.add(channel, callback);
  let result: { state: unknown };
  try {
    result = await session.run(`listen ${name}`) as { state: unknown };
  } catch (error) {
    listeners.remove(channel, callback);
    throw error;
  }
  onlisten?.();
  return {
    state: result.state,
    unlisten: async () => {
      scope.assert();
      return listeners.remove(channel, callback)
        ? await session.run(`unlisten ${name}`)
        : undefined;
    },
  };
}
