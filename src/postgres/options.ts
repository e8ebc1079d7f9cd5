/**
 * What a pool's arguments after maxconn mean: a connection string or a function that gives one, libpq's
 * keywords, and the options of the driver.
 */

import type { Duplex } from "node:stream";
import { env } from "../runtime.ts";
import { isPoolOption, isRecord } from "../pool/options.ts";
import {
  connectSettings,
  connectTimeout,
  type Described,
  LONGEST_SECONDS,
} from "./connect_settings.ts";
import { type Conninfo, DRIVER_WORDS, parseConninfo } from "./conninfo.ts";
import { type DriverOptions, parseOptions } from "./language.ts";
import { LIMIT } from "./query.ts";
import { adviceOn, ALIASES, keywordOf, KEYWORDS, OWNED } from "./keywords.ts";
import { fromDuplex } from "../sockets.ts";
import type { ConnectSettings, Target } from "./wire/settings.ts";

/** A pool's arguments, read once. */
export interface Plan {
  /** The options of the language: types, transforms, callbacks. */
  readonly driver: DriverOptions;
  /** Whether the user has said how many statements may be on their way. */
  readonly pipelines: boolean;
  /** The settings of all connects, or null when a function gives them. */
  readonly fixed: ConnectSettings | null;
  /** The settings of the next connect: asks the function where there is one. */
  readonly next: () => Promise<ConnectSettings>;
  /** Milliseconds that the function may take, or 0 for no limit. */
  readonly patience: number;
}

type Given = Readonly<Record<string, unknown>>;
type ConninfoFunction = () => unknown;

/** Reads `[conninfo?, options?]`; throws a TypeError or RangeError that shows no secret. */
export function parseSettings(args: readonly unknown[]): Plan {
  const { dsn, given } = split(args);
  check(given);
  if (typeof dsn !== "function") {
    const conninfo = dsn === null ? null : parseConninfo(dsn);
    const fixed = connectSettings(describe(conninfo, given));
    const language = languageOf(conninfo, given);
    const driver = driverOptions(language, fixed);
    const pipelines = "max_pipeline" in language;
    return { driver, pipelines, fixed, next: () => Promise.resolve(fixed), patience: 0 };
  }
  // What does not depend on the function is checked now; nothing is read for it that it may make needless.
  const described = describe(null, given);
  const language = languageOf(null, given);
  return {
    driver: driverOptions(language, null),
    pipelines: "max_pipeline" in language,
    fixed: null,
    patience: connectTimeout(described.values.get("connect_timeout")),
    next: async () => {
      const told = await dsn();
      // Of a secret that is not there; the string of a program may be empty, as for libpq.
      if (typeof told === "string" && told.trim() === "") {
        throw gaveNone(", and this is an empty one");
      }
      const conninfo = typeof told === "string" ? parseConninfo(told) : null;
      if (conninfo === null) check(keywordsOnly(told));
      for (const word of conninfo?.values.keys() ?? []) {
        if (DRIVER_WORDS.has(word)) {
          throw new TypeError(
            `${word} cannot change from connection to connection: give it beside the function`,
          );
        }
      }
      const options = conninfo === null ? { ...told as Given, ...given } : given;
      return connectSettings(describe(conninfo, options));
    },
  };
}

// ---- the arguments ----

const FIRST =
  "the third argument must be a connection string, a function that gives one, or options";

function split(
  args: readonly unknown[],
): { readonly dsn: string | ConninfoFunction | null; readonly given: Given } {
  const [first, second, ...rest] = args;
  if (rest.length > 0) {
    throw new TypeError("too many arguments: only a connection string and options may follow");
  }
  const leading = first === undefined || first === null || typeof first === "string" ||
    typeof first === "function";
  if (!leading && second !== undefined) throw new TypeError(FIRST);
  const { dsn = null, ...given } = optionsOf(leading ? second : first);
  const beside = leading ? first ?? null : null;
  if (dsn !== null && beside !== null) {
    throw new TypeError("a connection string is given twice: as an argument and as the option dsn");
  }
  const described = dsn ?? beside;
  if (described !== null && typeof described !== "string" && typeof described !== "function") {
    throw new TypeError("dsn must be a connection string, or a function that gives one");
  }
  return { dsn: described as string | ConninfoFunction | null, given };
}

