/** Rows: from the bytes of the server straight into what the borrower gets. */

import { Buffer } from "node:buffer";
import { ProtocolError, textOf } from "./wire/frames.ts";
import type { Backend, Field } from "./wire/request.ts";
import { type Parse, parseBoolean, parseNumber } from "./values.ts";

/** A column as the driver shows it. */
export interface Column extends Field {
  /** Reads its values; undefined leaves them as texts. */
  readonly parser: Parse | undefined;
}

/** What decides on how rows look; the driver's options, as far as that goes. */
export interface RowOptions {
  readonly parsers: Record<number, unknown>;
  readonly transform: {
    readonly column: { readonly from?: ((name: string) => string) | undefined };
    readonly value: { readonly from?: ((value: unknown, column: Column) => unknown) | undefined };
    readonly row: { readonly from?: ((row: unknown) => unknown) | undefined };
  };
}

const TEXT = 0;
const NUMBER = 1;
const BOOLEAN = 2;
const PARSED = 3;
/** The driver's convention: a parser with `array: true` gets the text without its first brace. */
const ARRAY = 4;

/** The columns of a statement, and how their values are read. */
export class Shape {
  readonly columns: Column[];
  readonly #names: string[];
  readonly #kinds: number[];
  readonly #parsers: (Parse | undefined)[];
  readonly #value: RowOptions["transform"]["value"]["from"];
  /** True when a column has the one name that cannot be assigned. */
  readonly #odd: boolean;
  /** How many rows until it is worth while to make a function for them. */
  #untilMade = ROWS_BEFORE_MAKING;
  #make: MakeRow | null = null;
  /** The values of the row at hand. */
  readonly #values: unknown[] = [];

  /** Parsers are those of this moment, as in the driver. */
  constructor(fields: readonly Field[], { parsers, transform }: RowOptions) {
    const rename = transform.column.from;
    this.columns = fields.map(({ name, table, number, type }) => ({
      name: rename ? rename(name) : name,
      parser: parsers[type] as Parse | undefined,
      table,
      number,
      type,
    }));
    this.#names = this.columns.map(({ name }) => name);
    this.#parsers = this.columns.map(({ parser }) => parser);
    this.#kinds = this.#parsers.map(kindOf);
    this.#value = transform.value.from;
    this.#odd = this.#names.includes("__proto__");
  }

