/**
 * The driver as the language: it makes queries, helpers and errors, and never connects. Everything that
 * is known of its inside stands here; {@linkcode check} looks at the first use whether it is still so.
 * Read in postgres 3.4.9; tests/language_test.ts holds it against the one that is installed.
 */

import fs from "node:fs";
import postgres from "postgres";
import type { StatementObserver } from "../pool/observe.ts";
import { genericError, withHint } from "./errors.ts";
import {
  parseArray,
  type Serialize,
  serializeArray,
  typeOf,
  type TypeOption,
  typesOf,
} from "./values.ts";
import { checked, type Owner, Query, type QueryOptions } from "./query.ts";
import type { Column, RowOptions } from "./rows.ts";
import type { ServerFields } from "./wire/frames.ts";
import { type Description, Descriptions } from "./wire/statements.ts";

/** What the driver shows of a statement. */
export interface Statement {
  readonly string: string;
  readonly types: readonly number[];
  readonly name: string;
  columns: readonly Column[] | null;
}

/** Parsed options, as the driver keeps them. It takes them back as they are, because of `shared`. */
export interface DriverOptions extends RowOptions {
  host: string[];
  port: number[];
  path: string | false;
  database: string;
  user: string;
  pass: string | (() => string | Promise<string>);
  connection: Record<string, unknown>;
  debug: unknown;
  prepare: boolean;
  fetch_types: boolean;
  parsers: Record<number, unknown>;
  serializers: Record<number, unknown>;
  transform: postgres.Transform & RowOptions["transform"] & { readonly undefined: unknown };
  types: Record<string, unknown>;
  parameters: Record<string, string>;
  shared: { retries: number; typeArrayMap: Record<number, number> };
  max_pipeline: number;
  queryTimeout?: number;
  onclose?: ((id: number) => void) | undefined;
  onnotify?: ((channel: string, payload: string) => void) | undefined;
  onnotice?: ((notice: postgres.Notice) => void) | undefined;
  onparameter?: ((key: string, value: unknown) => void) | undefined;
  [option: string]: unknown;
}

/** The driver's client. */
export type Sql = postgres.Sql<Record<string, unknown>>;

interface BuilderLike {
  build(before: string, values: unknown[], types: unknown[], options: DriverOptions): unknown;
}
interface ParameterLike {
  value: unknown;
  readonly type: number | null | undefined;
  readonly array: Record<number, number> | null | undefined;
}

/** The driver's classes, as far as they can be had: from what it makes. */
interface Classes {
  readonly Query: new (...args: never[]) => Query;
  readonly Builder: new (...args: never[]) => BuilderLike;
  readonly Identifier: new (...args: never[]) => { readonly value: string };
  readonly Parameter: new (...args: never[]) => ParameterLike;
}

/** What is relied upon: the fields of what the driver makes. A test looks for each in its source. */
export const RELIED_UPON: Readonly<Record<string, readonly string[]>> = {
  Query: [
    "strings",
    "args",
    "tagged",
    "options",
    "handler",
    "canceller",
    "resolve",
    "reject",
    "executed",
    "cancelled",
    "origin",
    "cancel",
    "simple",
    "readable",
    "writable",
    "cursor",
    "describe",
    "forEach",
    "raw",
    "values",
    "handle",
    "execute",
  ],
  /** Set by its methods. */
  later: [
    "streaming",
    "onlyDescribe",
    "forEachFn",
    "cursorFn",
    "cursorRows",
    "isRaw",
    "fragment",
  ],
  Builder: ["build"],
  Identifier: ["value"],
  Parameter: ["value", "type", "array"],
};

/** The driver is not what this was written for. */
function unknownDriver(what: string): Error {
  return new Error(
    `this version of the package postgres cannot be used: ${what}; ` +
      "install postgres 3.4.9 or a later 3.4",
  );
}

