/** Executes one query of the driver on a session: a request, or several one after the other. */

import { Buffer } from "node:buffer";
import type { Clock } from "../clock.ts";
import type { StatementObserver } from "../pool/observe.ts";
import { ignore } from "../pool/safely.ts";
import type { Timer } from "../runtime.ts";
import { classify } from "./classify.ts";
import { genericError } from "./errors.ts";
import type { Built, Statement } from "./language.ts";
import { mayEndTransaction } from "./lexer.ts";
import { Observed, summaryFor } from "./observed.ts";
import { NO_MORE, type Query, type QueryOptions, silence } from "./query.ts";
import { Result, Shape } from "./rows.ts";
import type { Session } from "./session.ts";
import { type Copy, copyInStream, copyOutStream, type CopyStream } from "./wire/copy.ts";
import type { ServerFields, Writer } from "./wire/frames.ts";
import { ClosePortal, Command, type Field, Owed, Request, SYNC } from "./wire/request.ts";
import type { Description, Prepared } from "./wire/statements.ts";

/** How long the answer to a cancelled statement is waited for when its limit is over, in milliseconds. */
const CANCEL_PATIENCE = 5_000;

const NOTHING: QueryOptions = {};

/** How often a statement is run again when others' cancel requests have hit it. */
const MOST_HITS = 10;

/** How often one is prepared anew: the schema may change again between its description and its execution. */
const MOST_CHANGES = 10;

const BIND = 0x42;
const CLOSE = 0x43;
const DESCRIBE = 0x44;
const EXECUTE = 0x45;
const PARSE = 0x50;
const QUERY = 0x51;

/** What stands behind Bind in an ordinary statement: execute, with all rows, and sync. */
const EXECUTE_SYNC = Buffer.from([EXECUTE, 0, 0, 0, 9, 0, 0, 0, 0, 0, SYNC, 0, 0, 0, 4]);

/** Where the server complains of a prepared statement that does not fit any more: as the type of a parameter is gone, too. */
const STALE: ReadonlySet<unknown> = new Set([
  "FetchPreparedStatement",
  "getTypeInputInfo",
  "RevalidateCachedQuery",
  "transformAssignedExpr",
]);

/**
 * What is to be sent next.
 *
 * - `simple`: the text alone.
 * - `describe`: what are the types of the parameters?
 * - `execute`: the statement.
 * - `fetch`: the next rows of its portal.
 */
type Step = "simple" | "describe" | "execute" | "fetch";

/** Executes a query. Never throws: what goes wrong rejects the query. */
export function execute(session: Session, query: Query): void {
  // Rejected then.
  if (query.cancelled) return;
  let execution: Execution;
  try {
    execution = new Execution(query, session.language.build(query));
  } catch (error) {
    return query.reject(session.language.explain(query, error, null));
  }
  execution.run(session);
}

/** Cancels a query: at once when it was not sent, else as soon as the server works on it. */
export async function cancel(query: Query): Promise<void> {
  const execution = query.execution as Execution | null | undefined;
  if (execution) return await execution.cancel();
  if (!query.executed) silence(query);
  query.cancelled = true;
  query.reject(userRequest());
}

/** What a cancelled statement ends with when the server has not heard of it. */
export function userRequest(): Error {
  return genericError("57014", "canceling statement due to user request");
}

