/**
 * Leases of many callers on three connections: good, bad, slow, cancelled and limited statements, several at once on one
 * lease, transactions that are committed, rolled back, nested or left open, cursors that are left, COPY, waits that are
 * given up, closed and killed sessions. Nobody feels who had the connection before.
 */

import { assert, assertEquals } from "@std/assert";
import process from "node:process";
import { type Connection, limited, SimpleConnectionPool } from "@getconn/pool";
import { Dice } from "./support/dice.ts";
import { assertLendable, eventuallyStats } from "./support/faults.ts";
import { test } from "./support/harness.ts";
import { uniqueName } from "./support/postgres.ts";
import { asAdmin, sessions, testServer } from "./support/server.ts";

const TURNS = process.env["GETCONN_SLOW"] ? 20_000 : 3_000;
const SEED = Number(process.env["LEASE_FUZZ_SEED"] ?? Date.now() % 1_000_000);
const CALLERS = 30;
const MAXCONN = 3;
/**
 * Nobody waits for longer, whatever the others do; on a slow machine, for longer than half of the whole time, as who is
 * starved waits for the end. Milliseconds.
 */
const LONGEST = 10_000;

/** Lost by a kill: allowed to anybody. */
function lost(error: unknown): boolean {
  for (let one = error; one instanceof Error; one = one.cause) {
    const { code } = one as { code?: string };
    if (code === "CONNECTION_CLOSED" || code === "CONNECTION_LOST" || code === "57P01") return true;
  }
  return false;
}

