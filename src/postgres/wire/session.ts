/**
 * One session at the server, from its first ReadyForQuery to its end. docs/wire.md has its states.
 *
 * Every answer belongs to a request: requests go out one after the other, each with a Sync of its own
 * (a simple query is its own Sync), and the oldest that has no ReadyForQuery yet gets what comes.
 */

import { ignore } from "../../pool/safely.ts";
import type { Buffer } from "node:buffer";
import { type Clock, currentClock, queueMicrotask } from "../../clock.ts";
import type { Timer } from "../../runtime.ts";
import type { TransactionStatus } from "../../pool/types.ts";
import {
  borrowWriter,
  endOfText,
  FrameReader,
  int32,
  isFatal,
  nameOf,
  ProtocolError,
  readFields,
  returnWriter,
  type ServerFields,
  textOf,
  uint16,
  type Writer,
} from "./frames.ts";
import { cancelOnce, Cancels, type SendCancel } from "./cancel.ts";
import { connectionError, FOREIGN } from "./connect_error.ts";
import { Listeners } from "./listeners.ts";
import {
  type Backend,
  Begin,
  Command,
  type CommandResult,
  type CopyEnd,
  type Field,
  Owed,
  type Request,
  SYNC,
} from "./request.ts";
import type { Started } from "./startup.ts";
import { type Descriptions, PreparedStatements } from "./statements.ts";

/** How long the server may take to let go, in milliseconds, before the transport is cut. */
const CLOSE_LIMIT = 5_000;
/** How long a cancel request may take on the way to a close, and the pause between two; milliseconds. */
const CANCEL_LIMIT = 1_000;
const CANCEL_PAUSE = 5;
/** More than this is not kept for the end of the turn. */
const MOST_KEPT = 32 << 10;

/** For how many microtasks a {@linkcode Begin} waits for the first statement of its transaction. */
const MOST_TURNS = 16;

const TERMINATE = 0x58;
/** Any of the answers that must come before rows. */
const BEFORE_ROWS = Owed.execute - 1;

/** A COPY that nobody has a stream of. */
const NOWHERE: CopyEnd = { data: ignore, arrived: ignore, done: ignore };

/** Whom a session tells what is not the answer to a request. What they throw is their own matter. */
export interface SessionOwner {
  /** The server's error, as programs see it. */
  serverError(fields: ServerFields, session: Session): Error;
  notice(fields: ServerFields): void;
  /** A notification, which the session's own listeners have had. */
  notification(channel: string, payload: string): void;
  /** A setting of the server has this value now; with a text the session is of no use any more, and why. */
  parameter(session: Session, name: string, value: string): string | null;
  /** The transport is at its end. */
  closed(session: Session): void;
}

/** One session. It ends with its transport and never reconnects. */
export class Session {
  /** Where and how it was opened. */
  readonly started: Started;
  /** The time by which it has patience. */
  readonly clock: Clock;
  /** Who listens on this session. */
  readonly listeners: Listeners = new Listeners();
  /** What it has prepared; null until it prepares the first. */
  #prepared: PreparedStatements | null = null;
  /** How many requests may be on their way. */
  limit: number;
  /** What is known of texts where its names mean other things than elsewhere in the pool; null where they do not. */
  elsewhere: Descriptions | null = null;
  /** Why the server is not of the kind any more that was asked for; null while it is. */
  unfit: string | null = null;

