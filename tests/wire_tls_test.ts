/** TLS with own certificates on a real server: what each sslmode takes, and logins that are bound to it. */

import { assert, assertEquals, assertInstanceOf, assertStringIncludes } from "@std/assert";
import { SimpleConnectionPool } from "../mod.ts";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { isPermanent } from "../src/postgres/wire/connect_error.ts";
import type { SslMode } from "../src/postgres/wire/settings.ts";
import { makeCertificates } from "./support/certs.ts";
import { ask, dial, dialer, type DialSettings, hangUp } from "./support/dial.ts";
import { startPostgres } from "./support/embedded_postgres.ts";
import { postgresMajor } from "./support/embedded_postgres_setup.ts";
import { fakePostgres, refusal, welcome } from "./support/fake_postgres.ts";
import { test } from "./support/harness.ts";
import { within } from "./support/postgres.ts";

const HBA = [
  "local all all trust",
  "hostnossl all plain all scram-sha-256",
  "hostssl all crypt all scram-sha-256",
  "host all md5er all md5",
  "host all clear all password",
  "hostssl all certy all cert",
  "host all postgres all scram-sha-256",
].join("\n") + "\n";

const ROLES = `
  create role plain login password 'secret'; create role crypt login password 'secret';
  create role clear login password 'secret'; create role certy login;
  set password_encryption = 'md5'; create role md5er login password 'secret'`;

/** `tls` or `plain` with the protocol of the login; or what was wrong. */
async function outcome(given: DialSettings): Promise<string> {
  try {
    const started = await within(dial({ database: "postgres", user: "postgres", ...given }));
    const said = await ask(
      started,
      "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()",
    );
    await hangUp(started);
    assertEquals(said.includes("true"), started.encrypted);
    return started.encrypted ? "tls" : "plain";
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    return `${code ?? ""} ${message}`;
  }
}

test("sslmode: what each takes of good and bad certificates, asked for and direct", async () => {
  const { ca, server, wrongHost, expired } = await makeCertificates();
  await using good = await startPostgres({ ssl: server, hba: HBA });
  const at = (mode: SslMode, withCa: boolean, more: DialSettings & { host?: string } = {}) =>
    outcome({
      targets: [{ host: more.host ?? "localhost", port: good.port }],
      password: "postgres",
      ...more,
      tls: { mode, files: () => Promise.resolve(withCa ? { ca } : {}), ...more.tls },
    });
  const direct = await postgresMajor() >= 17
    ? "tls"
    : " the server closed the connection during the TLS handshake";
  assertEquals(await at("disable", false), "plain");
  assertEquals(await at("allow", false), "plain");
  for (const mode of ["prefer", "require"] as const) assertEquals(await at(mode, false), "tls");
  for (const mode of ["verify-ca", "verify-full"] as const) {
    assertEquals(await at(mode, true), "tls");
    assertEquals(await at(mode, true, { tls: { negotiation: "direct" } }), direct);
    assertEquals(await at(mode, true, { host: "127.0.0.1" }), "tls");
    assertEquals(await at(mode, true, { host: "::1" }), "tls");
    assertEquals(await at(mode, true, { tls: { sni: false } }), "tls");
    const unknown = await at(mode, false);
    assert(unknown !== "tls" && unknown !== "plain", unknown);
  }
  assertEquals(await at("require", false, { tls: { negotiation: "direct" } }), direct);
  assertEquals(await at("require", false, { tls: { minVersion: "TLSv1.3" } }), "tls");

  for (
    const [certificate, full, onlyCa] of [[wrongHost, false, true], [
      expired,
      false,
      false,
    ]] as const
  ) {
    await using bad = await startPostgres({ ssl: certificate, hba: HBA });
    const there = (mode: SslMode, withCa = true) =>
      outcome({
        targets: [{ host: "localhost", port: bad.port }],
        password: "postgres",
        tls: { mode, files: () => Promise.resolve(withCa ? { ca } : {}) },
      });
    assertEquals(await there("require", false), "tls");
    assertEquals(await there("require") === "tls", onlyCa);
    assertEquals(await there("verify-full") === "tls", full);
    assertEquals(await there("verify-ca") === "tls", onlyCa);
    const error = await dial({
      targets: [{ host: "localhost", port: bad.port }],
      tls: { mode: "verify-full", files: () => Promise.resolve({ ca }) },
    }).catch((error) => error);
    assert(isPermanent(error), `${error.code} ${error.message}`);
  }
}, { timeout: 300_000 });

