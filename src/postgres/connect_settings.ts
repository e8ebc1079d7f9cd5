/**
 * What a connect is told, put together as libpq does: arguments, connection string, service file,
 * environment, default, in this order. All is checked here; an error names the place and the rule.
 */

import { LONGEST } from "../clock.ts";
import {
  CHECKS_REVOCATION,
  env,
  type FileContent,
  homeDirectory,
  osUser,
  POSIX,
  readDirectory,
  readFile,
  readFileSync,
} from "../runtime.ts";
import { parseService, type PassfileKey, passwordIn } from "./conninfo.ts";
import { KEYWORDS, SETTING_VARIABLES, versionOf } from "./keywords.ts";
import { codeOf } from "./wire/connect_error.ts";
import type {
  AuthMethod,
  ConnectSettings,
  SslMode,
  Target,
  TlsFiles,
  TlsSettings,
} from "./wire/settings.ts";
import { isAddress } from "./wire/startup.ts";

/** What the arguments and the connection string say together, by libpq's keywords. */
export interface Described {
  /** Values as text, those of the arguments over those of the string. */
  readonly values: ReadonlyMap<string, string>;
  /** A function that gives the password, in place of the one in `values`. */
  readonly password: (() => string | Promise<string>) | null;
  /** The option `ssl` as an object: options of tls.connect. */
  readonly tls: Readonly<Record<string, unknown>> | null;
  /** True when the runtime's own roots are meant where no root certificate is named: the driver's `ssl: true`. */
  readonly runtimeRoots: boolean;
  /** The Unix socket itself, in place of its directory. */
  readonly path: string | null;
  /** Settings of the server; their names are those that the user wrote. */
  readonly connection: Readonly<Record<string, string>>;
  readonly transport: ConnectSettings["transport"];
  /** The most rounds of hashing that SCRAM may take, or null for the default. */
  readonly maxScramIterations: number | null;
}

/** A value, and where it comes from: for errors. */
interface Found {
  readonly value: string;
  readonly from: string;
}

/** Seconds. For a pool there is no sense in waiting for ever; libpq's default is no limit. */
const CONNECT_TIMEOUT = 30;
/** Seconds, as in the driver: a middlebox often forgets connections sooner than the system's two hours. */
const KEEPALIVES_IDLE = 60;
/** Of the processor's time, about a twentieth of a second; a server could ask for hours. PostgreSQL's default is 4,096. */
const MOST_ITERATIONS = 100_000;
/** The longest time that a timer takes, in seconds. */
export const LONGEST_SECONDS: number = Math.floor(LONGEST / 1_000);

/** What the keyword's value means, in milliseconds; 0 = no limit, which in libpq is also what is below. */
export function connectTimeout(seconds: string | undefined): number {
  const given = seconds === undefined ? CONNECT_TIMEOUT : Number(seconds);
  return 1000 * Math.min(Math.max(0, given), LONGEST_SECONDS);
}

/** Completes what is `described` by service, environment and defaults. Reads a service file if one is named. */
export function connectSettings(described: Described): ConnectSettings {
  const found = complete(described.values);
  check(found);
  const text = (keyword: string): string => found.get(keyword)?.value ?? "";
  const number = (keyword: string): number => Math.max(0, Number(text(keyword)));
  const targets = targetsOf(described.path, text);
  const user = text("user") || osUser() || "";
  if (user === "") {
    throw new TypeError(
      "user is not given, and the system's user name may not be read: give user, or PGUSER",
    );
  }
  const database = text("dbname") || user;
  const tls = tlsOf(found, described, text);
  const auth = {
    channelBinding: (text("channel_binding") || "prefer") as "disable" | "prefer" | "require",
    methods: methodsOf(found.get("require_auth")),
    maxScramIterations: described.maxScramIterations ?? MOST_ITERATIONS,
    password: passwordOf(described, text("password"), text("passfile"), database, user),
  };
  if (auth.channelBinding === "require" && tls.mode === "disable") {
    throw new TypeError("channel_binding=require needs TLS, and sslmode is disable");
  }
  if (text("requirepeer") !== "" && targets.some((target) => target.path !== null)) {
    throw new TypeError(
      "requirepeer cannot be obeyed: no runtime tells whose process a Unix socket leads to",
    );
  }
  const attrs = text("target_session_attrs") || "any";
  const [minProtocol, maxProtocol] = protocolOf(text);
  return {
    targets,
    loadBalance: text("load_balance_hosts") === "random",
    attrs: attrs === "any" ? null : attrs as ConnectSettings["attrs"],
    connectTimeout: connectTimeout(found.get("connect_timeout")?.value),
    tcp: {
      keepalives: !found.has("keepalives") || Number(text("keepalives")) !== 0,
      keepalivesIdle: found.has("keepalives_idle") ? number("keepalives_idle") : KEEPALIVES_IDLE,
      keepalivesInterval: number("keepalives_interval"),
      keepalivesCount: number("keepalives_count"),
    },
    tls,
    auth,
    minProtocol,
    maxProtocol,
    user,
    database,
    parameters: parametersOf(described.connection, found, text),
    transport: described.transport,
  };
}

