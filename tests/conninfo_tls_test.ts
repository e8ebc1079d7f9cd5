/** The files of TLS as libpq has them, beside the real libpq where the machine has it. */

import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { createPrivateKey } from "node:crypto";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { CHECKS_REVOCATION } from "../src/runtime.ts";
import { parseSettings } from "../src/postgres/options.ts";
import { type Certificates, makeCertificates } from "./support/certs.ts";
import { startPostgres } from "./support/embedded_postgres.ts";
import { test } from "./support/harness.ts";
import { findPsql } from "./support/libpq.ts";
import { connectorFor, FakeLease, openWith, within } from "./support/postgres.ts";

const MODES = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] as const;
const HBA = "hostssl all guarded all scram-sha-256\nhostnossl all guarded all reject\n" +
  "host all all all scram-sha-256\n";
const QUERY = "select case when ssl then 'tls' else 'plain' end as v from pg_stat_ssl " +
  "where pid = pg_backend_pid()";

/** A home of its own, with these files in ~/.postgresql. */
class Home implements Disposable {
  readonly path: string = mkdtempSync(join(tmpdir(), "conninfo-tls-"));
  constructor(files: Readonly<Record<string, string>> = {}) {
    mkdirSync(join(this.path, ".postgresql"));
    for (const [name, text] of Object.entries(files)) this.write(`.postgresql/${name}`, text);
  }
  write(name: string, text: string): string {
    const path = join(this.path, name);
    writeFileSync(path, text);
    chmodSync(path, 0o600);
    return path;
  }
  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true });
  }
}

/** Calls `fn` as a program whose environment is this. */
function withHome<T>(home: string, fn: () => T): T {
  const kept = { ...process.env };
  for (const name of Object.keys(kept)) if (name.startsWith("PG")) delete process.env[name];
  process.env["HOME"] = home;
  try {
    return fn();
  } finally {
    Object.assign(process.env, kept);
    if (kept["HOME"] === undefined) delete process.env["HOME"];
  }
}

/** `tls` or `plain`, or null with why. */
async function ours(conninfo: string, home: string): Promise<[string | null, string]> {
  try {
    const connector = withHome(home, () => connectorFor(conninfo));
    const session = await within(openWith(connector));
    const [row] = await connector.lend(session, new FakeLease()).unsafe(QUERY);
    await connector.close(session);
    return [row!["v"], ""];
  } catch (error) {
    return [null, String(error)];
  }
}

/** What is read for such a string and home. */
function filesOf(conninfo: string, home: string) {
  return withHome(home, () => parseSettings([`user=u ${conninfo}`])).fixed!.tls.files();
}

test("a root certificate that is there is looked at with every sslmode, as in libpq", async () => {
  const psql = await findPsql();
  const [own, foreign] = [await makeCertificates(), await makeCertificates()];
  const roots: Record<string, Certificates | null> = { none: null, own, foreign };
  let cases = 0;
  for (const host of ["server", "wrongHost"] as const) {
    await using server = await startPostgres({ ssl: own[host], hba: HBA });
    const base = `host=localhost port=${server.port} dbname=postgres user=postgres ` +
      "password=postgres";
    for (const [root, certificates] of Object.entries(roots)) {
      for (const named of certificates === null ? [false] : [false, true]) {
        using home = new Home(certificates && !named ? { "root.crt": certificates.ca } : {});
        const file = named ? ` sslrootcert=${home.write("ca", certificates!.ca)}` : "";
        for (const mode of MODES) {
          const expected = {
            disable: "plain",
            allow: "plain",
            // What cannot be trusted is not used, and in plain text it goes on: that is what `prefer` says.
            prefer: root === "foreign" ? "plain" : "tls",
            require: root === "foreign" ? null : "tls",
            "verify-ca": root === "own" ? "tls" : null,
            "verify-full": root === "own" && host === "server" ? "tls" : null,
          }[mode];
          const conninfo = `${base} sslmode=${mode}${file}`;
          const what = `${mode}, root ${root}${named ? ", named" : ""}, ${host}`;
          const [said, why] = await ours(conninfo, home.path);
          assertEquals(said, expected, `${what}: ${why}`);
          if (psql !== null) {
            assertEquals(await psql.ask(conninfo, { HOME: home.path }, QUERY), expected, what);
          }
          cases++;
        }
        // Where only TLS is let in, `allow` comes to it as well.
        const guarded = `${base} sslmode=allow${file}`.replace("user=postgres", "user=guarded");
        const [, why] = await ours(guarded, home.path);
        assertMatch(why, root === "foreign" ? /28000|CERT|UNABLE|SELF|pg_hba/i : /password/);
      }
    }
  }
  console.log(`${cases} cases${psql === null ? "" : `, the same with ${psql.version}`}`);
}, { timeout: 240_000 });