test(
  "SCRAM-SHA-256-PLUS and every other login, with TLS and without, on a real server",
  async () => {
    const { ca, server, client } = await makeCertificates();
    await using good = await startPostgres({ ssl: { ...server, ca }, hba: HBA });
    const targets = [{ host: "localhost", port: good.port }];
    const files = () => Promise.resolve({ ca });
    const admin = await dial({
      targets,
      user: "postgres",
      database: "postgres",
      password: "postgres",
    });
    await ask(admin, ROLES);
    await hangUp(admin);
    const tls = { mode: "verify-full", files } as const;
    const as = (user: string, more: DialSettings = {}) => outcome({ targets, user, tls, ...more });

    for (const channelBinding of ["require", "prefer", "disable"] as const) {
      assertEquals(await as("crypt", { auth: { channelBinding } }), "tls", channelBinding);
    }
    // The server takes what we say of the binding into account: a wrong hash would be refused.
    assertEquals(
      await as("crypt", {
        auth: { channelBinding: "require" },
        tls: { ...tls, negotiation: await postgresMajor() >= 17 ? "direct" : "postgres" },
      }),
      "tls",
    );
    assertStringIncludes(await as("crypt", { password: "wrong" }), "28P01");
    for (const user of ["md5er", "clear"]) {
      assertEquals(await as(user), "tls");
      assertStringIncludes(await as(user, { auth: { channelBinding: "require" } }), "AUTH_REFUSED");
      assertStringIncludes(
        await as(user, { auth: { methods: new Set(["scram-sha-256"]) } }),
        "AUTH_REFUSED",
      );
    }
    assertStringIncludes(
      await as("plain", { tls: { mode: "disable" }, auth: { channelBinding: "require" } }),
      "AUTH_REFUSED",
    );

    // allow and prefer go the other way when the server refuses the first.
    assertEquals(await as("crypt", { tls: { mode: "allow" } }), "tls");
    assertEquals(await as("plain", { tls: { mode: "prefer" } }), "plain");
    assertEquals(await as("plain", { tls: { mode: "allow" } }), "plain");
    assertStringIncludes(await as("plain", { tls: { mode: "require" } }), "28000");
    assertStringIncludes(
      await as("crypt", { tls: { mode: "prefer" }, password: "wrong" }),
      "28P01",
    );
    assertStringIncludes(await as("crypt", { tls: { mode: "allow" }, password: "wrong" }), "28P01");

    const certified = {
      ...tls,
      files: () => Promise.resolve({ ca, cert: client.cert, key: client.key }),
    };
    // The certificate says postgres, and only its own name may come in.
    assertStringIncludes(await as("certy", { tls: certified }), "28000");
    assertStringIncludes(await as("certy"), "28000");

    // Nobody encrypts on a Unix socket; the setting is passed over, as in libpq.
    const socket = {
      path: `${good.socketDir}/.s.PGSQL.${good.port}`,
      host: good.socketDir,
      port: good.port,
    };
    assertEquals(await outcome({ targets: [socket], tls }), "plain");
  },
  { timeout: 300_000 },
);