// ---- where values come from ----

function complete(given: ReadonlyMap<string, string>): Map<string, Found> {
  const found = new Map<string, Found>();
  for (const [keyword, value] of given) found.set(keyword, { value, from: keyword });
  const service = given.get("service") ?? env("PGSERVICE");
  if (service !== undefined) {
    for (const [keyword, value] of serviceOf(service, given.get("servicefile"))) {
      if (!found.has(keyword)) {
        found.set(keyword, { value, from: `${keyword} of the service ${JSON.stringify(service)}` });
      }
    }
  }
  for (const [keyword, { variable }] of Object.entries(KEYWORDS)) {
    if (variable === undefined || found.has(keyword)) continue;
    const value = env(variable);
    if (value !== undefined) found.set(keyword, { value, from: variable });
  }
  otherVariables(found);
  return found;
}

/** Variables of old, and of the driver, behind those of libpq. */
function otherVariables(found: Map<string, Found>): void {
  if (!found.has("sslmode")) {
    const driver = env("PGSSL");
    if (env("PGREQUIRESSL")?.startsWith("1")) {
      found.set("sslmode", { value: "require", from: "PGREQUIRESSL" });
    } else if (driver) {
      const value = driver === "true" ? "verify-full" : driver === "false" ? "disable" : driver;
      found.set("sslmode", { value, from: "PGSSL" });
    }
  }
  const user = env("PGUSERNAME");
  if (!found.has("user") && user) found.set("user", { value: user, from: "PGUSERNAME" });
  const idle = env("PGKEEP_ALIVE");
  if (!found.has("keepalives_idle") && idle) {
    found.set("keepalives_idle", { value: idle, from: "PGKEEP_ALIVE" });
  }
}

function serviceOf(service: string, servicefile: string | undefined): ReadonlyMap<string, string> {
  const name = JSON.stringify(service);
  const explicit = servicefile ?? env("PGSERVICEFILE");
  const home = homeDirectory();
  const system = env("PGSYSCONFDIR");
  const files = [
    explicit ?? (home === undefined ? undefined : `${home}/.pg_service.conf`),
    system === undefined ? undefined : `${system}/pg_service.conf`,
  ];
  const looked: string[] = [];
  for (const file of files) {
    if (file === undefined) continue;
    looked.push(file);
    let text: string;
    try {
      ({ text } = readFileSync(file));
    } catch (error) {
      if (file !== explicit && codeOf(error) === "ENOENT") continue;
      throw new TypeError(`service ${name}: ${unreadable(file, error)}`);
    }
    const values = parseService(text, service, file);
    if (values !== null) return values;
  }
  throw new TypeError(
    `service ${name} is not found: ` +
      (looked.length === 0
        ? "there is no file to look into; give servicefile, or PGSERVICEFILE"
        : `there is no [${service}] in ${looked.join(" nor in ")}`),
  );
}

