/** What holds for a pool of every class, in every isolate: run by `contract_test.ts` over all of them. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type AbstractConnectionPool,
  type Connection,
  ConnectionReturned,
  PoolClosed,
  PoolError,
  PoolExhausted,
  PoolTimeout,
} from "../../mod.ts";

/** What all classes have in common. */
export type AnyPool = AbstractConnectionPool<Connection>;

/** One rule. A case makes no assumption on what a key is. */
export interface Rule {
  readonly name: string;
  readonly sizes: readonly [minconn: number, maxconn: number];
  run(pool: AnyPool): Promise<void>;
}

async function pidOf(pool: AnyPool): Promise<number> {
  return await pool.use((conn) => conn.pid);
}

/** The rules. Whatever a rule leaves behind, the pool is closed after it. */
export const rules: readonly Rule[] = [
  {
    name: "getconn() and putconn() lend the same connection again",
    sizes: [0, 2],
    async run(pool) {
      const first = await pool.getconn();
      const { pid } = first;
      await pool.putconn(first);
      assertEquals(await pidOf(pool), pid);
    },
  },
  {
    name: "a lease ends with putconn(), and a second putconn() is refused",
    sizes: [0, 1],
    async run(pool) {
      const conn = await pool.getconn();
      await pool.putconn(conn);
      await assertRejects(async () => await conn`select 1`, ConnectionReturned);
      const error = await assertRejects(() => pool.putconn(conn), PoolError);
      assert(error.message.startsWith("trying to put unkeyed connection"));
    },
  },
  {
    name: "putconn() rolls back",
    sizes: [0, 1],
    async run(pool) {
      const conn = await pool.getconn();
      const { pid } = conn;
      await conn`begin`;
      await conn`create table getconn_contract ()`;
      await pool.putconn(conn);
      await pool.use(async (again) => {
        assertEquals(again.pid, pid);
        assertEquals(again.transactionStatus, "idle");
        const rows = await again`select to_regclass('getconn_contract') as found`;
        assertEquals(rows[0]!["found"], null);
      });
    },
  },
  {
    name: "use() puts back whatever happens",
    sizes: [0, 1],
    async run(pool) {
      await assertRejects(() => pool.use(() => Promise.reject(new Error("mine"))), Error, "mine");
      assertEquals(pool.stats().leased, 0);
      assertEquals(await pool.use((conn) => conn`select 1 as one`).then((r) => r[0]!["one"]), 1);
    },
  },
  {
    name: "transaction() commits, and rolls back what throws",
    sizes: [0, 1],
    async run(pool) {
      const inside = await pool.transaction((conn) => Promise.resolve(conn.transactionStatus));
      assertEquals(inside, "intrans");
      await assertRejects(
        () => pool.transaction(() => Promise.reject(new Error("mine"))),
        Error,
        "mine",
      );
      assertEquals(await pool.use((conn) => conn.transactionStatus), "idle");
    },
  },
  {
    name: "a lost connection is not lent again",
    sizes: [0, 1],
    async run(pool) {
      const conn = await pool.getconn();
      const { pid } = conn;
      await conn`select pg_terminate_backend(pg_backend_pid())`.catch(() => {});
      await pool.putconn(conn);
      assert(await pidOf(pool) !== pid);
    },
  },
  {
    name: "ready() waits for minconn",
    sizes: [1, 2],
    async run(pool) {
      await pool.ready();
      assert(pool.stats().poolSize >= 1);
    },
  },
  {
    name: "renew() replaces what is idle",
    sizes: [0, 1],
    async run(pool) {
      const pid = await pidOf(pool);
      await pool.renew();
      assert(await pidOf(pool) !== pid);
    },
  },
  {
    name: "resize() changes maxconn, and refuses nonsense",
    sizes: [0, 1],
    async run(pool) {
      await pool.resize(0, 3);
      assertEquals(pool.maxconn, 3);
      await assertRejects(() => pool.resize(2, 1), RangeError);
      assertEquals(pool.maxconn, 3);
    },
  },
  {
    name: "closeall() closes what is lent, and nothing works after it",
    sizes: [0, 1],
    async run(pool) {
      const conn = await pool.getconn();
      await pool.closeall();
      assert(pool.closed);
      await assertRejects(async () => await conn`select 1`, PoolClosed);
      await assertRejects(() => pool.getconn(), PoolClosed);
      await assertRejects(() => pool.putconn(conn), PoolClosed);
      await assertRejects(() => pool.closeall(), PoolClosed);
      await pool.close();
      assertEquals(pool.stats().poolSize, 0);
    },
  },
  {
    name: "close() waits for leases, and calling it again changes nothing",
    sizes: [0, 1],
    async run(pool) {
      const conn = await pool.getconn();
      const closing = pool.close();
      await assertRejects(() => pool.getconn(), PoolClosed);
      await conn`select 1`;
      await pool.putconn(conn);
      await Promise.all([closing, pool.close()]);
      assert(pool.closed);
    },
  },
  {
    name: "stats() adds up, and is frozen",
    sizes: [0, 2],
    async run(pool) {
      const conn = await pool.getconn();
      const stats = pool.stats();
      assert(Object.isFrozen(stats));
      assertEquals(stats.poolSize, stats.connecting + stats.idle + stats.leased);
      assertEquals([stats.leased, stats.poolMax], [1, 2]);
      await pool.putconn(conn);
    },
  },
];

/** Rules for pools that give every caller a connection of its own. */
export const rulesOfMany: readonly Rule[] = [
  {
    name: "getconn() fails at once when all are lent",
    sizes: [0, 1],
    async run(pool) {
      const conn = await pool.getconn();
      const error = await assertRejects(() => pool.getconn(), PoolExhausted);
      assert(error.message.startsWith("connection pool exhausted"));
      await assertRejects(() => pool.getconn(null, { timeout: 20 }), PoolTimeout);
      await pool.putconn(conn);
    },
  },
  {
    name: "waiters are served first come first served",
    sizes: [0, 1],
    async run(pool) {
      const order: number[] = [];
      const first = await pool.getconn();
      const waiting = [1, 2, 3].map((n) => pool.use(() => void order.push(n), { timeout: 60_000 }));
      await pool.putconn(first);
      await Promise.all(waiting);
      assertEquals(order, [1, 2, 3]);
    },
  },
  {
    name: "getconn() with a known key gives the same lease",
    sizes: [0, 1],
    async run(pool) {
      const conn = await pool.getconn("key");
      assert(await pool.getconn("key") === conn);
      await assertRejects(() => pool.putconn(conn, "other"), PoolError, "under a key");
      await pool.putconn(conn, "key");
    },
  },
];