function optionsOf(value: unknown): Given {
  if (value === undefined || value === null) return {};
  if (typeof value !== "object" || Array.isArray(value)) {
    throw new TypeError("options must be an object, and a connection string a string");
  }
  const odd = oddity(value);
  if (odd !== null) throw new TypeError(`options must be an object of options, and this is ${odd}`);
  // An option that is undefined is not given.
  return Object.fromEntries(Object.entries(value).filter(([, v]) => v !== undefined));
}

/** What an object is that has no options in it, but looks as if it had; so that it does not mean "all by default". */
function oddity(value: object): string | null {
  if (value instanceof URL) return "a URL: write url.href";
  if (typeof (value as { then?: unknown }).then === "function") return "a promise: await it";
  const prototype = Object.getPrototypeOf(value);
  if (prototype === null || Object.getPrototypeOf(prototype) === null) return null;
  return Object.keys(value).length > 0 ? null : "an object without any property of its own";
}

function gaveNone(more: string): TypeError {
  return new TypeError(
    "the function in place of a connection string gave none: it must give a string or an object of " +
      `keywords${more}`,
  );
}

function keywordsOnly(value: unknown): Given {
  if (!isRecord(value)) throw gaveNone("");
  const odd = oddity(value);
  if (odd !== null) throw gaveNone(`, and this is ${odd}`);
  if (Object.keys(value).length === 0) throw gaveNone(", and this is an empty one");
  for (const key of Object.keys(value)) {
    if (Object.hasOwn(DRIVER, key) || key === "dsn") {
      throw new TypeError(
        `${key} cannot change from connection to connection: give it beside the function`,
      );
    }
  }
  return value;
}

// ---- rules ----

interface Rule {
  readonly ok: (value: unknown) => boolean;
  readonly rule: string;
}

const flag: Rule = { ok: (v) => typeof v === "boolean", rule: "true or false" };
const callback: Rule = { ok: (v) => typeof v === "function", rule: "a function" };
const record: Rule = { ok: isRecord, rule: "an object" };

/** The driver's options that libpq does not have. */
const DRIVER: Readonly<Record<string, Rule>> = {
  prepare: flag,
  no_prepare: flag,
  fetch_types: flag,
  max_pipeline: {
    ok: (v) => Number.isInteger(v) && (v as number) > 0,
    rule: "an integer above 0",
  },
  queryTimeout: LIMIT,
  debug: {
    ok: (v) => typeof v === "boolean" || typeof v === "function",
    rule: "true, false or a function",
  },
  types: record,
  transform: {
    // The driver's toCamel and its like are functions that carry what a transform has.
    ok: (v) =>
      isRecord(v) || typeof v === "function" && ["column", "value", "row"].some((k) => k in v),
    rule: "an object, or one of the driver's own such as postgres.toCamel",
  },
  onnotice: callback,
  onnotify: callback,
  onclose: callback,
  onparameter: callback,
};

const SSL_WORDS = ["require", "allow", "prefer", "verify-full", "verify-ca", "disable"];
const SECONDS = `a number of seconds from 0 to ${LONGEST_SECONDS}`;

function seconds(value: unknown): boolean {
  return typeof value === "number" && value >= 0 && value <= LONGEST_SECONDS;
}

/** The driver's options beside which libpq has keywords for the same. */
const BOTH: Readonly<Record<string, Rule>> = {
  ssl: {
    ok: (v) => typeof v === "boolean" || SSL_WORDS.includes(v as string) || isRecord(v),
    rule: `true, false, an object of TLS options, or one of ${SSL_WORDS.join(", ")}`,
  },
  keep_alive: { ok: (v) => v === null || seconds(v), rule: SECONDS },
  path: {
    ok: (v) => v === null || (typeof v === "string" && v !== ""),
    rule: "a string that is not empty",
  },
  connection: record,
  socket: callback,
  transport: callback,
  scram_max_iterations: {
    ok: (v) => Number.isInteger(v) && (v as number) >= 1 && (v as number) <= 10_000_000,
    rule: "an integer from 1 to 10000000",
  },
};