function check(found: ReadonlyMap<string, Found>): void {
  for (const [keyword, { value, from }] of found) {
    const { rule, refused, secret } = KEYWORDS[keyword]!;
    if (value.includes("\0")) throw new TypeError(`${from} has a NUL in it`);
    if (refused !== undefined && value !== "") {
      throw new TypeError(`${from} cannot be obeyed: ${refused}`);
    }
    const broken = rule?.(value);
    if (broken) {
      const shown = secret ? "" : `, not ${JSON.stringify(value)}`;
      throw new RangeError(`${from} must be ${broken}${shown}`);
    }
  }
}

// ---- where to ----

type Text = (keyword: string) => string;

function targetsOf(path: string | null, text: Text): Target[] {
  const addresses = text("hostaddr") === "" ? [] : listOf(text("hostaddr"));
  const names = text("host") === "" ? [] : listOf(text("host")).map(splitHost);
  const count = addresses.length || names.length || 1;
  if (addresses.length > 0 && names.length > 0 && names.length !== count) {
    throw new RangeError(
      `hostaddr must be one address for each host: ${count} addresses for ${names.length} hosts`,
    );
  }
  const ports = text("port") === "" ? [] : listOf(text("port"));
  if (ports.length > 1 && ports.length !== count) {
    throw new RangeError(
      `port must be one number, or one for each host: ${ports.length} ports for ${count} hosts`,
    );
  }
  const targets = Array.from({ length: count }, (_, i) => {
    const { host: name = "", port: beside = "" } = names[i] ?? {};
    const given = ports[ports.length > 1 ? i : 0] ?? "";
    if (given !== "" && beside !== "" && parsePort(given) !== parsePort(beside)) {
      throw new TypeError("port and the port beside host differ: give one of them");
    }
    const hostaddr = addresses[i] || null;
    checkHost(name);
    if (hostaddr !== null && !isAddress(hostaddr)) {
      throw new TypeError("hostaddr must be an IPv4 or IPv6 address; names go into host");
    }
    const host = name || hostaddr || "localhost";
    const port = parsePort(beside || given || "5432");
    const socket = hostaddr === null && host.startsWith("/");
    const path = socket ? `${host}/.s.PGSQL.${port}` : null;
    checkPath(path);
    return { host, hostaddr, port, path };
  });
  checkPath(path);
  return path === null ? targets : [{ ...targets[0]!, hostaddr: null, path }];
}

/** What a system's address of a socket has room for; a longer one is refused, or cut off, in words that tell nothing. */
const LONGEST_PATH = 107;

function checkPath(path: string | null): void {
  const length = path === null ? 0 : new TextEncoder().encode(path).length;
  if (length <= LONGEST_PATH) return;
  throw new RangeError(
    `the path of a Unix socket may have ${LONGEST_PATH} bytes, and this one has ${length}: ` +
      JSON.stringify(path),
  );
}

function listOf(text: string): string[] {
  return text.split(",").map((entry) => entry.trim());
}

/** Takes `b:5433` and `[::1]:5434` apart: the driver's way to give a port with a host. */
function splitHost(entry: string): { host: string; port: string } {
  if (entry.startsWith("/")) return { host: entry, port: "" };
  const bracketed = /^\[([^\]]*)\](?::(.*))?$/.exec(entry);
  if (bracketed !== null) return { host: bracketed[1]!, port: bracketed[2] ?? "" };
  const first = entry.indexOf(":");
  // More than one colon without brackets is an IPv6 address.
  if (first === -1 || entry.indexOf(":", first + 1) !== -1) return { host: entry, port: "" };
  return { host: entry.slice(0, first), port: entry.slice(first + 1) };
}

