/** A request: what is sent to the server up to one Sync, and what is done with the answers up to its ReadyForQuery. */

import { Buffer } from "node:buffer";
import { ignore } from "../../pool/safely.ts";
import { type ServerFields, textOf, textsOf, type Writer } from "./frames.ts";

/** The type of Sync, with which a request of the extended protocol ends. */
export const SYNC = 0x53;

/**
 * Answers that the server owes, in the order in which they come. A request has those set that are
 * still to come; an error takes them all away, as the server skips to the Sync.
 */
export const Owed = {
  /** CloseComplete of a prepared statement that had to make room. */
  close: 1,
  /** ParseComplete. */
  parse: 2,
  /** ParameterDescription. */
  parameters: 4,
  /** RowDescription or NoData. */
  fields: 8,
  /** BindComplete. */
  bind: 16,
  /** Rows, and an end: CommandComplete, EmptyQueryResponse, PortalSuspended. */
  execute: 32,
  /** CloseComplete of a portal. */
  portal: 64,
  /** All that a simple query may bring. */
  simple: 128,
} as const;

/** How far a request is. */
export type RequestState = "new" | "waiting" | "sent" | "parked" | "done";

/** A column as the server describes it. */
export interface Field {
  /** As the server says it. */
  readonly name: string;
  /** The table's oid, or 0. */
  readonly table: number;
  /** The column's number in the table, or 0. */
  readonly number: number;
  /** The type's oid. */
  readonly type: number;
}

/** A COPY that runs: where its data goes to, or comes from. */
export interface CopyEnd {
  /** Data from the server; good until it returns. */
  data(body: Buffer, at: number, end: number): void;
  /** That was all for now. */
  arrived(): void;
  /** The server has sent all. */
  done(): void;
}

/** What a request needs of its session. */
export interface RequestSession {
  /** Whose backend runs it. */
  readonly backend: Backend;
  /** The transaction state at the server's last word. */
  readonly lastState: "idle" | "intrans" | "inerror";
  /** How many transactions have ended. */
  readonly endings: number;
}

/**
 * One request. What its methods throw is the request's failure, told at its ReadyForQuery; a
 * `ProtocolError` is the session's.
 */
export abstract class Request {
  /** The session on which it waits or is being answered. */
  session: RequestSession | null = null;
  /** How far it is. Moved by the session alone. */
  state: RequestState = "new";
  /** Since when it is under way, where that is known. */
  since: number | null = null;
  /** The next one in the session's queue. */
  next: Request | null = null;
  /** What the server owes; see {@linkcode Owed}. Set by {@linkcode Request.write}. */
  owed = 0;
  /** The number of columns of the rows that may come; -1 when none may. */
  width = -1;
  /** True when a simple query has brought an end. */
  answered = false;
  /** True when nothing may be sent behind it until it is answered. */
  exclusive = false;
  /** True when it may be sent only when nothing else is on its way. */
  alone = false;
  /** False while it has no Sync of its own: it shares that of the request behind it. */
  synced = true;
  /** True when it failed, by what `failure` says. */
  failed = false;
  /** The first failure. */
  failure: unknown = undefined;
  /** True when somebody wants it cancelled. */
  cancelled = false;
  /** The COPY that it is, from the server's word for that to the end of the data. */
  copy: CopyEnd | null = null;

  /** Writes it, its Sync too, and sets `owed`. What it throws is its failure, and nothing is sent. */
  abstract write(out: Writer): void;

  /**
   * It is over: answered, or failed; the session is `lost` when no more can come of it. True when
   * it wants to be sent again, before all that waits.
   */
  abstract settle(lost: boolean): boolean;

  /** The server's error. */
  serverFailed(error: Error, _fields: ServerFields): void {
    this.fail(error);
  }

  /** What it is, without values. */
  get shown(): string {
    return "";
  }

  /** Whether it may end a transaction of the session's holder. */
  get mayEndTransaction(): boolean {
    return false;
  }

  /** Whether the server passes over it when what shares its Sync has failed: not over a simple query. */
  get skippable(): boolean {
    return false;
  }