/** One query on its way. */
export class Execution extends Request {
  /** Where it runs; null before that. */
  declare session: Session | null;
  readonly query: Query;
  /** Its text and values. */
  readonly built: Built;
  /** Of its text, as it is understood on the session. */
  #description: Description;
  /** The text as it is sent: not kept prepared when it is not the description's. */
  #text: string;
  #step: Step = "execute";
  /** What it was sent as; null for an unnamed or a simple one. */
  #prepared: Prepared | null = null;
  /** True when this sends the server a statement that it knew before, or by types known before. */
  #assumed = false;
  /** How often it was prepared anew. */
  #repeats = 0;
  /**
   * Why it failed without a fault of its own: what was prepared is stale, or another one's cancel request has hit it,
   * or one has come late, when it had its end.
   */
  #excuse: "stale" | "hit" | "late" | null = null;
  /** How often it was hit. */
  #hits = 0;
  /** How many cancel requests the session had begun when this was sent. */
  #cancelsBefore = 0;
  #shape: Shape | null = null;
  /** Set when it is run. */
  #result!: Result;
  /** With several results of a simple query, all of them. */
  #results: Result[] | null = null;
  #rows = 0;
  /** The portal of a cursor. */
  #portal = "";
  /** True when it has more rows than those that have come. */
  #suspended = false;
  /** True when nobody will have more rows of the cursor. */
  #left = false;
  #told = false;
  /** Opens a transaction for the cursor's sake. */
  #opening: Opening | null = null;
  #stream: Copy | null = null;
  #limit: Limit | null = null;
  /** Null when nobody observes it. */
  #observed: Observed | null = null;

  constructor(query: Query, built: Built) {
    super();
    this.query = query;
    this.built = built;
    this.#description = built.description;
    this.#text = built.description.text;
    query.execution = this;
  }

  /** Sends it. Never throws: what goes wrong rejects it. */
  run(session: Session): void {
    const { query, built } = this;
    const { language, elsewhere } = session;
    this.session = session;
    this.#begin();
    try {
      if (elsewhere !== null) {
        this.#description = elsewhere.of(built.description.text, built.description.declared);
      }
      if (language.options.debug !== false) language.debug(session.pid, built);
    } catch (error) {
      return this.rejected(language.explain(query, error, null));
    }
    const { queryTimeout: limit = language.queryTimeout, signal } = query.given ?? NOTHING;
    if ((limit > 0 || signal !== undefined) && !this.#setLimit(limit, signal)) return;
    // What is shared the pool times by itself.
    if (!this.unordered) this.since = session.clock.now();
    if (language.observer !== null) this.#observe(language.observer);
    if (query.cursorFn !== undefined && !this.simple) this.#openTransaction();
    session.send(this);
  }

  /** It is to be sent, for the first time or once more. */
  #begin(): void {
    const { given, streaming } = this.query;
    this.#step = given?.simple === true ? "simple" : "execute";
    this.exclusive = streaming === true;
    this.#result = new Result();
  }

  /** Tells whoever waits for it. */
  protected resolved(result: unknown): void {
    this.query.resolve(result);
  }

  /** Tells whoever waits for it. */
  protected rejected(reason: unknown): void {
    this.query.reject(reason);
  }

  /** Tells whoever waits for it, while it keeps its place on the session. */
  protected abandoned(reason: unknown): void {
    this.query.reject(reason);
  }

