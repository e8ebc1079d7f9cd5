/**
 * Values between PostgreSQL's texts and JavaScript: the driver's types, right where they are wrong.
 *
 * Other than in the driver: both forms of bytea are read; years before 1000 and above 9999, BC, and
 * offsets with seconds are dates, `infinity` is the number, and a text that is no date in ISO form is
 * an error and not another date; NULL in an array is null.
 */

import { Buffer } from "node:buffer";
import { genericError } from "./errors.ts";

/** Reads a value; undefined leaves it as text. */
export type Parse = (text: string) => unknown;
export type Serialize = (value: unknown) => unknown;

/** By the type's oid. */
export interface Types {
  readonly parsers: Record<number, Parse | undefined>;
  readonly serializers: Record<number, Serialize>;
}

/** A type as users give it. */
export interface TypeOption {
  readonly to: number;
  readonly from?: number | readonly number[];
  readonly serialize?: Serialize;
  readonly parse?: Parse;
}

export const OID = {
  boolean: 16,
  bytea: 17,
  bigint: 20,
  text: 25,
  json: 114,
  timestamptz: 1184,
  jsonb: 3802,
} as const;

const toText: Serialize = (value) => "" + value;
export const parseNumber: Parse = (text) => +text;
export const parseBoolean: Parse = (text) => text === "t";
const parseJson: Parse = (text) => JSON.parse(text);

/** The defaults, by their names in the driver. */
const DEFAULTS: Readonly<Record<string, TypeOption>> = {
  string: { to: OID.text, serialize: toText },
  number: { to: 0, from: [21, 23, 26, 700, 701], serialize: toText, parse: parseNumber },
  json: {
    to: OID.json,
    from: [OID.json, OID.jsonb],
    serialize: (value) => JSON.stringify(value),
    parse: parseJson,
  },
  boolean: {
    to: OID.boolean,
    from: OID.boolean,
    serialize: (value) => value === true ? "t" : "f",
    parse: parseBoolean,
  },
  date: {
    to: OID.timestamptz,
    from: [1082, 1114, OID.timestamptz],
    serialize: serializeDate,
    parse: parseDate,
  },
  bytea: { to: OID.bytea, from: OID.bytea, serialize: serializeBytes, parse: parseBytes },
};

/** The defaults, and what a user gives over them. */
export function typesOf(given: Readonly<Record<string, TypeOption>>): Types {
  const types: Types = { parsers: {}, serializers: {} };
  for (const all of [DEFAULTS, given]) {
    for (const type of Object.values(all)) {
      const from = [type.from ?? []].flat();
      for (const oid of from) types.parsers[oid] = type.parse;
      if (type.serialize === undefined) continue;
      for (const oid of [type.to, ...from]) types.serializers[oid] = type.serialize;
    }
  }
  return types;
}

/** What the type of a value is declared as; 0 leaves it to the server. */
export function typeOf(value: unknown): number {
  switch (typeof value) {
    case "boolean":
      return OID.boolean;
    case "bigint":
      return OID.bigint;
    case "object":
      if (value instanceof Date) return OID.timestamptz;
      return value instanceof Uint8Array ? OID.bytea : 0;
    default:
      return 0;
  }
}

// --- bytea ---

function serializeBytes(value: unknown): string {
  // Of every kind of view its bytes: elements of more than a byte would lose the rest.
  const bytes = ArrayBuffer.isView(value)
    ? Buffer.from(value.buffer as ArrayBuffer, value.byteOffset, value.byteLength)
    : Buffer.from(value as ArrayBuffer);
  return "\\x" + bytes.toString("hex");
}

function parseBytes(text: string): Buffer {
  if (text.startsWith("\\x")) return Buffer.from(text.slice(2), "hex");
  // bytea_output = escape: \\ is a backslash, \ooo a byte in octal, the rest is what it is.
  const bytes = Buffer.allocUnsafe(text.length);
  let n = 0;
  for (let i = 0; i < text.length; i++) {
    const char = text.charCodeAt(i);
    if (char !== 92) bytes[n++] = char;
    else if (text.charCodeAt(i + 1) === 92) {
      bytes[n++] = 92;
      i++;
    } else {
      bytes[n++] = parseInt(text.slice(i + 1, i + 4), 8);
      i += 3;
    }
  }
  return bytes.subarray(0, n);
}

// --- dates ---