const RULES: Readonly<Record<string, Rule>> = { ...DRIVER, ...BOTH };

/** Keywords that are something else when they are empty than when they are not given. */
const MAY_BE_EMPTY = new Set([
  "password",
  "sslpassword",
  "options",
  "application_name",
  "fallback_application_name",
]);

/** Throws a TypeError or RangeError that names the first option that is no good. */
function check(options: Given): void {
  for (const [key, value] of Object.entries(options)) {
    const instead = Object.hasOwn(OWNED, key) ? OWNED[key] : undefined;
    if (instead !== undefined) {
      throw new TypeError(`the option ${key} has no effect here: ${instead}`);
    }
    if (Object.hasOwn(RULES, key)) {
      const { ok, rule } = RULES[key]!;
      if (!ok(value)) throw broken(key, rule, value);
    } else if (Object.hasOwn(KEYWORDS, keywordOf(key))) textOf(key, value);
    else throw unknown(key);
  }
}

function unknown(key: string): Error {
  if (isPoolOption(key)) {
    return new TypeError(
      `the option ${key} is the pool's own: write it into "pool", as pool: { ${key}: … }`,
    );
  }
  const known = [
    ...Object.keys(KEYWORDS),
    ...Object.keys(ALIASES),
    ...Object.keys(RULES),
  ];
  return new TypeError(`unknown option ${key}: ${adviceOn(key, known)}`);
}

function broken(key: string, rule: string, value: unknown): Error {
  const secret = KEYWORDS[keywordOf(key)]?.secret === true;
  const message = `the option ${key} must be ${rule}${secret ? "" : `, not ${show(value)}`}`;
  // A value of a kind that is allowed is out of range; any other is of the wrong type.
  const inRange = { number: /number|integer/, string: /one of|^\d|^(disable|off|UTF8)\b/ } as const;
  const kind = typeof value;
  return (kind === "number" || kind === "string") && inRange[kind].test(rule)
    ? new RangeError(message)
    : new TypeError(message);
}

function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  if (value === null || typeof value !== "object") {
    return typeof value === "function" ? "a function" : String(value);
  }
  return Array.isArray(value) ? "a list" : "an object";
}

/** An option that is a keyword of libpq, as text; null when it is not given. */
function textOf(key: string, value: unknown): string | null {
  const keyword = keywordOf(key);
  if (keyword === "connect_timeout" && (value === null || typeof value === "number")) {
    if (value !== null && !seconds(value)) throw broken(key, SECONDS, value);
    return String(value ?? 0);
  }
  if (value === null) return null;
  if (KEYWORDS[keyword]!.list) {
    const list = Array.isArray(value) ? value : [value];
    return list.length === 0 ? fail() : list.map((entry) => entryOf(entry)).join(",");
  }
  if (keyword === "password" && typeof value === "function") return null;
  if (
    typeof value === "boolean" && /^(keepalives|sslsni|sslcompression|gssdelegation)$/.test(key)
  ) {
    return value ? "1" : "0";
  }
  if (typeof value === "number" && Number.isInteger(value)) {
    if (KEYWORDS[keyword]!.rule !== undefined) return checked(String(value));
  } else if (typeof value === "string") {
    if (value === "" && !MAY_BE_EMPTY.has(keyword)) return fail();
    return checked(value);
  }
  return fail();

  function checked(text: string): string {
    const rule = KEYWORDS[keyword]!.rule?.(text);
    if (rule) throw broken(key, rule, value);
    return text;
  }

  function entryOf(entry: unknown): string {
    if (keyword === "port" && typeof entry === "number") {
      if (Number.isInteger(entry) && entry >= 1 && entry <= 65535) return String(entry);
      throw new RangeError(`port must be an integer from 1 to 65535, not ${entry}`);
    }
    return typeof entry === "string" && entry !== "" ? entry : fail();
  }

  function fail(): never {
    const rule = keyword === "password"
      ? "a string or a function"
      : keyword === "port"
      ? "an integer from 1 to 65535, or a list of them"
      : KEYWORDS[keyword]!.list
      ? "a string or a list of strings"
      : KEYWORDS[keyword]!.rule === undefined
      ? "a string that is not empty"
      : "a string or an integer";
    throw broken(key, rule, value);
  }
}

