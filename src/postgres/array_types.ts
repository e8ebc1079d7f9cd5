/**
 * The array types of the server, fetched once for all connections of a pool.
 *
 * The driver would fetch them on each connection, and a failure there is an unhandled rejection that
 * ends the process (porsager/postgres#1192). So the catalog is read by a statement of ours, and the
 * driver's own code is run on the result, on a connection that exists in memory only: it fills the
 * tables that all connections share.
 */

import { Buffer } from "node:buffer";
import { Duplex } from "node:stream";
import { type DriverOptions, makeClient } from "./driver.ts";

/** Reads each element type and its array type. */
export const ARRAY_TYPES_QUERY: string =
  "select b.oid, a.oid as typarray from pg_catalog.pg_type a " +
  "join pg_catalog.pg_type b on b.oid = a.typelem and b.typarray = a.oid " +
  "where a.typcategory = 'A' order by b.oid";

/** A row of {@linkcode ARRAY_TYPES_QUERY}. */
export type ArrayTypeRow = readonly [oid: string, typarray: string];

/** Sees to it that one connection of a pool fetches, and the others wait for it. */
export class ArrayTypes {
  readonly #options: DriverOptions;
  #known: boolean;
  #claim: Promise<void> | null = null;

  constructor(options: DriverOptions) {
    this.#options = options;
    this.#known = !options.fetch_types;
  }

  /** Makes sure that the types are known; `fetch` asks the server for them when nobody else does. */
  async ensure(fetch: () => Promise<readonly ArrayTypeRow[]>): Promise<void> {
    while (!this.#known) {
      if (this.#claim === null) return await this.#fetch(fetch);
      // A failure is its own connection's; this one tries for itself.
      await this.#claim.catch(() => {});
    }
  }

  /** True when the next connection to come up should fetch them. */
  get wanted(): boolean {
    return !this.#known && this.#claim === null;
  }

  async #fetch(fetch: () => Promise<readonly ArrayTypeRow[]>): Promise<void> {
    const claim = fetch().then((rows) => register(this.#options, rows));
    this.#claim = claim;
    try {
      await claim;
      this.#known = true;
    } finally {
      this.#claim = null;
    }
  }
}

/** Lets the driver enter array types into the tables of `options`. */
async function register(options: DriverOptions, rows: readonly ArrayTypeRow[]): Promise<void> {
  // A layer over the shared table, so that no parser of the user's sees the catalog's numbers.
  const parsers: Record<number, unknown> = Object.create(options.parsers);
  parsers[CATALOG_NUMBER] = Number;
  const sql = makeClient({
    ...options,
    max: 1,
    host: ["localhost"],
    port: [5432],
    path: false,
    pass: "",
    ssl: false,
    prepare: false,
    debug: false,
    fetch_types: true,
    idle_timeout: null,
    max_lifetime: null,
    connect_timeout: null,
    target_session_attrs: null,
    no_subscribe: true,
    parameters: {},
    transform: {
      ...options.transform,
      column: {},
      value: {},
      row: {},
    } as DriverOptions["transform"],
    parsers,
    onclose: undefined,
    onnotice: undefined,
    onnotify: undefined,
    onparameter: undefined,
    socket: () => new CatalogServer(rows),
  });
  await sql.unsafe("");
  await sql.end({ timeout: 0 });
  delete parsers[CATALOG_NUMBER];
  Object.assign(options.parsers, parsers);
}

/** A server in memory that accepts everybody and answers the driver's catalog query with given rows. */
class CatalogServer extends Duplex {
  readonly #rows: readonly ArrayTypeRow[];
  #writes = 0;

  constructor(rows: readonly ArrayTypeRow[]) {
    super();
    this.#rows = rows;
  }

  readonly readyState = "open";

  override _read(): void {}

  override _write(_chunk: Buffer, _encoding: string, done: () => void): void {
    this.#writes++;
    const answer = this.#writes === 1
      ? Buffer.concat([frame("R", int32(0)), READY])
      : this.#writes === 2
      ? this.#catalog()
      : Buffer.concat([frame("I"), READY]);
    // Not before `write` has returned: the driver forgets what it is given to write meanwhile.
    queueMicrotask(() => this.push(answer));
    done();
  }

  override _final(done: () => void): void {
    this.push(null);
    done();
  }

  #catalog(): Buffer {
    return Buffer.concat([
      frame("1"),
      frame("2"),
      frame("T", int16(2), column("oid"), column("typarray")),
      ...this.#rows.map(([oid, typarray]) => frame("D", int16(2), field(oid), field(typarray))),
      frame("C", Buffer.from("SELECT\0")),
      READY,
    ]);
  }
}

function frame(type: string, ...parts: Buffer[]): Buffer {
  const body = Buffer.concat(parts);
  return Buffer.concat([Buffer.from(type), int32(body.length + 4), body]);
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return bytes;
}

function int16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeInt16BE(value);
  return bytes;
}

/** A type that no server has. */
const CATALOG_NUMBER = 1;

function column(name: string): Buffer {
  // Name, table, number, type, size, modifier, format.
  return Buffer.concat([
    Buffer.from(name + "\0"),
    int32(0),
    int16(0),
    int32(CATALOG_NUMBER),
    int16(4),
    int32(-1),
    int16(0),
  ]);
}

function field(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([int32(bytes.length), bytes]);
}

const READY = frame("Z", Buffer.from("I"));
