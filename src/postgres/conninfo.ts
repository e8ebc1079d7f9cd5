/**
 * Texts that say how to connect, read as libpq reads them: connection strings in both forms, service
 * files and password files. No I/O. Stricter than libpq only where a text is likely a mistake.
 *
 * An error names the place and the rule, and quotes nothing that may be a piece of a password.
 */

import { adviceOn, isFamiliar, keywordOf, KEYWORDS } from "./keywords.ts";

/** What a connection string says. */
export interface Conninfo {
  /** Values by libpq's keyword, or by the driver's name of an option that libpq does not have. */
  readonly values: ReadonlyMap<string, string>;
  /** True when ports stand beside hosts, as in a URL. */
  readonly portsBeside: boolean;
}

/** The driver's own options that a connection string may have beside libpq's keywords. */
export const DRIVER_WORDS: ReadonlySet<string> = new Set([
  "debug",
  "fetch_types",
  "keep_alive",
  "max_pipeline",
  "prepare",
]);

/** What C's isspace takes for white space. */
const SPACE = /[ \t\n\v\f\r]/;
const SCHEME = /^\s*([a-z][a-z0-9+.-]*):\/\//i;
const PREFIX = /^postgres(?:ql)?:\/\//;

const SHAPE = "a url is like postgres://user:password@host:5432/database, " +
  "and other connection strings are like host=… port=… dbname=… user=… password=…";
const ENCODE = "a password with any of @ / ? # % in it must be percent-encoded: " +
  "%40 %2F %3F %23 %25 (encodeURIComponent does it)";

/** Reads a connection string of either form; throws a TypeError that names the place and the rule. */
export function parseConninfo(text: string): Conninfo {
  if (text.includes("\0")) throw new TypeError("the connection string has a NUL in it");
  const prefix = PREFIX.exec(text)?.[0];
  if (prefix !== undefined) return parseUrl(text, prefix.length);
  const scheme = SCHEME.exec(text)?.[1];
  if (scheme !== undefined) throw new TypeError(schemeError(scheme, text));
  return { values: parsePairs(text), portsBeside: false };
}

function schemeError(scheme: string, text: string): string {
  if (/\s/.test(text.charAt(0))) return `the url begins with white space: ${SHAPE}`;
  // SQLAlchemy's and its like: the driver after a plus.
  return /^(postgres|postgresql|cockroachdb)\+\w+$|^postgres(ql)?$/i.test(scheme)
    ? `the url begins with ${scheme}://, which only other programs know: write postgresql://`
    : `the url must begin with postgres:// or postgresql://: ${SHAPE}`;
}

// ---- keyword=value ----