function checkHost(host: string): void {
  // Not shown: a password with an unescaped "@" would stand here.
  if (!host.startsWith("/") && /[\s@/?#\\]/.test(host)) {
    throw new TypeError(
      "host must be a name, an address or a directory that begins with /: without blanks, @ and the like",
    );
  }
}

function parsePort(text: string): number {
  const port = /^\s*\d+\s*$/.test(text) ? Number(text) : NaN;
  if (!(port >= 1 && port <= 65535)) {
    // Not shown: a piece of a password with an unescaped "/" may stand here.
    throw new RangeError(
      "port must be an integer from 1 to 65535; in a url, a password with any of @ / ? # % in it " +
        "must be percent-encoded",
    );
  }
  return port;
}

function protocolOf(text: Text): ["3.0" | "3.2", "3.0" | "3.2"] {
  const version = (keyword: string, usual: "3.0" | "3.2") => {
    const value = text(keyword);
    return value === "" ? usual : value === "3.0" ? "3.0" : "3.2";
  };
  const least = version("min_protocol_version", "3.0");
  // Some poolers cannot say no to 3.2, so it is asked for only where it is wanted, as in libpq.
  const most = version("max_protocol_version", least);
  if (least > most) {
    throw new RangeError("min_protocol_version must not be greater than max_protocol_version");
  }
  return [least, most];
}

function parametersOf(
  connection: Readonly<Record<string, string>>,
  found: ReadonlyMap<string, Found>,
  text: Text,
): Record<string, string> {
  const parameters: Record<string, string> = {
    // Texts are made and read as UTF-8, whatever a database or role has for its default.
    client_encoding: "UTF8",
  };
  const given = new Set(Object.keys(connection).map((name) => name.toLowerCase()));
  for (const [variable, setting] of Object.entries(SETTING_VARIABLES)) {
    const value = env(variable);
    // "default" is how a variable is told to mean nothing.
    if (!value || /^default$/i.test(value) || given.has(setting)) continue;
    parameters[setting] = setting === "datestyle" ? isoStyle(value) : value;
  }
  // An empty name that was given is none, as in libpq.
  const name = found.get("application_name")?.value ?? connection["application_name"] ??
    (text("fallback_application_name") || "postgres.js");
  const options = text("options") || connection["options"];
  return {
    ...parameters,
    ...connection,
    ...(name === "" ? {} : { application_name: name }),
    ...(options ? { options } : {}),
  };
}

/** Dates come as ISO and become objects, so of a DateStyle only the order of day and month has a meaning. */
function isoStyle(value: string): string {
  const order = /\b(DMY|MDY|YMD|Euro\w*|US|NonEuro\w*)\b/i.exec(value)?.[1];
  return order === undefined ? "ISO" : `ISO, ${order}`;
}

// ---- TLS ----

function tlsOf(
  found: ReadonlyMap<string, Found>,
  described: Described,
  text: Text,
): TlsSettings {
  const options = described.tls ?? {};
  const rootcert = text("sslrootcert");
  const negotiation = (text("sslnegotiation") || "postgres") as TlsSettings["negotiation"];
  // Everybody can have a certificate of a public authority: only the name in it tells who it is.
  const usual: SslMode = rootcert === "system" ? "verify-full" : "prefer";
  const mode = (found.get("sslmode")?.value ?? usual) as SslMode;
  if (rootcert === "system" && mode !== "verify-full" && described.tls === null) {
    throw new TypeError(
      `sslrootcert=system needs sslmode=verify-full, and sslmode is ${mode}: anybody can have a ` +
        "certificate of a public authority",
    );
  }
  if (negotiation === "direct" && !/^(require|verify-)/.test(mode)) {
    throw new TypeError(
      `sslnegotiation=direct needs sslmode=require, verify-ca or verify-full (option ssl), and sslmode is ${mode}`,
    );
  }
  const minVersion = versionOf(text("ssl_min_protocol_version")) ?? "TLSv1.2";
  const maxVersion = versionOf(text("ssl_max_protocol_version")) ?? null;
  if (maxVersion !== null && minVersion > maxVersion) {
    throw new RangeError(
      `ssl_min_protocol_version must not be greater than ssl_max_protocol_version: ${minVersion} and ${maxVersion}`,
    );
  }
  if (/^engine:|^pkcs11:/.test(text("sslkey"))) {
    throw new TypeError("sslkey must be a file: keys in hardware are not supported");
  }
  for (const keyword of ["sslcrl", "sslcrldir"]) {
    if (text(keyword) !== "" && mode !== "disable") assertRevocable(keyword);
  }
  if (options["crl"] !== undefined) assertRevocable("the option ssl.crl");
  const home = homeDirectory();
  const certmode = (text("sslcertmode") || "allow") as TlsSettings["certmode"];
  return {
    mode,
    negotiation,
    sni: found.get("sslsni") === undefined || Number(text("sslsni")) !== 0,
    certmode,
    minVersion,
    maxVersion,
    files: () => tlsFiles(mode, described, certmode, text, home),
    options,
  };
}

function assertRevocable(what: string): void {
  if (CHECKS_REVOCATION) return;
  throw new TypeError(
    `${what} cannot be obeyed: this runtime's TLS does not look at lists of revoked certificates`,
  );
}

/** What makes a file of PEM one with such a thing in it. */
const PEM = {
  sslrootcert: [/-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----/, "certificate"],
  sslcert: [/-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----/, "certificate"],
  sslkey: [/-----BEGIN [A-Z ]*PRIVATE KEY-----/, "private key"],
  sslcrl: [/-----BEGIN X509 CRL-----/, "list of revoked certificates"],
} as const;
const LISTS = /-----BEGIN X509 CRL-----[^-]*-----END X509 CRL-----/g;

/** Reads the certificates, from the places that libpq has for them when none are named. */
async function tlsFiles(
  mode: SslMode,
  { tls, runtimeRoots }: Described,
  certmode: TlsSettings["certmode"],
  text: Text,
  home: string | undefined,
): Promise<TlsFiles> {
  const options = tls ?? {};
  const files: { -readonly [key in keyof TlsFiles]: TlsFiles[key] } = {};
  const usual = (name: string) => home === undefined ? "" : `${home}/.postgresql/${name}`;
  const get = async (keyword: keyof typeof PEM, file: string): Promise<FileContent | null> => {
    const named = text(keyword);
    const path = named || file;
    let content: FileContent;
    try {
      if (path === "") return null;
      content = await readFile(path);
    } catch (error) {
      if (named === "" && (error as { found?: boolean }).found !== true) return null;
      throw new TypeError(`${keyword}: ${unreadable(path, error)}`);
    }
    // Runtimes take an empty text for none: their own roots in place of these, no list, no certificate.
    const [pattern, what] = PEM[keyword];
    if (pattern.test(content.text)) return content;
    throw new TypeError(`${keyword}: there is no ${what} (PEM) in ${JSON.stringify(path)}`);
  };
  if (text("sslrootcert") !== "system" && options["ca"] === undefined) {
    files.ca = (await get("sslrootcert", runtimeRoots ? "" : usual("root.crt")))?.text;
    if (mode === "verify-ca" && files.ca === undefined) {
      throw new TypeError(
        "sslmode=verify-ca needs a root certificate: give sslrootcert, or use verify-full, " +
          "which can do with the runtime's own",
      );
    }
  }
  if ((mode.startsWith("verify") || files.ca !== undefined) && options["crl"] === undefined) {
    const crl = await get("sslcrl", usual("root.crl"));
    const lists: string[] = crl?.text.match(LISTS) ?? [];
    const directory = text("sslcrldir");
    if (directory !== "") lists.push(...await listsIn(directory));
    if (lists.length > 0) {
      assertRevocable(
        crl === null ? "sslcrldir" : `sslcrl (${text("sslcrl") || usual("root.crl")})`,
      );
      files.crl = lists;
    }
  }
  if (certmode !== "disable" && options["cert"] === undefined) {
    const cert = await get("sslcert", usual("postgresql.crt"));
    if (cert !== null) {
      files.cert = cert.text;
      const key = await get("sslkey", usual("postgresql.key"));
      if (key === null) throw new TypeError("sslkey: there is a certificate, but no private key");
      if (tooOpen(key)) {
        throw new TypeError(
          "sslkey: the file is open to group or others: chmod 600 (or 640 when root owns it)",
        );
      }
      files.key = key.text;
      const passphrase = text("sslpassword");
      if (passphrase !== "") files.passphrase = passphrase;
      await assertOpens(key.text, passphrase);
    }
  }
  return files;
}

/** All lists of revoked certificates in the files of a directory. */
async function listsIn(directory: string): Promise<string[]> {
  const lists: string[] = [];
  try {
    for (const name of await readDirectory(directory)) {
      lists.push(...(await readFile(`${directory}/${name}`)).text.match(LISTS) ?? []);
    }
  } catch (error) {
    throw new TypeError(`sslcrldir: ${unreadable(directory, error)}`);
  }
  if (lists.length > 0) return lists;
  throw new TypeError(
    `sslcrldir: there is no list of revoked certificates (PEM) in ${JSON.stringify(directory)}`,
  );
}

/** With a key that it cannot read, Deno would go on without the certificate, and without a word. */
async function assertOpens(key: string, passphrase: string): Promise<void> {
  const { createPrivateKey } = await import("node:crypto");
  try {
    createPrivateKey({ key, ...(passphrase === "" ? {} : { passphrase }) });
  } catch {
    throw new TypeError(
      /ENCRYPTED/.test(key)
        ? "sslkey is encrypted, and sslpassword is not its password"
        : "sslkey: the file has no private key that can be read",
    );
  }
}

/** libpq's rule for private keys. */
function tooOpen({ mode, uid }: FileContent): boolean {
  return POSIX && (mode & (uid === 0 ? 0o037 : 0o077)) !== 0;
}

// ---- who we are ----

const METHODS: readonly AuthMethod[] = [
  "none",
  "password",
  "md5",
  "gss",
  "sspi",
  "scram-sha-256",
  "oauth",
];

/** `require_auth`: methods that may be, or with `!` before each, those that may not. */
function methodsOf(given: Found | undefined): ReadonlySet<AuthMethod> | null {
  if (given === undefined) return null;
  // For libpq an empty list is one that permits nothing.
  const entries = given.value.split(",");
  const forbidden = entries[0]!.startsWith("!");
  const named = new Set<AuthMethod>();
  for (const entry of entries) {
    const method = entry.replace("!", "") as AuthMethod;
    if (entry.startsWith("!") !== forbidden) {
      throw new RangeError("require_auth must have ! before all its methods, or before none");
    }
    if (!METHODS.includes(method)) {
      throw new RangeError(
        `require_auth must be a list of ${METHODS.join(", ")}, not ${JSON.stringify(entry)}`,
      );
    }
    if (named.has(method)) {
      throw new RangeError(`require_auth names ${method} twice: that may be a slip`);
    }
    named.add(method);
  }
  return forbidden ? new Set(METHODS.filter((method) => !named.has(method))) : named;
}

function passwordOf(
  { password }: Described,
  fixed: string,
  passfile: string,
  database: string,
  user: string,
): (target: Target) => Promise<string | null> {
  if (password !== null) {
    return async () => {
      const given: unknown = await password();
      if (typeof given === "string") return given;
      throw new TypeError("the option password is a function that gave no string");
    };
  }
  if (fixed !== "") return () => Promise.resolve(fixed);
  const file = passfile || usualPassfile();
  if (file === null) return () => Promise.resolve(null);
  // Read anew for each connect: passwords change.
  return ({ host, port }) =>
    passwordFromFile(file, passfile !== "", [host, String(port), database, user]);
}

async function passwordFromFile(
  file: string,
  named: boolean,
  key: PassfileKey,
): Promise<string | null> {
  let content: FileContent;
  try {
    content = await readFile(file);
  } catch (error) {
    if (!named || codeOf(error) === "ENOENT") return null;
    throw new TypeError(`passfile: ${unreadable(file, error)}`);
  }
  // Not used, as in libpq, which only warns; but here nobody asks before the server wants a password.
  if (POSIX && (content.mode & 0o077) !== 0) {
    throw new TypeError(
      `the password file ${
        JSON.stringify(file)
      } is not used, as it is open to group or others: chmod 600`,
    );
  }
  return passwordIn(content.text, key);
}

function usualPassfile(): string | null {
  if (!POSIX) {
    const folder = env("APPDATA");
    return folder === undefined ? null : `${folder}\\postgresql\\pgpass.conf`;
  }
  const home = homeDirectory();
  return home === undefined ? null : `${home}/.pgpass`;
}

function unreadable(file: string, error: unknown): string {
  const reason = codeOf(error) === "ENOENT"
    ? "there is no such file"
    : error instanceof Error
    ? error.message
    : String(error);
  return `the file ${JSON.stringify(file)} cannot be read: ${reason}`;
}
