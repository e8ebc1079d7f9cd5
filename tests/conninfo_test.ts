import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import fc from "fast-check";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseConninfo, parseService, passwordIn } from "../src/postgres/conninfo.ts";
import { KEYWORDS, nearest } from "../src/postgres/keywords.ts";
import { parseSettings } from "../src/postgres/options.ts";
import type { ConnectSettings } from "../src/postgres/wire/settings.ts";
import { makeCertificates } from "./support/certs.ts";
import { test } from "./support/harness.ts";

const SECRET = "s3cr3t";

function connectOf(...args: unknown[]): ConnectSettings {
  return parseSettings(args).fixed!;
}

function values(text: string): Record<string, string> {
  return Object.fromEntries(parseConninfo(text).values);
}

/** Runs `fn` with these variables, and no others of PostgreSQL's. */
function withEnv<T>(env: Readonly<Record<string, string>>, fn: () => T): T {
  const kept = { ...process.env };
  for (const name of Object.keys(kept)) if (name.startsWith("PG")) delete process.env[name];
  Object.assign(process.env, env);
  try {
    return fn();
  } finally {
    for (const name of Object.keys(env)) if (!(name in kept)) delete process.env[name];
    Object.assign(process.env, kept);
  }
}

test("keyword=value strings are read as libpq reads them", () => {
  assertEquals(values(""), {});
  assertEquals(values("  dbname=test\tuser = postgres\n"), { dbname: "test", user: "postgres" });
  assertEquals(values("user='a b' password='it\\'s \\\\'"), { user: "a b", password: "it's \\" });
  assertEquals(values("user=a\\ b dbname='x'port=1"), { user: "a b", dbname: "x", port: "1" });
  assertEquals(values("user='' dbname="), { user: "", dbname: "" });
  assertEquals(values("user=a user=b"), { user: "b" });
  assertEquals(values("requiressl=1"), { sslmode: "require" });
});

test("urls are read as libpq reads them", () => {
  assertEquals(values("postgres://"), {});
  assertEquals(values("postgresql://u:p@h:1/d?connect_timeout=3&application_name=a%20b"), {
    user: "u",
    password: "p",
    host: "h",
    port: "1",
    dbname: "d",
    connect_timeout: "3",
    application_name: "a b",
  });
  assertEquals(values("postgres://a:1,b,[::1]:3/d/e"), {
    host: "a,b,::1",
    port: "1,,3",
    dbname: "d/e",
  });
  assertEquals(values("postgres://u@/d?host=/tmp&port=5&password=x+y"), {
    user: "u",
    dbname: "d",
    host: "/tmp",
    port: "5",
    password: "x+y",
  });
  assertEquals(values("postgres://%2Ftmp/d?ssl=true"), {
    host: "/tmp",
    dbname: "d",
    sslmode: "require",
  });
  assertEquals(values("postgres://h/d?user=a@b"), { host: "h", dbname: "d", user: "a@b" });
});

test("a string that cannot be read names the place and the rule", () => {
  const cases: [string, string][] = [
    ["host", 'at character 1: a keyword without "="'],
    ["host=a  =b", 'at character 9: a value without a keyword before "="'],
    ["host='a", "at character 6: the quote ' has no end"],
    ["hots=a", 'unknown parameter "hots": did you mean host?'],
    ["host=a password=my secret", "at character 20: a keyword without"],
    ["host=a password=my secret", "must be quoted: password='…'"],
    ["mysql://h/d", "must begin with postgres:// or postgresql://"],
    ["postgresql+psycopg2://h/d", "write postgresql://"],
    ["POSTGRES://h/d", "write postgresql://"],
    [" postgres://h/d", "begins with white space"],
    ["postgres://h/my db", "at character 16: white space must be percent-encoded"],
    ["postgres://h/db\n", "at character 16: white space must be percent-encoded"],
    ["postgres://[::1/d", "at character 12: an IPv6 address must be like"],
    ["postgres://::1/d", "at character 12: an IPv6 address must be in brackets"],
    ["postgres://h/d?a", "must be like name=value"],
    ["postgres://h/d?connect_timeout=1=2", "must be like name=value"],
    ["postgres://h/d?conect_timeout=1", "did you mean connect_timeout?"],
    ["postgres://u%zz@h/d", "the user is not percent-encoded correctly"],
    ["postgres://u:%ff@h/d", "the password is not percent-encoded correctly"],
    ["postgres://u%00@h/d", "%00 is not allowed"],
    ["host=a\0b", "NUL"],
  ];
  for (const [text, part] of cases) {
    assertStringIncludes(assertThrows(() => connectOf(text), TypeError).message, part);
  }
});

