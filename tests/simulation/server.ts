/** The simulated server: PostgreSQL's protocol, version 3, in front of the simulated database. */

import {
  type Column,
  columnsOf,
  type Database,
  endsTransaction,
  type Outcome,
  parameterTypes,
  Session,
  type SessionHost,
  SqlError,
  syntaxFault,
} from "./database.ts";

/** The server's end of a connection. */
export interface Line {
  /** Sends bytes to the client. */
  send(bytes: Uint8Array): void;
  /** Says that no more follow. */
  end(): void;
  /** Breaks the connection. */
  reset(): void;
}

/** What comes from a client. */
export interface Peer {
  /** The session's number; null when it is none. */
  readonly session: number | null;
  receive(bytes: Uint8Array): void;
  /** The client sends no more, or is gone. */
  ended(): void;
}

export interface ServerOptions {
  /** Of the cluster: a standby has the same. */
  readonly database: Database;
  readonly standby: boolean;
  /** Where the numbers of its sessions begin. */
  readonly firstPid: number;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** What is no longer is copied sooner byte by byte. */
const SHORT = 64;

/** Where messages are put together, one after the other. */
let scratch = new Uint8Array(1 << 16);

/** A message to the client: to be sent before the next one is begun. */
class Message {
  #at = 5;

  constructor(type: string) {
    scratch[0] = type.charCodeAt(0);
  }
  #room(more: number): void {
    if (this.#at + more <= scratch.length) return;
    const larger = new Uint8Array(2 * (this.#at + more));
    larger.set(scratch.subarray(0, this.#at));
    scratch = larger;
  }
  byte(n: number): this {
    this.#room(1);
    scratch[this.#at++] = n;
    return this;
  }
  i16(n: number): this {
    return this.byte(n >> 8).byte(n);
  }
  i32(n: number): this {
    return this.i16(n >> 16).i16(n);
  }
  raw(bytes: Uint8Array): this {
    this.#room(bytes.length);
    scratch.set(bytes, this.#at);
    this.#at += bytes.length;
    return this;
  }
  /** Nearly all is ASCII, and short: done by hand that takes half of the time. */
  chars(s: string): this {
    this.#room(s.length);
    for (let i = 0; i < s.length; i++) {
      const code = s.charCodeAt(i);
      if (code > 127) {
        this.#at -= i;
        return this.raw(encoder.encode(s));
      }
      scratch[this.#at++] = code;
    }
    return this;
  }
  text(s: string): this {
    return this.chars(s).byte(0);
  }
  value(s: string | null): this {
    if (s === null) return this.i32(-1);
    const begin = this.#at;
    this.i32(0).chars(s);
    const end = this.#at;
    this.#at = begin;
    this.i32(end - begin - 4);
    this.#at = end;
    return this;
  }
  get length(): number {
    return this.#at;
  }
  /** Writes it there. */
  copyTo(target: Uint8Array, at: number): void {
    const length = this.#at;
    this.#at = 1;
    this.i32(length - 1);
    this.#at = length;
    if (length > SHORT) return target.set(scratch.subarray(0, length), at);
    for (let i = 0; i < length; i++) target[at + i] = scratch[i]!;
  }
}

/** Reads a message from the client. */
class Body {
  #at = 0;
  readonly #view: DataView;
  constructor(readonly bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }
  byte(): number {
    return this.bytes[this.#at++]!;
  }
  i16(): number {
    this.#at += 2;
    return this.#view.getInt16(this.#at - 2);
  }
  i32(): number {
    this.#at += 4;
    return this.#view.getInt32(this.#at - 4);
  }
  text(): string {
    const end = this.bytes.indexOf(0, this.#at);
    const text = textOf(this.bytes, this.#at, end);
    this.#at = end + 1;
    return text;
  }
  value(): string | null {
    const length = this.i32();
    if (length < 0) return null;
    this.#at += length;
    return textOf(this.bytes, this.#at - length, this.#at);
  }
  get done(): boolean {
    return this.#at >= this.bytes.length;
  }
}

function textOf(bytes: Uint8Array, from: number, to: number): string {
  let text = "";
  for (let at = from; at < to; at++) {
    const code = bytes[at]!;
    if (code > 127) return decoder.decode(bytes.subarray(from, to));
    text += String.fromCharCode(code);
  }
  return text;
}

interface Prepared {
  readonly text: string;
  readonly types: readonly number[];
  readonly schema: number;
  readonly columns: readonly Column[] | null;
}

interface Portal {
  readonly prepared: Prepared;
  readonly params: readonly (string | null)[];
  outcome: Outcome | null;
  at: number;
}

const SSL_REQUEST = 80877103;
const GSS_REQUEST = 80877104;
const CANCEL_REQUEST = 80877102;
const LONGEST_MESSAGE = 1 << 20;
/** bigint, smallint, integer. */
const INTEGERS: ReadonlySet<number> = new Set([20, 21, 23]);
/** So much the server keeps before it sends it. */
const BUFFER = 8192;
const FIRST_BUFFER = 512;

/** The postmaster, and its backends. */
export class Server {
  readonly database: Database;
  readonly backends: Set<Backend> = new Set();
  /** Says how the server is to those who connect. */
  mode: "up" | "starting" | "down" = "up";
  /** True while it takes nobody's password. */
  denies = false;
  /** True while others have all its places. */
  crowded = false;
  /** True while it follows another one. */
  standby: boolean;
  /** The most sessions there ever were at once. */
  mostSessions = 0;
  readonly #host: SessionHost;
  #pid: number;

  constructor(host: Pick<SessionHost, "after">, options: ServerOptions) {
    this.database = options.database;
    this.standby = options.standby;
    this.#pid = options.firstPid;
    const standby = (): boolean => this.standby;
    this.#host = {
      after: (ms, fn) => host.after(ms, fn),
      get standby() {
        return standby();
      },
    };
  }

  /** It becomes the primary. */
  promote(): void {
    this.standby = false;
    for (const backend of this.backends) backend.report("in_hot_standby", "off");
  }

  /** Somebody has connected. */
  accept(line: Line): Peer {
    return new Connection(this, line, this.#host);
  }

  /** How many sessions there are, and whether one more is let in. */
  admit(backend: Backend): SqlError | null {
    if (this.mode === "starting") {
      return new SqlError("57P03", "the database system is starting up", "FATAL");
    }
    if (this.denies) {
      return new SqlError("28P01", 'password authentication failed for user "sim"', "FATAL");
    }
    if (this.crowded) {
      return new SqlError("53300", "sorry, too many clients already", "FATAL");
    }
    this.backends.add(backend);
    this.mostSessions = Math.max(this.mostSessions, this.backends.size);
    return null;
  }

  nextPid(): number {
    return ++this.#pid;
  }

  cancel(pid: number, secret: number): void {
    for (const backend of this.backends) {
      if (backend.pid === pid && backend.secret === secret) backend.session.cancel();
    }
  }

  /** Ends a session as pg_terminate_backend does. */
  terminate(backend: Backend): void {
    backend.fatal(
      new SqlError("57P01", "terminating connection due to administrator command", "FATAL"),
    );
  }

  /** A crash, or an immediate shutdown: all sessions end, and what was not committed is gone. */
  crash(): void {
    for (const backend of [...this.backends]) backend.vanish();
  }
}

/** One connection, before it is known what it wants. */
class Connection implements Peer {
  #bytes: Uint8Array = new Uint8Array(0);
  #backend: Backend | null = null;
  readonly #server: Server;
  readonly #line: Line;
  readonly #host: SessionHost;
  #over = false;

  constructor(server: Server, line: Line, host: SessionHost) {
    this.#server = server;
    this.#line = line;
    this.#host = host;
  }

  get session(): number | null {
    return this.#backend === null || this.#backend.over ? null : this.#backend.pid;
  }

  receive(bytes: Uint8Array): void {
    if (this.#over) return;
    if (this.#bytes.length === 0) this.#bytes = bytes;
    else {
      const all = new Uint8Array(this.#bytes.length + bytes.length);
      all.set(this.#bytes);
      all.set(bytes, this.#bytes.length);
      this.#bytes = all;
    }
    while (!this.#over && this.#take());
  }

  ended(): void {
    if (this.#over) return;
    this.#over = true;
    if (this.#backend !== null) this.#backend.gone();
    this.#line.end();
  }

  #take(): boolean {
    const bytes = this.#bytes;
    const head = this.#backend === null ? 0 : 1;
    if (bytes.length < head + 4) return false;
    const length = new DataView(bytes.buffer, bytes.byteOffset).getInt32(head);
    if (length < 4 || length > LONGEST_MESSAGE) {
      this.#over = true;
      this.#backend?.gone();
      this.#line.end();
      return false;
    }
    if (bytes.length < head + length) return false;
    this.#bytes = bytes.subarray(head + length);
    const body = new Body(bytes.subarray(head + 4, head + length));
    if (this.#backend !== null) {
      this.#backend.message(String.fromCharCode(bytes[0]!), body);
      if (this.#backend.over) this.#over = true;
    } else this.#startup(body);
    return true;
  }

  #startup(body: Body): void {
    const code = body.i32();
    if (code === SSL_REQUEST || code === GSS_REQUEST) return this.#line.send(encoder.encode("N"));
    if (code === CANCEL_REQUEST) {
      this.#server.cancel(body.i32(), body.i32());
      this.#over = true;
      return this.#line.end();
    }
    const parameters = new Map<string, string>();
    for (let name = body.text(); name !== ""; name = body.text()) parameters.set(name, body.text());
    const backend = new Backend(this.#server, this.#line, this.#host);
    if (code >> 16 !== 3) {
      return this.#refuse(backend, new SqlError("0A000", "unsupported frontend protocol", "FATAL"));
    }
    const refusal = this.#server.admit(backend);
    if (refusal !== null) return this.#refuse(backend, refusal);
    this.#backend = backend;
    backend.welcome(parameters);
  }

  #refuse(backend: Backend, error: SqlError): void {
    this.#over = true;
    backend.fatal(error);
  }
}

/** One session's side of the protocol. Messages are worked off one after the other. */
export class Backend {
  readonly pid: number;
  readonly secret: number;
  readonly session: Session;
  /** What the client calls itself. */
  name = "";
  over = false;
  readonly #server: Server;
  readonly #line: Line;
  readonly #queue: [string, Body][] = [];
  readonly #prepared = new Map<string, Prepared>();
  readonly #portals = new Map<string, Portal>();
  #working = false;
  /** After an error in a series of messages all up to Sync are passed over. */
  #skipping = false;
  #out = new Uint8Array(FIRST_BUFFER);
  readonly #news: [pid: number, channel: string, payload: string][] = [];
  #outSize = 0;
  #copying: { lines: string; then: (failed: SqlError | null) => void } | null = null;

  constructor(server: Server, line: Line, host: SessionHost) {
    this.#server = server;
    this.#line = line;
    this.pid = server.nextPid();
    this.secret = (this.pid * 2654435761) | 0;
    this.session = new Session(server.database, this.pid, host);
    this.session.ondiscard = () => this.#prepared.clear();
    this.session.onnotify = (pid, channel, payload) => {
      this.#news.push([pid, channel, payload]);
      if (this.#working || this.session.state !== "I") return;
      this.#tellNews();
      this.#flush();
    };
  }

  welcome(parameters: ReadonlyMap<string, string>): void {
    this.name = parameters.get("application_name") ?? "";
    this.#send(new Message("R").i32(0));
    const reported = {
      server_version: "18.1",
      server_encoding: "UTF8",
      client_encoding: parameters.get("client_encoding") ?? "UTF8",
      DateStyle: "ISO, MDY",
      IntervalStyle: "postgres",
      TimeZone: "UTC",
      integer_datetimes: "on",
      standard_conforming_strings: "on",
      in_hot_standby: this.#server.standby ? "on" : "off",
      default_transaction_read_only: "off",
      application_name: this.name,
      session_authorization: parameters.get("user") ?? "",
      is_superuser: "off",
    };
    for (const [name, value] of Object.entries(reported)) {
      this.#send(new Message("S").text(name).text(value));
    }
    this.#send(new Message("K").i32(this.pid).i32(this.secret));
    this.#ready();
  }

  message(type: string, body: Body): void {
    if (this.over) return;
    if (type === "X") {
      this.gone();
      return this.#line.end();
    }
    this.#queue.push([type, body]);
    if (this.#copying !== null) this.#readCopy();
    else if (!this.#working) this.#work();
  }

  /** A setting has another value now. */
  report(name: string, value: string): void {
    this.#send(new Message("S").text(name).text(value));
    if (!this.#working) this.#flush();
  }

  /** The client is gone, or has said so. */
  gone(): void {
    if (this.over) return;
    this.over = true;
    this.session.end();
    this.#server.backends.delete(this);
  }

  /** The last words, and the end. */
  fatal(error: SqlError): void {
    if (this.over) return;
    this.#error(error);
    this.gone();
    this.#line.end();
  }

  /** The end without a word. */
  vanish(): void {
    if (this.over) return;
    this.gone();
    this.#line.reset();
  }

  #work(): void {
    // Most messages are done at once: a loop then, and no recursion.
    for (let entry = this.#queue.shift(); entry !== undefined; entry = this.#queue.shift()) {
      this.#working = true;
      let inside = true;
      let done = false;
      this.#handle(entry[0], entry[1], () => {
        done = true;
        if (inside) return;
        this.#working = false;
        if (!this.over) this.#work();
      });
      inside = false;
      if (!done) return;
      this.#working = false;
      if (this.over) return;
    }
  }

  #handle(type: string, body: Body, next: () => void): void {
    if ("dcf".includes(type)) return next();
    if (this.#skipping && type !== "S") return next();
    switch (type) {
      case "Q":
        return this.#simple(body.text(), next);
      case "P": {
        const name = body.text(), text = body.text();
        const given = Array.from({ length: body.i16() }, () => body.i32());
        if (name === "") this.#prepared.delete(name);
        const fault = syntaxFault(text) ?? (text.trim() === "" ? null : this.#aborted(text));
        if (fault !== null) return this.#fail(fault, next);
        const columns = columnsOf(text);
        if (columns instanceof SqlError) return this.#fail(columns, next);
        if (this.#prepared.has(name)) {
          return this.#fail(new SqlError("42P05", `prepared statement "${name}" exists`), next);
        }
        const types = parameterTypes(text).map((type, i) => given[i] || type);
        const { schema } = this.#server.database;
        this.#prepared.set(name, { text, types, schema, columns });
        this.#send(new Message("1"));
        return next();
      }
      case "B": {
        const portal = body.text(), name = body.text();
        const prepared = this.#prepared.get(name);
        if (prepared === undefined) {
          return this.#fail(
            new SqlError("26000", `prepared statement "${name}" does not exist`),
            next,
          );
        }
        for (let formats = body.i16(); formats > 0; formats--) body.i16();
        const params = Array.from({ length: body.i16() }, () => body.value());
        if (params.length !== prepared.types.length) {
          return this.#fail(
            new SqlError(
              "08P01",
              `bind message supplies ${params.length} parameters, but prepared statement "${name}" requires ${prepared.types.length}`,
            ),
            next,
          );
        }
        const aborted = this.#aborted(prepared.text);
        if (aborted !== null) return this.#fail(aborted, next);
        const bad = params.find((value, i) =>
          value !== null && INTEGERS.has(prepared.types[i]!) && !/^\s*[+-]?\d+\s*$/.test(value)
        );
        if (bad !== undefined) {
          const message = `invalid input syntax for type integer: "${bad}"`;
          return this.#fail(new SqlError("22P02", message), next);
        }
        // The planner has worked it out.
        if (/\bselect 1\/0$/i.test(prepared.text)) {
          return this.#fail(new SqlError("22012", "division by zero"), next);
        }
        if (prepared.schema !== this.#server.database.schema && /ledger/.test(prepared.text)) {
          return this.#fail(
            new SqlError("0A000", "cached plan must not change result type"),
            next,
          );
        }
        this.#portals.set(portal, { prepared, params, outcome: null, at: 0 });
        this.#send(new Message("2"));
        return next();
      }
      case "D": {
        const statement = body.byte() === 0x53;
        const name = body.text();
        const prepared = statement ? this.#prepared.get(name) : this.#portals.get(name)?.prepared;
        if (prepared === undefined) {
          return this.#fail(new SqlError(statement ? "26000" : "34000", "does not exist"), next);
        }
        if (statement) {
          const types = new Message("t").i16(prepared.types.length);
          for (const type of prepared.types) types.i32(type);
          this.#send(types);
        }
        const { columns } = prepared;
        this.#send(columns === null ? new Message("n") : rowDescription(columns));
        return next();
      }
      case "E":
        return this.#execute(body.text(), body.i32(), next);
      case "C": {
        const statement = body.byte() === 0x53;
        (statement ? this.#prepared : this.#portals).delete(body.text());
        this.#send(new Message("3"));
        return next();
      }
      case "S":
        this.#skipping = false;
        this.#settle();
        this.#ready();
        return next();
      case "H":
        this.#flush();
        return next();
      default:
        this.fatal(new SqlError("08P01", `invalid frontend message type ${type}`, "FATAL"));
        return next();
    }
  }

  /** Why a statement is not even looked at. */
  #aborted(text: string): SqlError | null {
    if (this.session.state !== "E" || endsTransaction(text)) return null;
    return new SqlError(
      "25P02",
      "current transaction is aborted, commands ignored until end of transaction block",
    );
  }

  #execute(name: string, most: number, next: () => void): void {
    const portal = this.#portals.get(name);
    if (portal === undefined) {
      return this.#fail(new SqlError("34000", `portal "${name}" does not exist`), next);
    }
    const give = (): void => {
      const { rows, tag, columns } = portal.outcome!;
      const from = portal.at;
      const end = most === 0 ? rows.length : Math.min(rows.length, from + most);
      for (; portal.at < end; portal.at++) this.#send(dataRow(rows[portal.at]!));
      // Whether there are more it does not know before it has looked for them.
      if (most > 0 && end - from === most) this.#send(new Message("s"));
      else if (tag === "") this.#send(new Message("I"));
      else {
        // Of rows it counts those of this time.
        const words = columns.length > 0 ? tag.replace(/\d+$/, String(end - from)) : tag;
        this.#send(new Message("C").text(words));
      }
      next();
    };
    if (portal.outcome !== null) {
      const { columns, tag } = portal.outcome;
      if (columns.length > 0 || tag === "") return give();
      return this.#fail(new SqlError("55000", `portal "${name}" cannot be run`), next);
    }
    this.session.run(portal.prepared.text, portal.params, (result) => {
      if (this.over) return next();
      if (result instanceof SqlError) return this.#fail(result, next);
      portal.outcome = result;
      // No portal outlives its transaction, or its savepoint, not even the one that has ended it.
      if (endsTransaction(portal.prepared.text)) {
        this.#portals.clear();
      }
      if (result.copy === undefined) return give();
      this.#copy(result, (error) => {
        if (error !== null) this.#fail(error, next);
        else next();
      });
    });
  }

  #simple(text: string, next: () => void): void {
    this.#prepared.delete("");
    const statements = text.split(";").map((one) => one.trim()).filter((one) => one !== "");
    const end = (): void => {
      this.#settle();
      this.#ready();
      next();
    };
    if (statements.length === 0) {
      this.#send(new Message("I"));
      return end();
    }
    // The whole text is read before any of it is done.
    for (const one of statements) {
      const fault = syntaxFault(one);
      if (fault === null) continue;
      this.#error(fault);
      this.session.abort();
      return end();
    }
    const run = (at: number): void => {
      if (this.over) return next();
      if (at === statements.length) return end();
      this.session.run(statements[at]!, [], (result) => {
        if (this.over) return next();
        if (result instanceof SqlError) {
          this.#error(result);
          return end();
        }
        if (result.copy !== undefined) {
          return this.#copy(result, (error) => {
            if (error === null) return run(at + 1);
            this.#error(error);
            this.session.abort();
            end();
          });
        }
        if (result.columns.length > 0) {
          this.#send(rowDescription(result.columns));
          for (const row of result.rows) this.#send(dataRow(row));
        }
        this.#send(new Message("C").text(result.tag));
        run(at + 1);
      });
    };
    run(0);
  }

  /** COPY's own messages, in either direction. */
  #copy(outcome: Outcome, then: (error: SqlError | null) => void): void {
    if (outcome.copy === "out") {
      this.#send(new Message("H").byte(0).i16(1).i16(0));
      for (const [value] of outcome.rows) {
        this.#send(new Message("d").raw(encoder.encode(`${value}\n`)));
      }
      this.#send(new Message("c"));
      this.#send(new Message("C").text(outcome.tag));
      return then(null);
    }
    this.#send(new Message("G").byte(0).i16(1).i16(0));
    this.#flush();
    this.#copying = { lines: "", then };
    this.#readCopy();
  }

  /** While data is copied in, its messages count at once, and a Sync among them does not. */
  #readCopy(): void {
    while (this.#copying !== null && this.#queue.length > 0) {
      const [type, body] = this.#queue.shift()!;
      if ("dcf".includes(type)) this.#copyMessage(type, body);
    }
  }

  #copyMessage(type: string, body: Body): void {
    const copying = this.#copying!;
    if (type === "d") {
      copying.lines += decoder.decode(body.bytes);
      return;
    }
    this.#copying = null;
    if (type === "f") {
      return copying.then(new SqlError("57014", `COPY from stdin failed: ${body.text()}`));
    }
    const lines = copying.lines.split("\n").filter((line) => line !== "");
    const insert = (at: number): void => {
      if (at === lines.length) {
        this.#send(new Message("C").text(`COPY ${lines.length}`));
        return copying.then(null);
      }
      this.session.run("insert into ledger values ($1)", [lines[at]!], (result) => {
        if (this.over) return;
        if (result instanceof SqlError) copying.then(result);
        else insert(at + 1);
      });
    };
    insert(0);
  }

  #settle(): void {
    this.session.settle();
    if (this.session.state === "I") this.#portals.clear();
  }

  #fail(error: SqlError, next: () => void): void {
    // Also what the protocol itself refuses ends the transaction.
    this.session.abort();
    this.#error(error);
    this.#skipping = true;
    next();
  }

  #error(error: SqlError): void {
    this.#send(
      new Message("E").chars("S").text(error.severity).chars("V").text(error.severity)
        .chars("C").text(error.code).chars("M").text(error.message).byte(0),
    );
    this.#flush();
  }

  /** Whoever is in a transaction, or at work, hears of nothing before the end. */
  #tellNews(): void {
    for (const [pid, channel, payload] of this.#news.splice(0)) {
      this.#send(new Message("A").i32(pid).text(channel).text(payload));
    }
  }

  #ready(): void {
    if (this.session.state === "I") this.#tellNews();
    this.#send(new Message("Z").byte(this.session.state.charCodeAt(0)));
    this.#flush();
  }

  #send(message: Message): void {
    if (this.over) return;
    const at = this.#outSize;
    const size = this.#outSize = at + message.length;
    if (size > this.#out.length) {
      const larger = new Uint8Array(2 * size);
      larger.set(this.#out.subarray(0, at));
      this.#out = larger;
    }
    message.copyTo(this.#out, at);
    if (size >= BUFFER) this.#flush();
  }

  /** What is said goes out as the real one lets it: by ReadyForQuery, Flush and errors, or when it is much. */
  #flush(): void {
    const size = this.#outSize;
    if (this.over || size === 0) return;
    this.#outSize = 0;
    this.#line.send(this.#out.slice(0, size));
  }
}

function rowDescription(columns: readonly Column[]): Message {
  const message = new Message("T").i16(columns.length);
  for (const { name, type } of columns) {
    message.text(name).i32(0).i16(0).i32(type).i16(-1).i32(-1).i16(0);
  }
  return message;
}

function dataRow(row: readonly (string | null)[]): Message {
  const message = new Message("D").i16(row.length);
  for (const value of row) message.value(value);
  return message;
}
