/** The `postgres(url?, options?)` of the driver's suite: `pool.sql` of a pool. */
import process from "node:process";
import driver from "postgres";
import { SimpleConnectionPool } from "../../mod.ts";

/** The arguments of a pool: `max` and durations stand elsewhere there, and some options have no meaning. */
export function poolOf(args, more = {}) {
  const url = typeof args[0] === "string" ? [args[0]] : [];
  const { max = 10, idle_timeout, timeout = idle_timeout, max_lifetime, ...rest } =
    args[url.length] ?? {};
  for (const name of ["backoff", "publications", "no_subscribe"]) delete rest[name];
  const pool = { ...more };
  if (timeout) pool.maxIdle = timeout * 1000;
  if (max_lifetime) pool.maxLifetime = max_lifetime * 1000;
  const maxconn = max + Number(process.env.EXTRA ?? 0);
  return new SimpleConnectionPool(0, maxconn, ...url, { ...rest, pool });
}

export default Object.assign((...args) => poolOf(args).sql, driver);
