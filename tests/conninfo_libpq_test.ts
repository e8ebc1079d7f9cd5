/**
 * Ours beside the real libpq (psql): the same strings, keywords, service files, password files and
 * environments must lead to the same place, as the same user, with the same password.
 */

import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { PostgresConnector } from "../src/postgres/connector.ts";
import { test } from "./support/harness.ts";
import { findPsql, GuestBook, type Psql, type Visit } from "./support/libpq.ts";

/** More by hand: GETCONN_CASES, and another GETCONN_SEED. */
const CASES = Number(process.env["GETCONN_CASES"] ?? 300);
const psql = await findPsql();

/** One way to say how to connect. */
interface Case {
  readonly conninfo: string;
  /** The same as an object of keywords; psql is given `conninfo`. */
  readonly keywords: Readonly<Record<string, string>> | null;
  readonly env: Readonly<Record<string, string>>;
  readonly service: string;
  readonly passfile: { readonly text: string; readonly mode: number };
}

interface Outcome {
  readonly visit: Visit | null;
  readonly error: string;
}

interface World {
  readonly book: GuestBook;
  readonly ports: readonly number[];
  readonly folder: string;
}

// ---- what is generated ----

/** Letters that mean something somewhere. */
const word = fc.string({
  unit: fc.constantFrom(..."ab1 '\\:=@/?#%&+,.-_äλ😀*".match(/./gu)!),
  minLength: 1,
  maxLength: 6,
});
const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined, freq: 1 });

function caseOf({ ports, folder }: World): fc.Arbitrary<Case> {
  const port = fc.constantFrom(...ports, ...ports, 1).map(String);
  const host = fc.constantFrom("127.0.0.1", "127.0.0.2", "127.0.0.3", folder, "localhost");
  const places = fc.array(fc.record({ host, port: fc.oneof(port, fc.constant("")) }), {
    minLength: 1,
    maxLength: 3,
  });
  const values = fc.record({
    places: maybe(places),
    onePort: fc.boolean(),
    hostaddr: fc.option(fc.constantFrom("127.0.0.1", "127.0.0.3"), { nil: undefined, freq: 5 }),
    user: maybe(word),
    password: maybe(word),
    dbname: maybe(word),
    options: maybe(fc.constantFrom("-c geqo=off", "-cwork_mem=4MB -c a.b=c\\ d", "")),
    application_name: maybe(fc.oneof(word, fc.constant(""))),
    sslmode: maybe(fc.constantFrom("disable", "allow", "prefer", "require")),
    connect_timeout: maybe(fc.constantFrom("3", " 4 ", "-1", "0")),
    target_session_attrs: maybe(fc.constantFrom("any", "read-write")),
    odd: fc.option(
      fc.constantFrom<[string, string]>(
        ["sslmode", "bogus"],
        ["sslmode", ""],
        ["channel_binding", "maybe"],
        ["channel_binding", "disable"],
        ["gssencmode", "disable"],
        ["load_balance_hosts", "always"],
        ["require_auth", "password"],
        ["require_auth", "password,password"],
        ["require_auth", ""],
        ["keepalives_idle", "-5"],
        ["require_auth", "!password,md5"],
        ["require_auth", "!md5,!none"],
        ["ssl_min_protocol_version", "TLSv9"],
        ["ssl_max_protocol_version", "TLSv1.1"],
        ["keepalives", "0"],
        ["krbsrvname", "x"],
        ["sslnegotiation", "direct"],
        ["client_encoding", "UTF8"],
        ["max_protocol_version", "4.0"],
        ["requiressl", "0"],
        ["nonsense", "1"],
        ["port", "99999"],
        ["port", "x"],
        ["hostaddr", "127.0.0.1,127.0.0.2,127.0.0.3,127.0.0.1"],
      ),
      { nil: undefined, freq: 3 },
    ),
  });
  return fc.record({
    form: fc.constantFrom("url", "url", "pairs", "pairs", "keywords"),
    /** Which of the values are in the string; the others may be in the environment and the service. */
    here: fc.array(fc.boolean(), { minLength: 12, maxLength: 12 }),
    values,
    fromEnv: values,
    fromService: values,
    useEnv: fc.boolean(),
    useService: fc.constantFrom("no", "no", "string", "PGSERVICE", "missing"),
    mode: fc.constantFrom(0o600, 0o600, 0o600, 0o644),
    lines: fc.array(
      fc.record({
        host: fc.oneof(host, fc.constant("*")),
        port: fc.oneof(port, fc.constant("*")),
        dbname: fc.oneof(word, fc.constant("*"), fc.constant("*")),
        user: fc.oneof(word, fc.constant("*"), fc.constant("*")),
        password: word,
        comment: fc.boolean(),
      }),
      { maxLength: 4 },
    ),
    spaces: fc.constantFrom("", " ", "\t"),
    quote: fc.boolean(),
  }).map((drawn): Case => {
    const entries = entriesOf(drawn.values).filter((_, i) => drawn.here[i % 12]);
    const env: Record<string, string> = { HOME: folder, PGPORT: String(ports[0]) };
    env["PGHOST"] = "127.0.0.2";
    if (drawn.useEnv) {
      for (const [key, value] of entriesOf(drawn.fromEnv)) {
        const variable = VARIABLES[key];
        if (variable !== undefined) env[variable] = value;
      }
    }
    // A word of strings only.
    const form = drawn.values.odd?.[0] === "requiressl" && drawn.form === "keywords"
      ? "pairs"
      : drawn.form;
    const service = entriesOf(drawn.fromService).map(([k, v]) => `${k}=${v}\n`).join("");
    if (drawn.useService === "PGSERVICE") env["PGSERVICE"] = "here";
    if (drawn.useService === "string") entries.push(["service", "here"]);
    if (drawn.useService === "missing") entries.push(["service", "gone"]);
    const line = (text: string) => text === "*" ? text : text.replace(/[\\:]/g, "\\$&");
    const passfile = drawn.lines.map((l) =>
      (l.comment ? "#" : "") +
      [l.host, l.port, l.dbname, l.user, l.password].map(line).join(":") + "\n"
    ).join("");
    const pairs = entries.map(([key, value]) =>
      `${key}${drawn.spaces}=${drawn.spaces}${quoted(value, drawn.quote)}`
    ).join(" ");
    return {
      conninfo: form === "url" ? urlOf(entries) : pairs,
      keywords: form === "keywords" ? Object.fromEntries(entries) : null,
      env,
      service: `# services\n[other]\nhost=127.0.0.9\n\n[here]\n${service}[last]\nuser=nobody\n`,
      passfile: { text: passfile, mode: drawn.mode },
    };
  });
}

