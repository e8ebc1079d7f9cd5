/** `sql` of the pools that workers share. */
import { assert, assertEquals } from "@std/assert";
import {
  PersistentConnectionPool,
  type PoolSql,
  type PoolStats,
  ThreadedConnectionPool,
} from "../mod.ts";
import { test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";

interface Pool {
  readonly sql: PoolSql;
  stats(): PoolStats;
  closeall(): Promise<void>;
}

const POOLS: Record<string, (url: string) => Pool> = {
  ThreadedConnectionPool: (url) => new ThreadedConnectionPool(0, 2, url),
  PersistentConnectionPool: (url) => new PersistentConnectionPool(0, 2, url),
};

for (const [name, make] of Object.entries(POOLS)) {
  test(`${name}: sql runs statements and transactions within the cap`, async () => {
    const pool = make((await testServer()).url);
    const { sql } = pool;
    try {
      const numbers = Array.from({ length: 20 }, (_, n) => n);
      const rows = await Promise.all(
        numbers.map((n) => sql<{ n: number }[]>`select ${n}::int as n`),
      );
      assertEquals(rows.map(([row]) => row?.n), numbers);
      const [row] = await sql.begin((sql) => sql<{ n: number }[]>`select 7 as n`);
      assertEquals(row?.n, 7);
      const { poolSize, poolMax } = pool.stats();
      assert(poolSize <= poolMax);
    } finally {
      await pool.closeall();
    }
  });
}