const ISO =
  /^(\d{4,})-(\d\d)-(\d\d)(?: (\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?)?( BC)?$/;

function parseDate(text: string): Date | number {
  // What the runtimes read as PostgreSQL means it: a year of four digits from 1000 on.
  if (text.charCodeAt(4) === 45 && text.charCodeAt(0) !== 48 && !text.endsWith("C")) {
    const date = new Date(text);
    if (!Number.isNaN(date.getTime())) return date;
  }
  if (text === "infinity") return Infinity;
  if (text === "-infinity") return -Infinity;
  const parts = ISO.exec(text);
  if (parts === null) {
    throw genericError(
      "UNREADABLE_DATE",
      `${JSON.stringify(text)} is no date in ISO form; is DateStyle changed?`,
    );
  }
  const [, year, month, day, hour, minute, second, fraction = "", sign, h, m = 0, s = 0, bc] =
    parts;
  const date = new Date(0);
  const y = bc === undefined ? Number(year) : 1 - Number(year);
  const time = [
    Number(hour ?? 0),
    Number(minute ?? 0),
    Number(second ?? 0),
    Number(fraction.slice(0, 3).padEnd(3, "0")),
  ] as const;
  if (hour !== undefined && sign === undefined) {
    // A timestamp without a zone is local time, as in the driver.
    date.setFullYear(y, Number(month) - 1, Number(day));
    date.setHours(...time);
    return date;
  }
  date.setUTCFullYear(y, Number(month) - 1, Number(day));
  date.setUTCHours(...time);
  const offset = ((Number(h ?? 0) * 60 + Number(m)) * 60 + Number(s)) * 1000;
  date.setTime(date.getTime() - (sign === "-" ? -offset : offset));
  return date;
}

function serializeDate(value: unknown): string {
  if (value === Infinity || value === -Infinity) return value > 0 ? "infinity" : "-infinity";
  const date = value instanceof Date ? value : new Date(value as string);
  const text = date.toISOString();
  const first = text.charCodeAt(0);
  // A sign and six digits stand for years that PostgreSQL writes in another way.
  if (first !== 43 && first !== 45) {
    return text.startsWith("0000") ? `0001${text.slice(4)} BC` : text;
  }
  const year = Number(text.slice(0, 7));
  const rest = text.slice(7);
  return year > 0 ? `${year}${rest}` : `${String(1 - year).padStart(4, "0")}${rest} BC`;
}

// --- arrays ---

/** In an array of boxes, and in no other, a semicolon stands between the elements. */
const BOXES = 1020;

class ArrayReader {
  readonly #text: string;
  readonly #parse: Parse | undefined;
  readonly #delimiter: string;
  #at: number;

  constructor(text: string, parse: Parse | undefined, typarray: number, at: number) {
    this.#text = text;
    this.#parse = parse;
    this.#delimiter = typarray === BOXES ? ";" : ",";
    this.#at = at;
  }

  /** Reads up to the closing brace; the opening one is behind. */
  array(): unknown[] {
    const text = this.#text;
    const elements: unknown[] = [];
    if (text[this.#at] === "}") {
      this.#at++;
      return elements;
    }
    for (;;) {
      const char = text[this.#at];
      if (char === "{") {
        this.#at++;
        elements.push(this.array());
      } else if (char === '"') elements.push(this.#value(this.#quoted()));
      else elements.push(this.#bare());
      const next = text[this.#at++];
      if (next === this.#delimiter) continue;
      if (next === "}") return elements;
      throw genericError("UNREADABLE_ARRAY", "an array's text has no end");
    }
  }

  #quoted(): string {
    const text = this.#text;
    let element = "";
    for (let from = ++this.#at;; this.#at++) {
      const char = text[this.#at];
      if (char === undefined) throw genericError("UNREADABLE_ARRAY", "an array's text has no end");
      if (char !== '"' && char !== "\\") continue;
      element += text.slice(from, this.#at);
      if (char === '"') {
        this.#at++;
        return element;
      }
      from = ++this.#at;
    }
  }

  #bare(): unknown {
    const text = this.#text;
    const from = this.#at;
    while (
      this.#at < text.length && text[this.#at] !== this.#delimiter && text[this.#at] !== "}"
    ) this.#at++;
    const element = text.slice(from, this.#at);
    return element === "NULL" ? null : this.#value(element);
  }

  #value(text: string): unknown {
    return this.#parse ? this.#parse(text) : text;
  }
}

export function parseArray(text: string, parse: Parse | undefined, typarray: number): unknown[] {
  // Bounds stand before the array where they do not begin at 1, as in [0:1]={a,b}.
  const at = text.charCodeAt(0) === 91 ? text.indexOf("={") + 2 : 1;
  return new ArrayReader(text, parse, typarray, at).array();
}

/** Writes an array; `absent` stands for elements that are undefined. */
export function serializeArray(
  values: unknown,
  serialize: Serialize | undefined,
  absent: unknown,
  typarray: number,
): unknown {
  if (!Array.isArray(values)) return values;
  if (values.length === 0) return "{}";
  const write = (value: unknown): unknown =>
    Array.isArray(value)
      ? serializeArray(value, serialize, absent, typarray)
      : writeElement(value, serialize, absent);
  return `{${values.map(write).join(typarray === BOXES ? ";" : ",")}}`;
}

/** A value with a type, as sql.typed and sql.json make it; JSON may have the same keys, but no functions. */
function isTyped(given: unknown): given is { readonly value: unknown } {
  return typeof given === "object" && given !== null && "type" in given && "value" in given &&
    typeof (given as { then?: unknown }).then === "function";
}

function writeElement(value: unknown, serialize: Serialize | undefined, absent: unknown): string {
  const given = value === undefined ? absent : value;
  if (given === undefined) {
    throw genericError("UNDEFINED_VALUE", "Undefined values are not allowed");
  }
  if (given === null) return "null";
  const plain = isTyped(given) ? given.value : given;
  const text = "" + (serialize ? serialize(plain) : plain);
  return `"${text.replace(/\\/g, "\\\\").replace(/"/g, '\\"')}"`;
}
