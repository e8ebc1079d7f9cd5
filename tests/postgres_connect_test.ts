/** Opening a session: TLS, authentication, sockets, hosts and kinds of servers, on real servers. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { writeFile } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { startPostgres } from "./support/embedded_postgres.ts";
import { own, postgresMajor } from "./support/embedded_postgres_setup.ts";
import { makeCertificates } from "./support/certs.ts";
import { test } from "./support/harness.ts";
import {
  connectorFor,
  FakeLease,
  lent,
  openWith,
  promptly,
  rejection,
  timeOf,
  within,
} from "./support/postgres.ts";
import { admin, eventually, testServer } from "./support/server.ts";

const HBA = [
  "local all all trust",
  "host all md5er all md5",
  "host all clear all password",
  "hostssl all certy all cert",
  "host all all all scram-sha-256",
].join("\n") + "\n";

async function tryTls(args: unknown[]): Promise<string> {
  const connector = connectorFor(...args);
  try {
    const session = await within(openWith(connector));
    const [row] = await connector.lend(session, new FakeLease())`
      select ssl::text from pg_stat_ssl where pid = pg_backend_pid()`;
    await connector.close(session);
    return row!["ssl"] === "true" ? "tls" : "plain";
  } catch (error) {
    return (error as { code?: string }).code ?? (error as Error).message;
  }
}

test("every meaning of ssl, with good and bad certificates", async () => {
  const certificates = await makeCertificates();
  const { ca, server, wrongHost, expired, client } = certificates;
  await using good = await startPostgres({ ssl: { ...server, ca }, hba: HBA });
  const url = (host: string, user = "postgres:postgres") =>
    `postgres://${user}@${host}:${good.port}/postgres`;
  const at = (host: string, ssl: unknown, more = {}) => tryTls([url(host), { ssl, ...more }]);

  assertEquals(await at("localhost", false), "plain");
  for (const ssl of ["require", "prefer"]) assertEquals(await at("localhost", ssl), "tls");
  assertEquals(await at("localhost", "allow"), "plain");
  // As in libpq, TLS is preferred where nothing is said.
  assertEquals(await tryTls([url("localhost")]), "tls");
  for (const ssl of [true, "verify-full", {}]) {
    assertStringIncludes(await at("localhost", ssl), "SELF_SIGNED", String(ssl));
  }
  assertEquals(await at("localhost", { ca }), "tls");
  assertEquals(await at("127.0.0.1", { ca }), "tls");
  assertEquals(await at("[::1]", { ca }), "tls");
  assertEquals(await at("127.0.0.1", { ca, servername: "localhost" }), "tls");
  assertEquals(await at("localhost", { rejectUnauthorized: false }), "tls");
  assertEquals(
    await at("localhost", { ca, servername: "other.example" }),
    "ERR_TLS_CERT_ALTNAME_INVALID",
  );
  if (await postgresMajor() >= 17) {
    assertEquals(await at("localhost", { ca }, { sslnegotiation: "direct" }), "tls");
    assertEquals(await at("localhost", "require", { sslnegotiation: "direct" }), "tls");
  }
  assertEquals(await tryTls([url("localhost") + "?sslmode=require"]), "tls");
  assertEquals(await tryTls([url("localhost") + "?sslmode=disable"]), "plain");
  assertStringIncludes(await tryTls([url("localhost") + "?sslrootcert=system"]), "SELF_SIGNED");

  // What is watched on the wire is the same under TLS.
  const over = await lent({ ssl: { ca } }, url("localhost"));
  const slow = over.conn`select pg_sleep(60)`;
  setTimeout(() => slow.cancel(), 50);
  assertEquals((await rejection(slow)).code, "57014");
  await over.conn.begin((sql) => [sql`select 1`]);
  assertEquals(over.conn.transactionStatus, "idle");
  assert(await rejection(over.conn`select pg_terminate_backend(pg_backend_pid())`));
  await eventually(() => assertEquals(over.lost.length, 1));
  await over.connector.close(over.session);
  await promptly(4_000, async () => {
    const closing = await lent({ ssl: { ca } }, url("localhost"));
    const running = rejection(closing.conn`select pg_sleep(60)`);
    await eventually(() => assertEquals(closing.conn.transactionStatus, "active"));
    const took = await timeOf(() => closing.connector.close(closing.session));
    assert(await running);
    return took;
  });

  const sql = await admin({
    host: "127.0.0.1",
    port: good.port,
    username: "postgres",
    password: "postgres",
  });
  await sql.unsafe(`
    set password_encryption = 'md5';
    create role md5er superuser login password 'm';
    set password_encryption = 'scram-sha-256';
    create role clear superuser login password 'c';
    create role certy superuser login;
    create role postgres_client superuser login`);
  await sql.end();
  assertEquals(await tryTls([url("localhost", "md5er:m"), { ssl: false }]), "plain");
  assertEquals(await tryTls([url("localhost", "clear:c"), { ssl: "require" }]), "tls");
  assertEquals(await tryTls([url("localhost", "md5er:no")]), "28P01");
  assertEquals(await tryTls([url("localhost", "clear:no")]), "28P01");
  assertEquals(await tryTls([url("localhost", "postgres:no")]), "28P01");
  // The certificate is for another user than this one.
  const key = { ca, cert: client.cert, key: client.key };
  assertEquals(await tryTls([url("localhost", "certy"), { ssl: key }]), "28000");
  await good.reload({});
  await writeFile(join(good.dataDir, "pg_hba.conf"), "hostssl all postgres all cert\n");
  await own(join(good.dataDir, "pg_hba.conf"));
  await good.reload({});
  await eventually(async () =>
    assertEquals(await tryTls([url("localhost", "postgres"), { ssl: key }]), "tls")
  );
  assertEquals(await tryTls([url("localhost", "postgres"), { ssl: { ca } }]), "28000");

  for (const bad of [wrongHost, expired]) {
    await using other = await startPostgres({ ssl: bad });
    const there = other.url.replace("127.0.0.1", "localhost");
    // Each runtime has its own word for an expired one.
    assertMatch(await tryTls([there, { ssl: { ca } }]), /^[A-Z_]+$/);
    assertMatch(await tryTls([other.url, { ssl: { ca } }]), /^[A-Z_]+$/);
    assertEquals(await tryTls([there, { ssl: "require" }]), "tls");
  }
});

test("a server without TLS: prefer goes on, everything else is a clear error", async () => {
  const { url, socketDir } = await testServer();
  assertEquals(await tryTls([url, { ssl: "prefer" }]), "plain");
  assertEquals(await tryTls([url, { ssl: "allow" }]), "plain");
  for (const ssl of [true, "require", "verify-full", {}]) {
    assertEquals(await tryTls([url, { ssl }]), "TLS_REFUSED");
  }
  if (socketDir !== undefined) {
    const { port, username, password } = new URL(url);
    const options = {
      host: socketDir,
      port: Number(port),
      username,
      password,
      database: "postgres",
    };
    assertEquals(await tryTls([options]), "plain");
    assertEquals(await tryTls([{ ...options, path: `${socketDir}/.s.PGSQL.${port}` }]), "plain");
    assertEquals(
      await tryTls([
        `postgres://${username}:${password}@${encodeURIComponent(socketDir)}:${port}/postgres`,
      ]),
      "plain",
    );
    // There is no TLS on Unix sockets, and none is missed, as in libpq.
    assertEquals(await tryTls([{ ...options, ssl: "require" }]), "plain");
  }
});

/** A server that answers as the test wants. */
async function pretend(answer: (socket: Socket, bytes: Uint8Array) => void): Promise<
  { port: number; close(): Promise<void> }
> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("data", (bytes) => answer(socket, bytes as Uint8Array));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    port: (server.address() as { port: number }).port,
    close: () => {
      for (const socket of sockets) socket.destroy();
      return new Promise((resolve) => server.close(() => resolve()));
    },
  };
}

/** An Authentication message. */
function auth(code: number, text = ""): Uint8Array {
  const bytes = new Uint8Array(9 + text.length);
  bytes[0] = 82;
  bytes[4] = 8 + text.length;
  bytes[8] = code;
  bytes.set(new TextEncoder().encode(text), 9);
  return bytes;
}

test("what is no PostgreSQL, or is silent, or cheats before TLS, gives an error in time", async () => {
  const cases: [(socket: Socket) => unknown, unknown, string][] = [
    [(s) => s.write("SX"), "require", "sent data before TLS"],
    [(s) => s.write("E"), "require", "did not understand the request for TLS"],
    [(s) => s.end(), "require", "closed the connection before"],
    [(s) => s.end(), false, "CONNECTION_CLOSED"],
    [() => {}, false, "CONNECT_TIMEOUT"],
    [() => {}, "require", "CONNECT_TIMEOUT"],
    [(s) => s.bytesWritten === 0 && s.write("S"), "require", "CONNECT_TIMEOUT"],
    [(s) => s.write(auth(7)), false, "authentication method that is not supported (GSSAPI)"],
    [(s) => s.write(auth(11, "r=x")), false, "AUTH_REFUSED"],
    [(s) => s.end("HTTP/1.1 400 Bad Request\r\n\r\n"), false, "is no PostgreSQL server"],
  ];
  for (const [answer, ssl, text] of cases) {
    const server = await pretend((socket) => answer(socket));
    const connector = connectorFor(`postgres://u@127.0.0.1:${server.port}/db`, {
      ssl,
      connect_timeout: 0.3,
    });
    const error = await rejection(openWith(connector));
    assertStringIncludes(`${error.code} ${error.message}`, text);
    await server.close();
  }
});