  /** Whether it may run again, unseen, when a cancel request that was meant for another has hit it outside a transaction. */
  get repeatable(): boolean {
    return false;
  }

  /** True when nobody expects it to be executed before what was sent after it. */
  get unordered(): boolean {
    return false;
  }

  /** Notes a failure; the first one counts. */
  fail(error: unknown): void {
    if (this.failed) return;
    this.failed = true;
    this.failure = error;
  }

  /** The types of the parameters. */
  parameters(_types: number[]): void {}
  /** The columns; none when there are no rows. */
  fields(_fields: Field[]): void {}
  /** The values fit the parameters; rows may follow. */
  bound(): void {}
  /** A row: its values stand from `at` to `end`. */
  row(_body: Buffer, _at: number, _end: number): void {}
  /** A command has ended, with this tag; an empty one when there was no command. */
  complete(_body: Buffer, _at: number, _end: number): void {}
  /** The portal has given as many rows as were asked for. */
  suspended(): void {}
  /** The server waits for data; false when nobody has asked for that. */
  copyIn(): boolean {
    return false;
  }
  /** The server begins to send data; false when nobody has asked for that. */
  copyOut(): boolean {
    return false;
  }
  /** While it was parked the transaction has ended, and with it all that lived in it. */
  transactionEnded(): void {}
}

/** Who answered. */
export interface Backend {
  readonly pid: number;
  /** Of a longer key, the first four bytes. */
  readonly secret: number;
}

/** What a {@linkcode Command} brought. */
export interface CommandResult {
  /** The words of the last command's tag, such as COMMIT. */
  readonly command: string;
  /** Who did it. */
  readonly state: Backend;
  /** The last row, as texts; none when there was no row. */
  readonly row: readonly (string | null)[];
}

/** A command of our own, by the simple protocol: `begin`, `commit`, the round trip of a check. */
export class Command extends Request {
  /** What is sent. */
  readonly text: string;
  readonly #done = Promise.withResolvers<CommandResult>();
  #command = "";
  #row: (string | null)[] = [];

  constructor(text: string) {
    super();
    this.text = text;
  }

  /** Settles at the server's answer, or when none can come. */
  get done(): Promise<CommandResult> {
    return this.#done.promise;
  }

  override write(out: Writer): void {
    this.owed = Owed.simple;
    const mark = out.begin(0x51);
    out.cstring(this.text);
    out.end(mark);
  }

  override row(body: Buffer, at: number, end: number): void {
    this.#row = textsOf(body, at, end, this.width);
  }

  override complete(body: Buffer, at: number, end: number): void {
    this.#command = textOf(body, at, end).replace(/[ \d]+$/, "");
  }

  override settle(): boolean {
    if (this.failed) this.#done.reject(this.failure);
    else {
      this.#done.resolve({ command: this.#command, state: this.session!.backend, row: this.#row });
    }
    return false;
  }
}

/** By the extended protocol, without a Sync: Parse, Bind, Execute. */
const BEGIN = Buffer.from(
  "P\0\0\0\x0d\0begin\0\0\0" + "B\0\0\0\x0c\0\0\0\0\0\0\0\0" + "E\0\0\0\x09\0\0\0\0\0",
  "latin1",
);

/**
 * Opens a transaction that is begun before it is known to be open. What is sent behind it in the same turn shares its
 * Sync, so that the server passes over it when this fails; what comes later waits. A session on which it has failed is
 * over: its holder's next statement would stand by itself.
 */
export class Begin extends Command {
  override synced = false;

  constructor() {
    super("begin");
  }

  override write(out: Writer): void {
    this.owed = Owed.parse | Owed.bind | Owed.execute;
    out.raw(BEGIN);
  }
}

/** Closes a portal. Nobody need wait for it. */
export class ClosePortal extends Command {
  readonly #name: string;

  constructor(name: string) {
    super("");
    this.#name = name;
    this.done.catch(ignore);
  }

  override write(out: Writer): void {
    this.owed = Owed.portal;
    const mark = out.begin(0x43);
    out.byte(0x50);
    out.cstring(this.#name);
    out.end(mark);
    out.empty(SYNC);
  }
}
