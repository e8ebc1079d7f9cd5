/** What a task does with a lease: every way to use, misuse and abandon it. */

import type { Connection } from "../../mod.ts";
import type { Dice } from "../support/dice.ts";
import type { Arena } from "./arena.ts";

/** What works need beside the lease. */
export interface Scene {
  readonly arena: Arena;
  readonly dice: Dice;
}

/** One way to use a lease. */
export type Work = (conn: Connection, scene: Scene) => Promise<unknown>;

/** Some time. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function commit(conn: Connection, { arena, dice }: Scene): Promise<void> {
  const id = arena.journal.id();
  await conn.begin(async (sql) => {
    await sql`insert into ledger values (${id})`;
    if (dice.chance(0.3)) await sql`select pg_sleep(0.005)`;
  });
  arena.journal.acknowledged(id, arena.number);
}

async function insert(conn: Connection, { arena }: Scene): Promise<void> {
  const id = arena.journal.id();
  await conn`insert into ledger values (${id})`;
  arena.journal.acknowledged(id, arena.number);
}

/** Put back in a transaction: what it wrote must never be seen. */
async function abandon(conn: Connection, { arena }: Scene): Promise<void> {
  const id = arena.journal.id();
  arena.journal.undone(id);
  await conn`begin`;
  await conn`insert into ledger values (${id})`;
}

async function fail(conn: Connection): Promise<void> {
  await conn`begin`;
  await conn`select 1/0`;
}

/** Put back in the middle of a statement. */
function walkAway(conn: Connection): Promise<void> {
  conn`select pg_sleep(0.05)`.execute().catch(() => {});
  return Promise.resolve();
}

async function breakCursor(conn: Connection): Promise<void> {
  for await (const rows of conn`select i from generate_series(1, 100) i`.cursor(10)) {
    if (rows[0]?.["i"] > 40) break;
  }
}

async function cancel(conn: Connection): Promise<void> {
  const query = conn`select pg_sleep(5)`.execute();
  setTimeout(() => query.cancel(), 5);
  await query;
}

/** Longer than the server has patience: 57014. */
function tooLong(conn: Connection, { dice }: Scene): Promise<unknown> {
  return conn.begin(async (sql) => {
    await sql.unsafe(`set local statement_timeout = ${dice.from(5, 40)}`);
    await sql`select pg_sleep(0.5)`;
  });
}

/** Idle in a transaction for longer than the server has patience: 25P03 ends the session. */
async function tooIdle(conn: Connection, { arena, dice }: Scene): Promise<void> {
  const id = arena.journal.id();
  arena.journal.undone(id);
  await conn.unsafe(
    `begin; set local idle_in_transaction_session_timeout = ${dice.from(5, 30)};
     insert into ledger values (${id})`,
  );
  await pause(dice.from(0, 80));
  if (dice.chance(0.5)) await conn`select 1`;
}

/** Whoever listens uses the lease for as long: it is not forgotten, whatever its borrower does. */
export async function listen(conn: Connection): Promise<void> {
  await conn.listen("soak", () => {});
}

const everywhere: readonly Work[] = [
  (conn) => conn`select 1`,
  (conn) => conn`select i from generate_series(1, 500) i`,
  (conn, { dice }) => conn`select pg_sleep(${dice.from(0, 30) / 1000})`,
  commit,
  commit,
  insert,
  abandon,
  fail,
  walkAway,
  breakCursor,
  cancel,
  tooLong,
  tooIdle,
  (conn) => conn.close(),
  (_conn, { dice }) => pause(dice.from(0, 20)),
  async (conn) => void await conn.begin((sql) => sql.savepoint((part) => part`select 1`)),
];

/** What only a session of one's own can do. */
const onSessions: readonly Work[] = [
  ...everywhere,
  listen,
];

/** What may be done on this pool. */
export function worksOf({ sessions }: Arena): readonly Work[] {
  return sessions ? onSessions : everywhere;
}
