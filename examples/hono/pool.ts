/** The app's pool. */

import { SimpleConnectionPool } from "@getconn/pool";
import process from "node:process";

/** Nothing is opened before the first request. */
export const pool: SimpleConnectionPool = new SimpleConnectionPool(
  0,
  10,
  process.env["DATABASE_URL"],
  { queryTimeout: 10_000, pool: { name: "bank", timeout: 5_000 } },
);