  override get shown(): string {
    return summaryFor(this.#description).text;
  }

  override get mayEndTransaction(): boolean {
    return mayEndTransaction(this.#description.text);
  }

  override get skippable(): boolean {
    return !this.simple;
  }

  /** A plain statement leaves nothing behind when it fails; and nobody may have had a part of its answer. */
  override get repeatable(): boolean {
    const { cursorFn, forEachFn, streaming } = this.query;
    return cursorFn === undefined && forEachFn === undefined && streaming !== true &&
      classify(this.#description.text) === "shared";
  }

  /** True when it goes by the simple protocol. */
  get simple(): boolean {
    return this.#step === "simple";
  }

  /** Tells an observer of it, from now on. */
  #observe(observer: StatementObserver): void {
    const { query } = this;
    const session = this.session!;
    // Null: it was asked for by an observer, in whose context it may not be any more.
    this.#observed = query.observed === undefined
      ? Observed.of(observer, session.clock)
      : query.observed;
    const comment = this.#observed?.sends(session, this.#description) ?? null;
    if (comment !== null) this.#text = withComment(this.#text, comment);
  }

  // --- sending ---

  override write(out: Writer): void {
    const session = this.session!;
    // One that is on its way now may hit this, too.
    this.#cancelsBefore = session.cancelling ? -1 : session.cancelsBegun;
    switch (this.#step) {
      case "simple":
        return this.#writeSimple(out);
      case "fetch":
        return this.#writeFetch(out);
      default:
        return this.#writeExtended(out);
    }
  }

  #writeSimple(out: Writer): void {
    const mark = out.begin(QUERY);
    out.cstring(this.#text);
    out.end(mark);
    this.owed = Owed.simple;
  }

  #writeExtended(out: Writer): void {
    const description = this.#description;
    if (this.query.onlyDescribe === true) {
      this.#parse(out, "", description.declared);
      out.empty(SYNC);
      return;
    }
    if (
      this.query.given?.prepare !== false && this.session!.language.options.prepare &&
      this.#text === description.text
    ) {
      const statements = this.session!.prepared;
      const known = statements.find(description);
      if (known !== null) {
        this.#prepared = known;
        this.#assumed = true;
        this.owed = Owed.bind | Owed.execute;
        if (known.fields === null) this.#use(known);
        return this.#bind(out, known.name, description.types ?? description.declared);
      }
      const { prepared, dropped } = statements.add(description);
      if (dropped !== null) close(out, dropped.name);
      try {
        this.#first(out, prepared.name);
      } catch (error) {
        // A value that cannot be written: the server hears of nothing.
        statements.takeBack(prepared, dropped);
        throw error;
      }
      this.#prepared = prepared;
      if (dropped !== null) this.owed |= Owed.close;
      return;
    }
    this.#first(out, "");
  }

  /** Its first time here: by types that are known, or to learn them. */
  #first(out: Writer, name: string): void {
    const { types, declared } = this.#description;
    this.#assumed = types !== null && types !== declared;
    this.#parse(out, name, types ?? declared);
    if (types !== null) {
      this.owed |= Owed.bind | Owed.execute;
      return this.#bind(out, name, types);
    }
    // What values mean depends on their types. What comes behind it waits, to stay behind it.
    this.#step = "describe";
    this.exclusive = true;
    out.empty(SYNC);
  }

  #parse(out: Writer, name: string, types: readonly number[]): void {
    let mark = out.begin(PARSE);
    out.cstring(name);
    out.cstring(this.#text);
    out.int16(types.length);
    for (const type of types) out.int32(type);
    out.end(mark);
    mark = out.begin(DESCRIBE);
    out.byte(0x53);
    out.cstring(name);
    out.end(mark);
    this.owed = Owed.parse | Owed.parameters | Owed.fields;
  }

  #bind(out: Writer, name: string, types: readonly number[]): void {
    const { values } = this.built;
    const cursor = this.query.cursorFn !== undefined;
    if (cursor && this.#portal === "") this.#portal = this.session!.portalName();
    const mark = out.begin(BIND);
    out.name(this.#portal);
    out.name(name);
    out.int16(0);
    out.int16(values.length);
    for (let i = 0; i < values.length; i++) {
      const text = this.session!.language.serialize(values[i], types[i]!);
      if (text === null) out.int32(-1);
      else out.value(text);
    }
    out.int16(0);
    out.end(mark);
    if (cursor) this.#writeExecute(out);
    else out.raw(EXECUTE_SYNC);
  }

  #writeExecute(out: Writer): void {
    const mark = out.begin(EXECUTE);
    out.name(this.#portal);
    out.int32(this.query.cursorRows ?? 1);
    out.end(mark);
    out.empty(SYNC);
  }

  #writeFetch(out: Writer): void {
    this.width = this.#shape!.columns.length;
    this.owed = Owed.execute;
    this.#writeExecute(out);
  }

