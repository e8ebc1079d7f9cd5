/** What a pool's arguments after maxconn mean: all validation of the driver's options. */

import type { Duplex } from "node:stream";
import { env, osUser } from "../runtime.ts";
import { type DriverOptions, parseOptions } from "./driver.ts";
import type { DialOptions, TlsMode } from "./dial.ts";
import {
  type HostEntry,
  makeTargets,
  type ParsedUrl,
  parsePort,
  parseUrl,
  splitHosts,
  type Target,
} from "./hosts.ts";
import { check, OWNED, type TargetSessionAttrs } from "./option_table.ts";

/** A pool's settings, parsed once. */
export interface Settings extends DialOptions {
  /** Where to connect, in order. */
  readonly targets: readonly Target[];
  /** Milliseconds for one host, or 0 for no limit. */
  readonly connectTimeout: number;
  /** Which kind of server will do, or null for any. */
  readonly attrs: Exclude<TargetSessionAttrs, "any"> | null;
  /** What every connection's driver options are made from; parsers and array types are shared. */
  readonly driver: DriverOptions;
}

type Given = Readonly<Record<string, unknown>>;

const NO_URL: ParsedUrl = { user: "", password: "", hosts: [], database: "", query: {} };

/** URL parameters that are ours to read; the others are settings for the server, as in the driver. */
const QUERY_OPTIONS = new Set([
  "ssl",
  "sslmode",
  "sslrootcert",
  "sslnegotiation",
  "connect_timeout",
  "max_pipeline",
  "keep_alive",
  "prepare",
  "debug",
  "fetch_types",
  "target_session_attrs",
  "host",
  "port",
  "user",
  "password",
  "dbname",
]);

/** Parses `[url?, options?]`; throws a TypeError or RangeError that shows no secret. Does no I/O. */
export function parseSettings(args: readonly unknown[]): Settings {
  const [url, given] = split(args);
  check(given);
  const query = checkQuery(url.query);
  const targets = whereTo(given, url, query);
  const options = { ...fromQuery(query), ...given };
  return {
    targets,
    tls: tlsMode(options),
    transport: transportOf(given["socket"]),
    connectTimeout: 1000 * numberOf(options, "connect_timeout", "PGCONNECT_TIMEOUT", 30),
    attrs: attrsOf(options),
    driver: driverOptions(options, url, query, targets[0]!),
  };
}

function split(args: readonly unknown[]): [ParsedUrl, Given] {
  const [first, second, ...rest] = args;
  if (rest.length > 0) throw new TypeError("too many arguments: only url and options may follow");
  if (typeof first === "string") return [parseUrl(first), optionsOf(second)];
  if (first === undefined || first === null) return [NO_URL, optionsOf(second)];
  if (second !== undefined) throw new TypeError("url must be a string");
  return [NO_URL, optionsOf(first)];
}

function optionsOf(value: unknown): Given {
  if (value === undefined || value === null) return {};
  if (typeof value !== "object" || Array.isArray(value) || value instanceof URL) {
    throw new TypeError("options must be an object, and url a string");
  }
  // An option that is undefined is not given.
  return Object.fromEntries(Object.entries(value).filter(([, v]) => v !== undefined));
}

function checkQuery(query: Given): Record<string, string> {
  for (const key of Object.keys(query)) {
    const instead = OWNED[key];
    if (instead !== undefined) {
      throw new TypeError(`${key} in the url has no effect here: ${instead}`);
    }
  }
  return query as Record<string, string>;
}

/** The URL's parameters as options, checked like options. */
function fromQuery(query: Readonly<Record<string, string>>): Record<string, unknown> {
  const options: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(query)) {
    if (["connect_timeout", "max_pipeline", "keep_alive"].includes(key)) {
      options[key] = Number(value);
    } else if (["prepare", "debug", "fetch_types"].includes(key)) {
      options[key] = boolean(value);
    } else if (key === "ssl" || key === "sslmode") options["ssl"] = sslWord(value);
    else if (key === "sslnegotiation" || key === "target_session_attrs") options[key] = value;
  }
  if (query["sslrootcert"] === "system") options["ssl"] = "verify-full";
  else if (query["sslrootcert"] !== undefined) {
    throw new TypeError(
      "sslrootcert in the url can only be system: give a certificate as ssl: { ca }",
    );
  }
  check(options);
  return options;
}

function sslWord(value: string): unknown {
  return value === "disable" || value === "false" ? false : value === "true" ? true : value;
}

function boolean(value: string): boolean {
  return !["false", "disable", "off", "no", "0"].includes(value);
}