// ---- what they say together ----

/** The options by libpq's keywords, each with the name under which it was given. */
type Own = Map<string, { readonly key: string; readonly value: unknown }>;

/** Arguments over the string, under libpq's names. */
function describe(conninfo: Conninfo | null, given: Given): Described {
  const values = new Map<string, string>();
  for (const [name, value] of conninfo?.values ?? []) {
    if (name === "keep_alive") values.set("keepalives_idle", value);
    else if (!DRIVER_WORDS.has(name)) values.set(name, value);
  }
  const own: Own = new Map();
  const put = (key: string, keyword: string, value: unknown) => {
    const other = own.get(keyword);
    if (other !== undefined && other.value !== value) {
      throw new TypeError(
        `the options ${other.key} and ${key} are two names for one thing, and differ: give one`,
      );
    }
    own.set(keyword, { key, value });
  };
  for (const [key, value] of Object.entries(given)) {
    const keyword = keywordOf(key);
    if (key === "keep_alive") {
      put(key, "keepalives", value ? "1" : "0");
      if (value) put(key, "keepalives_idle", String(Math.max(1, Math.round(value as number))));
    } else if (keyword === "password" && typeof value === "function") put(key, keyword, value);
    else if (Object.hasOwn(KEYWORDS, keyword)) {
      const text = textOf(key, value);
      if (text !== null) put(key, keyword, text);
    }
  }
  const tls = ssl(given["ssl"], own, put);
  comparePorts(conninfo, values, own);
  let password: Described["password"] = null;
  for (const [keyword, { value }] of own) {
    if (typeof value === "string") values.set(keyword, value);
    else password = value as NonNullable<Described["password"]>;
  }
  const connection = connectionOf(given["connection"], values);
  return {
    values,
    password,
    tls,
    runtimeRoots: given["ssl"] === true || tls !== null,
    path: (given["path"] as string | undefined) ?? null,
    connection,
    transport: transportOf(given),
    maxScramIterations: (given["scram_max_iterations"] as number | undefined) ?? null,
  };
}

/** The driver's meanings of `ssl`, by libpq's words; gives the TLS options when it is an object. */
function ssl(
  value: unknown,
  own: Own,
  put: (key: string, keyword: string, value: unknown) => void,
): Described["tls"] {
  if (value === undefined) return null;
  if (!isRecord(value)) {
    put("ssl", "sslmode", value === false ? "disable" : value === true ? "verify-full" : value);
    return null;
  }
  const trusting = value["rejectUnauthorized"] === false;
  const mode = own.get("sslmode")?.value;
  if (mode === undefined) put("ssl", "sslmode", trusting ? "require" : "verify-full");
  else if (mode === "disable" || (trusting && String(mode).startsWith("verify"))) {
    throw new TypeError(`the option ssl contradicts sslmode ${mode}: give one of them`);
  }
  return value;
}

/** A port that stands beside a host is not silently another one. */
function comparePorts(
  conninfo: Conninfo | null,
  values: ReadonlyMap<string, string>,
  own: Own,
): void {
  const port = own.get("port")?.value;
  if (!conninfo?.portsBeside || port === undefined || own.has("host")) return;
  const list = String(port).split(",");
  const differs = values.get("port")!.split(",").some((beside, i) =>
    beside !== "" && Number(beside) !== Number(list[list.length > 1 ? i : 0])
  );
  if (differs) {
    throw new TypeError(
      "the option port and the port beside a host in the url differ: give one of them",
    );
  }
}

