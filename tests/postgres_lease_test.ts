/** What a lease can do, and what the pool sees of it. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { test } from "./support/harness.ts";
import { connectorFor, lent, openWith, rejection, uniqueName } from "./support/postgres.ts";
import { asAdmin, eventually, killBackend, sessions, testServer } from "./support/server.ts";

test("callbacks pass through, and one that throws harms no statement", async () => {
  const seen: string[] = [];
  const name = uniqueName();
  await using it = await lent({
    connection: { application_name: name },
    onnotice: (notice: { message: string }) => seen.push(notice.message),
    onnotify: (channel: string, payload: string) => seen.push(`${channel}=${payload}`),
    onclose: () => seen.push("closed"),
    transform: { column: (column: string) => column.toUpperCase() },
  });
  await it.conn`do $$ begin raise notice 'hello'; end $$`;
  const heard: string[] = [];
  const { unlisten } = await it.conn.listen("ch", (payload) => heard.push(payload));
  assertEquals(it.connector.status(it.session), "active");
  assertEquals(it.conn.transactionStatus, "idle");
  await it.conn.notify("ch", "x");
  await unlisten();
  await it.conn.notify("ch", "y");
  assertEquals(it.connector.status(it.session), "idle");
  assertEquals([seen, heard], [["hello", "ch=x"], ["x"]]);
  assertEquals(Object.keys((await it.conn`select 1 as abc`)[0]!), ["ABC"]);
  assertEquals(await sessions(name), 1);
  await it.connector.close(it.session);
  // At the transport's close, which follows on the server's end.
  await eventually(() => assertEquals(seen.at(-1), "closed"));
});

test("a lease has the driver's face: helpers, reserve, large objects, begin and what is refused", async () => {
  await using it = await lent();
  const { conn, session } = it;
  await conn`create temp table t (a int, b text)`;
  await conn`insert into t ${conn([{ a: 1, b: "x" }, { a: 2, b: "y" }], "a", "b")}`;
  assertEquals([...await conn`select * from t where a in ${conn([1, 2])} order by a`.values()], [[
    1,
    "x",
  ], [2, "y"]]);
  assertEquals((await conn.unsafe("select $1::int as n", [5]))[0]!["n"], 5);
  assertEquals((await conn`select ${conn.json({ a: 1 })}::jsonb as j`)[0]!["j"], { a: 1 });
  assertEquals(await (conn as unknown as Promise<unknown>), conn as unknown);
  assert(conn.unsafe === conn.unsafe);
  assertEquals(conn.pid, session.pid);
  const reserved = await conn.reserve();
  assertEquals((await reserved`select pg_backend_pid() as pid`)[0]!["pid"], conn.pid);
  reserved.release();
  assertEquals((await rejection(reserved`select 1`)).code, "UNSUPPORTED");
  assertEquals((await rejection(conn.end())).code, "UNSUPPORTED");
  assertEquals((await rejection(conn.subscribe("*", () => {}))).code, "UNSUPPORTED");
  const lo = await conn.largeObject();
  await lo.write(new TextEncoder().encode("large"));
  await lo.seek(0);
  assertEquals(String((await lo.read(5) as unknown as { data: Uint8Array }[])[0]!.data), "large");
  await lo.close();

  let escaped: unknown;
  const both = await conn.begin("read write", (sql) => {
    escaped = sql;
    return [sql`select 1 as n`, sql`select 2 as n`];
  });
  assertEquals(both.map((rows) => rows[0]!["n"]), [1, 2]);
  assertEquals((await rejection((escaped as typeof conn)`select 1`)).code, "UNSUPPORTED");
  const caught = await rejection(conn.begin(async (sql) => {
    await sql`select bad`.catch(() => {});
  }));
  assertEquals(caught.code, "42703");
  assertEquals(conn.transactionStatus, "idle");
  await conn.begin(async (sql) => {
    assertEquals((await rejection(conn.begin(() => 1))).code, "IN_TRANSACTION");
    assertEquals((await rejection(sql.savepoint((sp) => sp`select bad`))).code, "42703");
    await sql`insert into t values (3, 'z')`;
  });
  await conn`begin`;
  assertEquals(conn.transactionStatus, "intrans");
  assertEquals((await rejection(conn.begin(() => 1))).code, "IN_TRANSACTION");
  await rejection(conn`select bad`);
  assertEquals(conn.transactionStatus, "inerror");
  assertEquals(await it.connector.commit(session), false);
  assertEquals(conn.transactionStatus, "idle");
  await conn`begin`;
  await conn.rollback();
  assertEquals((await conn`select count(*)::int as n from t`)[0]!["n"], 3);
  await conn.close();
  assertEquals([conn.closed, it.lost.length], [true, 1]);
});

test("open and check are one round trip each; the server sees the session gone after close", async () => {
  const name = uniqueName();
  const { url } = await testServer();
  const connector = connectorFor(url, { connection: { application_name: name } });
  await asAdmin(async (sql) => {
    for (let i = 0; i < 50; i++) {
      const session = await openWith(connector);
      await connector.check(session);
      await connector.close(session);
      const [row] =
        await sql`select count(*)::int as n from pg_stat_activity where application_name = ${name}`;
      assertEquals(row!["n"], 0);
    }
  });
});

test("a large object's close ends its transaction also when something in it has failed", async () => {
  await using it = await lent();
  const { conn, session } = it;
  const [made] = await conn`select lo_create(0)::int as oid`;
  const lo = await conn.largeObject(made!["oid"]);
  await lo.write(new TextEncoder().encode("not to stay"));
  assertEquals((await rejection(lo.truncate(-5))).code, "22023");
  // It tells of the first failure, and not of its consequences.
  for (let i = 0; i < 2; i++) assertEquals((await rejection(lo.close())).code, "22023");
  assertEquals(session.status, "idle");
  const [left] = await conn`select length(lo_get(${made!["oid"]})) as n`;
  assertEquals(left, { n: 0 });
  await conn`select lo_unlink(${made!["oid"]})`;
});

test("a cursor of a savepoint or a reservation that has ended asks for nothing more", async () => {
  await using it = await lent();
  const { conn } = it;
  await conn.begin(async (sql) => {
    let left: AsyncIterator<unknown> | undefined;
    const failing = sql.savepoint(async (part) => {
      left = part`select * from generate_series(1, 9)`.cursor(2)[Symbol.asyncIterator]();
      await left.next();
      throw new Error("only this");
    });
    assertEquals((await rejection(failing)).message, "only this");
    assertEquals((await rejection(left!.next())).code, "UNSUPPORTED");
    // It would have failed the whole transaction.
    assertEquals((await sql`select 1 as n`)[0]!["n"], 1);
  });
  await conn`begin`;
  const reserved = await conn.reserve();
  const left = reserved`select * from generate_series(1, 9)`.cursor(2)[Symbol.asyncIterator]();
  await left.next();
  reserved.release();
  assertEquals((await rejection(left.next())).code, "UNSUPPORTED");
  assertEquals(
    (await conn`select count(*)::int as n from pg_cursors where name <> ''`)[0]!["n"],
    0,
  );
  await conn`commit`;
});

test("a session whose UNLISTEN failed or may be taken back is not lent again", async () => {
  for (const way of ["fails", "is rolled back"]) {
    await using it = await lent();
    const { conn, connector, session } = it;
    const { unlisten } = await conn.listen("ch", () => {});
    await conn`begin`;
    if (way === "fails") {
      await rejection(conn`select 1 / 0`);
      assertEquals((await rejection(unlisten())).code, "25P02");
    } else await unlisten();
    await conn`rollback`;
    assertEquals((await conn`select * from pg_listening_channels()`).length, 1);
    assertEquals(connector.status(session), "active");
  }
});

test("listen refuses a channel of which nothing could ever be heard", async () => {
  await using it = await lent();
  const { conn, session } = it;
  const listen = conn.listen as (...args: unknown[]) => Promise<unknown>;
  for (const name of ["", "x".repeat(64), "\u{1F418}".repeat(16)]) {
    const error = await rejection(listen(name, () => {}));
    assertEquals([error.name, /1 to 63 bytes/.test(error.message)], ["RangeError", true]);
  }
  for (const args of [[5, () => {}], ["x"], [null, () => {}]]) {
    assertEquals((await rejection(listen(...args))).name, "TypeError");
  }
  const heard: string[] = [];
  const name = "\u{1F418}".repeat(15) + "xyz";
  await conn.listen(name, (payload) => heard.push(payload));
  await conn.notify(name, "here");
  await eventually(() => assertEquals(heard, ["here"]));
  assertEquals(session.listeners.used, true);
});

test("a cursor takes a whole number of rows, and says so at once", async () => {
  await using it = await lent();
  for (const size of [0, -1, 1.5, NaN, Infinity, 2 ** 31, "x", null, {}]) {
    assertThrows(
      () => it.conn`select 1`.cursor(size as number),
      RangeError,
      "whole number of rows",
    );
    assertThrows(() => it.conn`select 1`.cursor(size as number, () => {}), RangeError);
  }
  const sizes: number[] = [];
  for await (const rows of it.conn`select generate_series(1, 5)`.cursor(2)) sizes.push(rows.length);
  for await (const rows of it.conn`select 1`.cursor(2 ** 31 - 1)) sizes.push(rows.length);
  assertEquals(sizes, [2, 2, 1, 1]);
});

test("what belongs to a part that a lost session has ended is told of the loss", async () => {
  await using it = await lent();
  const { conn } = it;
  const lo = await conn.largeObject();
  await lo.write(new Uint8Array(100_000));
  await lo.seek(0);
  const stream = await lo.readable({ highWaterMark: 1_000 });
  const error = await rejection((async () => {
    for await (const _ of stream) await killBackend(conn.pid);
  })());
  assert(["CONNECTION_LOST", "CONNECTION_CLOSED"].includes(error.code!), error.code);
  assertEquals((await rejection(lo.read(5))).code, "CONNECTION_LOST");
  await rejection(lo.close());
});

test("begin() behind statements of the same turn, which nobody has waited for, is a transaction of its own", async () => {
  await using it = await lent();
  const { conn } = it;
  const count = async (sql: typeof conn) => (await sql`select 1`).length;
  const begin = () => conn.begin((sql) => count(sql as unknown as typeof conn));
  const run = () => conn`select 1`.then(({ length }) => length);
  // They are sent at the end of the turn, and the second one when the first one has its answer.
  assertEquals(await Promise.all([run(), begin()]), [1, 1]);
  assertEquals(await Promise.all([run().then(run), Promise.resolve().then(begin)]), [1, 1]);
  const twice = run().then(run).then(run);
  await Promise.resolve();
  await Promise.resolve();
  assertEquals(await Promise.all([twice, begin()]), [1, 1]);
  assertEquals(it.session.lastState, "idle");
});
