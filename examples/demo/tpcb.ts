/** TPC-B as pgbench defines it: the tables, and the one transaction that the whole load consists of. */

import type postgres from "postgres";

/** Rows for each unit of scale. */
export const ROWS = { branches: 1, tellers: 10, accounts: 100_000 } as const;

/** One transfer: money comes to a teller of a branch for an account (or leaves, when negative). */
export interface Transfer {
  /** Unique for ever: a transaction that is tried again is a new transfer. */
  readonly id: number;
  readonly account: number;
  readonly teller: number;
  readonly branch: number;
  readonly delta: number;
}

/** Makes and fills the tables in the current schema. */
export async function createTables(sql: postgres.Sql, scale: number): Promise<void> {
  const [branches, tellers, accounts] = [
    scale * ROWS.branches,
    scale * ROWS.tellers,
    scale * ROWS.accounts,
  ];
  await sql`create table branches (bid int not null, bbalance int not null, filler char(88))`;
  await sql`create table tellers
    (tid int not null, bid int not null, tbalance int not null, filler char(84))`;
  await sql`create table accounts
    (aid int not null, bid int not null, abalance int not null, filler char(84))`;
  // pgbench's history, and the id by which the audit finds each transfer again.
  await sql`create table history
    (id bigint primary key, tid int, bid int, aid int, delta int, mtime timestamp)`;
  await sql`insert into branches (bid, bbalance) select n, 0 from generate_series(1, ${branches}::int) n`;
  await sql`insert into tellers (tid, bid, tbalance)
    select n, (n - 1) / ${ROWS.tellers}::int + 1, 0 from generate_series(1, ${tellers}::int) n`;
  await sql`insert into accounts (aid, bid, abalance, filler)
    select n, (n - 1) / ${ROWS.accounts}::int + 1, 0, '' from generate_series(1, ${accounts}::int) n`;
  // After the rows: building an index at once is faster than growing it.
  await sql`alter table branches add primary key (bid)`;
  await sql`alter table tellers add primary key (tid)`;
  await sql`alter table accounts add primary key (aid)`;
  for (const table of ["branches", "tellers", "accounts"]) {
    await sql`vacuum analyze ${sql(table)}`;
  }
}

/** A transfer between random parties, with pgbench's range of amounts. */
export function randomTransfer(id: number, scale: number): Transfer {
  return {
    id,
    account: random(1, scale * ROWS.accounts),
    teller: random(1, scale * ROWS.tellers),
    branch: random(1, scale * ROWS.branches),
    delta: random(-5000, 5000),
  };
}

/**
 * The body of the transaction, between BEGIN and COMMIT; statement by statement, as pgbench does it.
 *
 * @returns the account's balance
 */
export async function runTransfer(sql: postgres.TransactionSql, to: Transfer): Promise<number> {
  await sql`update accounts set abalance = abalance + ${to.delta} where aid = ${to.account}`;
  const [row] = await sql<{ abalance: number }[]>`
    select abalance from accounts where aid = ${to.account}`;
  await sql`update tellers set tbalance = tbalance + ${to.delta} where tid = ${to.teller}`;
  await sql`update branches set bbalance = bbalance + ${to.delta} where bid = ${to.branch}`;
  await sql`insert into history (id, tid, bid, aid, delta, mtime)
    values (${to.id}, ${to.teller}, ${to.branch}, ${to.account}, ${to.delta}, current_timestamp)`;
  return row!.abalance;
}

function random(from: number, to: number): number {
  return from + Math.floor(Math.random() * (to - from + 1));
}