const VARIABLES: Readonly<Record<string, string>> = {
  host: "PGHOST",
  hostaddr: "PGHOSTADDR",
  port: "PGPORT",
  user: "PGUSER",
  password: "PGPASSWORD",
  dbname: "PGDATABASE",
  options: "PGOPTIONS",
  application_name: "PGAPPNAME",
  sslmode: "PGSSLMODE",
  connect_timeout: "PGCONNECT_TIMEOUT",
  channel_binding: "PGCHANNELBINDING",
  require_auth: "PGREQUIREAUTH",
  gssencmode: "PGGSSENCMODE",
  target_session_attrs: "PGTARGETSESSIONATTRS",
};

type Drawn = {
  places?: { host: string; port: string }[] | undefined;
  onePort: boolean;
  odd?: [string, string] | undefined;
  [keyword: string]: unknown;
};

function entriesOf({ places, onePort, odd, ...others }: Drawn): [string, string][] {
  const entries: [string, string][] = [];
  if (places !== undefined) {
    entries.push(["host", places.map(({ host }) => host).join(",")]);
    const ports = onePort ? places[0]!.port : places.map(({ port }) => port).join(",");
    if (ports !== "") entries.push(["port", ports]);
  }
  for (const [key, value] of Object.entries(others)) {
    if (typeof value === "string") entries.push([key, value]);
  }
  if (odd !== undefined) entries.push(odd);
  return entries;
}

