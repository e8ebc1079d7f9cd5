/**
 * The driver's inside, as far as we stand on it: what its type declarations leave out. Read in
 * postgres 3.4.9; tests/postgres_*_test.ts hold what we rely on.
 */

import postgres from "postgres";
import type { Duplex } from "node:stream";
import { callSafely } from "../pool/safely.ts";
import { bindContext, withReadable } from "../runtime.ts";
import { errorFields } from "./wire.ts";

/** A statement of the driver: lazy, a promise, and handed to `handler` when it is first awaited. */
export interface DriverQuery extends Promise<unknown> {
  /** Null until the driver executes it; then the backend's key. */
  state: { pid: number; secret: number } | null;
  /** True while it is the statement that the server's answers belong to. */
  active: boolean;
  /** Set when it was cancelled before the server had answered. */
  cancelled: unknown;
  /** True when it was awaited, so that `handler` is or will be called. */
  executed: boolean;
  /** True when `readable` or `writable` was asked for. */
  streaming?: boolean;
  /** True when it is sent as a statement that the server has prepared before. */
  prepared?: boolean;
  /** True to describe the statement instead of executing it. */
  onlyDescribe?: boolean;
  /** Its values; null until the driver has built its message, then what it made of them. */
  parameters: unknown[] | null;
  /** Makes it a cursor. */
  cursor: (this: DriverQuery, ...args: unknown[]) => unknown;
  /** The callback that gets the cursor's rows. */
  cursorFn?: (rows: unknown) => unknown;
  /** The callback that gets each row. */
  forEachFn?: (row: unknown, result: unknown) => unknown;
  /** The arguments between the texts. */
  readonly args: readonly unknown[];
  /** How it is to be executed. */
  readonly options: { readonly simple?: boolean };
  /** True for a template, false for a text. */
  readonly tagged: boolean;
  /** The template's texts. */
  strings: readonly string[];
  /** Called once with the statement, to execute it. It must not throw. */
  handler: Handler;
  /** Called by `cancel()`. */
  canceller: ((query: DriverQuery) => Promise<void>) | null;
  /** Settles the statement. */
  resolve: (result: unknown) => void;
  /** Settles the statement. */
  reject: (reason: unknown) => void;
}

/** Takes a statement to be executed. */
export interface Handler {
  (query: DriverQuery): void;
  /** Statements remember where they were made when it is truthy. */
  debug?: unknown;
}

/** Parsed options, as the driver keeps them. It takes them back as they are, because of `shared`. */
export interface DriverOptions {
  host: string[];
  port: number[];
  path: string | false;
  database: string;
  user: string;
  pass: string | (() => string | Promise<string>);
  connection: Record<string, unknown>;
  debug: unknown;
  fetch_types: boolean;
  parsers: Record<number, unknown>;
  serializers: Record<number, unknown>;
  transform: postgres.Transform;
  types: Record<string, unknown>;
  parameters: Record<string, string>;
  shared: { retries: number; typeArrayMap: Record<number, number> };
  socket?: ((options: unknown) => Duplex | Promise<Duplex>) | undefined;
  onclose?: ((id: number) => void) | undefined;
  onnotify?: ((channel: string, payload: string) => void) | undefined;
  onnotice?: ((notice: postgres.Notice) => void) | undefined;
  onparameter?: ((key: string, value: unknown) => void) | undefined;
  [option: string]: unknown;
}

/** The driver's client. */
export type Sql = postgres.Sql<Record<string, unknown>>;

/** Lets the driver parse options that a user could give. */
export function parseOptions(options: Record<string, unknown>): DriverOptions {
  // The one variable that the driver reads though every option is given.
  return withReadable(
    "PGAPPNAME",
    () =>
      postgres(options as postgres.Options<Record<string, never>>)
        .options as unknown as DriverOptions,
  );
}

/** Makes a client of the driver from options that are parsed already. */
export function makeClient(options: DriverOptions): Sql {
  return postgres(options as unknown as postgres.Options<Record<string, never>>) as unknown as Sql;
}

/** Sees a pending statement as what it is inside. */
export function inside(query: unknown): DriverQuery {
  return query as DriverQuery;
}

/** Why a session is of no use to a request that did not open it, where the host is so strict. */
export const FOREIGN =
  "the connection belongs to another request: Cloudflare Workers allow no socket to be used across requests";

/** An error in the driver's own shape for a connection that is gone. */
export function connectionError(
  code: "CONNECTION_CLOSED" | "CONNECTION_DESTROYED" | "CONNECT_TIMEOUT",
  place: { host: string; port: number; path: string | null },
  verb: string,
  cause?: unknown,
): Error {
  const where = place.path ?? `${place.host}:${place.port}`;
  const error = new Error(`${verb} ${code} ${where}`, cause === undefined ? undefined : { cause });
  const more = { code, errno: code, address: place.path ?? place.host };
  return Object.assign(error, place.path === null ? { ...more, port: place.port } : more);
}

/** An error in the driver's own shape for what is no connection's fault. */
export function genericError(code: string, message: string): Error {
  return Object.assign(new Error(`${code}: ${message}`), { code });
}

/**
 * The server's error in the driver's own shape, when it is one that ends the session: there the driver
 * tells of the broken connection, and not of what the server had said.
 */
export function fatalError(body: Uint8Array | null): Error | undefined {
  if (body === null) return undefined;
  const fields = errorFields(body);
  const severity = fields.get("V") ?? fields.get("S");
  if (severity !== "FATAL" && severity !== "PANIC") return undefined;
  const PostgresError = postgres.PostgresError as unknown as new (
    fields: Record<string, string | undefined>,
  ) => Error;
  return new PostgresError({
    message: fields.get("M"),
    severity_local: fields.get("S"),
    severity,
    code: fields.get("C"),
    detail: fields.get("D"),
    hint: fields.get("H"),
    routine: fields.get("R"),
  });
}

/**
 * A callback whose failure is reported and not taken for a failure of the statement at hand. It runs in the async
 * context of this call: that of the pool, in which connects run.
 */
export function guard<A extends unknown[]>(
  what: string,
  callback: ((...args: A) => void) | undefined,
): ((...args: A) => void) | undefined {
  if (callback === undefined) return undefined;
  const bound = bindContext(callback);
  return (...args) => callSafely(what, () => bound(...args));
}

export { postgres };