test("a password that is not encoded in a url gets an error that says so", () => {
  for (const letter of ["@", "/", "?", "#", "/?", "#@", "12/3@", "?a=b&c="]) {
    for (const password of [`a${letter}b${SECRET}`, `1${letter}2`, `${SECRET}${letter}`]) {
      const text = `postgres://u:${password}@h:5432/db`;
      const error = assertThrows(() => connectOf(text), TypeError);
      assertStringIncludes(error.message, "must be percent-encoded");
      assert(!error.message.includes(SECRET), error.message);
    }
  }
  assertEquals(values(`postgres://u:${encodeURIComponent("p@/?#%:")}@h`)["password"], "p@/?#%:");
});

test("a word of another program is told what to write in its place", () => {
  const cases: [string, string][] = [
    ["pgbouncer=true", "prepare=false"],
    ["connection_limit=1", "maxconn"],
    ["pool_timeout=5", "pool: { timeout }"],
    ["schema=app", "search_path"],
    ["statement_timeout=5000", "options"],
    ["search_path=app", "options"],
    ["sslkeylogfile=/x", "written to no file"],
    ["oauth_issuer=x", "OAuth is not supported"],
    ["replication=database", "do not replicate"],
    ["gssencmode=require", "no GSSAPI"],
    ["max=5", "maxconn"],
    ["sslmode=no-verify", "one of disable, allow, prefer, require"],
    ["client_encoding=latin1", "UTF8"],
  ];
  for (const [query, part] of cases) {
    const error = assertThrows(() => connectOf(`postgres://u@h/d?${query}`)) as Error;
    assertStringIncludes(error.message, part);
  }
});

test("urls as providers print them are taken", () => {
  for (
    const url of [
      "postgresql://neondb_owner:npg_x@ep-a-pooler.eu-central-1.aws.neon.tech/neondb?sslmode=require&channel_binding=require",
      "postgresql://postgres.ref:pw@aws-0-eu-central-1.pooler.supabase.com:6543/postgres",
      "postgres://u:p@host.ondigitalocean.com:25060/defaultdb?sslmode=require",
      "postgresql://u:p@host.cockroachlabs.cloud:26257/defaultdb?sslmode=verify-full",
      "postgresql://u:p@localhost/db?host=/cloudsql/project:region:instance",
      "postgres://u:p@h/db?gssencmode=disable&keepalives=1&keepalives_idle=30&tcp_user_timeout=1000",
      "postgres://u:p@h/db?target_session_attrs=read-write&load_balance_hosts=random",
      "postgres://u:p@h/db?options=endpoint%3Dep-a&client_encoding=utf8&krbsrvname=postgres",
      "postgres://u:p@h/db?sslrootcert=system&sslnegotiation=direct",
    ]
  ) assert(connectOf(url));
});

test("libpq's keywords and the driver's names are one thing, and never two", () => {
  const one = connectOf({ dbname: "d", user: "u", password: "p", host: "h", port: "7" });
  const two = connectOf({ database: "d", username: "u", pass: "p", hostname: "h", port: 7 });
  assertEquals([one.targets, one.user, one.database], [two.targets, two.user, two.database]);
  assert(connectOf({ dbname: "d", database: "d", user: "u" }));
  for (
    const options of [
      { dbname: "a", database: "b" },
      { user: "a", username: "b" },
      { password: "a", pass: "b" },
      { host: "a", hostname: "b" },
      { sslmode: "require", ssl: false },
      { sslmode: "disable", ssl: { ca: "x" } },
      { sslmode: "verify-full", ssl: { rejectUnauthorized: false } },
      { keepalives_idle: 5, keep_alive: 6 },
      { prepare: true, no_prepare: true },
      { application_name: "a", connection: { application_name: "b" } },
      { host: "a:1", port: 2 },
    ]
  ) {
    const error = assertThrows(() => connectOf({ user: "u", ...options }), TypeError);
    assertStringIncludes(error.message, Object.keys(options)[0]!);
  }
});

test("the port beside a host is never another one in silence", () => {
  const url = "postgres://u@a:1,b:2/d";
  const ports = (...args: unknown[]) => connectOf(...args).targets.map(({ port }) => port);
  assertThrows(() => connectOf(url, { port: 3 }), TypeError, "differ: give one of them");
  assertThrows(() => connectOf(url, { port: [1, 3] }), TypeError, "differ: give one of them");
  assertEquals(ports(url, { port: [1, 2] }), [1, 2]);
  assertEquals(ports(url, { host: ["c", "d"], port: 3 }), [3, 3]);
  assertEquals(ports("host=a,b port=1,2 user=u", { port: 3 }), [3, 3]);
  assertEquals(ports("postgres://u@a,b/d", { port: 3 }), [3, 3]);
});

