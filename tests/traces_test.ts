/**
 * What psycopg2 2.9.5 really did, operation by operation, done again on our pools.
 *
 * Three differences are wanted. We refill to minconn, psycopg2 does not: from there on the counts of
 * connections may differ. We replace a dead connection under its key, psycopg2 hands it out again:
 * there a trace ends. And after closeall psycopg2's lists still count what it has closed.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type Connection,
  PoolError,
  SimpleConnectionPool,
  ThreadedConnectionPool,
} from "../mod.ts";
import { setCurrentClock, systemClock } from "../src/clock.ts";
import { test } from "./support/harness.ts";
import recorded from "./psycopg2_traces.json" with { type: "json" };
import { admin, eventually, testServer } from "./support/server.ts";

interface Do {
  readonly op: string;
  readonly h?: string;
  readonly key?: string | null;
}

interface See {
  readonly error?: string;
  readonly message?: string;
  readonly conn?: string;
  readonly status?: string;
  readonly same_as?: readonly string[];
  readonly server: number;
  readonly idle: number;
  readonly used: number;
  readonly closed: boolean;
}

type Admin = Awaited<ReturnType<typeof admin>>;

const CLASSES: Record<string, typeof SimpleConnectionPool | typeof ThreadedConnectionPool> = {
  SimpleConnectionPool,
  ThreadedConnectionPool,
};
type AnyPool = SimpleConnectionPool | ThreadedConnectionPool;

class Replay {
  readonly #handles = new Map<string, Connection>();
  readonly #pids = new Map<string, number>();
  readonly #pool: AnyPool;
  readonly #sql: Admin;
  readonly #name: string;
  #refilled = false;

  constructor(pool: AnyPool, sql: Admin, name: string) {
    this.#pool = pool;
    this.#sql = sql;
    this.#name = name;
  }

  async step(what: Do, see: See): Promise<void> {
    if (see.error === undefined) await this.#perform(what, see);
    else {
      const error = await assertRejects(() => this.#perform(what, see), PoolError);
      assert(error.message.startsWith(see.message ?? "?"), error.message);
    }
    this.#refilled ||= see.idle + see.used < this.#pool.minconn;
    await this.#compareCounts(see);
  }

  async #perform(what: Do, see: See): Promise<void> {
    switch (what.op) {
      case "get":
      case "getkey":
        return await this.#get(what, see);
      case "put":
      case "putkey":
      case "putclose":
        return await this.#put(what);
      case "unkeyed": {
        const other = new SimpleConnectionPool(0, 1, (await testServer()).url);
        try {
          return await this.#pool.putconn(await other.getconn());
        } finally {
          await other.closeall();
        }
      }
      case "closeall":
        return await this.#pool.closeall();
    }
    const conn = this.#handle(what);
    if (what.op === "begin") {
      if (conn.transactionStatus === "idle") await conn`begin`.simple();
      await conn`select 1`;
    } else if (what.op === "fail") {
      if (conn.transactionStatus === "idle") await conn`begin`.simple();
      await assertRejects(() => conn`select 1/0`);
    } else if (what.op === "kill") {
      await this.#sql`select pg_terminate_backend(${conn.pid}, 5000)`;
      await assertRejects(() => conn`select 1`);
    } else if (what.op === "connclose") await conn.close();
    else throw new Error(`unknown op ${what.op}`);
    this.#compareStatus(conn, see);
  }

  async #get(what: Do, see: See): Promise<void> {
    const conn = await this.#pool.getconn(what.key);
    const same = [...this.#handles].filter(([, one]) => one === conn).map(([h]) => h);
    this.#handles.set(what.h ?? "", conn);
    assertEquals(same.sort(), [...see.same_as ?? []].sort());
    this.#compareStatus(conn, see);
    if (this.#refilled) return;
    const name = see.conn ?? "";
    const known = this.#pids.get(name);
    if (known !== undefined) return assertEquals(conn.pid, known);
    assert(![...this.#pids.values()].includes(conn.pid ?? 0), `${name} must be a new session`);
    this.#pids.set(name, conn.pid ?? 0);
  }

  async #put(what: Do): Promise<void> {
    const conn = this.#handle(what);
    await this.#pool.putconn(conn, what.op === "putkey" ? what.key : null, what.op === "putclose");
    for (const [h, one] of this.#handles) if (one === conn) this.#handles.delete(h);
  }

  #handle(what: Do): Connection {
    const conn = this.#handles.get(what.h ?? "");
    assert(conn !== undefined, `no handle ${what.h}`);
    return conn;
  }

  #compareStatus(conn: Connection, see: See): void {
    if (see.status === "lost" || see.status === "closed") {
      assertEquals([conn.transactionStatus, conn.closed], ["unknown", true]);
    } else assertEquals(conn.transactionStatus as string, see.status);
  }

  async #compareCounts(see: See): Promise<void> {
    assertEquals(this.#pool.closed, see.closed);
    if (!see.closed) assertEquals(this.#pool.stats().leased, see.used);
    if (this.#refilled && !see.closed) return;
    if (!see.closed) assertEquals(this.#pool.stats().idle, see.idle);
    await eventually(async () => {
      const rows = await this.#sql<{ count: number }[]>`
        select count(*)::int as count from pg_stat_activity where application_name = ${this.#name}`;
      assertEquals(rows[0]?.count, see.server);
    });
  }
}

/**
 * Not recorded, but read in psycopg2's source: `connection.close()` of one that is closed does
 * nothing (`psyco_conn_close`, `conn_close`), whoever has closed it.
 */