test(
  `leases of many callers on three connections do not feel each other (LEASE_FUZZ_SEED=${SEED})`,
  async () => {
    const { url } = await testServer();
    const dice = new Dice(SEED);
    const table = `fuzz_${uniqueName().replace(/\W/g, "_")}`;
    const name = uniqueName();
    await asAdmin((sql) => sql.unsafe(`create table ${table} (id int primary key)`));
    const pool = new SimpleConnectionPool(0, MAXCONN, url, {
      connection: { application_name: name },
      onnotice: () => {},
      pool: { timeout: 120_000 },
    });
    /** What was acknowledged, and what must not be there. */
    const acknowledged: number[] = [];
    const undone: number[] = [];
    const counts: Record<string, number> = {};
    const wrong: string[] = [];
    let made = 0;
    let most = 0;

    function blame(what: string): void {
      if (wrong.length < 20) wrong.push(what);
    }

    function tell(what: string, error: unknown): void {
      blame(`${what} got ${(error as { code?: unknown }).code}: ${error}`);
    }

    async function ask(conn: Connection): Promise<void> {
      const n = dice.below(1e9);
      const [row] = dice.chance(0.5)
        ? await conn`select ${n}::int as n`
        : await conn.unsafe(`select ${n} as n`);
      if (row?.["n"] !== n) blame(`asked for ${n}, got ${JSON.stringify(row)}`);
    }

    /** Fails by one of these, and the lease works on. */
    async function fails(kind: string, query: PromiseLike<unknown>, ...codes: string[]) {
      const error = await Promise.resolve(query).then(() => null, (error) => error as unknown);
      const { code } = (error ?? {}) as { code?: string };
      if (error === null) blame(`${kind} was accepted`);
      else if (lost(error)) throw error;
      else if (!codes.includes(code!)) tell(kind, error);
    }

    /** May have been answered before the cancel came. */
    async function cancelled(query: PromiseLike<unknown>): Promise<void> {
      await Promise.resolve(query).catch((error) => {
        if (lost(error)) throw error;
        if (error.code !== "57014") tell("a cancelled one", error);
      });
    }

    const insert = (conn: Connection, id: number) =>
      conn`insert into ${conn(table)} values (${id})`;

    const works: Record<string, (conn: Connection) => Promise<unknown>> = {
      ask,
      insert: async (conn) => {
        const id = made++;
        await insert(conn, id);
        acknowledged.push(id);
      },
      bad: async (conn) => {
        await fails("1/0", conn`select 1/0`, "22012");
        await fails("selec", conn`selec`, "42601");
        await ask(conn);
      },
      several: async (conn) => {
        const first = Promise.all([ask(conn), fails("1/0", conn`select 1/0`, "22012"), ask(conn)]);
        // Whoever fails here is told of by `settled`.
        first.catch(() => {});
        // They are sent some microtasks after they were awaited. What is cancelled must be the last one: what is sent
        // behind it before may be hit in its place.
        await new Promise((resolve) => setTimeout(resolve));
        const slow = conn`select pg_sleep(0.02)`.execute();
        const settled = Promise.allSettled([first, cancelled(slow)]);
        if (dice.chance(0.7)) await new Promise((resolve) => setTimeout(resolve, dice.below(5)));
        slow.cancel();
        for (const one of await settled) if (one.status === "rejected") throw one.reason;
      },
      cancelled: async (conn) => {
        const query = conn`select ${1}::int as n`.execute();
        const settled = cancelled(query);
        query.cancel();
        await settled;
        // The cancel request may come late, but hits nobody else.
        await ask(conn);
      },
      limited: async (conn) => {
        const slow = conn`select pg_sleep(60)`;
        const { code } = await limited(slow, { queryTimeout: 5 + dice.below(20) })
          .then(() => ({}), (error) => error) as { code?: string };
        if (code === undefined) blame("a limited one was answered");
        await ask(conn).catch((error) => {
          // Its session is ended when the cancel gets no answer in time.
          if (!lost(error)) throw error;
        });
      },
      slow: (conn) => conn`select pg_sleep(${dice.below(20) / 1_000})`,
      "left open": async (conn) => {
        const id = made++;
        await conn`begin`;
        undone.push(id);
        await insert(conn, id);
        if (dice.chance(0.3)) await fails("1/0", conn`select 1/0`, "22012");
      },
      "by hand": async (conn) => {
        const id = made++;
        await conn`begin`;
        await insert(conn, id);
        if (dice.chance(0.3)) {
          undone.push(id);
          return await conn.rollback();
        }
        await conn`commit`;
        acknowledged.push(id);
      },
      nested: async (conn) => {
        const [id, inner] = [made++, made++];
        undone.push(inner);
        await conn.begin(async (sql) => {
          await sql`insert into ${sql(table)} values (${id})`;
          await sql.savepoint(async (sql) => {
            await sql`insert into ${sql(table)} values (${inner})`;
            throw new Error("undone");
          }).catch((error) => {
            if (error.message !== "undone") throw error;
          });
        });
        acknowledged.push(id);
      },
      cursor: async (conn) => {
        let next = 1;
        const until = dice.below(60);
        for await (const rows of conn`select generate_series(1, 50) as n`.cursor(7)) {
          for (const { n } of rows) if (n !== next++) blame(`a cursor's row ${n}, not ${next - 1}`);
          if (next > until) break;
          if (dice.chance(0.2)) await ask(conn);
        }
        await ask(conn);
      },
      copy: async (conn) => {
        const ids = [made++, made++, made++];
        const into = await conn`copy ${conn(table)} from stdin`.writable();
        const bad = dice.chance(0.3);
        const end = new Promise<void>((resolve, reject) => {
          into.on("finish", resolve).on("error", reject);
        });
        into.end(ids.map((id) => `${id}\n`).join("") + (bad ? "no number\n" : ""));
        if (!bad) {
          await end;
          return void acknowledged.push(...ids);
        }
        undone.push(...ids);
        await fails("copy", end, "22P02");
        await ask(conn);
      },
    };
    const kinds = Object.keys(works);

    /** One turn, in one of the ways to take a lease. */
    async function turn(): Promise<string> {
      // One at least, whatever the dice say.
      if (dice.chance(0.003) || left === TURNS / 2) {
        await asAdmin((admin) =>
          admin`select pg_terminate_backend(pid) from pg_stat_activity
          where application_name = ${name} order by random() limit 1`
        );
        return "kill";
      }
      if (dice.chance(0.05)) {
        const signal = AbortSignal.timeout(dice.below(10));
        const conn = await pool.getconn(null, { signal }).catch((error) => {
          if (!(error instanceof Error && error.name === "TimeoutError")) tell("a wait", error);
          return null;
        });
        if (conn !== null) await pool.putconn(conn);
        return "aborted wait";
      }
      const kind = dice.of(kinds);
      const work = works[kind]!;
      try {
        if (dice.chance(0.4)) await pool.use(work);
        else {
          const key = dice.chance(0.3) ? Symbol() : null;
          const conn = await pool.getconn(key);
          if (conn.transactionStatus !== "idle") blame(`lent as ${conn.transactionStatus}`);
          try {
            await work(conn);
          } finally {
            await pool.putconn(conn, key, dice.chance(0.02));
          }
          await assertReturned(conn);
        }
      } catch (error) {
        if (!lost(error)) tell(kind, error);
      }
      return kind;
    }

    async function assertReturned(conn: Connection): Promise<void> {
      const error = await conn`select 1`.then(() => null, (error) => error as { code?: string });
      if (error === null) blame("a lease works after putconn");
    }

    let left = TURNS;
    let longest = 0;
    const started = performance.now();
    async function caller(): Promise<void> {
      while (left-- > 0) {
        const begun = performance.now();
        const kind = await turn();
        counts[kind] = (counts[kind] ?? 0) + 1;
        longest = Math.max(longest, performance.now() - begun);
      }
    }
    let over = false;
    const watching = (async () => {
      while (!over) {
        most = Math.max(most, await sessions(name));
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    })();
    try {
      await Promise.all(Array.from({ length: CALLERS }, caller));
      assertEquals(wrong, []);
      const limit = Math.max(LONGEST, (performance.now() - started) / 2);
      assert(longest < limit, `somebody waited for ${Math.round(longest)} ms`);
      const rows = await asAdmin((admin) => admin.unsafe(`select id from ${table}`));
      const there = new Set(rows.map((row) => row["id"]));
      assertEquals(acknowledged.filter((id) => !there.has(id)), [], "acknowledged and lost");
      assertEquals(undone.filter((id) => there.has(id)), [], "undone and there");
      assert(most <= MAXCONN, `${most} sessions at the server`);
      for (const kind of [...kinds, "kill", "aborted wait"]) {
        assert(counts[kind]! > 0, `no ${kind} among ${JSON.stringify(counts)}`);
      }
      await eventuallyStats(pool, { leased: 0, connecting: 0 });
      await assertLendable(pool, name);
    } finally {
      over = true;
      await watching;
      await pool.close({ timeout: 1_000 });
      await asAdmin((sql) => sql.unsafe(`drop table ${table}`));
    }
  },
  { timeout: 900_000 },
);
