/**
 * Behind PgBouncer in transaction mode a session is another one for each transaction. What may be
 * used there, and how.
 *
 * @module
 */
import { SimpleConnectionPool } from "@getconn/pool";
import process from "node:process";

const pool = new SimpleConnectionPool(0, 4, process.env["DATABASE_URL"], {
  // Named statements live in one session. PgBouncer 1.21 and later follows them with
  // max_prepared_statements, and then this line is not needed.
  prepare: false,
  // The catalog is not asked for array types by each process.
  fetch_types: false,
  pool: { timeout: 5_000 },
});

// Single statements: each may run in another session.
const [row] = await pool.sql`select ${20}::int + ${22}::int as answer`;
console.log("answer", row?.["answer"]);

// What belongs together stands in one transaction, settings with `set local`.
const limit = await pool.transaction(async (conn) => {
  await conn`set local statement_timeout = '5s'`;
  await conn`select pg_advisory_xact_lock(${4711})`;
  const [setting] = await conn`show statement_timeout`;
  return setting?.["statement_timeout"];
});
console.log("limit", limit);

// Outside of a transaction no setting, temporary table, lock or channel may be relied upon.
await pool.close();