test("hosts are tried in order; when all fail the error names each", async () => {
  const { url } = await testServer();
  const { port, username, password } = new URL(url);
  const options = { username, password, database: "postgres", connect_timeout: 20 };
  const free = await pretend(() => {});
  await free.close();
  const connector = connectorFor({
    ...options,
    host: ["127.0.0.1", "127.0.0.1"],
    port: [free.port, Number(port)],
  });
  const session = await openWith(connector);
  assertEquals(session.started.target.port, Number(port));
  await connector.close(session);

  const one = await rejection(
    openWith(connectorFor({ ...options, host: "127.0.0.1", port: free.port })),
  );
  assertEquals(one.code, "ECONNREFUSED");
  const all = await rejection(openWith(connectorFor(
    {
      ...options,
      database: "nowhere",
      host: ["127.0.0.1", "127.0.0.1"],
      port: [free.port, Number(port)],
    },
  )));
  assert(all instanceof AggregateError);
  assertStringIncludes(all.message, `127.0.0.1:${free.port}: `);
  assertStringIncludes(all.message, `127.0.0.1:${port}: database "nowhere" does not exist`);
  assert(!all.message.includes(`:${password}@`));
});

test("IPv6 and the server's own message", async () => {
  const { url } = await testServer();
  const six = url.replace(/127\.0\.0\.1|localhost/, "[::1]");
  assertEquals(await tryTls([six]), "plain");
  const error = await rejection(openWith(connectorFor(url.replace(/\/[^/]*$/, "/nowhere"))));
  assertEquals([error.name, error.code], ["PostgresError", "3D000"]);
});

test("a password function is asked for each connection, and its failure is open's", async () => {
  const { url } = await testServer();
  const { password } = new URL(url);
  const plain = url.replace(`:${password}@`, "@");
  let asked = 0;
  const good = connectorFor(plain, {
    password: () => Promise.resolve(`${asked++ >= 0 ? password : ""}`),
  });
  for (const session of [await openWith(good), await openWith(good)]) await good.close(session);
  assertEquals(asked, 2);
  for (
    const password of [() => Promise.reject(new Error("vault")), () => {
      throw new Error("vault");
    }]
  ) {
    assertEquals((await rejection(openWith(connectorFor(plain, { password })))).message, "vault");
  }
  const wrong = connectorFor(plain, { password: () => 5 });
  assertStringIncludes((await rejection(openWith(wrong))).message, "gave no string");
});