  /** Takes the columns of a statement that was described before. Throws what a transform of the borrower's throws. */
  #use(prepared: Prepared): void {
    const { fields } = prepared;
    if (fields !== null) {
      // The rows will come all the same.
      this.width = fields.length;
      prepared.shape = this.#shapeOf(fields);
      prepared.fields = null;
    }
    const shape = prepared.shape as Shape | null;
    if (shape === null) return;
    this.#shape = shape;
    this.width = shape.columns.length;
  }

  // --- answers ---

  override parameters(types: number[]): void {
    const description = this.#description;
    const { values } = this.built;
    if (types.length !== values.length && this.query.onlyDescribe !== true) {
      // The server says it better, at Bind.
      if (types.length < values.length) {
        types = types.concat(description.declared.slice(types.length));
      }
    }
    description.types = types;
  }

  override fields(fields: Field[]): void {
    // Until a transform of the borrower's takes them: what is sent behind this finds them here.
    if (this.#prepared !== null) this.#prepared.fields = fields;
    const shape = this.#shapeOf(fields);
    if (this.#step === "simple" && this.#result.command !== null) {
      (this.#results ??= [this.#result]).push(this.#result = new Result());
      this.#rows = 0;
    }
    this.#shape = shape;
    if (this.#prepared !== null) {
      this.#prepared.shown = null;
      this.#prepared.shape = shape;
      this.#prepared.fields = null;
    }
  }

  /** One for all sessions where the statement has the same columns. */
  #shapeOf(fields: readonly Field[]): Shape {
    const description = this.#description;
    const { options } = this.session!.language;
    const last = description.shape as Shape | null;
    if (last !== null && last.fits(fields, options)) return last;
    const shape = new Shape(fields, options);
    description.shape = shape;
    return shape;
  }

  override bound(): void {
    // It was on its way for the first time when this was sent behind it.
    if (this.width >= 0 || this.#prepared === null) return;
    try {
      this.#use(this.#prepared);
    } catch (error) {
      this.fail(error);
    }
  }

  override row(body: Buffer, at: number, end: number): void {
    const { isRaw, forEachFn } = this.query;
    const shape = this.#shape!;
    let row: unknown = isRaw === undefined
      ? shape.object(body, at, end)
      : isRaw === true
      ? shape.raw(body, at, end)
      : shape.values(body, at, end);
    const change = this.session!.language.options.transform.row.from;
    if (change) row = change(row);
    // Not by push: in V8 that takes 0.4 µs more, as it is not an ordinary array.
    if (forEachFn === undefined) this.#result[this.#rows] = row;
    else forEachFn(row, this.#result);
    this.#rows++;
  }

  override complete(body: Buffer, at: number, end: number): void {
    const result = this.#result;
    result.tagged(body, at, end);
    result.state = this.session!.backend;
    this.#describeResult(result);
  }

  #describeResult(result: Result): void {
    const shape = this.#shape;
    result.columns = shape === null ? null : shape.columns;
    result.statement = this.#statement();
  }

  /** One for all executions of what is prepared, as in the driver; frozen, as others see it too. */
  #statement(): Statement {
    const prepared = this.#prepared;
    if (prepared !== null && prepared.shown !== null) return prepared.shown as Statement;
    const { text, types, declared } = this.#description;
    const statement: Statement = {
      string: text,
      types: Object.freeze([...types ?? declared]),
      name: prepared?.name ?? "",
      columns: this.#shape?.columns ?? (this.#step === "simple" ? null : []),
    };
    if (prepared !== null && prepared.shape !== null) prepared.shown = Object.freeze(statement);
    return statement;
  }

  override suspended(): void {
    this.#suspended = true;
  }

  override serverFailed(error: Error, fields: ServerFields): void {
    const first = !this.failed;
    this.fail(error);
    const unknown = (this.owed & Owed.parse) !== 0;
    if (
      this.#prepared !== null && (unknown || STALE.has(fields.routine) || fields.code === "26000")
    ) {
      this.session!.prepared.forget(this.#prepared);
    }
    const stale = STALE.has(fields.routine) || fields.code === "26000" || unknown;
    // Only a changed schema gives such a statement another chance: what a pooler has mixed up it would mix up again.
    const most = fields.routine === "RevalidateCachedQuery" ? MOST_CHANGES : 1;
    if (this.#assumed && stale && this.#rows === 0 && this.#repeats < most) this.#excuse = "stale";
    else if (fields.code === "57014" && this.simple && this.answered) {
      // The server says the end after the commit, and may look for cancel requests once more, as when it logs how long
      // that took. By the extended protocol it commits later, at the Sync.
      if (first && this.repeatable) this.#excuse = "late";
    } else if (
      fields.code === "57014" && !this.cancelled &&
      this.session!.cancelsBegun !== this.#cancelsBefore && this.repeatable
    ) this.#excuse = "hit";
  }

  // --- the end of a part ---

  override settle(lost: boolean): boolean {
    if (lost) {
      this.#opening = null;
      this.#finish();
      return false;
    }
    // In the borrower's transaction it has failed all the same.
    if (this.#excuse === "late" && this.session!.lastState === "idle") {
      this.failed = false;
      this.failure = undefined;
    }
    if (!this.failed && this.#step === "describe") {
      this.#step = "execute";
      this.exclusive = false;
      return true;
    }
    if (this.failed && this.#mayRunAgain) {
      // Its cancel request was for this time; there is none for the next.
      if (this.cancelled) this.failure = userRequest();
      else {
        this.#runAgain();
        return false;
      }
    }
    if (!this.failed && this.#portal !== "") this.#round();
    else this.#finish();
    return false;
  }

  /**
   * In a transaction of its own it has left nothing behind, so nobody needs to know. A cancel request that was meant for
   * its neighbour may hit it many times; then it must overtake no later statement of its own caller.
   */
  get #mayRunAgain(): boolean {
    const session = this.session!;
    if (this.#excuse === null || session.lastState !== "idle") return false;
    // Whose limit is over is not executed again.
    if ((this.#limit?.reason ?? null) !== null) return false;
    return this.#excuse === "stale" ||
      this.#hits < MOST_HITS && (this.unordered || session.inFlight === 0);
  }

  #runAgain(): void {
    if (this.#excuse === "hit") this.#hits++;
    else {
      // What was prepared does not fit any more: it takes its turn as it was first given.
      this.#repeats++;
      const description = this.#description;
      if (description.declared.length > 0) description.types = null;
    }
    this.failed = this.#assumed = false;
    this.failure = undefined;
    this.#excuse =
      this.#prepared =
      this.#shape =
      this.#results =
        null;
    this.#rows = 0;
    this.#begin();
    this.session!.sendAgain(this);
  }

  /** A cursor has its rows: the callback gets them, and says whether there shall be more. */
  #round(): void {
    const session = this.session!;
    const { query } = this;
    const result = this.#result;
    this.#rows = 0;
    if (this.#observed !== null) this.#observed.rows += result.length;
    this.#describeResult(result);
    if (result.length === 0 && !this.#suspended) return this.#finish();
    session.park(this);
    const goOn = (answer: unknown): void => {
      // Lost, or left, meanwhile.
      if (this.#left || this.state !== "parked") return;
      if (!this.#suspended) return this.#finish();
      const { CLOSE } = session.language.sql;
      if (answer === NO_MORE || answer !== undefined && answer === CLOSE) {
        return this.#closePortal();
      }
      // The right of whoever made it may be over, such as a savepoint's.
      const refusal = query.owner.refusal ?? null;
      if (refusal !== null) return fail(refusal);
      session.unpark(this);
      this.#suspended = false;
      this.#result = new Result();
      this.#step = "fetch";
      session.send(this);
    };
    const fail = (error: unknown): void => {
      if (this.#left || this.state !== "parked") return;
      this.fail(error);
      this.#closePortal();
    };
    try {
      // Rejections of what a thenable gives come here too.
      Promise.resolve(query.cursorFn!(result)).then(goOn, fail);
    } catch (error) {
      fail(error);
    }
  }

  /** Its portal is gone. Whoever has ended the transaction has ended the cursor's own, too. */
  override transactionEnded(): void {
    this.#opening = null;
    if (!this.#suspended || this.#left) return;
    this.#left = true;
    this.fail(genericError("CURSOR_CLOSED", "its transaction has ended"));
    this.#tell();
  }

  /** Left in the middle. It stays parked, so that the session is not taken for free. */
  #closePortal(): void {
    this.#left = true;
    const close = new ClosePortal(this.#portal);
    this.session!.send(close);
    const finish = (): void => this.#finish();
    close.done.then(finish, finish);
  }

  /** Opens a transaction unless one is open: a portal lives no longer than that. */
  #openTransaction(): void {
    this.#opening = new Opening();
    this.session!.send(this.#opening);
  }

  #finish(): void {
    const session = this.session!;
    const opening = this.#opening;
    const opened = opening?.opened === true && session.reason === null;
    this.#opening = null;
    if (!opened) {
      // It would open a transaction that nobody ends.
      if (opening !== null) session.withdraw(opening);
      // In a transaction of the borrower's it would stay open until that ends.
      const there = !this.failed || session.lastState !== "idle";
      if (this.#portal !== "" && !this.#left && there && session.reason === null) {
        session.send(new ClosePortal(this.#portal));
      }
      return this.#tell();
    }
    this.#left = true;
    if (this.state !== "parked") session.park(this);
    const failed = this.failed || session.lastState === "inerror";
    const closing = new Closing(failed ? "rollback" : "commit", opening.begun);
    session.send(closing);
    closing.done.then(() => this.#tell(), (error) => {
      this.fail(error);
      this.#tell();
    });
  }

  #tell(): void {
    if (this.#told) return;
    this.#told = true;
    this.#limit?.end();
    if (this.#observed !== null) this.#tellObserver(this.#observed);
    if (this.state === "parked") this.session!.unpark(this);
    const { query } = this;
    if (this.#stream !== null) {
      // Cancelled too late for the server.
      if (this.#stream.dropped) this.fail(userRequest());
      return this.#stream.ended(this.failed ? this.#why() : null);
    }
    if (this.failed) this.rejected(this.#why());
    else if (query.onlyDescribe === true) this.resolved(this.#statement());
    else {
      const result = this.#result;
      if (result.statement === null) {
        result.state = this.session!.backend;
        this.#describeResult(result);
      }
      this.resolved(this.#results ?? result);
    }
  }

  #tellObserver(observed: Observed): void {
    if (this.failed) return observed.ended(null, { error: this.#why() });
    const results = this.#results ?? [this.#result];
    let rows: number | null = null;
    if (this.query.cursorFn !== undefined) ({ rows } = observed);
    else for (const { count } of results) if (count !== null) rows = (rows ?? 0) + count;
    observed.ended(rows, null);
  }

  /** What the borrower is told of a failure. */
  #why(): unknown {
    const ended = this.#limit?.reason ?? null;
    // Everybody who listens to the signal has it: nothing is entered into it.
    if (ended !== null && ended.aborted) return ended.error;
    let { failure } = this;
    if (ended !== null) {
      const error = ended.error as Error;
      if (failure !== error) error.cause = failure;
      failure = error;
    }
    return this.session!.language.explain(this.query, failure, {
      description: this.#description,
      values: this.built.values,
    });
  }

  // --- COPY ---

  override copyIn(): boolean {
    return this.#copies(copyInStream);
  }

  override copyOut(): boolean {
    return this.#copies(copyOutStream);
  }

  #copies(start: (session: Session, request: Request) => CopyStream<unknown>): boolean {
    const { query } = this;
    // A text may have several; the borrower has one stream.
    if (query.streaming !== true || this.#stream !== null) return false;
    // Nothing here may keep the stream: nobody else having it, it is garbage, and the COPY ends.
    const { stream, copy } = start(this.session!, this);
    this.#stream = this.copy = copy;
    query.onstream?.(stream);
    query.onstream = null;
    query.resolve(undefined);
    return true;
  }

  // --- cancelling ---

  async cancel(): Promise<void> {
    if (this.state === "parked") {
      // A cursor between two fetches.
      if (this.#left) return;
      this.fail(userRequest());
      return this.#closePortal();
    }
    this.#stream?.cancelled();
    await this.session!.cancelRequest(this, userRequest());
  }

  /** Sets limits; false when they are over already, and it is rejected. */
  #setLimit(milliseconds: number, signal: AbortSignal | undefined): boolean {
    if (signal?.aborted) {
      this.rejected(signal.reason);
      return false;
    }
    this.#limit = new Limit(this.session!.clock, milliseconds, signal, (error) => {
      this.cancel().catch(ignore);
      let behind = this.#behind;
      return () => {
        if (this.state === "done") return false;
        if (this.#behind) this.#abandon(error);
        // It has had its turn for less than a patience.
        else if (!behind) {
          this.session!.destroy(error);
          return false;
        }
        behind = this.#behind;
        return true;
      };
    });
    return true;
  }

  /** True while the server is at what was sent before it. */
  get #behind(): boolean {
    return this.state === "sent" && this.session!.current !== this;
  }

  /** Tells the borrower that it is over. What stands before it is not to suffer by that: it keeps its place. */
  #abandon(error: unknown): void {
    this.fail(error);
    this.abandoned(this.#why());
  }
}

/** The time and the signal that end a statement. */
class Limit {
  /** What ended it. */
  reason: { readonly error: unknown; readonly aborted: boolean } | null = null;
  readonly #clock: Clock;
  readonly #timer: Timer | undefined;
  #patience: Timer | undefined;
  #ended = false;
  readonly #signal: AbortSignal | undefined;
  readonly #abort: () => void;

  /** `over` begins to end the statement, and gives what ends it for certain: true when that needs another look. */
  constructor(
    clock: Clock,
    milliseconds: number,
    signal: AbortSignal | undefined,
    over: (error: Error) => () => boolean,
  ) {
    this.#clock = clock;
    this.#signal = signal;
    const fire = (error: unknown, aborted: boolean): void => {
      if (this.reason !== null) return;
      this.reason = { error, aborted };
      const forCertain = over(
        error instanceof Error
          ? error
          : new Error("the signal of a statement was aborted", { cause: error }),
      );
      const wait = (): void => {
        // Taken back before it was sent, it is over by now.
        if (this.#ended) return;
        this.#patience = clock.setTimeout(() => {
          if (forCertain()) wait();
        }, CANCEL_PATIENCE);
      };
      wait();
    };
    this.#abort = () => fire(signal!.reason, true);
    signal?.addEventListener("abort", this.#abort, { once: true });
    if (milliseconds > 0) {
      this.#timer = clock.setTimeout(
        () => fire(genericError("QUERY_TIMEOUT", `no answer within ${milliseconds} ms`), false),
        milliseconds,
      );
    }
  }

  /** It is over. */
  end(): void {
    this.#ended = true;
    this.#clock.clearTimeout(this.#timer);
    this.#clock.clearTimeout(this.#patience);
    this.#signal?.removeEventListener("abort", this.#abort);
  }
}

/** `begin`, unless a transaction is open when its turn comes. */
class Opening extends Command {
  /** True when it has opened one. */
  opened = false;
  /** What {@linkcode Closing} knows it by. */
  begun = 0;

  constructor() {
    super("begin");
    this.alone = true;
    this.done.catch(ignore);
  }

  override write(out: Writer): void {
    const { lastState, endings } = this.session!;
    this.begun = endings;
    this.opened = lastState === "idle";
    if (this.opened) return super.write(out);
    out.empty(SYNC);
    this.owed = 0;
  }
}

/** Ends the transaction that began when so many had ended, unless somebody has: the one that is open then is his. */
class Closing extends Command {
  readonly #begun: number;

  constructor(text: "commit" | "rollback", begun: number) {
    super(text);
    this.#begun = begun;
    this.alone = true;
  }

  override write(out: Writer): void {
    if (this.session!.endings === this.#begun) return super.write(out);
    out.empty(SYNC);
    this.owed = 0;
  }
}

/** A text that has a comment is left as it is, as sqlcommenter's rules want it. */
function withComment(text: string, comment: string): string {
  return text.includes("/*") || text.includes("--") ? text : `${text} /*${comment}*/`;
}

function close(out: Writer, name: string): void {
  const mark = out.begin(CLOSE);
  out.byte(0x53);
  out.cstring(name);
  out.end(mark);
}