test("a file without a certificate in it never means the runtime's own roots", async () => {
  const { ca, client, server } = await makeCertificates();
  for (const text of ["", "\n", "# nothing\n", server.key]) {
    using home = new Home({ "root.crt": text });
    for (const mode of ["prefer", "require", "verify-ca", "verify-full"]) {
      await assertRejects(
        () => filesOf(`sslmode=${mode}`, home.path),
        TypeError,
        "sslrootcert: there is no certificate (PEM) in",
      );
    }
  }
  using home = new Home({ "root.crt": ca, "postgresql.crt": "", "postgresql.key": client.key });
  await assertRejects(() => filesOf("", home.path), TypeError, "sslcert: there is no certificate");
  home.write(".postgresql/postgresql.crt", client.cert);
  home.write(".postgresql/postgresql.key", client.cert);
  await assertRejects(() => filesOf("", home.path), TypeError, "sslkey: there is no private key");
});

test("a file that is named and not there is an error with prefer, too: nothing goes on without it", async () => {
  const { server } = await makeCertificates();
  await using postgres = await startPostgres({ ssl: server });
  using home = new Home();
  for (const keyword of ["sslrootcert", "sslcert"]) {
    const conninfo = `host=localhost port=${postgres.port} dbname=postgres user=postgres ` +
      `password=postgres sslmode=prefer ${keyword}=${home.path}/none`;
    const [said, why] = await ours(conninfo, home.path);
    assertEquals(said, null);
    assertMatch(why, new RegExp(`${keyword}: .*there is no such file`));
  }
});

test("a key that sslpassword does not open is an error, and not a login without certificate", async () => {
  const { client } = await makeCertificates();
  const key = createPrivateKey(client.key).export({
    type: "pkcs8",
    format: "pem",
    cipher: "aes-256-cbc",
    passphrase: "right",
  }) as string;
  using home = new Home({ "postgresql.crt": client.cert, "postgresql.key": key });
  assertEquals((await filesOf("sslpassword=right", home.path)).passphrase, "right");
  for (const conninfo of ["sslpassword=s3cr3t", ""]) {
    const error = await assertRejects(() => filesOf(conninfo, home.path), TypeError);
    assertEquals(error.message, "sslkey is encrypted, and sslpassword is not its password");
  }
});

test(
  "revoked certificates are refused, or the list is, where a runtime does not look into it",
  async () => {
    const psql = await findPsql();
    const { ca, wrongHost, server, revoked } = await makeCertificates();
    const other = await makeCertificates("Another authority");
    using home = new Home({ "root.crt": ca });
    const folder = join(home.path, "lists");
    mkdirSync(folder);
    writeFileSync(join(folder, "a.r0"), revoked);
    writeFileSync(join(folder, "readme"), "no list");
    // Several lists in one file are several lists.
    const list = home.write("list", `${other.revoked}\n${revoked}\n`);
    const ways = [`sslcrl=${list}`, `sslcrldir=${folder}`, ""];
    for (const [certificate, expected] of [[wrongHost, null], [server, "tls"]] as const) {
      await using postgres = await startPostgres({ ssl: certificate });
      const base = `host=localhost port=${postgres.port} dbname=postgres user=postgres ` +
        "password=postgres sslmode=verify-ca";
      assertEquals((await ours(base, home.path))[0], "tls");
      for (const way of ways) {
        if (way === "") home.write(".postgresql/root.crl", revoked);
        const conninfo = `${base} ${way}`;
        const [said, why] = await ours(conninfo, home.path);
        if (CHECKS_REVOCATION) assertEquals(said, expected, `${way}: ${why}`);
        else {
          assertEquals(said, null);
          assertMatch(
            why,
            /cannot be obeyed: this runtime's TLS does not look at lists of revoked/,
          );
        }
        // A directory is for libpq one of hashed names.
        if (psql !== null && !way.startsWith("sslcrldir")) {
          assertEquals(await psql.ask(conninfo, { HOME: home.path }, QUERY), expected, way);
        }
      }
      rmSync(join(home.path, ".postgresql/root.crl"));
    }
    const empty = home.write("empty", "\n");
    const odd = () => filesOf(`sslmode=verify-ca sslcrl=${empty}`, home.path);
    if (CHECKS_REVOCATION) await assertRejects(odd, TypeError, "there is no list of revoked");
    else {
      assertThrows(odd, TypeError, "cannot be obeyed");
      assertThrows(
        () => parseSettings([{ user: "u", ssl: { crl: revoked } }]),
        TypeError,
        "ssl.crl",
      );
    }
    assert(withHome(home.path, () => parseSettings([`user=u sslmode=disable sslcrl=${list}`])));
  },
  { timeout: 240_000 },
);
