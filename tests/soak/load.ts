/** What a task of the soak does: every way to use, misuse and abandon a lease. */

import type { Connection, SimpleConnectionPool } from "../../mod.ts";
import type { Dice } from "./dice.ts";
import type { Witness } from "./witness.ts";

/** What tasks work on. */
export interface Ground {
  readonly pool: SimpleConnectionPool;
  readonly witness: Witness;
  readonly stopped: () => boolean;
}

type Work = (conn: Connection, ground: Ground, dice: Dice) => Promise<unknown>;

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Each leaves the lease as a borrower might; the pool must cope with it. */
const WORKS: readonly Work[] = [
  (conn) => conn`select 1`,
  (conn) => conn`select i from generate_series(1, 500) i`,
  (conn, _ground, dice) => conn`select pg_sleep(${dice.from(0, 30) / 1000})`,
  // A commit to be remembered.
  async (conn, { witness }, dice) => {
    const id = witness.id();
    await conn.begin(async (sql) => {
      await sql`insert into ledger values (${id})`;
      if (dice.chance(0.3)) await sql`select pg_sleep(0.005)`;
    });
    witness.acknowledged.push(id);
  },
  async (conn, { witness }) => {
    const id = witness.id();
    await conn`insert into ledger values (${id})`;
    witness.acknowledged.push(id);
  },
  // Put back in a transaction, in a failed one, and in the middle of a statement.
  async (conn, { witness }) => {
    const id = witness.id();
    witness.undone.add(id);
    await conn`begin`;
    await conn`insert into ledger values (${id})`;
  },
  async (conn) => {
    await conn`begin`;
    await conn`select 1/0`;
  },
  (conn) => {
    conn`select pg_sleep(0.05)`.execute().catch(() => {});
    return Promise.resolve();
  },
  async (conn) => {
    for await (const rows of conn`select i from generate_series(1, 100) i`.cursor(10)) {
      if (rows[0]?.["i"] > 40) break;
    }
  },
  async (conn) => {
    const query = conn`select pg_sleep(5)`.execute();
    setTimeout(() => query.cancel(), 5);
    await query;
  },
  async (conn) => void await conn.listen("soak", () => {}),
  (conn) => conn.close(),
  (_conn, _ground, dice) => pause(dice.from(0, 20)),
  async (conn) => void await conn.begin((sql) => sql.savepoint((part) => part`select 1`)),
];

/** Works until the storm is over. */
export async function task(name: string, ground: Ground, dice: Dice): Promise<void> {
  while (!ground.stopped()) {
    try {
      await turn(name, ground, dice);
    } catch (error) {
      ground.witness.failed(error);
      // A server that is away shall not make this a busy loop.
      await pause(dice.from(1, 20));
    }
    if (dice.chance(0.05)) await pause(dice.from(1, 50));
  }
}

async function turn(name: string, ground: Ground, dice: Dice): Promise<void> {
  const { pool, witness } = ground;
  const timeout = dice.of([0, 50, 300, 2_000, 5_000]);
  const key = dice.chance(0.1) ? name : null;
  const abort = new AbortController();
  const timer = dice.chance(0.1)
    ? setTimeout(() => abort.abort(new Error("left")), dice.from(0, 100))
    : undefined;
  const begun = performance.now();
  let conn: Connection;
  try {
    conn = await pool.getconn(key, { timeout, signal: abort.signal });
  } finally {
    clearTimeout(timer);
    witness.settled(performance.now() - begun, timeout);
  }
  const { pid } = conn;
  witness.lent(pid, name);
  try {
    await probe(conn, name, witness);
    await dice.of(WORKS)(conn, ground, dice);
  } finally {
    // Before the pool may lend it again.
    witness.returned(pid);
    const back = pool.putconn(conn, key, dice.chance(0.03));
    if (dice.chance(0.7)) await back;
    else back.catch((error) => witness.violated(`putconn rejected: ${error}`));
  }
}

/** A fresh lease is in no transaction: now() is the moment of this very statement. */
async function probe(conn: Connection, name: string, witness: Witness): Promise<void> {
  // It may be lost by now, which is no fault; anything but that and idle is.
  const { transactionStatus: state } = conn;
  if (state !== "idle" && state !== "unknown") witness.violated(`${name} was lent ${state}`);
  // In one message, for a statement that is prepared first begins its transaction a little earlier.
  const [row] = await conn.unsafe<{ fresh: boolean; pid: number; channels: number }[]>(
    `select now() = statement_timestamp() as fresh, pg_backend_pid() as pid,
      (select count(*)::int from pg_listening_channels()) as channels`,
  );
  if (row?.fresh !== true || row.channels !== 0) {
    witness.violated(`${name} was lent a dirty session: ${JSON.stringify(row)}`);
  }
  if (row?.pid !== conn.pid) witness.violated(`${name}: pid ${conn.pid} answers as ${row?.pid}`);
}