/** Takes a driver's client apart; throws when something is missing that is relied upon. */
export function check(sql: Sql): Classes {
  const inside = sql as unknown as {
    (first: unknown, ...rest: unknown[]): { constructor: unknown };
    unsafe(text: string): Query;
    json(value: unknown): { constructor: unknown };
  };
  const query = inside.unsafe("");
  const made: Record<string, object> = {
    Query: query,
    Builder: inside(["a"], "a"),
    Identifier: inside("a"),
    Parameter: inside.json(1),
  };
  for (const [name, object] of Object.entries(made)) {
    for (const field of RELIED_UPON[name]!) {
      if (!(field in object)) throw unknownDriver(`its ${name} has no ${field}`);
    }
  }
  const probe = query as Query & Record<string, (...args: unknown[]) => unknown>;
  // None of them executes it: its handler would complain of a query that nobody waits for.
  probe["cursor"]!(2, () => {});
  probe["raw"]!();
  if (probe.cursorRows !== 2 || typeof probe.cursorFn !== "function" || probe.isRaw !== true) {
    throw unknownDriver("its Query keeps what it was asked for in another way");
  }
  probe["describe"]!();
  if (probe.onlyDescribe !== true) throw unknownDriver("its Query is described in another way");
  return Object.fromEntries(
    Object.entries(made).map(([name, { constructor }]) => [name, constructor]),
  ) as unknown as Classes;
}

/** Taken apart at the first use. */
let classes: Classes | null = null;

function classesOf(sql: Sql): Classes {
  if (classes === null) {
    classes = check(sql);
    // So a statement inherits all that users call, and is a query to the driver's helpers.
    Object.setPrototypeOf(Query.prototype, classes.Query.prototype);
  }
  return classes;
}

/** Lets no environment and no default of the driver's in: everything is given. */
export function parseOptions(options: Record<string, unknown>): DriverOptions {
  const given = (options["transform"] ?? {}) as Record<string, unknown>;
  const part = (name: string): { from: unknown; to: unknown } => {
    const value = given[name] as { from?: unknown; to?: unknown } | undefined;
    return { from: typeof value === "function" ? value : value?.from, to: value?.to };
  };
  const types = (options["types"] ?? {}) as Record<string, TypeOption>;
  return {
    ...options,
    path: options["path"] ?? false,
    types,
    transform: {
      undefined: given["undefined"],
      column: part("column"),
      value: part("value"),
      row: part("row"),
    },
    parameters: {},
    shared: { retries: 0, typeArrayMap: {} },
    ...typesOf(types),
  } as unknown as DriverOptions;
}

/** A template without helpers. */
interface Template {
  readonly text: string;
  /** Where it stands in the program, as a line of a stack. */
  readonly origin: string;
  /** Its description when no value has a type of its own; by their types otherwise. */
  plain: Description | null;
  typed: Map<string, Description> | null;
}

/** What is sent for a query. */
export interface Built {
  readonly description: Description;
  readonly values: readonly unknown[];
}

/** Under so many values of search_path texts are known beside the first one. */
const MOST_PATHS = 256;

type Called = (...args: never[]) => unknown;

/** One pool's language. */
export class Language {
  readonly options: DriverOptions;
  /** The driver's client, for what it makes beside statements. */
  readonly sql: Sql;
  /** What is known of texts. */
  readonly descriptions: Descriptions = new Descriptions();
  /** Milliseconds for each statement that has no limit of its own; 0 = none. */
  readonly queryTimeout: number;
  /** Who wants to know of every statement; null when nobody does. */
  observer: StatementObserver | null = null;
  readonly #classes: Classes;
  #path: string | null = null;
  /** The one that was used last is the last. */
  readonly #elsewhere = new Map<string, Descriptions>();
  /** Null for one that has had a helper in it. */
  readonly #templates = new WeakMap<readonly string[], Template | null>();

  constructor(options: DriverOptions) {
    this.options = options;
    this.queryTimeout = options.queryTimeout ?? 0;
    // Because of `shared` the driver takes them as they are.
    this.sql = postgres({ ...options, max: 1, no_subscribe: true } as never) as unknown as Sql;
    this.#classes = classesOf(this.sql);
  }

