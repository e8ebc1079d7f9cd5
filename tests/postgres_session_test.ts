/** Opening and closing under adverse conditions, and what all connections of a pool share. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { once } from "node:events";
import { rm, writeFile } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Connection, SimpleConnectionPool } from "@getconn/pool";
import { test } from "./support/harness.ts";
import {
  connectorFor,
  FakeLease,
  lent,
  openWith,
  rejection,
  uniqueName,
  within,
} from "./support/postgres.ts";
import { startProxy } from "./support/proxy.ts";
import { asAdmin, eventually, sessions, testServer } from "./support/server.ts";

test("the array types are fetched once for all connections, opened at once or one by one", async () => {
  const { url } = await testServer();
  const name = uniqueName();
  const connector = connectorFor(url, { connection: { application_name: name } });
  const all = await Promise.all([1, 2, 3, 4].map(() => openWith(connector)));
  all.push(await openWith(connector));
  // The session's own last query shows which of them asked the catalog.
  const rows = await asAdmin((sql) =>
    sql`select query from pg_stat_activity where application_name = ${name} and query like '%typarray%'`
  );
  assertEquals(rows.length, 1);
  for (const session of all) {
    const [row] = await connector.lend(session, new FakeLease())`select '{1,2}'::int[] as a`;
    assertEquals(row!["a"], [1, 2]);
  }
  await Promise.all(all.map((session) => connector.close(session)));
  assertEquals(await sessions(name), 0);
});

test("a transport that does not come up holds up nobody who waits for the array types", async () => {
  const { url } = await testServer();
  let first = true;
  const socket = async (place: { host: string[]; port: number[] }): Promise<net.Socket> => {
    if (first) {
      first = false;
      return await new Promise<never>(() => {});
    }
    const socket = net.connect(place.port[0]!, place.host[0]);
    await once(socket, "connect");
    return socket;
  };
  const connector = connectorFor(url, { socket });
  const abort = new AbortController();
  const stuck = openWith(connector, () => {}, abort.signal);
  const session = await openWith(connector);
  const [row] = await connector.lend(session, new FakeLease())`select '{1,2}'::int[] as a`;
  assertEquals(row!["a"], [1, 2]);
  abort.abort(new Error("enough"));
  await assertRejects(() => stuck, Error, "enough");
  await connector.close(session);
});

test("a failing catalog query is a rejection of open, and the next connection tries again", async () => {
  const { url } = await testServer();
  const role = `poor_${crypto.randomUUID().slice(0, 8)}`;
  const database = `db_${role}`;
  await asAdmin(async (sql) => {
    await sql.unsafe(`create role ${role} login password 'x'`);
    await sql.unsafe(`create database ${database}`);
  });
  const own = new URL(url);
  own.pathname = database;
  await using rights = await lent({}, own.href);
  await rights.conn.unsafe("revoke select on pg_catalog.pg_type from public");
  own.username = role;
  own.password = "x";
  const connector = connectorFor(own.href);
  assertEquals((await rejection(openWith(connector))).code, "42501");
  assertEquals((await rejection(openWith(connector))).code, "42501");
  await rights.conn.unsafe("grant select on pg_catalog.pg_type to public");
  const session = await openWith(connector);
  await connector.close(session);
  await rights.connector.close(rights.session);
  await asAdmin(async (sql) => {
    await sql.unsafe(`drop database ${database}`);
    await sql.unsafe(`drop role ${role}`);
  });
});

test("file() runs in its lease; a file that cannot be read leaves the connection idle", async () => {
  await using it = await lent();
  const path = join(tmpdir(), `${crypto.randomUUID()}.sql`);
  await writeFile(path, "select 7 as n");
  try {
    assertEquals((await it.conn.file(path))[0]!["n"], 7);
    assertEquals((await rejection(it.conn.file(path + ".none"))).code, "ENOENT");
    assertEquals(it.connector.status(it.session), "idle");
    const late = it.conn.file(path).execute();
    const outcome = rejection(late);
    await Promise.resolve();
    it.lease.open = false;
    assertEquals((await outcome).code, "CONNECTION_RETURNED");
    assertEquals(it.connector.status(it.session), "idle");
  } finally {
    await rm(path);
  }
});

test("close() in the middle of a statement ends it at the server at once", async () => {
  const name = uniqueName();
  const it = await lent({ connection: { application_name: name } });
  const slow = rejection(it.conn`select pg_sleep(3600)`);
  await eventually(() => assertEquals(it.conn.transactionStatus, "active"));
  await Promise.all([it.connector.close(it.session), it.connector.close(it.session)]);
  assertEquals(await sessions(name), 0);
  assert(await slow);
  assertEquals(it.lost, []);
});

test("close() does not wait for a server that is silent for longer than its limit", async () => {
  const { url } = await testServer();
  await using proxy = await startProxy(url);
  const it = await lent({}, proxy.url(url));
  await proxy.set("blackhole");
  await within(it.connector.close(it.session));
});

test("open() can be aborted at any moment and leaves nothing", async () => {
  const name = uniqueName();
  const { url } = await testServer();
  const connector = connectorFor(url, { connection: { application_name: name } });
  let opened = 0;
  for (let i = 0; i < 60; i++) {
    const abort = new AbortController();
    const open = openWith(connector, () => {}, abort.signal);
    const wait = (i % 20) * 0.5;
    if (wait === 0) abort.abort(new Error("enough"));
    else setTimeout(() => abort.abort(new Error("enough")), wait);
    try {
      await connector.close(await within(open));
      opened++;
    } catch (error) {
      assertEquals((error as Error).message, "enough");
    }
  }
  assert(opened < 60);
  await eventually(async () => assertEquals(await sessions(name), 0));
});

test(
  "killed at random times 200 times: every statement settles and no session is left",
  async () => {
    const name = uniqueName();
    const { url } = await testServer();
    const connector = connectorFor(url, { connection: { application_name: name } });
    await asAdmin(async (sql) => {
      for (let i = 0; i < 200; i++) {
        const lost: unknown[] = [];
        const session = await openWith(connector, (reason) => lost.push(reason));
        const conn = connector.lend(session, new FakeLease());
        const work = Promise.allSettled([
          loop(() => conn`select ${1}::int, pg_sleep(0.0005)`),
          loop(() =>
            conn.begin((tx) => [tx`select 1`, tx.savepoint((sp) => sp`select ${"x"}::text`)])
          ),
          loop(async () => {
            for await (const _ of conn`select * from generate_series(1, 20)`.cursor(5)) {
              /* rows */
            }
          }),
          loop(() =>
            Promise.allSettled([conn`select 1`, conn`select ${undefined as never}`, conn`select 2`])
              .then((all) => {
                if (all[0]!.status === "rejected") {
                  throw all[0]!.reason;
                }
              })
          ),
        ]);
        await new Promise((resolve) => setTimeout(resolve, Math.random() * 8));
        if (i % 4 === 3) await connector.close(session);
        else await sql`select pg_terminate_backend(${session.pid})`;
        await within(work);
        await within(connector.close(session));
        assertEquals(lost.length, i % 4 === 3 ? 0 : 1);
      }
    });
    assertEquals(await sessions(name), 0);
  },
);