function quoted(value: string, always: boolean): string {
  const escaped = value.replace(/[\\']/g, "\\$&");
  return always || value === "" || /\s/.test(value) ? `'${escaped}'` : escaped;
}

function urlOf(entries: readonly [string, string][]): string {
  const left = new Map(entries);
  const take = (key: string) => {
    const value = left.get(key);
    left.delete(key);
    return value;
  };
  const [user, password, dbname] = [take("user"), take("password"), take("dbname")];
  const ports = (take("port") ?? "").split(",");
  const hosts = (take("host") ?? "").split(",");
  const login = (user === undefined ? "" : encodeURIComponent(user)) +
    (password === undefined ? "" : `:${encodeURIComponent(password)}`);
  const authority = hosts.map((host, i) => {
    const port = ports[ports.length === 1 ? 0 : i] ?? "";
    return encodeURIComponent(host) + (port === "" ? "" : `:${port}`);
  }).join(",");
  const query = [...left].map(([k, v]) => `${k}=${encodeURIComponent(v)}`).join("&");
  return `postgresql://${login === "" ? "" : `${login}@`}${authority}` +
    (dbname === undefined ? "" : `/${encodeURIComponent(dbname)}`) +
    (query === "" ? "" : `?${query}`);
}

// ---- both of them ----

async function byPsql({ run }: Psql, { conninfo, env }: Case, { book }: World): Promise<Outcome> {
  const before = book.visits.length;
  const error = await run(conninfo, env);
  await book.quiet();
  return { visit: book.visits[before] ?? null, error };
}

/** With the environment changed until the pool's options are read, as a program starts with it. */
async function byUs({ conninfo, keywords, env }: Case, { book }: World): Promise<Outcome> {
  const before = book.visits.length;
  const kept = { ...process.env };
  const connector = new PostgresConnector();
  try {
    for (const name of Object.keys(process.env)) {
      if (name.startsWith("PG")) delete process.env[name];
    }
    Object.assign(process.env, env);
    connector.accept(keywords === null ? [conninfo] : [keywords]);
  } catch (error) {
    assert(error instanceof TypeError || error instanceof RangeError, String(error));
    return { visit: null, error: error.message };
  } finally {
    for (const name of Object.keys(process.env)) if (!(name in kept)) delete process.env[name];
    Object.assign(process.env, kept);
  }
  const abort = new AbortController();
  const attempt = { args: [], signal: abort.signal, onlost: () => {}, onshares: () => {} };
  try {
    await connector.open(attempt);
    throw new Error("it connected");
  } catch (error) {
    await book.quiet();
    return { visit: book.visits[before] ?? null, error: String(error) };
  }
}

function comparable({ visit }: Outcome): unknown {
  if (visit === null) return "no visit";
  const { application_name: name, ...parameters } = visit.parameters;
  // Without a name each gives its own.
  const own = name === "psql" || name === "postgres.js" ? "default" : name;
  return { ...visit, parameters: { ...parameters, application_name: own } };
}

/** Where ours is stricter, or has another default, on purpose. Gives why; null for no such reason. */
function explained(theirs: Outcome, ours: Outcome, { keywords }: Case): string | null {
  if (theirs.visit !== null && ours.visit === null) {
    if (/open to group or others/.test(ours.error) && theirs.visit.password === null) {
      return "a password file that is open to others is an error, where libpq warns and sends none";
    }
    if (/requirement "" failed/.test(theirs.error) && /require_auth must/.test(ours.error)) {
      return "a require_auth that permits nothing is refused before a connect, and not after";
    }
    if (/keepalives_idle must/.test(ours.error) && theirs.visit.place.startsWith("/")) {
      return "keepalives below 0 are refused, also where libpq does not come to them";
    }
    if (keywords !== null && /not empty/.test(ours.error)) return "an empty option is refused";
  }
  return null;
}

test("the same words lead to the same place as with libpq", async () => {
  const folder = mkdtempSync(join(tmpdir(), "libpq-"));
  const book = new GuestBook();
  try {
    const ports = [await book.listen(), await book.listen()];
    await book.listenAt(join(folder, `.s.PGSQL.${ports[0]}`));
    const world = { book, ports, folder };
    const seed = Number(process.env["GETCONN_SEED"] ?? 16);
    const cases = fc.sample(caseOf(world), { numRuns: CASES, seed });
    const explanations = new Map<string, number>();
    let [visits, failures] = [0, 0];
    for (const [i, one] of cases.entries()) {
      writeFileSync(join(folder, ".pg_service.conf"), one.service);
      writeFileSync(join(folder, ".pgpass"), one.passfile.text);
      chmodSync(join(folder, ".pgpass"), one.passfile.mode);
      const theirs = await byPsql(psql!, one, world);
      const ours = await byUs(one, world);
      if (ours.visit === null) failures++;
      else visits++;
      const reason = explained(theirs, ours, one);
      if (reason !== null) explanations.set(reason, (explanations.get(reason) ?? 0) + 1);
      else {
        assertEquals(
          comparable(ours),
          comparable(theirs),
          `case ${i}: ${JSON.stringify(one)}\nlibpq: ${theirs.error}\nours: ${ours.error}`,
        );
      }
    }
    console.log(
      `${CASES} cases beside ${psql!.version}${psql!.modern ? " with libpq 18" : ""}: ` +
        `${visits} connects, ${failures} refusals, the same but for`,
      Object.fromEntries(explanations),
    );
    assert(visits > CASES / 4 && failures > CASES / 20, "the cases are worth something");
  } finally {
    await book.close();
    rmSync(folder, { recursive: true });
  }
}, { timeout: 800 * CASES, skip: psql === null && "there is no psql on this machine" });
