/** Whether a server is of the kind that `target_session_attrs` asks for. */

import { inside } from "./driver.ts";
import type { Settings } from "./options.ts";
import type { Session } from "./session.ts";

/** Why the server will not do, or null when it will. The meanings are libpq's. */
export async function misfit(
  session: Session,
  attrs: NonNullable<Settings["attrs"]>,
): Promise<string | null> {
  const { standby, readOnly } = await stateOf(session);
  if (attrs === "read-write") return readOnly ? "session is read-only" : null;
  if (attrs === "read-only") return readOnly ? null : "session is not read-only";
  if (attrs === "primary") return standby ? "server is in hot standby mode" : null;
  return standby ? null : "server is not in hot standby mode";
}

async function stateOf(session: Session): Promise<{ standby: boolean; readOnly: boolean }> {
  // Reported by PostgreSQL 14 and later. A hot standby is read-only whatever the default is.
  const parameters = session.sql.parameters as Record<string, unknown>;
  const { in_hot_standby: hot, default_transaction_read_only: byDefault } = parameters;
  if (hot !== undefined && byDefault !== undefined) {
    return { standby: hot === "on", readOnly: hot === "on" || byDefault === "on" };
  }
  const query = session.sql.unsafe(
    "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')",
  ).raw();
  inside(query).handler = (q) => session.hand(q);
  const [row] = await query;
  const [standby, readOnly] = [String(row?.[0]) === "t", String(row?.[1]) === "on"];
  return { standby, readOnly };
}