test("argument, string, service, environment, default: in this order", () => {
  const folder = mkdtempSync(join(tmpdir(), "conninfo-"));
  try {
    const file = join(folder, "services");
    writeFileSync(file, "[s]\nhost=service\nuser=service\ndbname=service\nport=1\n");
    const env = { PGSERVICEFILE: file, PGHOST: "env", PGAPPNAME: "env", PGOPTIONS: "-c a.b=c" };
    const connect = withEnv(
      { ...env, PGTZ: "UTC", PGDATESTYLE: "SQL, DMY", PGSERVICE: "nobody" },
      () => connectOf("service=s user=string dbname=string", { dbname: "argument" }),
    );
    assertEquals(
      [connect.targets[0]!.host, connect.targets[0]!.port, connect.user, connect.database],
      ["service", 1, "string", "argument"],
    );
    assertEquals(connect.parameters, {
      client_encoding: "UTF8",
      datestyle: "ISO, DMY",
      timezone: "UTC",
      application_name: "env",
      options: "-c a.b=c",
    });
    const fallback = withEnv({}, () => connectOf("user=u fallback_application_name=f"));
    assertEquals([fallback.parameters["application_name"], fallback.tls.mode], ["f", "prefer"]);
    assertThrows(
      () => withEnv({ ...env, PGSERVICE: "gone" }, () => connectOf()),
      TypeError,
      'service "gone" is not found',
    );
    const missing = { PGSERVICEFILE: join(folder, "none"), PGSERVICE: "s" };
    assertThrows(() => withEnv(missing, () => connectOf()), TypeError, "there is no such file");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("a security setting of the environment is obeyed or refused, never dropped", () => {
  const mode = (env: Record<string, string>, ...args: unknown[]) =>
    withEnv({ PGUSER: "u", ...env }, () => connectOf(...args)).tls.mode;
  assertEquals(mode({ PGSSLMODE: "verify-full" }), "verify-full");
  assertEquals(mode({ PGREQUIRESSL: "1" }), "require");
  assertEquals(mode({ PGREQUIRESSL: "1", PGSSLMODE: "disable" }), "disable");
  assertEquals(mode({ PGSSLROOTCERT: "system" }), "verify-full");

  assertEquals(mode({ PGSSLMODE: "require" }, { ssl: false }), "disable");
  for (
    const [variable, value, part] of [
      ["PGSSLMODE", "bogus", "PGSSLMODE must be one of"],
      ["PGSSLMODE", "", "PGSSLMODE must be one of"],
      ["PGGSSENCMODE", "require", "no GSSAPI"],
      ["PGSSLCERTMODE", "require", "no runtime tells"],
      ["PGCHANNELBINDING", "always", "PGCHANNELBINDING must be one of"],
      ["PGREQUIREAUTH", "kerberos", "require_auth must be a list of"],
      ["PGSSLNEGOTIATION", "direct", "needs sslmode=require"],
      ["PGSSLMINPROTOCOLVERSION", "SSLv3", "TLSv1.2"],
    ] as const
  ) {
    const error = assertThrows(() => mode({ [variable]: value })) as Error;
    assertStringIncludes(error.message, part);
  }
  const socket = { PGREQUIREPEER: "postgres", PGHOST: "/tmp" };
  assertThrows(() => mode(socket), TypeError, "requirepeer cannot be obeyed");
  assertThrows(
    () => connectOf("user=u sslmode=disable channel_binding=require"),
    TypeError,
    "channel_binding=require needs TLS",
  );
  assertThrows(
    () => connectOf("user=u sslrootcert=system sslmode=require"),
    TypeError,
    "needs sslmode=verify-full",
  );
});

test("protocol 3.0 is asked for unless somebody wants a newer one, as in libpq", () => {
  const versions = (...args: unknown[]) => {
    const { minProtocol, maxProtocol } = connectOf(...args);
    return [minProtocol, maxProtocol];
  };
  assertEquals(versions("user=u"), ["3.0", "3.0"]);
  assertEquals(versions("user=u max_protocol_version=latest"), ["3.0", "3.2"]);
  assertEquals(versions("user=u min_protocol_version=3.2"), ["3.2", "3.2"]);
});

test("a client shows which kind of server was asked for, and none where nobody has asked", () => {
  const shown = (dsn: string) => parseSettings([dsn]).driver["target_session_attrs"];
  assertEquals(shown("user=u"), null);
  assertEquals(shown("user=u target_session_attrs=standby"), "standby");
});

test("what is given and empty is not the same as not given", () => {
  const name = (text: string, env = {}) =>
    withEnv(env, () => connectOf(`user=u ${text}`)).parameters["application_name"];
  assertEquals(name(""), "postgres.js");
  assertEquals(name("fallback_application_name=f"), "f");
  assertEquals(name("application_name='' fallback_application_name=f"), undefined);
  assertEquals(name("", { PGAPPNAME: "" }), undefined);
  assertEquals(name("fallback_application_name=''"), "postgres.js");
  for (const text of ["require_auth=''", "sslmode=''", "channel_binding=''"]) {
    assertThrows(() => connectOf(`user=u ${text}`), RangeError, text.slice(0, -3));
  }
  for (const variable of ["PGREQUIREAUTH", "PGSSLMODE", "PGCHANNELBINDING"]) {
    assertThrows(() => withEnv({ [variable]: "" }, () => connectOf("user=u")), RangeError);
  }
  for (const keyword of ["keepalives_idle", "keepalives_count", "tcp_user_timeout"]) {
    assertThrows(() => connectOf(`user=u ${keyword}=-5`), RangeError, "an integer of 0 or more");
  }
});

test("require_auth is a list of what may be, or of what may not be", () => {
  const methods = (
    text: string,
  ) => [...connectOf(`user=u require_auth=${text}`).auth.methods ?? []];
  assertEquals(methods("scram-sha-256,none"), ["scram-sha-256", "none"]);
  assertEquals(methods("!password,!md5"), ["none", "gss", "sspi", "scram-sha-256", "oauth"]);
  for (const text of ["md5,!password", "md5,md5", "magic", "md5,"]) {
    assertThrows(() => connectOf(`user=u require_auth=${text}`), RangeError, "require_auth");
  }
});

test("the password file counts line by line, and only when it is for its owner alone", async () => {
  const folder = mkdtempSync(join(tmpdir(), "conninfo-"));
  try {
    const file = join(folder, "pass");
    const lines = "# comment\nh:1:d:u:one\nh:*:d:u:t\\:w\\\\o\n*:*:*:*:three:more\n";
    writeFileSync(file, lines);
    chmodSync(file, 0o600);
    const ask = (where: string) => {
      const { auth, targets } = connectOf(`${where} passfile=${file}`);
      return auth.password(targets[0]!);
    };
    assertEquals(await ask("host=h port=1 dbname=d user=u"), "one");
    assertEquals(await ask("host=h port=2 dbname=d user=u"), "t:w\\o");
    assertEquals(await ask("host=x dbname=y user=z"), "three");
    assertEquals(await ask("host=h port=1 dbname=d user=u password=given"), "given");
    // It is read at each connect.
    const { auth, targets } = connectOf(`user=u passfile=${file}`);
    writeFileSync(file, "*:*:*:*:later\n");
    assertEquals(await auth.password(targets[0]!), "later");
    chmodSync(file, 0o640);
    await assertRejects(() => auth.password(targets[0]!), TypeError, "chmod 600");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("certificates are read anew for each connect, and a missing one is an error", async () => {
  const folder = mkdtempSync(join(tmpdir(), "conninfo-"));
  try {
    const [root, key] = [join(folder, "root.crt"), join(folder, "key")];
    const { tls } = connectOf(`user=u sslmode=verify-full sslrootcert=${root}`);
    await assertRejects(() => tls.files(), TypeError, "there is no such file");
    const [first, second] = [await makeCertificates(), await makeCertificates()];
    for (const { ca } of [first, second]) {
      writeFileSync(root, ca);
      assertEquals((await tls.files()).ca, ca);
    }
    writeFileSync(key, second.client.key);
    chmodSync(key, 0o644);
    const own = connectOf(`user=u sslmode=require sslcert=${root} sslkey=${key} sslpassword=x`);
    await assertRejects(() => own.tls.files(), TypeError, "chmod 600");
    chmodSync(key, 0o600);
    const { cert, key: read, passphrase } = await own.tls.files();
    assertEquals([cert, read, passphrase], [second.ca, second.client.key, "x"]);
    const nobody = withEnv({ HOME: folder }, () => connectOf("user=u sslmode=verify-ca"));
    await assertRejects(() => nobody.tls.files(), TypeError, "needs a root certificate");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("a service file names file and line of what is wrong", () => {
  assertEquals(Object.fromEntries(parseService("[a]\nuser=x\n", "a", "f")!), { user: "x" });
  assertEquals(parseService("[b]\nuser=x\n", "a", "f"), null);
  for (
    const [line, part] of [
      ["user = x", "without blanks around ="],
      ["user", "must be like keyword=value"],
      ["service=b", "cannot name another one"],
      ["usr=x", "did you mean user?"],
      ["ldap://x", "LDAP is not supported"],
    ] as const
  ) {
    const error = assertThrows(() => parseService(`\n[a]\n${line}\n`, "a", "f"), TypeError);
    assertStringIncludes(error.message, 'service file "f", line 3');
    assertStringIncludes(error.message, part);
  }
});

test("the nearest name is found over the usual slips", () => {
  const names = Object.keys(KEYWORDS);
  const slips = { pasword: "password", prot: "port", sslmod: "sslmode", usr: "user", HOST: "host" };
  for (const [slip, name] of Object.entries(slips)) assertEquals(nearest(slip, names), name);
  assertEquals(nearest("x".repeat(100_000), names), null);
  assertEquals(nearest("constructor", names), null);
});

test("every keyword of the table is in the documentation", () => {
  const page = readFileSync(new URL("../docs/conninfo.md", import.meta.url), "utf8");
  const listed = [...page.matchAll(/^\| `(\w+)`/gm)].map(([, name]) => name!);
  assertEquals(listed.toSorted(), Object.keys(KEYWORDS).toSorted());
});

/** Pieces that break parsers. */
const piece = fc.constantFrom(
  ...[
    "postgres://",
    "postgresql://",
    "u",
    ":",
    "@",
    "/",
    "?",
    "#",
    "%",
    "%2",
    "%00",
    "%ff",
    "[",
    "]",
  ],
  ...[
    "=",
    "&",
    ",",
    "'",
    "\\",
    " ",
    "\n",
    "\0",
    "host",
    "port",
    "password",
    "sslmode",
    "5432",
    "\ud800",
  ],
  ...[
    "::1",
    "..",
    "__proto__",
    "constructor",
    "toString",
    "service",
    "99999999999",
    "-1",
    "é",
    "😀",
  ],
);
const noise = fc.oneof(
  fc.array(piece, { maxLength: 14 }).map((pieces) => pieces.join("")),
  fc.string({ unit: "binary", maxLength: 40 }),
  fc.array(piece, { maxLength: 8 }).map((p) => `postgres://u:${SECRET}${p.join("")}@h:1/d`),
  fc.array(piece, { maxLength: 8 }).map((p) => `host=h password=${SECRET}${p.join("")} user=u`),
);

test("whatever a string is: it is read, or refused with an error that has no secret in it", () => {
  let [taken, refused] = [0, 0];
  fc.assert(
    fc.property(noise, (text) => {
      try {
        connectOf(text);
        taken++;
      } catch (error) {
        refused++;
        assert(error instanceof TypeError || error instanceof RangeError, String(error));
        assert(error.message.length < 1_000, error.message);
        assert(!error.message.includes(SECRET), error.message);
        assert(!error.message.includes("\0"), error.message);
      }
    }),
    { numRuns: 1_500 },
  );
  assert(taken > 10 && refused > 200, `${taken} ${refused}`);
});

test("whatever an option is: it is taken, or refused by its name", () => {
  const names = [
    ...Object.keys(KEYWORDS),
    "ssl",
    "path",
    "connection",
    "keep_alive",
    "dsn",
    "socket",
  ];
  const value = fc.oneof(
    fc.anything({ withBigInt: true, withDate: true, withNullPrototype: true }),
    fc.constantFrom<unknown>(NaN, -1, 0.5, 2 ** 40, Symbol("x"), () => {}, "", "x"),
  );
  fc.assert(
    fc.property(fc.constantFrom(...names), value, (name, value) => {
      try {
        parseSettings([{ user: "u", [name]: value }]);
      } catch (error) {
        assert(error instanceof TypeError || error instanceof RangeError, String(error));
        if (name !== "dsn") assertStringIncludes(error.message, name === "path" ? "path" : name);
      }
    }),
    { numRuns: 1_000 },
  );
});

test("a long string takes no long time", () => {
  const begin = performance.now();
  for (const text of ["'", "\\", "=", "@", "%", ",", "[", " ", "a=", "postgres://", "#", ":"]) {
    const long = text.repeat(50_000 / text.length);
    for (const start of ["", "postgres://", "host=", "postgres://u:p@", "postgres://h/d?"]) {
      assertThrows(() => {
        connectOf(start + long);
        throw new TypeError("read");
      });
    }
  }
  assertEquals(passwordIn(`${"\\".repeat(100_000)}\n${":".repeat(100_000)}`, ["", "", "", ""]), "");
  assert(performance.now() - begin < 30_000);
});