  readonly #owner: SessionOwner;
  readonly #sendCancel: SendCancel;
  readonly #reader: FrameReader;
  /** Only from the first frame to the end of the turn. */
  #out: Writer | null = null;
  /** On their way, the oldest first. */
  #head: Request | null = null;
  #tail: Request | null = null;
  #inFlight = 0;
  /** Not sent yet. */
  #firstWaiting: Request | null = null;
  #lastWaiting: Request | null = null;
  /** Neither waiting nor on their way, and yet of this session: cursors between two fetches. */
  #parked: Set<Request> | null = null;
  /** How many reasons there are to send nothing: an exclusive request, a full transport, a cancel request. */
  #blocks = 0;
  #full = false;
  #ondrain: (() => void)[] | null = null;
  /** The transaction state at the last ReadyForQuery. */
  #state: "idle" | "intrans" | "inerror" = "idle";
  /** What the server said before it closed. */
  #lastWords: Error | null = null;
  /** Why the session is over; null while it lives. */
  #reason: Error | null = null;
  /** Resolves when the transport is at its end; made for who waits for that. */
  #ended: PromiseWithResolvers<void> | null = null;
  #gone = false;
  #closing: Promise<void> | null = null;
  /** True from the call of {@linkcode close} on. */
  #leaving = false;
  /** How many of those on their way wait for the end of the turn. */
  #unflushed = 0;
  /** How many microtasks are left of it. */
  #turns = 0;
  /** ReadyForQuery messages that are still to come while it is being closed. */
  #draining = 0;
  #hungUp = false;
  #onlost: ((reason: unknown) => void) | null = null;
  #onquiet: (() => void)[] | null = null;
  #onend: Set<(reason: Error) => void> | null = null;
  #cancels: Cancels | null = null;
  /** How many cancel requests were begun: each may hit another statement than it was meant for. */
  cancelsBegun = 0;
  /** Hears that a cancel request is over, so that what is sent now cannot be hit. */
  oncancelled: (() => void) | null = null;
  readonly #usable: (() => boolean) | null;
  #portals = 0;
  #backend: Backend | null = null;
  /** Changes when a transaction ends, also when the same request begins another one. */
  endings = 0;
  /** What has put the last transaction that failed into that state. */
  fault: unknown = undefined;
  #unknownEnd = false;

  /** `usable` tells whether it may be used here and now, where the host is so strict. */
  constructor(
    started: Started,
    owner: SessionOwner,
    cancel: SendCancel,
    limit: number,
    usable: (() => boolean) | null = null,
    clock: Clock = currentClock(),
  ) {
    this.clock = clock;
    this.started = started;
    this.limit = limit;
    this.#owner = owner;
    this.#sendCancel = cancel;
    this.#usable = usable;
    this.#reader = new FrameReader((type, body, at, end) => this.#frame(type, body, at, end));
    const { transport, rest } = started;
    const closed = (error: Error | null): void => {
      this.#over(error);
      this.#left();
    };
    transport.receive({
      data: (bytes) => this.#data(bytes),
      end: () => closed(null),
      close: closed,
      drain: () => this.#drained(),
    });
    transport.resume();
    if (rest !== null && rest.length > 0) this.#data(rest);
  }

  /** The backend, as results show it. */
  get backend(): Backend {
    return this.#backend ??= backendOf(this.started.key);
  }

  get pid(): number {
    return this.started.key.pid;
  }

