import { assert, assertEquals, assertRejects } from "@std/assert";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import postgres from "postgres";
import { test } from "./support/harness.ts";
import { startProxy } from "./support/proxy.ts";
import { eventually, testServer } from "./support/server.ts";

/** A client of one connection without timers, so that it ends when it is told to. */
function client(url: string, connect_timeout = 30): postgres.Sql {
  return postgres(url, { max: 1, max_lifetime: null, connect_timeout, backoff: false });
}

test("FaultProxy passes, counts, and closes without a leak", async () => {
  await using proxy = await startProxy((await testServer()).url);
  const sql = client(proxy.url((await testServer()).url));
  assertEquals((await sql`select 1 as n`)[0]?.["n"], 1);
  assertEquals([proxy.accepted, proxy.open], [1, 1]);
  assert(proxy.received > 0);
  await sql.end();
  await eventually(() => assertEquals(proxy.open, 0));
});

test("FaultProxy refuses, and passes again on the same port", async () => {
  await using proxy = await startProxy((await testServer()).url);
  const { port } = proxy;
  await proxy.set("refuse");
  const sql = client(proxy.url((await testServer()).url));
  await assertRejects(() => sql`select 1`.execute(), Error, "ECONNREFUSED");
  await proxy.set("pass");
  assertEquals(proxy.port, port);
  await sql`select 1`;
  await sql.end();
});

test("FaultProxy resets new and old connections", async () => {
  await using proxy = await startProxy((await testServer()).url);
  const reset = (socket: Socket) =>
    new Promise<string>((resolve) => {
      socket.on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? "?"));
      socket.on("close", () => resolve("closed"));
    });
  const old = connect(proxy.port, proxy.host);
  // Asks for TLS; the server's answer shows that the way is open.
  old.write(Uint8Array.of(0, 0, 0, 8, 4, 210, 22, 47));
  await once(old, "data");
  await Promise.all([
    proxy.set("reset"),
    reset(old).then((code) => assertEquals(code, "ECONNRESET")),
  ]);
  assertEquals(await reset(connect(proxy.port, proxy.host)), "ECONNRESET");
  assertEquals(proxy.accepted, 2);
});

test("FaultProxy stalls new connections and lets the old ones go on", async () => {
  await using proxy = await startProxy((await testServer()).url);
  const url = proxy.url((await testServer()).url);
  const old = client(url);
  await old`select 1`;
  await proxy.set("stall");
  const sql = client(url, 0.5);
  await assertRejects(() => sql`select 1`.execute(), Error, "CONNECT_TIMEOUT");
  await old`select 1`;
  await Promise.all([old.end(), sql.end()]);
});

test("FaultProxy blackholes a connection, and it goes on afterwards", async () => {
  await using proxy = await startProxy((await testServer()).url);
  const sql = client(proxy.url((await testServer()).url));
  await sql`select 1`;
  await proxy.set("blackhole");
  const { received } = proxy;
  const query = sql`select 2 as n`.execute();
  await new Promise((resolve) => setTimeout(resolve, 100));
  assertEquals(proxy.received, received);
  await proxy.set("pass");
  assertEquals((await query)[0]?.["n"], 2);
  await sql.end();
});

test("FaultProxy slows: each piece late, and so many bytes a second", async () => {
  await using proxy = await startProxy((await testServer()).url);
  const sql = client(proxy.url((await testServer()).url));
  await sql`select 1`;
  await proxy.set("slow", { delay: 50 });
  let started = performance.now();
  await sql`select 1`;
  // There and back.
  assert(performance.now() - started >= 95);
  await proxy.set("slow", { bytesPerSecond: 100_000 });
  started = performance.now();
  const [row] = await sql<{ text: string }[]>`select repeat('x', 20000) as text`;
  assertEquals(row?.text.length, 20_000);
  assert(performance.now() - started >= 190);
  await proxy.set("pass");
  await sql.end();
});

test("FaultProxy cuts after so many bytes, within a message", async () => {
  await using proxy = await startProxy((await testServer()).url);
  const sql = client(proxy.url((await testServer()).url));
  await sql`select 1`;
  const { received } = proxy;
  proxy.cutAfter(1000);
  await assertRejects(() => sql`select repeat('x', 100000) as text`.execute());
  assertEquals(proxy.received, received + 1000);
  await sql`select 1`;
  proxy.cut("reset");
  await eventually(() => assertEquals(proxy.open, 0));
  await sql.end();
});