/** Reads `keyword = value` pairs: blanks between them, quotes around a value, backslashes in it. */
function parsePairs(text: string): Map<string, string> {
  const values = new Map<string, string>();
  /** True after a secret without quotes: what follows may be a piece of it. */
  let wary = false;
  let at = 0;
  const blanks = () => {
    while (at < text.length && SPACE.test(text.charAt(at))) at++;
  };
  for (blanks(); at < text.length; blanks()) {
    const start = at;
    while (at < text.length && text.charAt(at) !== "=" && !SPACE.test(text.charAt(at))) at++;
    const name = text.slice(start, at);
    blanks();
    const place = `the connection string, at character ${start + 1}`;
    const hint = wary ? ": a value with blanks in it must be quoted: password='…'" : "";
    if (text.charAt(at) !== "=") {
      throw new TypeError(`${place}: a keyword without "="${hint || `. ${capital(SHAPE)}`}`);
    }
    if (name === "") throw new TypeError(`${place}: a value without a keyword before "="${hint}`);
    at++;
    blanks();
    const quoted = text.charAt(at) === "'";
    const value = quoted ? quotedValue() : plainValue();
    if (!store(values, name, value)) {
      const shown = !wary || isFamiliar(name, names()) ? ` ${JSON.stringify(name)}` : "";
      const advice = shown === "" ? hint.slice(2) : adviceOn(name, names());
      throw new TypeError(`${place}: unknown parameter${shown}: ${advice}`);
    }
    wary = !quoted && isSecret(name);
  }
  return values;

  function quotedValue(): string {
    const start = at++;
    let value = "";
    for (;;) {
      const letter = text.charAt(at++);
      if (letter === "'") return value;
      if (letter === "\\") value += text.charAt(at++);
      else value += letter;
      // A quote that a backslash hides does not end the value.
      if (at > text.length || letter === "") {
        throw new TypeError(
          `the connection string, at character ${start + 1}: the quote ' has no end; ` +
            "a quote within a value is written \\'",
        );
      }
    }
  }

  function plainValue(): string {
    let value = "";
    while (at < text.length && !SPACE.test(text.charAt(at))) {
      if (text.charAt(at) === "\\") at++;
      value += text.charAt(at++);
    }
    return value;
  }
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function isSecret(name: string): boolean {
  const keyword = keywordOf(name);
  return Object.hasOwn(KEYWORDS, keyword) && KEYWORDS[keyword]!.secret === true;
}

function names(): string[] {
  return [...Object.keys(KEYWORDS), ...DRIVER_WORDS];
}

/** Enters a value under libpq's name for it; false when nobody knows the name. */
function store(values: Map<string, string>, name: string, value: string): boolean {
  if (name === "requiressl") {
    values.set("sslmode", value.startsWith("1") ? "require" : "prefer");
    return true;
  }
  if (name === "ssl") {
    // JDBC's, which libpq takes in the same sense; the driver's words are those of sslmode.
    values.set("sslmode", value === "true" ? "require" : value === "false" ? "disable" : value);
    return true;
  }
  const keyword = keywordOf(name);
  if (!Object.hasOwn(KEYWORDS, keyword) && !DRIVER_WORDS.has(name)) return false;
  values.set(keyword, value);
  return true;
}

// ---- postgres://… ----

function parseUrl(text: string, prefix: number): Conninfo {
  const blank = /[\s\p{Cc}]/u.exec(text);
  if (blank !== null) {
    throw new TypeError(
      `the url, at character ${blank.index + 1}: white space must be percent-encoded (%20)`,
    );
  }
  const rest = text.slice(prefix);
  const end = rest.search(/[/?]|$/);
  const query = rest.indexOf("?", end);
  const authority = rest.slice(0, end);
  const path = rest.charAt(end) === "/" ? rest.slice(end + 1, query < 0 ? undefined : query) : "";
  const search = query < 0 ? "" : rest.slice(query + 1);
  const signs = authority.split("@").length - 1;
  // Whatever follows a stray sign would be read as something that it is not: as another server.
  if (rest.includes("#") || signs > 1 || path.includes("@")) {
    throw new TypeError(`the url cannot be read: ${ENCODE}`);
  }
  try {
    return readUrl(authority, path, search, prefix);
  } catch (error) {
    // The piece before the @ may belong to a password.
    throw search.includes("@") ? new TypeError(`the url cannot be read: ${ENCODE}`) : error;
  }
}

function readUrl(authority: string, path: string, search: string, prefix: number): Conninfo {
  const values = new Map<string, string>();
  const sign = authority.indexOf("@");
  const login = sign < 0 ? "" : authority.slice(0, sign);
  const colon = login.indexOf(":");
  const user = decode(colon < 0 ? login : login.slice(0, colon), "user");
  const password = colon < 0 ? "" : decode(login.slice(colon + 1), "password");
  if (user !== "") values.set("user", user);
  if (password !== "") values.set("password", password);
  const places = readHosts(authority.slice(sign + 1), prefix + sign + 1);
  const host = decode(places.map((place) => place.host).join(","), "host");
  const port = decode(places.map((place) => place.port).join(","), "port");
  if (host !== "") values.set("host", host);
  if (port !== "") values.set("port", port);
  // An empty name would mean the user's, and hide PGDATABASE.
  if (path !== "") values.set("dbname", decode(path, "database"));
  const parts = search.split("&");
  // One & at the end is no matter.
  if (parts.at(-1) === "") parts.pop();
  let portsBeside = /\d/.test(port);
  for (const part of parts) {
    const [name, value, more] = part.split("=");
    const key = decode(name!, "query");
    if (value === undefined || more !== undefined) {
      throw new TypeError(
        'the url: each parameter after "?" must be like name=value, with & between them; ' +
          "a = or & within a value is written %3D or %26",
      );
    }
    if (!store(values, key, decode(value, "query"))) {
      throw new TypeError(
        `the url: unknown parameter ${JSON.stringify(key)}: ${adviceOn(key, names())}`,
      );
    }
    if (key === "port") portsBeside = false;
  }
  return { values, portsBeside };
}

function readHosts(text: string, offset: number): { host: string; port: string }[] {
  let at = offset;
  return text.split(",").map((entry) => {
    const place = `the url, at character ${at + 1}`;
    at += entry.length + 1;
    if (!entry.startsWith("[")) {
      const colon = entry.indexOf(":");
      if (colon !== entry.lastIndexOf(":")) {
        throw new TypeError(`${place}: an IPv6 address must be in brackets: [::1]:5432`);
      }
      return colon < 0
        ? { host: entry, port: "" }
        : { host: entry.slice(0, colon), port: entry.slice(colon + 1) };
    }
    const match = /^\[([^\]]+)\](?::(.*))?$/.exec(entry);
    if (match === null) {
      throw new TypeError(`${place}: an IPv6 address must be like [::1] or [::1]:5432`);
    }
    return { host: match[1]!, port: match[2] ?? "" };
  });
}