  /** Why the session cannot be used any more; null while it can. */
  get reason(): Error | null {
    if (this.#reason !== null) return this.#reason;
    if (this.#leaving) return this.#error("CONNECTION_DESTROYED", "write", this.#lastWords);
    return this.#usable === null || this.#usable() ? null : new Error(FOREIGN);
  }

  /** libpq's word for the session's state. */
  get status(): TransactionStatus {
    if (this.reason !== null) return "unknown";
    return this.busy && !this.#onlyBegins ? "active" : this.#state;
  }

  /** What its holder executes next is in the transaction, or fails. */
  get #onlyBegins(): boolean {
    const head = this.#head;
    return head instanceof Begin && head === this.#tail && this.#firstWaiting === null;
  }

  /** The transaction state at the server's last word, also while a statement runs; `intrans` from a {@linkcode Begin} on. */
  get lastState(): "idle" | "intrans" | "inerror" {
    return this.#state;
  }

  /** Whether one that waits or is on its way, or was on its way when the session ended, may end a transaction. */
  get mayHaveEnded(): boolean {
    return mayEnd(this.#head) || mayEnd(this.#firstWaiting) || this.#unknownEnd;
  }

  /** True while a request waits or is on its way. */
  get busy(): boolean {
    return this.#head !== null || this.#firstWaiting !== null;
  }

  /** True while a cancel request is on its way. */
  get cancelling(): boolean {
    return this.#cancels !== null && this.#cancels.busy;
  }

  /** How many requests are on their way. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /**
   * What the server works on. It keeps the answer to a {@linkcode Begin} until the Sync: so that is behind it, as far as
   * anybody can see.
   */
  get current(): Request | null {
    const head = this.#head;
    return head === null || head.synced ? head : head.next ?? head;
  }

  get prepared(): PreparedStatements {
    // The secret is in no pooler's other session.
    return this.#prepared ??= new PreparedStatements(this.#prefix());
  }

  #prefix(): string {
    const { pid, secret } = this.started.key;
    let hash = pid | 0;
    for (const byte of secret) hash = Math.imul(hash, 31) + byte | 0;
    return `p${(hash >>> 0).toString(36)}_`;
  }

  /** A name for a portal that no other has. */
  portalName(): string {
    return `c${this.#portals++}`;
  }

  // --- requests ---

  /** Takes a request: sends it when it may, else as soon as it may. */
  send(request: Request): void {
    const { reason } = this;
    request.session = this;
    if (reason !== null) return this.#settleLost(request, this.#lossOf(reason));
    if (this.#firstWaiting === null && this.#maySend(request)) this.#write(request);
    else {
      request.state = "waiting";
      request.next = null;
      if (this.#firstWaiting === null) this.#firstWaiting = request;
      else this.#lastWaiting!.next = request;
      this.#lastWaiting = request;
    }
  }

  /** Takes one again that has been answered: before all that waits. */
  sendAgain(request: Request): void {
    const { reason } = this;
    if (reason !== null) return this.#settleLost(request, this.#lossOf(reason));
    request.state = "waiting";
    request.next = this.#firstWaiting;
    this.#firstWaiting = request;
    this.#lastWaiting ??= request;
    this.#advance();
  }

  /** Executes a command of our own. */
  run(text: string): Promise<CommandResult> {
    const command = new Command(text);
    this.send(command);
    return command.done;
  }

  #maySend(request: Request): boolean {
    return this.#blocks === 0 && this.#inFlight < this.limit &&
      (!request.alone || this.#inFlight === 0) &&
      (request.skippable || this.#tail === null || this.#tail.synced);
  }

  /** Sends what waits, as far as it may be sent. */
  #advance(): void {
    while (this.#firstWaiting !== null && this.#maySend(this.#firstWaiting)) {
      const request = this.#firstWaiting;
      this.#firstWaiting = request.next;
      if (this.#firstWaiting === null) this.#lastWaiting = null;
      request.next = null;
      this.#write(request);
    }
  }

  /** Takes a request back that was not sent; false when it was. */
  withdraw(request: Request): boolean {
    if (request.state !== "waiting" || request.session !== this) return false;
    let before: Request | null = null;
    for (let at = this.#firstWaiting; at !== null; before = at, at = at.next) {
      if (at !== request) continue;
      if (before === null) this.#firstWaiting = at.next;
      else before.next = at.next;
      if (this.#lastWaiting === at) this.#lastWaiting = before;
      break;
    }
    request.next = null;
    request.state = "done";
    // What stood behind it may go now.
    this.#advance();
    this.#tellQuiet();
    return true;
  }

  #write(request: Request): void {
    const out = this.#out ??= this.#openWriter();
    const before = out.length;
    request.answered = false;
    request.width = -1;
    try {
      request.write(out);
    } catch (error) {
      out.cut(before);
      request.owed = 0;
      request.fail(error);
      request.state = "done";
      request.settle(false);
      this.#tellQuiet();
      return;
    }
    request.state = "sent";
    request.next = null;
    if (this.#head === null) this.#head = request;
    else this.#tail!.next = request;
    this.#tail = request;
    if (request.synced) {
      this.#inFlight++;
      this.#unflushed++;
      if (this.#turns > 1) this.#turns = 1;
    } else {
      this.#turns = MOST_TURNS;
      this.#state = "intrans";
    }
    if (request.exclusive) this.#blocks++;
    if (out.length > MOST_KEPT) this.#flush();
  }

  /** What is written in one turn goes out in one piece. */
  #openWriter(): Writer {
    // One microtask later those that were resolved together with this one have written too.
    this.#turns = 1;
    queueMicrotask(this.#soon);
    return borrowWriter();
  }

  readonly #soon = (): void => {
    if (this.#turns-- > 0) queueMicrotask(this.#soon);
    else this.#flush();
  };

  #flush(): void {
    const out = this.#out;
    if (out === null) return;
    if (this.#tail !== null && !this.#tail.synced) this.#sync(this.#tail, out);
    this.#out = null;
    this.#unflushed = 0;
    const bytes = out.length > 0 ? out.take() : null;
    returnWriter(out);
    if (bytes === null || this.#gone) return;
    if (!this.started.transport.write(bytes) && !this.#full && !this.#gone) {
      this.#full = true;
      this.#blocks++;
    }
  }

  /** Nothing has come behind it that it could share its Sync with: from now on it stands alone. */
  #sync(request: Request, out: Writer): void {
    out.empty(SYNC);
    request.synced = request.exclusive = true;
    this.#inFlight++;
    this.#blocks++;
  }

  #drained(): void {
    if (!this.#full) return;
    this.#full = false;
    this.#blocks--;
    const tell = this.#ondrain;
    this.#ondrain = null;
    if (tell !== null) { for (const fn of tell) fn(); }
    this.#advance();
  }

  /** Between two parts of a request: it is told when the session ends meanwhile. */
  park(request: Request): void {
    const { reason } = this;
    if (reason !== null) return this.#settleLost(request, this.#lossOf(reason));
    request.state = "parked";
    (this.#parked ??= new Set()).add(request);
  }

  /** It goes on, or is done. */
  unpark(request: Request): void {
    this.#parked?.delete(request);
    if (request.state === "parked") request.state = "new";
    // It is sent again at once, or not at all.
    if (this.#onquiet !== null) queueMicrotask(() => this.#tellQuiet());
  }

  /** Gives up what is parked: the transaction that it lives in is about to end. */
  dropParked(reason: Error): void {
    const parked = this.#parked;
    this.#parked = null;
    for (const request of parked ?? []) this.#settleLost(request, reason);
    this.#tellQuiet();
  }

  // --- COPY ---

  /** Sends data of a COPY; calls back when there is room for more. */
  copyData(request: Request, data: Uint8Array, done: (error: Error | null) => void): void {
    // Once it has ended, by whomever, the server passes over more.
    if (this.#head !== request || request.copy === null || this.#reason !== null) {
      return done(this.reason);
    }
    const out = this.#out ??= this.#openWriter();
    const mark = out.begin(0x64);
    out.raw(data);
    out.end(mark);
    if (out.length > MOST_KEPT) this.#flush();
    if (this.#full) (this.#ondrain ??= []).push(() => done(null));
    else done(null);
  }

  /** Ends the data of a COPY: all was sent, or why not. */
  copyEnd(request: Request, failure: string | null): void {
    if (this.#head !== request || request.copy === null || this.#reason !== null) return;
    const out = this.#out ??= this.#openWriter();
    if (failure === null) out.empty(0x63);
    else {
      const mark = out.begin(0x66);
      out.cstring(failure.replaceAll("\0", " "));
      out.end(mark);
    }
    // In the extended protocol the server has passed over the Sync that stood behind it.
    if ((request.owed & Owed.simple) === 0) out.empty(SYNC);
    request.copy = null;
  }

  // --- answers ---

  #data(bytes: Uint8Array): void {
    if (this.#reason !== null) return;
    try {
      this.#reader.push(bytes);
    } catch (error) {
      return this.#broken(error as Error);
    }
    this.#head?.copy?.arrived();
  }

  /** The server cannot be understood any more. */
  #broken(error: Error): void {
    this.#lastWords = error;
    this.#over(null);
    this.started.transport.destroy();
  }

  #frame(type: number, body: Buffer, at: number, end: number): boolean {
    if (this.#leaving) {
      // Nobody waits for it.
      if (type === 0x5a && this.#draining > 0) this.#draining--;
      return true;
    }
    const request = this.#head;
    switch (type) {
      case 0x44: // DataRow
        if (
          request === null || request.width < 0 ||
          (request.owed & BEFORE_ROWS) !== 0 || (request.owed & (Owed.execute | Owed.simple)) === 0
        ) throw unexpected(type, request);
        if (uint16(body, at, end) !== request.width) {
          throw new ProtocolError("a row with more or fewer values than its description");
        }
        if (request.failed) break;
        try {
          request.row(body, at + 2, end);
        } catch (error) {
          if (error instanceof ProtocolError) throw error;
          request.fail(error);
        }
        break;
      case 0x5a: // ReadyForQuery
        this.#ready(request, body, at);
        break;
      case 0x43: // CommandComplete
        this.#complete(this.#owing(request, type, Owed.execute | Owed.simple), body, at, end);
        break;
      case 0x32: // BindComplete
        this.#owing(request, type, Owed.bind).owed &= ~Owed.bind;
        request!.bound();
        break;
      case 0x31: // ParseComplete
        this.#owing(request, type, Owed.parse).owed &= ~Owed.parse;
        break;
      case 0x33: // CloseComplete
        if (request !== null && (request.owed & Owed.close) !== 0) request.owed &= ~Owed.close;
        else this.#owing(request, type, Owed.portal).owed &= ~Owed.portal;
        break;
      case 0x74: // ParameterDescription
        this.#parameters(this.#owing(request, type, Owed.parameters), body, at, end);
        break;
      case 0x54: // RowDescription
        this.#fields(this.#owing(request, type, Owed.fields | Owed.simple), body, at, end);
        break;
      case 0x6e: { // NoData
        const owing = this.#owing(request, type, Owed.fields);
        owing.owed &= ~Owed.fields;
        owing.fields([]);
        break;
      }
      case 0x49: { // EmptyQueryResponse
        const owing = this.#owing(request, type, Owed.execute | Owed.simple);
        if (owing.owed & Owed.simple) owing.answered = true;
        else owing.owed &= ~Owed.execute;
        break;
      }
      case 0x73: { // PortalSuspended
        const owing = this.#owing(request, type, Owed.execute);
        owing.owed &= ~Owed.execute;
        owing.suspended();
        break;
      }
      case 0x45: // ErrorResponse
        this.#failed(request, readFields(body, at, end));
        return this.#reason === null;
      case 0x4e: // NoticeResponse
        this.#notice(readFields(body, at, end));
        return this.#reason === null;
      case 0x53: // ParameterStatus
        this.#parameter(body, at, end);
        return this.#reason === null;
      case 0x41: // NotificationResponse
        this.#notification(body, at, end);
        break;
      case 0x47: // CopyInResponse
        this.#copyIn(this.#owing(request, type, Owed.execute | Owed.simple));
        break;
      case 0x48: // CopyOutResponse
        this.#copyOut(this.#owing(request, type, Owed.execute | Owed.simple));
        break;
      case 0x64: // CopyData
        if (request === null || request.copy === null) throw unexpected(type, request);
        request.copy.data(body, at, end);
        break;
      case 0x63: // CopyDone
        if (request === null || request.copy === null) throw unexpected(type, request);
        request.copy.done();
        request.copy = null;
        break;
      default:
        // Authentication, a key, a function's result, COPY in both directions: nothing here asks for them.
        throw unexpected(type, request);
    }
    return true;
  }

  /** The request, when what comes next may be one of these answers. */
  #owing(request: Request | null, type: number, which: number): Request {
    if (request === null) throw unexpected(type, request);
    const { owed } = request;
    // The lowest is what comes next.
    if ((owed & -owed & which) === 0 || request.copy !== null) throw unexpected(type, request);
    return request;
  }

  #complete(request: Request, body: Buffer, at: number, end: number): void {
    if (endOfText(body, at, end) !== end - 1) throw new ProtocolError("a tag without its end");
    if (request.owed & Owed.simple) {
      request.answered = true;
      request.width = -1;
    } else request.owed &= ~Owed.execute;
    // COMMIT; COPY has another third letter.
    if (body[at] === 0x43 && body[at + 2] === 0x4d) this.endings++;
    // DISCARD ALL, DEALLOCATE, DEALLOCATE ALL.
    if (body[at] === 0x44 && this.#prepared !== null) {
      const tag = textOf(body, at, end - 1);
      if (tag === "DISCARD ALL" || tag.startsWith("DEALLOCATE")) this.#prepared.clear();
    }
    request.complete(body, at, end - 1);
    if (request.synced) return;
    this.#shift(request);
    request.settle(false);
    if (this.#cancels !== null) this.#cancels.look(this.current);
  }

  #parameters(request: Request, body: Buffer, at: number, end: number): void {
    const n = uint16(body, at, end);
    if (end - at !== 2 + 4 * n) throw new ProtocolError("a description of parameters that is cut");
    const types: number[] = [];
    for (let i = 0; i < n; i++) types.push(int32(body, at + 2 + 4 * i, end) >>> 0);
    request.owed &= ~Owed.parameters;
    request.parameters(types);
  }

  #fields(request: Request, body: Buffer, at: number, end: number): void {
    const n = uint16(body, at, end);
    const fields: Field[] = [];
    at += 2;
    for (let i = 0; i < n; i++) {
      const stop = endOfText(body, at, end);
      if (stop + 19 > end) throw new ProtocolError("a description of rows that is cut");
      fields.push({
        name: textOf(body, at, stop),
        table: int32(body, stop + 1, end) >>> 0,
        number: uint16(body, stop + 5, end),
        type: int32(body, stop + 7, end) >>> 0,
      });
      at = stop + 19;
    }
    if (at !== end) {
      throw new ProtocolError("a description of rows with more in it than its columns");
    }
    request.owed &= ~Owed.fields;
    request.width = n;
    try {
      request.fields(fields);
    } catch (error) {
      // The borrower's own transform of names.
      request.fail(error);
    }
  }

  #failed(request: Request | null, fields: ServerFields): void {
    const error = this.#owner.serverError(fields, this);
    if (isFatal(fields)) {
      this.#lastWords = error;
      return this.#doomed();
    }
    if (request === null) {
      throw new ProtocolError(`an error that belongs to nothing: ${fields.message}`);
    }
    request.serverFailed(error, fields);
    if (request instanceof Begin) return this.#broken(error);
    request.owed = 0;
    request.answered = true;
    request.width = -1;
    request.copy = null;
  }

  #notice(fields: ServerFields): void {
    // What the server says to all its sessions before it ends them without an error.
    if (fields.code === "57P01" || fields.code === "57P02") {
      this.#lastWords = this.#owner.serverError(fields, this);
      return this.#doomed();
    }
    this.#owner.notice(fields);
  }

  /** The server has said that it will close: whoever borrowed it meanwhile would get a dead one. */
  #doomed(): void {
    this.#over(null);
    this.started.transport.end();
  }

  #parameter(body: Buffer, at: number, end: number): void {
    const stop = endOfText(body, at, end);
    if (endOfText(body, stop + 1, end) !== end - 1) {
      throw new ProtocolError("a setting without its end");
    }
    const name = textOf(body, at, stop);
    const value = textOf(body, stop + 1, end - 1);
    const { parameters } = this.started;
    // Sessions that were told the same share it.
    if (parameters.get(name) !== value) {
      this.started.parameters = new Map(parameters).set(name, value);
    }
    const fault = this.#owner.parameter(this, name, value);
    if (fault === null || this.#reason !== null) return;
    this.#lastWords = new Error(fault);
    void this.hangUp();
  }

  #notification(body: Buffer, at: number, end: number): void {
    const stop = endOfText(body, at + 4, end);
    if (endOfText(body, stop + 1, end) !== end - 1) {
      throw new ProtocolError("a notification without its end");
    }
    const channel = textOf(body, at + 4, stop);
    const payload = textOf(body, stop + 1, end - 1);
    this.listeners.notify(channel, payload);
    this.#owner.notification(channel, payload);
  }

  #copyIn(request: Request): void {
    request.width = -1;
    if (!request.failed && request.copyIn()) return;
    // In the server's eyes all that was sent behind it is data, its Syncs too: nothing can be told apart.
    if (this.#inFlight > 1) {
      throw new ProtocolError(
        "it waits for the data of a COPY from stdin that was not executed by writable()",
      );
    }
    request.fail(
      new Error(
        "a COPY from stdin has to be executed by writable(), which gives a stream for its data, and be the only one of its text",
      ),
    );
    request.copy = NOWHERE;
    this.copyEnd(request, "no data: the statement was not executed by writable()");
    // Nothing is left that the server would say before its error.
    request.owed &= Owed.simple;
  }

  #copyOut(request: Request): void {
    request.width = -1;
    if (!request.failed && request.copyOut()) return;
    request.fail(
      new Error(
        "a COPY to stdout has to be executed by readable(), which gives a stream of its data, and be the only one of its text",
      ),
    );
    request.copy = NOWHERE;
    this.cancelRequest(request).catch(ignore);
  }