test("a cancel request goes encrypted where the session is, and only while it is due", async () => {
  const { ca, server } = await makeCertificates();
  await using good = await startPostgres({ ssl: server, hba: HBA });
  for (const mode of ["verify-full", "disable"] as const) {
    const maker = dialer({
      targets: [{ host: "localhost", port: good.port }],
      user: "postgres",
      database: "postgres",
      password: "postgres",
      tls: { mode, files: () => Promise.resolve({ ca }) },
    });
    const { signal } = new AbortController();
    const started = await maker.connect(signal);
    const running = ask(started, "select pg_sleep(60)");
    await maker.cancel(started, signal, () => false);
    let over = false;
    running.then(() => over = true);
    // A request that comes before the server has begun is lost, so it is asked again.
    while (!over) {
      await maker.cancel(started, signal, () => true);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    assertStringIncludes(await running, "57014");
    await hangUp(started);
  }
});

test("a server without TLS: prefer goes on with the same connection, and a stricter mode says so", async () => {
  let connections = 0;
  await using plain = await fakePostgres(async (peer) => {
    connections++;
    const { version } = await peer.startup();
    if (version === "ssl") {
      peer.send(Uint8Array.of(0x4e));
      await peer.startup();
    }
    peer.send(welcome());
  });
  const at = (mode: SslMode, more = {}) =>
    dial({ port: plain.port, tls: { mode, ...more } }).then((started) => {
      started.transport.destroy();
      return started.encrypted ? "tls" : "plain";
    }, (error) => `${error.code} ${error.message}`);
  assertEquals(await at("prefer"), "plain");
  assertEquals(connections, 1);
  assertEquals(await at("allow"), "plain");
  for (const mode of ["require", "verify-ca", "verify-full"] as const) {
    assertStringIncludes(
      await at(mode),
      `TLS_REFUSED the server at 127.0.0.1:${plain.port} does not offer TLS`,
    );
    assertStringIncludes(await at(mode), `sslmode=${mode}`);
  }
});

test("before TLS: surplus bytes, an error's text and silence are never taken for the server's word", async () => {
  const cases: [(socket: Socket) => unknown, string][] = [
    [(s) => s.write("SX"), "sent data before TLS"],
    [(s) => s.write("NX"), "sent data before TLS"],
    [(s) => s.write(refusal("28000", "believe me")), "sent data before TLS"],
    [(s) => s.write("E"), "did not understand the request for TLS"],
    [(s) => s.write("?"), "did not understand the request for TLS"],
    [(s) => s.end(), "CONNECTION_CLOSED"],
    [() => {}, "CONNECT_TIMEOUT"],
    [(s) => s.write("S"), "CONNECT_TIMEOUT"],
    [(s) => s.end("S"), ""],
  ];
  for (const [answer, words] of cases) {
    for (const mode of ["require", "prefer"] as const) {
      const sockets = new Set<Socket>();
      const server = createServer((socket) => {
        sockets.add(socket);
        socket.on("error", () => {});
        let answered = false;
        socket.on("data", () => {
          if (answered) return;
          answered = true;
          answer(socket);
        });
      });
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      const { port } = server.address() as AddressInfo;
      const error = await within(
        dial({
          port,
          connectTimeout: words === "CONNECT_TIMEOUT" || mode === "prefer" ? 300 : 9_000,
          tls: { mode },
        })
          .then(() => "no", (e) => e),
      );
      assertInstanceOf(error, Error);
      const text = `${(error as { code?: string }).code} ${error.message}`;
      assert(!text.includes("believe me"), text);
      if (mode === "require") assertStringIncludes(text, words);
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    }
  }
});

test("TLS: a COPY whose reader is slow waits at the server, and comes whole", async () => {
  const { server } = await makeCertificates();
  await using good = await startPostgres({ ssl: server });
  const direct = await postgresMajor() >= 17 ? ["require&sslnegotiation=direct"] : [];
  await using watcher = new SimpleConnectionPool(0, 1, `${good.url}?sslmode=disable`);
  for (const mode of ["prefer", "require", ...direct, "disable"]) {
    await using pool = new SimpleConnectionPool(0, 1, `${good.url}?sslmode=${mode}`);
    await pool.use(async (conn) => {
      const stream = await conn`
        copy (select repeat(md5(n::text), 300) from generate_series(1, 10000) n) to stdout`
        .readable();
      let length = 0;
      let waited = false;
      for await (const chunk of stream) {
        length += (chunk as Uint8Array).length;
        if (waited) continue;
        waited = true;
        for (let before = -1, same = 0; same < 5;) {
          const [told] = await watcher.sql<{ n: number }[]>`
            select tuples_processed::int as n from pg_stat_progress_copy where pid = ${conn.pid}`;
          assert(told !== undefined, `${mode}: all of it was read for a reader that waits`);
          same = told.n === before ? same + 1 : 0;
          before = told.n;
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
      }
      assertEquals(length, 10_000 * (9_600 + 1), mode);
    });
  }
});