const closedTwice: typeof recorded.traces = ["SimpleConnectionPool", "ThreadedConnectionPool"]
  .flatMap((cls) => [
    {
      cls,
      minconn: 0,
      maxconn: 2,
      ops: [
        got("h0", "b0", { server: 1, used: 1 }),
        got("h1", "b1", { server: 2, used: 2 }),
        closed("h0", { server: 1, used: 2 }),
        closed("h0", { server: 1, used: 2 }),
        {
          do: { op: "kill", h: "h1" },
          see: { status: "lost", server: 0, idle: 0, used: 2, closed: false },
        },
        closed("h1", { server: 0, used: 2 }),
        {
          do: { op: "put", h: "h1" },
          see: { ok: true, server: 0, idle: 0, used: 1, closed: false },
        },
        { do: { op: "closeall" }, see: { ok: true, server: 0, idle: 0, used: 1, closed: true } },
        closed("h0", { server: 0, used: 1 }, true),
        closed("h0", { server: 0, used: 1 }, true),
      ],
    },
    {
      cls,
      minconn: 1,
      maxconn: 1,
      ops: [
        got("h0", "b0", { server: 1, used: 1 }),
        { do: { op: "closeall" }, see: { ok: true, server: 0, idle: 0, used: 1, closed: true } },
        closed("h0", { server: 0, used: 1 }, true),
      ],
    },
  ]) as typeof recorded.traces;

function got(h: string, conn: string, counts: { server: number; used: number }): unknown {
  const see = { conn, status: "idle", same_as: [], idle: 0, closed: false, ...counts };
  return { do: { op: "get", key: null, h }, see };
}

function closed(h: string, counts: { server: number; used: number }, closed = false): unknown {
  return { do: { op: "connclose", h }, see: { status: "closed", idle: 0, closed, ...counts } };
}

[...recorded.traces, ...closedTwice].forEach((trace, index) => {
  test(`trace ${index}: ${trace.cls} ${trace.minconn} ${trace.maxconn}`, async () => {
    const sql = await admin();
    const name = `trace ${index}`;
    const { url } = await testServer();
    const Pool = CLASSES[trace.cls] as typeof SimpleConnectionPool;
    // A connect that is slow is no reason to open another one beside it: psycopg2 waits for each.
    const restore = setCurrentClock(() => ({ ...systemClock, now: () => 0 }));
    const pool = new Pool(trace.minconn, trace.maxconn, url, {
      connection: { application_name: name },
      pool: { maxIdle: 0 },
    });
    restore();
    assertEquals(pool.constructor.name, trace.cls);
    try {
      await pool.ready();
      const replay = new Replay(pool, sql, name);
      for (const { do: what, see } of trace.ops as { do: Do; see: See }[]) {
        if (what.op === "getkey" && (see.status === "closed" || see.status === "unknown")) break;
        await replay.step(what, see);
      }
    } finally {
      await pool.close({ timeout: 0 });
      await sql.end();
    }
  });
});