  #ready(request: Request | null, body: Buffer, at: number): void {
    if (
      request === null || request.copy !== null ||
      (request.owed !== 0 && !(request.owed === Owed.simple && request.answered))
    ) throw unexpected(0x5a, request);
    const byte = body[at];
    if (byte === 0x49) { // I
      if (this.#state !== "idle") this.endings++;
      this.#state = "idle";
    } else if (byte === 0x54) this.#state = "intrans"; // T
    else if (byte === 0x45) { // E
      if (this.#state !== "inerror") this.fault = request.failure;
      this.#state = "inerror";
    } else throw new ProtocolError("a ReadyForQuery with an unknown state");
    this.#inFlight--;
    if (request.exclusive) this.#blocks--;
    this.#shift(request);
    if (this.#parked !== null && this.#state === "idle") {
      for (const one of [...this.#parked]) one.transactionEnded();
    }
    if (request.settle(false)) {
      // Nothing was sent behind it, so that its turn is now.
      this.#write(request);
    }
    if (this.#cancels !== null) this.#cancels.look(this.current);
    if (this.#firstWaiting !== null) this.#advance();
    if (this.#onquiet !== null) this.#tellQuiet();
  }

  /** It has all of its answer. */
  #shift(request: Request): void {
    const { next } = request;
    this.#head = next;
    if (next === null) this.#tail = null;
    request.next = null;
    request.owed = 0;
    request.state = "done";
  }

  // --- cancelling ---

  /**
   * Cancels a request: at once when it was not sent, which `settle` is told as a failure by `reason`;
   * else as soon as the server works on it. Until the cancel request is over nothing is sent.
   */
  async cancelRequest(request: Request, reason?: Error): Promise<void> {
    if (request.session !== this || request.state === "done") return;
    request.cancelled = true;
    if (this.withdraw(request)) {
      if (reason !== undefined) request.fail(reason);
      request.settle(false);
      return;
    }
    if (request.state !== "sent") return;
    await this.#ensureCancels().cancel(request);
  }

  /**
   * Not where a request is at hand: in JavaScriptCore what lives as long as the session would keep all that an async
   * function has at hand, a lease among it.
   */
  #ensureCancels(): Cancels {
    return this.#cancels ??= new Cancels(this.clock, this.#sendCancel, {
      over: () => this.#reason !== null || this.#gone,
      current: () => this.current,
      exposes: ({ next }) =>
        next !== null && !(next.repeatable && this.#state === "idle" &&
          (next.unordered || next.next === null)),
      begin: () => {
        this.#blocks++;
        this.cancelsBegun++;
      },
      end: () => {
        this.#blocks--;
        this.#advance();
        this.#tellQuiet();
        this.oncancelled?.();
      },
      haunted: () => {
        this.#lastWords ??= new Error("a cancel request was sent and may still come");
        void this.hangUp();
      },
    });
  }

  // --- ends ---

  /** The transport is at its end, or will be. */
  #over(error: Error | null): void {
    if (this.#reason !== null) return;
    const reason = this.#error(
      "CONNECTION_CLOSED",
      "read",
      this.#lastWords ?? error,
    );
    this.#reason = reason;
    // What the server reads no more is not worth sending.
    this.#dropOutput();
    if (!this.#leaving) this.#settleAll(reason);
    if (!this.#leaving || this.#hungUp) this.#onlost?.(reason);
    // A server that has closed its half waits for ours.
    this.started.transport.end();
  }

  #left(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#ended?.resolve();
    this.#owner.closed(this);
  }

  #dropOutput(): void {
    const out = this.#out;
    this.#out = null;
    if (out === null) return;
    out.take();
    returnWriter(out);
  }

  #error(code: "CONNECTION_CLOSED" | "CONNECTION_DESTROYED", verb: string, cause: unknown): Error {
    return connectionError(code, this.started.target, verb, cause ?? undefined);
  }