  /**
   * What is known of texts under this search_path, as servers from 18 on tell it: the same text may name other tables
   * there, with other types. Null stands for {@linkcode Language.descriptions}, which is for the first one seen.
   */
  descriptionsUnder(path: string): Descriptions | null {
    this.#path ??= path;
    if (path === this.#path) return null;
    const known = this.#elsewhere;
    const found = known.get(path) ?? new Descriptions(128);
    known.delete(path);
    known.set(path, found);
    if (known.size > MOST_PATHS) known.delete(known.keys().next().value!);
    return found;
  }

  /** A statement of a template, to be made by the very function that the user calls: `by`. */
  tagged(strings: readonly string[], args: readonly unknown[], owner: Owner, by: Called): Query {
    const query = this.#make(strings, args, owner, null);
    if (!this.#templates.has(strings)) {
      // A runtime may have left the user's function by a tail call.
      const line = lineAbove(by) || lineAbove(this.tagged);
      this.#templates.set(strings, templateOf(strings, line));
    }
    return query;
  }

  /** A statement, by its text. */
  unsafe(text: unknown, rest: readonly unknown[], owner: Owner): Query {
    const [args, options] = queryArgs("unsafe takes a text", rest);
    return this.#make([text as string], args, owner, {
      prepare: false,
      ...checked(options),
      simple: options.simple ?? args.length === 0,
    });
  }

  /** A statement whose text stands in a file. */
  file(path: unknown, rest: readonly unknown[], owner: Owner): Query {
    const [args, options] = queryArgs("file takes a path", rest);
    const query = this.#make([], args, owner, {
      ...checked(options),
      simple: options.simple ?? args.length === 0,
    });
    query.handler = (q) => {
      try {
        // Whatever is open under that number may never end.
        if (typeof path === "number") throw new TypeError(`file takes a path, received ${path}`);
        fs.readFile(path as string, "utf8", (error, text) => {
          if (error) return q.reject(error);
          q.strings = [text];
          // Whether the right to do so still stands is looked at then.
          owner.execute(q);
        });
      } catch (error) {
        q.reject(error);
      }
    };
    return query;
  }

  /** What a client makes when it is not called as a template's tag: a name, a list of values and the like. */
  helper(first: unknown, rest: readonly unknown[]): unknown {
    return Reflect.apply(this.sql as never, undefined, [first, ...rest]);
  }

  #make(
    strings: readonly string[],
    args: readonly unknown[],
    owner: Owner,
    given: QueryOptions | null,
  ): Query {
    const query = new Query(strings, args, owner, given);
    if (this.options.debug) query.trace = new Error().stack ?? "";
    return query;
  }

  /** The text and the values of a query. Throws when there is something in it that cannot be sent. */
  build(query: Query): Built {
    const { strings, args } = query;
    const template = query.tagged ? this.#template(strings) : null;
    if (template !== null && (args.length === 0 || this.#allPlain(args))) {
      return this.#fromTemplate(template, args);
    }
    const values: unknown[] = [];
    const types: (number | null | undefined)[] = [];
    const text = query.tagged ? this.#stringify(query, values, types) : textOf(strings[0]);
    if (!query.tagged) { for (const value of args) this.#value(value, values, types); }
    if (values.length > 65_535) {
      throw genericError(
        "MAX_PARAMETERS_EXCEEDED",
        `Max number of parameters (65535) exceeded: ${values.length}`,
      );
    }
    for (let i = 0; i < types.length; i++) {
      const type = types[i] ?? 0;
      // The driver takes the type of an array's first element for the array's.
      types[i] = Array.isArray(values[i]) && isScalar(type) ? 0 : Number(type);
    }
    return { description: this.descriptions.of(text, types as number[]), values };
  }

  #template(strings: readonly string[]): Template | null {
    let template = this.#templates.get(strings);
    if (template === undefined) {
      template = templateOf(strings, "");
      this.#templates.set(strings, template);
    }
    return template;
  }

  #allPlain(args: readonly unknown[]): boolean {
    for (let i = 0; i < args.length; i++) {
      const value = args[i];
      if (typeof value === "object" ? value !== null && !isPlain(value) : value === undefined) {
        return false;
      }
    }
    return true;
  }

  #fromTemplate(template: Template, args: readonly unknown[]): Built {
    let typed = false;
    for (let i = 0; i < args.length; i++) {
      if (typeOf(args[i]) !== 0) {
        typed = true;
        break;
      }
    }
    if (!typed) {
      const description = template.plain ??= this.descriptions.of(
        template.text,
        new Array(args.length).fill(0),
      );
      return { description, values: args };
    }
    const types = args.map(typeOf);
    const key = types.join();
    const known = template.typed ??= new Map();
    let description = known.get(key);
    if (description === undefined) {
      if (known.size >= 64) known.clear();
      known.set(key, description = this.descriptions.of(template.text, types));
    }
    return { description, values: args };
  }

  #stringify(query: Query, values: unknown[], types: (number | null | undefined)[]): string {
    const { strings, args } = query;
    let text = strings[0]!;
    for (let i = 1; i < strings.length; i++) {
      text += this.#argument(args[i - 1], text, values, types) + strings[i];
    }
    return text;
  }

  #argument(
    value: unknown,
    before: string,
    values: unknown[],
    types: (number | null | undefined)[],
  ): string {
    if (typeof value === "object" && value !== null) {
      const kind = this.#helper(value);
      if (kind === "builder") {
        return String((value as BuilderLike).build(before, values, types, this.options));
      }
      if (kind === "query") return this.#fragment(value as Query, values, types);
      if (kind === "identifier") return (value as { value: string }).value;
      if (
        Array.isArray(value) && typeof value[0] === "object" && value[0] !== null &&
        this.#helper(value[0]) === "query"
      ) {
        return value.map((one) => " " + this.#fragment(one, values, types)).join("");
      }
    }
    return this.#value(value, values, types);
  }

  #fragment(query: Query, values: unknown[], types: (number | null | undefined)[]): string {
    query.fragment = true;
    return this.#stringify(query, values, types);
  }

  #value(value: unknown, values: unknown[], types: (number | null | undefined)[]): string {
    const absent = this.options.transform.undefined;
    const parameter = typeof value === "object" && value !== null &&
        this.#helper(value) === "parameter"
      ? value as ParameterLike
      : null;
    let given = parameter === null ? value : parameter.value;
    if (given === undefined) given = absent;
    if (given === undefined) {
      throw genericError("UNDEFINED_VALUE", "Undefined values are not allowed");
    }
    values.push(given);
    if (parameter === null) types.push(typeOf(given));
    else if (parameter.array) {
      const { array, type } = parameter;
      types.push(array[type || elementType(given)] || type || (isTexts(given) ? 1009 : 0));
    } else types.push(parameter.type);
    return `$${types.length}`;
  }

  /** What of the driver's a value is, also when it is of another copy of it; null when it is none. */
  #helper(value: object): "query" | "builder" | "identifier" | "parameter" | null {
    const { Query, Builder, Identifier, Parameter } = this.#classes;
    if (value instanceof Query) return "query";
    if (value instanceof Builder) return "builder";
    if (value instanceof Identifier) return "identifier";
    if (value instanceof Parameter) return "parameter";
    // All of them have it, so that nobody awaits them by mistake.
    if (typeof (value as { then?: unknown }).then !== "function") return null;
    if (isQuery(value)) return "query";
    if ("first" in value && "rest" in value && "build" in value) return "builder";
    if ("value" in value) return "type" in value && "array" in value ? "parameter" : "identifier";
    throw new TypeError("a promise is no value of a statement: await it first");
  }

  /** What a value is sent as; null stands for NULL. Throws what a serializer throws. */
  serialize(value: unknown, type: number): string | null {
    if (value === null) return null;
    const serialize = this.options.serializers[type] as Serialize | undefined;
    let text: unknown;
    if (serialize !== undefined) text = serialize(value);
    else if (Array.isArray(value)) {
      // The type of the array is not known here, but its elements are.
      const element = this.options.serializers[elementType(value)] as Serialize | undefined;
      text = serializeArray(value, element, this.options.transform.undefined, 0);
    } else text = "" + value;
    if (typeof text === "string") return text;
    return text === null || text === undefined ? null : "" + text;
  }

  /** Enters an array type into the tables, unless the user has a type for it. */
  addArrayType(oid: number, typarray: number): void {
    const { parsers, serializers, shared, transform } = this.options;
    if (parsers[typarray] && serializers[typarray]) return;
    shared.typeArrayMap[oid] = typarray;
    // As in the driver: the parser of this moment, and the serializer of each later one.
    const parse = parsers[oid] as ((text: string) => unknown) | undefined;
    parsers[typarray] = (text: string) => parseArray(text, parse, typarray);
    serializers[typarray] = (values: unknown) =>
      serializeArray(
        values,
        serializers[oid] as Serialize | undefined,
        transform.undefined,
        typarray,
      );
  }

  /** The server's error as programs know it. */
  serverError(fields: ServerFields): Error {
    const PostgresError = postgres.PostgresError as unknown as new (fields: ServerFields) => Error;
    return withHint(new PostgresError(fields));
  }

  /** Enters into an error whose statement it is, and where that was made; never throws, whatever it is. */
  explain(query: Query, reason: unknown, built: Built | null): unknown {
    try {
      return this.#explain(query, reason, built);
    } catch {
      // A callback may throw what can be neither read nor written to.
      return reason;
    }
  }

  #explain(query: Query, reason: unknown, built: Built | null): unknown {
    const error = reason instanceof Object ? reason : new Error(String(reason));
    if (!(error instanceof Error) || "query" in error || "parameters" in error) return error;
    if (!Object.isExtensible(error)) return error;
    const enumerable = Boolean(this.options.debug);
    const { description, values } = built ?? {};
    const value = (value: unknown): PropertyDescriptor => ({
      value,
      enumerable,
      configurable: true,
    });
    let origin = "";
    try {
      origin = this.options.debug
        ? query.trace!.replace(/.*\n/, "\n")
        : this.#templates.get(query.strings)?.origin ?? "";
    } catch {
      // A stack that somebody's Error.prepareStackTrace has made something else of.
    }
    Object.defineProperties(error, {
      stack: { ...value(error.stack + origin), writable: true },
      query: value(description?.text),
      // As they were sent; as they were given when the server knew no types for them.
      parameters: value(
        values?.map((one, i) => {
          try {
            return description!.types === null ? one : this.serialize(one, description!.types[i]!);
          } catch {
            return one;
          }
        }),
      ),
      args: value(query.args),
      types: value(description?.types ?? description?.declared),
    });
    return error;
  }

  /** Tells the function that wants to know of every statement. */
  debug(connection: number, { description, values }: Built): void {
    const { debug } = this.options;
    if (typeof debug === "function") {
      debug(connection, description.text, values, description.declared);
    }
  }
}