test("a function of the user's that gives no answer is told as what took too long, and no firewall is", async () => {
  const { url } = await testServer();
  const never = () => new Promise<never>(() => {});
  const plain = url.replace(/:[^:/]+@/, "@");
  for (
    const [options, words] of [
      [{ password: never }, "the password was not told in time; does the function"],
      [{ socket: never }, "the function socket gave no connection in time; does the function"],
    ] as const
  ) {
    const late = connectorFor(plain, { ...options, connect_timeout: 1 });
    const { code, message, hint } = await rejection(openWith(late)) as Error & {
      code?: string;
      hint?: string;
    };
    assertEquals(code, "CONNECT_TIMEOUT");
    assertStringIncludes(`${message}; ${hint}`, words);
  }
});

test("the user's own transport is used, with TLS and cancel requests on it too", async () => {
  const { url } = await testServer();
  let calls = 0;
  const socket = ({ host, port }: { host: string[]; port: number[] }) =>
    new Promise<Socket>((resolve) => {
      calls++;
      const own = connect({ host: host[0]!, port: port[0]! }, () => resolve(own));
    });
  await using it = await lent({ socket }, url);
  assertEquals((await it.conn`select 1 as n`)[0]!["n"], 1);
  const slow = it.conn`select pg_sleep(60)`;
  setTimeout(() => slow.cancel(), 20);
  assertEquals((await rejection(slow)).code, "57014");
  assertEquals(calls, 2);
  const bad = connectorFor(url, { socket: () => Promise.reject(new Error("no way")) });
  assertEquals((await rejection(openWith(bad))).message, "no way");
});

test("target_session_attrs means what it means in libpq", async () => {
  await using primary = await startPostgres();
  await using standby = await startPostgres();
  await standby.stop();
  // A cluster that was shut down cleanly is a consistent standby at once, of a primary it never reaches.
  await writeFile(join(standby.dataDir, "standby.signal"), "");
  await own(join(standby.dataDir, "standby.signal"));
  await standby.start();
  const find = async (target_session_attrs: string, ports: number[]): Promise<number | string> => {
    const connector = connectorFor({
      host: ports.map(() => "127.0.0.1"),
      port: ports,
      username: "postgres",
      password: "postgres",
      target_session_attrs,
    });
    try {
      const session = await openWith(connector);
      await connector.close(session);
      return session.started.target.port;
    } catch (error) {
      return (error as Error).message;
    }
  };
  const both = [standby.port, primary.port];
  const reversed = [primary.port, standby.port];
  for (const order of [both, reversed]) {
    assertEquals(await find("any", order), order[0]!);
    assertEquals(await find("read-write", order), primary.port);
    assertEquals(await find("primary", order), primary.port);
    assertEquals(await find("read-only", order), standby.port);
    assertEquals(await find("standby", order), standby.port);
    assertEquals(await find("prefer-standby", order), standby.port);
  }
  assertEquals(await find("prefer-standby", [primary.port]), primary.port);
  assertEquals(await find("read-write", [standby.port]), "session is read-only");
  assertEquals(await find("standby", [primary.port]), "server is not in hot standby mode");
  const none = await find("primary", [standby.port, standby.port]);
  assertStringIncludes(String(none), `127.0.0.1:${standby.port}: server is in hot standby mode; `);
  await primary.reload({ default_transaction_read_only: "on" });
  await eventually(async () =>
    assertEquals(await find("read-write", [primary.port]), "session is read-only")
  );
  assertEquals(await find("read-only", [primary.port]), primary.port);
});