function connectionOf(
  given: unknown,
  values: ReadonlyMap<string, string>,
): Record<string, string> {
  const connection: Record<string, string> = {};
  for (const [name, value] of Object.entries(given as Given ?? {})) {
    if (value === undefined || value === null) continue;
    const place = `the option connection: ${JSON.stringify(name)}`;
    if (name === "" || name.includes("\0")) {
      throw new TypeError(`${place} is no name of a setting`);
    }
    if (!["string", "number", "boolean", "bigint"].includes(typeof value)) {
      throw new TypeError(`${place} must be a string, a number or a boolean, not ${show(value)}`);
    }
    const text = String(value);
    if (text.includes("\0")) throw new TypeError(`${place} has a NUL in it`);
    const lower = name.toLowerCase();
    if (lower === "user" || lower === "database" || lower === "dbname" || lower === "password") {
      throw new TypeError(`${place} is no setting of the server: give it beside connection`);
    }
    if (lower === "replication" || lower === "client_encoding") {
      const rule = KEYWORDS[lower]!.rule?.(text.replace(/^'(.*)'$/, "$1"));
      if (rule) throw new RangeError(`${place} must be ${rule}, not ${JSON.stringify(text)}`);
      continue;
    }
    if ((lower === "options" || lower === "application_name") && values.has(lower)) {
      if (values.get(lower) === text) continue;
      throw new TypeError(`${place} and ${lower} beside it differ: give one of them`);
    }
    connection[name] = text;
  }
  return connection;
}

function transportOf(given: Given): ConnectSettings["transport"] {
  const { transport, socket } = given;
  if (transport === undefined) {
    const open = streamOf(socket);
    return open === null ? null : async (target) => fromDuplex(await open(target));
  }
  if (socket !== undefined) {
    throw new TypeError("the options transport and socket both open connections: give one of them");
  }
  return transport as NonNullable<ConnectSettings["transport"]>;
}

/** The driver's option `socket`. */
function streamOf(
  socket: unknown,
): ((target: Pick<Target, "host" | "port" | "path">) => Promise<Duplex>) | null {
  if (socket === undefined) return null;
  const open = socket as (options: unknown) => Duplex | Promise<Duplex>;
  return async ({ host, port, path }) =>
    await open({ host: [host], port: [port], path: path ?? false });
}

// ---- the language ----

/** The driver's own options: arguments, string, the driver's variables, its defaults. */
function languageOf(conninfo: Conninfo | null, given: Given): Given {
  const options: Record<string, unknown> = {};
  for (const word of ["prepare", "fetch_types", "debug", "max_pipeline"]) {
    const text = conninfo?.values.get(word) ?? env(`PG${word.toUpperCase()}`);
    if (text === undefined || text === "") continue;
    const value = word === "max_pipeline" ? Number(text) : boolean(text);
    if (!DRIVER[word]!.ok(value)) throw broken(word, DRIVER[word]!.rule, text);
    options[word] = value;
  }
  for (const key of Object.keys(DRIVER)) {
    if (given[key] !== undefined && key !== "no_prepare") options[key] = given[key];
  }
  if (given["no_prepare"] !== undefined) {
    const prepare = !given["no_prepare"];
    if (given["prepare"] !== undefined && given["prepare"] !== prepare) {
      throw new TypeError("the options prepare and no_prepare contradict each other: give one");
    }
    options["prepare"] = prepare;
  }
  return options;
}

function boolean(value: string): boolean {
  return !["false", "disable", "off", "no", "0"].includes(value);
}

/** The driver takes them as they are: a key that is not given has no default. */
function driverOptions(language: Given, connect: ConnectSettings | null): DriverOptions {
  const [first] = connect?.targets ?? [];
  const { user = "", database = "", parameters = {}, attrs = null } = connect ?? {};
  return parseOptions({
    host: [first?.host ?? "localhost"],
    port: [first?.port ?? 5432],
    path: first?.path ?? undefined,
    database,
    user,
    // The password is not the language's: a client of the driver shows its options to everybody.
    pass: "",
    max: 1,
    ssl: false,
    sslnegotiation: null,
    idle_timeout: null,
    connect_timeout: null,
    max_lifetime: null,
    backoff: false,
    publications: "alltables",
    max_pipeline: 1_024,
    keep_alive: connect === null ? 60 : connect.tcp.keepalives ? connect.tcp.keepalivesIdle : null,
    prepare: true,
    debug: false,
    fetch_types: true,
    target_session_attrs: attrs,
    ...language,
    connection: parameters,
  });
}