async function loop(work: () => PromiseLike<unknown>): Promise<void> {
  for (;;) await work();
}

test("a borrower who makes his session read-only on a read-write pool keeps it, and nobody gets it after him", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 1, url, { target_session_attrs: "read-write" });
  const readOnly = async (conn: Connection): Promise<number> => {
    await conn`set default_transaction_read_only = on`;
    assertEquals((await conn`show transaction_read_only`)[0]!["transaction_read_only"], "on");
    return conn.pid;
  };
  const first = await pool.use(readOnly);
  const second = await pool.use((conn) => conn.pid);
  assert(first !== second);
  // Within a transaction it ends with that.
  const third = await pool.transaction(async (conn) => {
    await conn`set local default_transaction_read_only = on`;
    await conn`select 1`;
    return conn.pid;
  });
  assertEquals(third, second);
  await pool.sql`set default_transaction_read_only = on`;
  assert(await pool.use((conn) => conn.pid) !== second);
});

test("a statement as JSON, also of a transaction and of a savepoint, is its text and its values and no secret", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 1, url);
  const shown = (statement: unknown): string => {
    const text = JSON.stringify(statement);
    assert(!/secret|pid/.test(text), text);
    return JSON.stringify(JSON.parse(text).strings);
  };
  assertEquals(shown(pool.sql`select 1`), '["select 1"]');
  await pool.use(async (conn) => {
    assertEquals(shown(conn`select 2`), '["select 2"]');
    await conn.begin(async (sql) => {
      assertEquals(shown(sql`select 3`), '["select 3"]');
      await sql.savepoint((inner) => assertEquals(shown(inner`select 4`), '["select 4"]'));
    });
  });
});