function decode(text: string, what: string): string {
  if (/%00/.test(text)) throw new TypeError(`the url: %00 is not allowed, in the ${what} neither`);
  try {
    return decodeURIComponent(text);
  } catch {
    throw new TypeError(
      `the url: the ${what} is not percent-encoded correctly: each % must begin one or more ` +
        "%xy that are UTF-8 (encodeURIComponent does it)",
    );
  }
}

// ---- pg_service.conf ----

/** The values of one service, or null when the file does not have it. `file` is for the error. */
export function parseService(
  text: string,
  service: string,
  file: string,
): Map<string, string> | null {
  const values = new Map<string, string>();
  let found = false;
  for (const [i, raw] of text.split("\n").entries()) {
    const line = raw.trim();
    if (line === "" || line.startsWith("#")) continue;
    if (line.startsWith("[")) {
      if (found) return values;
      found = line.startsWith(`[${service}]`);
      continue;
    }
    if (!found) continue;
    const place = `service file ${JSON.stringify(file)}, line ${i + 1}`;
    if (line.startsWith("ldap")) throw new TypeError(`${place}: LDAP is not supported`);
    const equals = line.indexOf("=");
    const key = line.slice(0, equals);
    if (equals < 0 || /\s/.test(key)) {
      throw new TypeError(`${place}: a line must be like keyword=value, without blanks around =`);
    }
    if (key === "service" || key === "servicefile") {
      throw new TypeError(`${place}: a service cannot name another one`);
    }
    if (!Object.hasOwn(KEYWORDS, key)) {
      const advice = adviceOn(key, Object.keys(KEYWORDS));
      throw new TypeError(`${place}: unknown parameter ${JSON.stringify(key)}: ${advice}`);
    }
    // The first of two counts, as in libpq.
    if (!values.has(key)) values.set(key, line.slice(equals + 1));
  }
  return found ? values : null;
}

// ---- .pgpass ----

/** What a line of a password file is compared with, in the order of its fields. */
export type PassfileKey = readonly [host: string, port: string, dbname: string, user: string];

/** The password of the first line that fits, or null. */
export function passwordIn(text: string, key: PassfileKey): string | null {
  for (const line of text.split("\n")) {
    if (line.startsWith("#")) continue;
    const fields = fieldsOf(line.replace(/[\r\n]+$/, ""));
    // A password may have further fields behind it.
    if (fields.length < 5) continue;
    if (key.every((value, i) => fields[i]!.raw === "*" || fields[i]!.value === value)) {
      return fields[4]!.value;
    }
  }
  return null;
}

/** The fields between colons; a backslash takes the next letter's meaning away. */
function fieldsOf(line: string): { raw: string; value: string }[] {
  const fields: { raw: string; value: string }[] = [];
  let [raw, value] = ["", ""];
  for (let at = 0; at < line.length; at++) {
    const letter = line.charAt(at);
    if (letter === ":") {
      fields.push({ raw, value });
      [raw, value] = ["", ""];
      continue;
    }
    raw += letter;
    // At the end of the line it means itself.
    value += letter === "\\" && at + 1 < line.length ? line.charAt(++at) : letter;
  }
  fields.push({ raw, value });
  return fields;
}
