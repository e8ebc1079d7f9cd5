/**
 * Single statements of many callers on two connections: good, bad, slow and cancelled ones, transactions
 * hidden in texts, killed backends. Nobody feels a neighbour.
 */

import { assert, assertEquals } from "@std/assert";
import process from "node:process";
import { SimpleConnectionPool } from "@getconn/pool";
import { Dice } from "./support/dice.ts";
import { test } from "./support/harness.ts";
import { uniqueName } from "./support/postgres.ts";
import { asAdmin, eventually, testServer } from "./support/server.ts";

const STATEMENTS = process.env["GETCONN_SLOW"] ? 20_000 : 4_000;
const SEED = Number(process.env["SQL_FUZZ_SEED"] ?? Date.now() % 1_000_000);
const CALLERS = 40;
/**
 * Nobody waits for longer, whatever the neighbours do; on a slow machine, for longer than half of the whole time, as who is
 * starved waits for the end. Milliseconds.
 */
const LONGEST = 8_000;

test(
  `statements of many callers on two connections do not feel each other (SQL_FUZZ_SEED=${SEED})`,
  async () => {
    const { url } = await testServer();
    const dice = new Dice(SEED);
    const table = `fuzz_${uniqueName().replace(/\W/g, "_")}`;
    const name = uniqueName();
    await asAdmin((sql) => sql.unsafe(`create table ${table} (id int primary key)`));
    const pool = new SimpleConnectionPool(0, 2, url, {
      connection: { application_name: name },
      onnotice: () => {},
      pool: { timeout: 120_000 },
    });
    const { sql } = pool;
    const acknowledged: number[] = [];
    const refused: number[] = [];
    const counts: Record<string, number> = {};
    const wrong: string[] = [];
    let made = 0;
    let killing = false;

    function blame(what: string): void {
      if (wrong.length < 20) wrong.push(what);
    }

    /** Lost by a kill: allowed to anybody who was on that connection. */
    function lost(error: unknown): boolean {
      const { code } = error as { code?: string };
      return code === "CONNECTION_CLOSED" || code === "57P01" || code === "CONNECTION_LOST";
    }

    async function expectCode(kind: string, query: PromiseLike<unknown>, ...codes: string[]) {
      try {
        await query;
        blame(`${kind} was accepted`);
      } catch (error) {
        const code = String((error as { code?: unknown }).code);
        if (!codes.includes(code) && !lost(error)) blame(`${kind} got ${code}: ${error}`);
      }
    }

    async function select(): Promise<void> {
      const n = dice.below(1e9);
      try {
        const rows = dice.chance(0.5)
          ? await sql`select ${n}::int as n`
          : await sql.unsafe(`select ${n} as n`);
        if (rows.length !== 1 || rows[0]!["n"] !== n) {
          blame(`asked for ${n}, got ${JSON.stringify(rows)}`);
        }
      } catch (error) {
        if (!lost(error)) blame(`a select got ${(error as { code?: string }).code}: ${error}`);
      }
    }

    async function insert(): Promise<void> {
      const id = made++;
      try {
        await sql`insert into ${sql(table)} values (${id})`;
        acknowledged.push(id);
      } catch (error) {
        if (!lost(error)) {
          blame(`an insert got ${(error as { code?: string }).code}: ${error}`);
          refused.push(id);
        }
      }
    }

    async function cancelled(): Promise<void> {
      const slow = dice.chance(0.5);
      const query = slow ? sql`select pg_sleep(0.02)` : sql`select ${1}::int as n`;
      const end = query.then(
        () => {},
        (error) => {
          if ((error as { code?: string }).code !== "57014" && !lost(error)) {
            blame(`a cancelled one got ${(error as { code?: string }).code}: ${error}`);
          }
        },
      );
      if (dice.chance(0.7)) await new Promise((resolve) => setTimeout(resolve, dice.below(6)));
      query.cancel();
      await end;
    }

    const hidden: (() => PromiseLike<unknown>)[] = [
      () => sql`begin`,
      () => sql.unsafe("; begin", [], { prepare: true }),
      () => sql`/* /* */ */ begin`,
      () => sql`-- a line\rbegin`,
      () => sql`${sql``} begin`,
      () => sql`${sql`be`}gin`,
      () => sql`${sql`start`} transaction`,
      () => sql.unsafe("select 1; begin").simple(),
    ];

    async function one(): Promise<[string, Promise<void>]> {
      const roll = dice.next();
      if (roll < 0.4) return ["select", select()];
      if (roll < 0.65) return ["insert", insert()];
      if (roll < 0.72) return ["fails", expectCode("1/0", sql`select 1/0`, "22012")];
      if (roll < 0.76) return ["no statement", expectCode("selec", sql`selec`, "42601")];
      if (roll < 0.86) return ["cancelled", cancelled()];
      if (roll < 0.9) {
        return [
          "slow",
          sql`select pg_sleep(0.01)`.then(() => {}, (error) => {
            if (!lost(error)) {
              blame(`a slow one got ${(error as { code?: string }).code}: ${error}`);
            }
          }),
        ];
      }
      if (roll < 0.93) {
        return ["hidden begin", expectCode("begin", dice.of(hidden)(), "UNSAFE_TRANSACTION")];
      }
      if (roll < 0.95) {
        return [
          "state",
          sql`select set_config('fuzz.a', ${"b"}, false)`.then(() => {}, (error) => {
            if (!lost(error)) blame(`set_config got ${error}`);
          }),
        ];
      }
      if (roll < 0.97) {
        return [
          "clean?",
          sql`select current_setting('fuzz.a', true) as a`.then(([row]) => {
            if (row!["a"] !== null && row!["a"] !== "") blame("a neighbour's setting");
          }, (error) => {
            if (!lost(error)) blame(`current_setting got ${error}`);
          }),
        ];
      }
      if (roll < 0.972 && !killing) {
        await kill();
        return ["kill", Promise.resolve()];
      }
      return ["select", select()];
    }

    async function kill(): Promise<void> {
      killing = true;
      await asAdmin((admin) =>
        admin`select pg_terminate_backend(pid) from pg_stat_activity
          where application_name = ${name} order by random() limit 1`
      );
      killing = false;
    }

    let left = STATEMENTS;
    let longest = 0;
    const started = performance.now();
    async function caller(): Promise<void> {
      while (left-- > 0) {
        const begun = performance.now();
        const [kind, end] = await one();
        await end;
        counts[kind] = (counts[kind] ?? 0) + 1;
        longest = Math.max(longest, performance.now() - begun);
      }
    }
    try {
      const callers = Array.from({ length: CALLERS }, caller);
      // One at least, whatever the dice say.
      await eventually(() => assert(counts["select"]! > 50));
      await kill();
      await Promise.all(callers);
      assertEquals(wrong, []);
      const limit = Math.max(LONGEST, (performance.now() - started) / 2);
      assert(longest < limit, `somebody waited for ${Math.round(longest)} ms`);
      const rows = await asAdmin((admin) => admin.unsafe(`select id from ${table}`));
      const there = new Set(rows.map((row) => row["id"]));
      assertEquals(acknowledged.filter((id) => !there.has(id)), [], "acknowledged and lost");
      assertEquals(refused.filter((id) => there.has(id)), [], "refused and there");
      for (
        const kind of ["select", "insert", "fails", "cancelled", "slow", "hidden begin"]
      ) {
        assert(counts[kind]! > 0, `no ${kind} among ${JSON.stringify(counts)}`);
      }
    } finally {
      await pool.close({ timeout: 1_000 });
      await asAdmin((sql) => sql.unsafe(`drop table ${table}`));
    }
  },
  { timeout: 900_000 },
);