  /** True when one for these columns, made now, would be the same. */
  fits(fields: readonly Field[], { parsers, transform }: RowOptions): boolean {
    const { columns } = this;
    // Who changes names may do so by what is no property of the column.
    if (transform.column.from || transform.value.from !== this.#value) return false;
    return columns.length === fields.length && fields.every(({ name, table, number, type }, i) => {
      const column = columns[i]!;
      return column.name === name && column.table === table && column.number === number &&
        column.type === type && column.parser === parsers[type];
    });
  }

  /** A row as an object. */
  object(body: Buffer, at: number, end: number): Record<string, unknown> {
    if (this.#value !== undefined || this.#odd) return this.#slowObject(body, at, end);
    const names = this.#names;
    const kinds = this.#kinds;
    const values = this.#values;
    for (let i = 0; i < kinds.length; i++) {
      const n = (body[at]! << 24) | (body[at + 1]! << 16) | (body[at + 2]! << 8) | body[at + 3]!;
      at += 4;
      if (n < 0) {
        if (n !== -1) throw badRow();
        values[i] = null;
        continue;
      }
      const stop = at + n;
      if (stop > end) throw badRow();
      const kind = kinds[i];
      values[i] = kind === TEXT
        ? textOf(body, at, stop)
        : kind === NUMBER
        ? numberOf(body, at, stop)
        : this.#read(kind!, i, body, at, stop);
      at = stop;
    }
    if (at !== end) throw badRow();
    if (this.#make !== null) return this.#make(values);
    if (--this.#untilMade === 0) this.#make = rowMaker(names);
    const row: Record<string, unknown> = {};
    for (let i = 0; i < names.length; i++) row[names[i]!] = values[i];
    return row;
  }

  #slowObject(body: Buffer, at: number, end: number): Record<string, unknown> {
    const row: Record<string, unknown> = {};
    const values = this.values(body, at, end);
    for (let i = 0; i < values.length; i++) {
      const name = this.#names[i]!;
      if (name !== "__proto__") row[name] = values[i];
      else {
        const value = values[i];
        const settings = { value, writable: true, enumerable: true, configurable: true };
        Object.defineProperty(row, name, settings);
      }
    }
    return row;
  }

  /** A row as an array. */
  values(body: Buffer, at: number, end: number): unknown[] {
    const row: unknown[] = [];
    const change = this.#value;
    for (let i = 0; i < this.columns.length; i++) {
      const n = lengthOf(body, at, end);
      at += 4;
      const value = n < 0 ? null : this.#read(this.#kinds[i]!, i, body, at, at + n);
      if (n > 0) at += n;
      row.push(change === undefined ? value : change(value, this.columns[i]!));
    }
    if (at !== end) throw badRow();
    return row;
  }

  /** A row as the bytes of its values. */
  raw(body: Buffer, at: number, end: number): (Buffer | null)[] {
    const row: (Buffer | null)[] = [];
    for (let i = 0; i < this.columns.length; i++) {
      const n = lengthOf(body, at, end);
      at += 4;
      // A copy: the bytes are the transport's again when this returns.
      row.push(n < 0 ? null : Buffer.from(body.subarray(at, at + n)));
      if (n > 0) at += n;
    }
    if (at !== end) throw badRow();
    return row;
  }

  #read(kind: number, i: number, body: Buffer, at: number, end: number): unknown {
    switch (kind) {
      case TEXT:
        return textOf(body, at, end);
      case NUMBER:
        return numberOf(body, at, end);
      case BOOLEAN:
        return body[at] === 116;
      case ARRAY:
        return this.#parsers[i]!(textOf(body, at + 1, end));
      default:
        return this.#parsers[i]!(textOf(body, at, end));
    }
  }
}

type MakeRow = (values: readonly unknown[]) => Record<string, unknown>;

const ROWS_BEFORE_MAKING = 64;

/**
 * A function with the names in it, so that a row is made in one piece; built name by name it is moved as it grows, which
 * is half of what many rows cost. Null where the host makes no functions of texts.
 */
function rowMaker(names: readonly string[]): MakeRow | null {
  const fields = names.map((name, i) => `${JSON.stringify(name)}: v[${i}]`);
  try {
    return new Function("v", `return { ${fields.join(", ")} };`) as MakeRow;
  } catch {
    return null;
  }
}

function kindOf(parser: Parse | undefined): number {
  if (parser === undefined || parser === null) return TEXT;
  if (parser === parseNumber) return NUMBER;
  if (parser === parseBoolean) return BOOLEAN;
  return (parser as { array?: unknown }).array === true ? ARRAY : PARSED;
}

function lengthOf(body: Buffer, at: number, end: number): number {
  const n = (body[at]! << 24) | (body[at + 1]! << 16) | (body[at + 2]! << 8) | body[at + 3]!;
  if (n < -1 || at + 4 + (n > 0 ? n : 0) > end) throw badRow();
  return n;
}

function badRow(): ProtocolError {
  return new ProtocolError("a row whose values do not fit into it");
}

/** Whole numbers are read digit by digit, without a text between. */
function numberOf(body: Buffer, at: number, end: number): number {
  let i = at;
  const negative = body[i] === 45;
  if (negative) i++;
  // Up to 15 digits are exact.
  if (i === end || end - i > 15) return +textOf(body, at, end);
  let n = 0;
  for (; i < end; i++) {
    const digit = body[i]! - 48;
    if (digit < 0 || digit > 9) return +textOf(body, at, end);
    n = 10 * n + digit;
  }
  return negative ? -n : n;
}

class About {
  count: number | null = null;
  command: string | null = null;
  columns: Column[] | null = null;
  state: Backend | null = null;
  statement: unknown = null;
}

/** Rows, and what the server said of them: the driver's result. */
export class Result extends Array<unknown> {
  // One field: each costs as much as an object.
  readonly #about = new About();

  /** What comes of `map` and the like is an ordinary array. */
  static override get [Symbol.species](): ArrayConstructor {
    return Array;
  }

  /** How many rows the command has come to; null when it tells none. */
  get count(): number | null {
    return this.#about.count;
  }
  set count(count: number | null) {
    this.#about.count = count;
  }

  get command(): string | null {
    return this.#about.command;
  }
  set command(command: string | null) {
    this.#about.command = command;
  }

  get columns(): Column[] | null {
    return this.#about.columns;
  }
  set columns(columns: Column[] | null) {
    this.#about.columns = columns;
  }

  get state(): Backend | null {
    return this.#about.state;
  }
  set state(state: Backend | null) {
    this.#about.state = state;
  }

  /** Its text, types and columns. */
  get statement(): unknown {
    return this.#about.statement;
  }
  set statement(statement: unknown) {
    this.#about.statement = statement;
  }

  /** Takes a command's tag: its words, and the number at its end. */
  tagged(body: Buffer, at: number, end: number): void {
    let i = end;
    let count = 0;
    let unit = 1;
    while (i > at) {
      const digit = body[i - 1]! - 48;
      if (digit < 0 || digit > 9) break;
      count += unit * digit;
      unit *= 10;
      i--;
    }
    const about = this.#about;
    if (i < end && body[i - 1] === 32) {
      about.count ??= count;
      // INSERT has another number, which was an oid once.
      while (i > at && body[i - 1]! < 65) i--;
    } else i = end;
    about.command = commandOf(body, at, i);
  }
}

const COMMANDS = ["SELECT", "INSERT", "UPDATE", "DELETE"];

/** The words of a tag; the commonest without a new text. */
function commandOf(body: Buffer, at: number, end: number): string {
  if (end - at === 6) {
    for (const command of COMMANDS) {
      let i = 0;
      while (i < 6 && body[at + i] === command.charCodeAt(i)) i++;
      if (i === 6) return command;
    }
  }
  return textOf(body, at, end);
}
