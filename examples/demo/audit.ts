/** The audit: does what the server has agree with what the tasks were told? */

import type { AbstractConnectionPool, Connection } from "@getconn/pool";
import type postgres from "postgres";
import { count } from "./format.ts";
import type { Ledger } from "./ledger.ts";
import type { Check } from "./report.ts";
import type { Sampler } from "./sampler.ts";
import type { TaskCount } from "./site.ts";

/** Rows that are fetched at once: a long run has millions. */
const BATCH = 10_000;

/** Every table and its key, its balance, and the column of history that refers to it. */
const BOOKS = [
  { table: "accounts", key: "aid", balance: "abalance" },
  { table: "tellers", key: "tid", balance: "tbalance" },
  { table: "branches", key: "bid", balance: "bbalance" },
] as const;

/** The money: nothing came from nowhere, nothing is lost, and every row has its own history. */
export async function auditBalances(sql: postgres.Sql): Promise<Check[]> {
  const [sums] = await sql<{ all: string[] }[]>`
    select array[
      (select coalesce(sum(abalance), 0)::text from accounts),
      (select coalesce(sum(tbalance), 0)::text from tellers),
      (select coalesce(sum(bbalance), 0)::text from branches),
      (select coalesce(sum(delta), 0)::text from history)
    ] as all`;
  const different = [...new Set(sums!.all)];
  const wrong: string[] = [];
  for (const { table, key, balance } of BOOKS) {
    const [row] = await sql<{ rows: number }[]>`
      select count(*)::int as rows from ${sql(table)} as book
      full join (select ${sql(key)}, sum(delta) as total from history group by 1) as story
      using (${sql(key)})
      where book.${sql(balance)} is distinct from coalesce(story.total, 0)`;
    if (row!.rows > 0) wrong.push(`${count(row!.rows)} ${table}`);
  }
  return [
    {
      name: "accounts, tellers, branches, history: one sum",
      passed: different.length === 1,
      found: different.map((sum) => count(Number(sum))).join(" / "),
    },
    {
      name: "each balance is the sum of its own history",
      passed: wrong.length === 0,
      found: wrong.length === 0 ? "all" : `wrong: ${wrong.join(", ")}`,
    },
  ];
}

/** The transfers: what was acknowledged is there once, what failed is not, and nothing else is. */
export async function auditLedger(sql: postgres.Sql, ledger: Ledger): Promise<Check[]> {
  const seen = new Map<number, number>();
  const query = sql<{ id: number }[]>`select id::float8 as id from history`;
  for await (const rows of query.cursor(BATCH)) {
    for (const { id } of rows) seen.set(id, (seen.get(id) ?? 0) + 1);
  }
  let [kept, happened, undone, twice, foreign] = [0, 0, 0, 0, 0];
  for (const [id, times] of seen) {
    const outcome = ledger.get(id);
    if (outcome === "acknowledged") kept += times === 1 ? 1 : 0;
    else if (outcome === "failed") undone++;
    else if (outcome === undefined) foreign++;
    else {
      happened++;
      if (times > 1) twice++;
    }
  }
  const acknowledged = ledger.count("acknowledged");
  const failed = ledger.count("failed");
  // One that is still on its way is as unknown as one whose answer was lost.
  const unknown = ledger.count("unknown") + ledger.count("sent");
  return [
    {
      name: "every acknowledged commit is there, once",
      passed: kept === acknowledged && acknowledged > 0,
      found: `${count(kept)} of ${count(acknowledged)}`,
    },
    {
      name: "none of the failed ones is",
      passed: undone === 0,
      found: `${count(undone)} of ${count(failed)}`,
    },
    {
      name: "unknown outcomes: there once or not at all",
      passed: twice === 0,
      found: `${count(happened)} of ${count(unknown)} there${twice > 0 ? `, ${twice} twice` : ""}`,
    },
    { name: "nothing is there that nobody sent", passed: foreign === 0, found: `${foreign}` },
  ];
}

/** The cap, as the server saw it. */
export function auditCap(sampler: Sampler, maxconn: number): Check {
  const { most, looks, failure } = sampler;
  const failed = failure === undefined ? "" : `; stopped by ${String(failure)}`;
  return {
    name: "sessions at the server never exceeded maxconn",
    passed: most <= maxconn && looks > 0 && failure === undefined,
    found: `most ${most}, cap ${maxconn}${failed}`,
  };
}

/** The tasks: those of a terminated worker ended with it, all others have to end by themselves. */
export function auditTasks({ all, running, terminated, failures }: TaskCount): Check {
  const others = terminated > 0 ? [`${count(terminated)} terminated`] : [];
  return {
    name: "every task ended",
    passed: running === 0 && failures.length === 0,
    found: [`${count(all - running)} of ${count(all)}`, ...others, ...failures].join(", "),
  };
}

/** The pool after the storm: no permit is lost, so maxconn connections can be lent at once. */
export async function auditLending(
  pool: Pick<AbstractConnectionPool<Connection>, "getconn">,
  maxconn: number,
): Promise<Check> {
  const name = "the pool can still lend maxconn at once";
  await using leases = new AsyncDisposableStack();
  const pids = new Set<number>();
  try {
    const asked = Array.from({ length: maxconn }, async () => {
      const conn = leases.use(await pool.getconn(null, { timeout: 10_000 }));
      const [row] = await conn<{ pid: number }[]>`select pg_backend_pid() as pid`;
      pids.add(row!.pid);
    });
    await Promise.all(asked);
    return { name, passed: pids.size === maxconn, found: `${pids.size} of ${maxconn}` };
  } catch (error) {
    return { name, passed: false, found: `${pids.size} of ${maxconn}: ${String(error)}` };
  }
}

/** The server after the pool has closed: a closed session is gone, not about to go. */
export async function auditClosed(sampler: Sampler): Promise<Check> {
  const left = await sampler.look();
  return { name: "after close no session is left", passed: left === 0, found: `${left} left` };
}