function whereTo(given: Given, url: ParsedUrl, query: Record<string, string>): Target[] {
  const ports = portsOf(given["port"] ?? query["port"]);
  const path = given["path"];
  const option = given["hostname"] ?? given["host"];
  const hosts: HostEntry[] = option !== undefined
    ? [option].flat().flatMap((host) => splitHosts(String(host)))
    : query["host"]
    ? splitHosts(query["host"])
    : url.hosts.length > 0
    ? [...url.hosts]
    : splitHosts(env("PGHOST") || "localhost");
  if (hosts.length === 0) throw new TypeError("host must not be empty");
  // With hosts from elsewhere the URL's port still counts, as in the driver.
  if (ports.length === 0 && option !== undefined && url.hosts[0]?.port) {
    ports.push(url.hosts[0].port);
  }
  if (given["port"] !== undefined) hosts.forEach((h, i) => hosts[i] = { host: h.host, port: null });
  if (ports.length === 0) ports.push(...portsOf(env("PGPORT") || undefined));
  const targets = makeTargets(hosts, ports);
  return typeof path === "string" ? [{ ...targets[0]!, path }] : targets;
}

function portsOf(value: unknown): number[] {
  if (value === undefined) return [];
  const list = Array.isArray(value)
    ? value
    : typeof value === "string"
    ? value.split(",")
    : [value];
  return list.map(parsePort);
}

function tlsMode(options: Given): TlsMode | null {
  const ssl = options["ssl"] ?? sslWord(env("PGSSL") ?? "false");
  check({ ssl });
  const direct = (options["sslnegotiation"] ?? env("PGSSLNEGOTIATION")) === "direct";
  if (ssl === false) {
    if (direct) throw new TypeError("sslnegotiation: direct needs the option ssl");
    return null;
  }
  if (typeof ssl === "object") return { options: ssl as Given, optional: false, direct };
  const unverified = ssl === "require" || ssl === "allow" || ssl === "prefer";
  return {
    options: unverified ? { rejectUnauthorized: false } : {},
    optional: ssl === "prefer",
    direct,
  };
}

function transportOf(socket: unknown): DialOptions["transport"] {
  if (socket === undefined) return null;
  const open = socket as (options: unknown) => Duplex | Promise<Duplex>;
  return async ({ host, port, path }) =>
    await open({ host: [host], port: [port], path: path ?? false });
}

function numberOf(options: Given, key: string, variable: string, usual: number): number {
  const value = options[key] ?? env(variable);
  if (value === undefined || value === "") return usual;
  const number = value === null || value === false ? 0 : Number(value);
  check({ [key]: number });
  return number;
}

function attrsOf(options: Given): Settings["attrs"] {
  const attrs = options["target_session_attrs"] ?? (env("PGTARGETSESSIONATTRS") || undefined);
  if (attrs === undefined || attrs === null) return null;
  check({ target_session_attrs: attrs });
  return attrs === "any" ? null : attrs as Settings["attrs"];
}

/**
 * Every key is given, so that the driver reads no environment variable but PGAPPNAME, which it
 * always reads.
 */
function driverOptions(
  options: Given,
  url: ParsedUrl,
  query: Record<string, string>,
  first: Target,
): DriverOptions {
  const user = options["user"] ?? options["username"] ??
    (query["user"] || url.user || env("PGUSERNAME") || env("PGUSER") || osUser());
  if (typeof user !== "string" || user === "") {
    throw new TypeError("user is not given, and the system's user name may not be read");
  }
  const database = options["database"] ?? options["db"] ??
    (query["dbname"] || url.database || env("PGDATABASE") || user);
  const pass = options["pass"] ?? options["password"] ??
    (query["password"] || url.password || env("PGPASSWORD") || "");
  const serverSettings = Object.entries(query).filter(([key]) => !QUERY_OPTIONS.has(key));
  const parsed = parseOptions({
    host: [first.host],
    port: [first.port],
    path: first.path ?? undefined,
    database,
    user,
    // Else the driver would ask the environment where we have: the true one follows.
    pass: "-",
    max: 1,
    ssl: false,
    sslnegotiation: null,
    idle_timeout: null,
    connect_timeout: null,
    max_lifetime: null,
    backoff: false,
    publications: "alltables",
    max_pipeline: numberOf(options, "max_pipeline", "PGMAX_PIPELINE", 100),
    keep_alive: numberOf(options, "keep_alive", "PGKEEP_ALIVE", 60),
    prepare: options["no_prepare"] ? false : flagOf(options, "prepare", "PGPREPARE", true),
    debug: options["debug"] ?? flagOf(options, "debug", "PGDEBUG", false),
    fetch_types: flagOf(options, "fetch_types", "PGFETCH_TYPES", true),
    // The driver would ask the environment; this value is taken out again for each connection.
    target_session_attrs: "read-write",
    no_subscribe: true,
    types: options["types"],
    transform: options["transform"],
    connection: { ...options["connection"] as Given, ...Object.fromEntries(serverSettings) },
    onnotice: options["onnotice"],
    onnotify: options["onnotify"],
    onclose: options["onclose"],
    onparameter: options["onparameter"],
  });
  return { ...parsed, pass: pass as DriverOptions["pass"] };
}

function flagOf(options: Given, key: string, variable: string, usual: boolean): boolean {
  const value = options[key];
  if (value !== undefined && value !== null) return Boolean(value);
  const word = env(variable);
  return word === undefined || word === "" ? usual : boolean(word);
}