/** True for a statement or a fragment, of this copy of the driver or another. */
export function isQuery(value: unknown): value is Query {
  return typeof value === "object" && value !== null && "strings" in value && "args" in value &&
    "handler" in value;
}

/** True for what a function gets that is called as a template's tag. */
export function isTemplate(value: unknown): value is TemplateStringsArray {
  return Array.isArray((value as { raw?: unknown } | undefined)?.raw);
}

/** The driver's way to read `(text, args?, options?)`, but that it takes null and the like for them, and fails somewhere. */
function queryArgs(what: string, rest: readonly unknown[]): [unknown[], QueryOptions] {
  const [first = [], second = {}] = rest as [unknown, unknown];
  const [args, options] = rest.length === 1 && !Array.isArray(first)
    ? [[], first]
    : [first, second];
  if (!Array.isArray(args) || typeof options !== "object" || options === null) {
    const [place, wrong] = Array.isArray(args) ? ["options", options] : ["values", args];
    throw new TypeError(
      `${what}, then an array of values, then an object of options; both may be left out. ` +
        `Received ${wrong === null ? "null" : typeof wrong} in the place of the ${
          rest.length === 1 ? "values" : place
        }`,
    );
  }
  return [args, options as QueryOptions];
}

/**
 * The line from which a function was called that is still running, as in a stack; empty when it is not. One line, as
 * a template is made from one place, but the function around it is called from many.
 */