  /** Each request gets an error of its own: whose statement it was is entered into it. */
  #lossOf(reason: Error): Error {
    const { code, message, cause } = reason as Error & { code?: string };
    if (code !== "CONNECTION_CLOSED" && code !== "CONNECTION_DESTROYED") return reason;
    return this.#error(code, message.split(" ", 1)[0]!, cause);
  }

  #settleLost(request: Request, reason: Error): void {
    request.state = "done";
    request.next = null;
    request.copy = null;
    if (!request.failed) request.fail(reason);
    request.settle(true);
  }

  #settleAll(reason: Error): void {
    // What was not sent has ended nothing.
    this.#unknownEnd ||= mayEnd(this.#head);
    const flying = this.#head;
    const waiting = this.#firstWaiting;
    const parked = this.#parked;
    this.#head =
      this.#tail =
      this.#firstWaiting =
      this.#lastWaiting =
      this.#parked =
        null;
    this.#inFlight = 0;
    for (const list of [flying, waiting]) {
      for (let at: Request | null = list; at !== null;) {
        const next: Request | null = at.next;
        // A statement that had failed by the server's word before keeps that.
        this.#settleLost(at, this.#lossOf(reason));
        at = next;
      }
    }
    for (const request of parked ?? []) this.#settleLost(request, this.#lossOf(reason));
    this.#cancels?.clear();
    this.listeners.clear();
    const ondrain = this.#ondrain;
    this.#ondrain = null;
    for (const fn of ondrain ?? []) fn();
    const onend = this.#onend;
    this.#onend = null;
    for (const callback of onend ?? []) callback(reason);
    this.#tellQuiet();
  }

  /** Calls back when the session ends, at once or later. Returns how to take that back. */
  whenOver(callback: (reason: Error) => void): () => void {
    const { reason } = this;
    if (reason !== null) callback(reason);
    else (this.#onend ??= new Set()).add(callback);
    return () => this.#onend?.delete(callback);
  }

  /** From now on `callback` hears of the end, when it is not asked for by {@linkcode close}. */
  set onlost(callback: (reason: unknown) => void) {
    this.#onlost = callback;
  }

  /** Resolves when no request and no cancel request is on its way, or the session is over. */
  quiet(): Promise<void> {
    return new Promise((resolve) => {
      (this.#onquiet ??= []).push(resolve);
      this.#tellQuiet();
    });
  }

  #tellQuiet(): void {
    if (this.#onquiet === null) return;
    if (
      this.#reason === null &&
      (this.busy || this.#cancels?.busy === true || this.#parked !== null && this.#parked.size > 0)
    ) return;
    const tell = this.#onquiet;
    this.#onquiet = null;
    for (const fn of tell) fn();
  }

  /** Closes at the borrower's wish, or ours, which for the pool is a loss. */
  async hangUp(): Promise<void> {
    if (!this.#leaving) this.#hungUp = true;
    await this.close();
  }

  /** Ends a session that does not answer; everybody hears `reason` as the cause. */
  destroy(reason: Error): void {
    if (this.#reason !== null) return;
    this.#lastWords = reason;
    this.#over(null);
    this.started.transport.destroy();
  }

  /** Resolves when the server has closed its end, or when it took too long. `why` is the cause of what fails by it. */
  close(why?: Error): Promise<void> {
    this.#lastWords ??= why ?? null;
    return this.#closing ??= this.#close();
  }

  async #close(): Promise<void> {
    this.#leaving = true;
    const { transport } = this.started;
    const cancel = this.#sendCancel;
    // On such a host the socket has ended with its request.
    if (this.#usable?.() === false) return;
    const limit = this.clock.setTimeout(() => transport.destroy(), CLOSE_LIMIT);
    try {
      // A COPY whose reader is slow has paused it, and would never show its end.
      transport.resume();
      if (this.#reason === null) {
        this.#draining = this.#inFlight - this.#unflushed;
        this.#dropOutput();
        this.#settleAll(this.#error("CONNECTION_DESTROYED", "write", this.#lastWords));
        // Else the server would go on with the statement and hold the slot until its end.
        const running = (): boolean => this.#draining > 0 && !this.#gone && this.#reason === null;
        if (running()) await cancelOnce(this.clock, cancel, CANCEL_LIMIT, running).catch(ignore);
        this.#sayGoodbye();
        while (running()) {
          // A request that comes between two statements is lost, so another one follows.
          await this.#endedWithin(CANCEL_PAUSE);
          if (running()) await cancelOnce(this.clock, cancel, CANCEL_LIMIT, running).catch(ignore);
        }
      } else transport.end();
      await this.#untilLeft();
    } finally {
      this.clock.clearTimeout(limit);
      transport.destroy();
    }
  }

  #untilLeft(): Promise<void> {
    if (this.#gone) return Promise.resolve();
    return (this.#ended ??= Promise.withResolvers<void>()).promise;
  }

  #sayGoodbye(): void {
    const { transport } = this.started;
    if (!this.#gone) {
      const out = borrowWriter();
      out.empty(TERMINATE);
      transport.write(out.take());
      returnWriter(out);
    }
    transport.end();
  }

  #endedWithin(milliseconds: number): Promise<void> {
    let timer: Timer | undefined;
    const pause = new Promise<void>((resolve) =>
      timer = this.clock.setTimeout(resolve, milliseconds)
    );
    return Promise.race([this.#untilLeft(), pause]).finally(() => this.clock.clearTimeout(timer));
  }
}

function mayEnd(first: Request | null): boolean {
  let at = first;
  while (at !== null && !at.mayEndTransaction) at = at.next;
  return at !== null;
}

function backendOf({ pid, secret }: Started["key"]): Backend {
  if (secret.length < 4) return { pid, secret: 0 };
  const view = new DataView(secret.buffer, secret.byteOffset, secret.byteLength);
  return { pid, secret: view.getUint32(0) };
}

/** A message that does not belong where it came. */
function unexpected(type: number, request: Request | null): ProtocolError {
  return new ProtocolError(
    `a message of type ${nameOf(type)} ` +
      (request === null ? "that is the answer to nothing" : "in the wrong place of an answer"),
  );
}