function lineAbove(fn: Called): string {
  const holder: { stack?: unknown } = {};
  try {
    Error.captureStackTrace(holder, fn);
  } catch {
    // Somebody's Error.prepareStackTrace.
  }
  const line = typeof holder.stack === "string" ? holder.stack.split("\n")[1] : undefined;
  return line === undefined ? "" : `\n${line}`;
}

function templateOf(strings: readonly string[], origin: string): Template {
  let text = strings[0]!;
  for (let i = 1; i < strings.length; i++) text += `$${i}${strings[i]}`;
  return { text, origin, plain: null, typed: null };
}

/** True when a value is sent as it is, and is no helper. */
function isPlain(value: object): boolean {
  return typeof (value as { then?: unknown }).then !== "function" &&
    !(Array.isArray(value) && value.length > 0 && typeof value[0] === "object" &&
      value[0] !== null && typeof value[0].then === "function");
}

function isScalar(type: number): boolean {
  return type === 16 || type === 17 || type === 20 || type === 1184;
}

function elementType(value: unknown): number {
  return Array.isArray(value) ? elementType(value[0]) : typeOf(value);
}

function isTexts(value: unknown): boolean {
  return Array.isArray(value) ? isTexts(value[0]) : typeof value === "string";
}

/** A statement's text: a string, or what knows to become one. Throws what that throws. */
function textOf(text: unknown): string {
  if (typeof text === "string") return text;
  if (typeof text === "object" && text !== null && !Array.isArray(text)) {
    const { toString } = text;
    if (typeof toString === "function" && toString !== Object.prototype.toString) {
      return String(text);
    }
  }
  throw new TypeError(`the text of a statement must be a string, not ${kindOf(text)}`);
}

function kindOf(value: unknown): string {
  return value === null ? "null" : Array.isArray(value) ? "an array" : typeof value;
}

export { postgres };
