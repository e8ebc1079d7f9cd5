/** Single statements of `pool.sql`: on shared sessions, or alone on one that is borrowed for them. */

import { Job } from "../pool/wait_queue.ts";
import { bindCallbacks } from "../postgres/callbacks.ts";
import { genericError } from "../postgres/errors.ts";
import {
  type Built,
  type Language,
  type Owner,
  type Query,
  silence,
} from "../postgres/language.ts";
import { Observed } from "../postgres/observed.ts";
import type { Session } from "../postgres/session.ts";
import type { Description } from "../postgres/wire/statements.ts";
import { asDriver, type SqlAccess } from "./access.ts";
import { classify, type Kind } from "./classify.ts";

/** How many quick answers in a row make up for a slow one. */
const PENANCE = 4;

/** What is known of a text. */
class Habit {
  readonly kind: Kind;
  /** Above 0 when it was quick of late. */
  #credit = 0;

  constructor(text: string) {
    this.kind = classify(text);
  }

  get quick(): boolean {
    return this.#credit > 0;
  }

  measured(quick: boolean): void {
    if (!quick) this.#credit = 1 - PENANCE;
    else if (this.#credit < 1) this.#credit++;
  }
}

function habitOf(description: Description): Habit {
  return (description.notes ??= new Habit(description.text)) as Habit;
}

const STATEMENT: unique symbol = Symbol("statement");

interface Watched extends Query {
  [STATEMENT]?: Statement;
  /** True when it was let in while its text was yet to be read. */
  admitted?: boolean;
}

/** Ends of commands that leave something in the session, should one of them be met here nevertheless. */
const LEAVES_STATE = new Set([
  "DEALLOCATE",
  "DISCARD ALL",
  "LISTEN",
  "LOAD",
  "PREPARE",
  "RESET",
  "SET",
]);

function ignore(): void {}

/** What a user's function has thrown may be anything; of the reason of the statement's own signal nothing is made. */
function errorOf(reason: unknown, { given }: Query): unknown {
  const signal = given?.signal;
  if (reason instanceof Object || (signal?.aborted && signal.reason === reason)) return reason;
  return new Error(String(reason));
}

function onresolve(this: Watched, result: unknown): void {
  this[STATEMENT]!.answered({ result });
}

function onreject(this: Watched, error: unknown): void {
  this[STATEMENT]!.answered({ error });
}

/** Executes the statements of one `pool.sql`. */
export class Statements implements Owner {
  /** Who executes what is made after the end has begun: refuses it. */
  readonly ended: Owner;
  readonly #access: SqlAccess;
  readonly #language: Language;

  constructor(access: SqlAccess, language: Language) {
    this.#access = access;
    this.#language = language;
    this.ended = {
      execute: (query) => {
        if (!query.cancelled) query.reject(access.ended());
      },
      cancel: this.cancel,
    };
  }

  /** A statement whose text stands in a file: what ends the pool meanwhile waits for it. */
  file(path: unknown, rest: readonly unknown[]): Query {
    const made: Watched = this.#language.file(path, rest, this);
    const { handler } = made;
    made.handler = (query: Watched) => {
      const leave = this.#access.admit();
      if (leave === null) return query.reject(this.#access.ended());
      query.admitted = true;
      // The native `then`: the statement's own would execute it.
      Promise.prototype.then.call(query, leave, leave);
      handler(query);
    };
    return made;
  }

  /** Executes a statement; never throws, as the driver could not catch it. */
  readonly execute = (query: Watched): void => {
    // It was rejected then.
    if (query.cancelled) return;
    let built: Built | null = null;
    try {
      const many = query.forEachFn !== undefined || query.cursorFn !== undefined;
      if (many) bindCallbacks(query);
      built = this.#language.build(query);
      const habit = habitOf(built.description);
      const statement = new Statement(query, built, habit, this.#access);
      // Rows that were handed out cannot be taken back, should it have to run again.
      const shares = habit.kind === "shared" && !many && query.streaming !== true;
      const { observer } = this.#language;
      if (observer !== null) {
        const { clock } = this.#access.state;
        query.observed = Observed.of(observer, clock, shares ? "shared" : "alone");
      }
      if (shares) {
        statement.submit(query.admitted);
      } else {
        this.#alone(statement, habit.kind).catch((reason) => statement.failed(reason));
      }
    } catch (error) {
      query.reject(this.#language.explain(query, error, built));
    }
  };

  /** `cancel()` of a statement. */
  readonly cancel = async (query: Watched): Promise<void> => {
    const statement = query[STATEMENT];
    const session = statement?.session;
    if (session) return await session.cancel(query).catch(ignore);
    if (!query.executed) silence(query);
    query.cancelled = true;
    const reason = genericError("57014", "canceling statement due to user request");
    if (statement?.withdraw(reason) !== true) query.reject(reason);
  };

  /** Its limit is over while the server is at what others have sent before it. */
  readonly abandon = (query: Watched, reason: unknown): void => {
    const statement = query[STATEMENT];
    if (statement?.session) statement.abandon(reason);
    else query.reject(reason);
  };

  async #alone(statement: Statement, kind: Kind): Promise<void> {
    const { query } = statement;
    const signal = query.given?.signal;
    const lease = await this.#access.borrow({ signal, admitted: query.admitted === true });
    const { session } = lease;
    let close = kind === "stateful";
    try {
      if (query.cancelled) {
        close = false;
        return;
      }
      statement.alone = true;
      statement.start(session);
      await session.quiet();
      if (statement.spoilt) close = true;
    } finally {
      lease.giveBack(close);
    }
  }
}

/** How a statement ended at the server. */
type Answer = { readonly result: unknown } | { readonly error: unknown };

/** One statement on its way. */
export class Statement extends Job {
  readonly query: Watched;
  /** Where it runs. */
  session: Session | null = null;
  /** True when nobody else uses the session meanwhile. */
  alone = false;
  /** True when it has left something behind. */
  spoilt = false;
  readonly #built: Built;
  readonly #habit: Habit;
  readonly #access: SqlAccess;
  /** Takes it back while it waits for a session. */
  #withdraw: ((reason: unknown) => boolean) | null = null;
  #again = false;
  /** True when whoever waited for it has been told. */
  #abandoned = false;
  #unlisten: (() => void) | null = null;
  readonly #resolve: (result: unknown) => void;
  readonly #reject: (reason: unknown) => void;

  constructor(query: Watched, built: Built, habit: Habit, access: SqlAccess) {
    super();
    this.query = query;
    this.#built = built;
    this.#habit = habit;
    this.#access = access;
    this.#resolve = query.resolve;
    this.#reject = query.reject;
    query[STATEMENT] = this;
  }

  get proven(): boolean {
    return this.#habit.quick;
  }

  measured(quick: boolean): void {
    this.#habit.measured(quick);
  }

  /** Runs it on a shared session as soon as there is one with room. */
  submit(again = false): void {
    this.#again = again;
    const signal = this.query.given?.signal;
    if (signal?.aborted) return this.failed(signal.reason);
    this.#withdraw = this.#access.submit(this, again);
    if (this.#withdraw === null || signal === undefined) return;
    const abort = (): void => void this.withdraw(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    this.#unlisten = () => signal.removeEventListener("abort", abort);
  }

  /** Takes it back and rejects it; false when it does not wait. */
  withdraw(reason: unknown): boolean {
    return this.#withdraw?.(reason) === true;
  }

  /** Hands it to a session. */
  start(resource: object): void {
    const { query } = this;
    const session = this.session = resource as Session;
    this.#waitsNoMore();
    // Of a cursor and a stream the end is seen at the session.
    if (query.cursorFn === undefined && query.streaming !== true) {
      query.resolve = onresolve;
      query.reject = onreject;
    }
    try {
      if (this.alone) session.hand(query);
      else session.handShared(query, this.#built);
    } catch (error) {
      // What stands in its place: whoever runs it must not fail by it.
      query.reject(error);
    }
  }

  /** It waited for a session in vain. */
  refuse(reason: unknown): void {
    const waited = this.#withdraw !== null || this.#again;
    this.#waitsNoMore();
    this.failed(asDriver(errorOf(reason, this.query), !waited));
  }

  /** It was not executed. */
  failed(reason: unknown): void {
    const error = errorOf(reason, this.query);
    this.query.observed?.refused(this.#built.description, error);
    this.query.reject(error);
  }

  #waitsNoMore(): void {
    this.#withdraw = null;
    this.#unlisten?.();
    this.#unlisten = null;
  }

  /** The server has done it, or it has failed. */
  answered(answer: Answer): void {
    const session = this.session!;
    const open = session.reason === null && session.lastState !== "idle";
    if ("result" in answer) {
      const command = (answer.result as { command?: string } | null)?.command;
      if (command !== undefined && LEAVES_STATE.has(command)) this.spoilt = true;
    }
    if (this.alone) return this.tell(open && "result" in answer ? unsafe() : answer);
    if (open || ForeignTransaction.stands(session)) {
      return ForeignTransaction.of(session).add(this, answer);
    }
    this.tell(answer);
    this.finished(this.spoilt);
  }

  /** Settles it. */
  tell(answer: Answer): void {
    if ("result" in answer) return this.#resolve(answer.result);
    const over = this.session!.reason;
    // A pool that closes cancels what runs; but it is the close that the caller should hear of.
    const cancelled = over !== null &&
      (answer.error as { code?: unknown } | null)?.code === "57014";
    this.#reject(cancelled ? over : answer.error);
  }

  /** Settles it before the server has done it, which nobody waits for any more. */
  abandon(reason: unknown): void {
    this.#abandoned = true;
    this.tell({ error: reason });
  }

  /** Its session is done with it; it ran in a transaction that does not count. */
  runAgain(): void {
    this.finished(true);
    if (this.#abandoned) return;
    this.session = null;
    this.query.resolve = this.#resolve;
    this.query.reject = this.#reject;
    this.submit(true);
  }

  /** Its session is done with it, and with everybody. */
  done(): void {
    this.finished(true);
  }
}

/** The driver's code; what to do is the pool's. */
function unsafe(): Answer {
  const message =
    "a transaction needs a connection of its own: use pool.transaction(fn) or sql.begin(fn)";
  return { error: genericError("UNSAFE_TRANSACTION", message) };
}

/**
 * A transaction that a shared statement has left open, whatever its text had said. What is on its way behind it runs
 * in that transaction, so that nobody hears of an answer before it is committed; when it cannot be, they run again
 * elsewhere. The session gets nothing new meanwhile (it does not share then), and is closed afterwards.
 */
class ForeignTransaction {
  static readonly #standing = new WeakMap<Session, ForeignTransaction>();
  readonly #session: Session;
  readonly #held: { readonly statement: Statement; readonly answer: Answer }[] = [];
  #opener: Statement | null = null;

  private constructor(session: Session) {
    this.#session = session;
    ForeignTransaction.#standing.set(session, this);
    void session.quiet().then(() => this.#end());
  }

  static stands(session: Session): boolean {
    return ForeignTransaction.#standing.has(session);
  }

  static of(session: Session): ForeignTransaction {
    return ForeignTransaction.#standing.get(session) ?? new ForeignTransaction(session);
  }

  /** A statement has its answer; the first one is who opened it. */
  add(statement: Statement, answer: Answer): void {
    if (this.#opener === null) {
      this.#opener = statement;
      statement.entry!.spoilt = true;
    } else this.#held.push({ statement, answer });
  }

  async #end(): Promise<void> {
    const session = this.#session;
    let failure: unknown = null;
    let committed = false;
    try {
      if (session.reason !== null) throw session.reason;
      const command = session.lastState === "intrans" ? "commit" : "rollback";
      committed = (await session.run(command)).command === "COMMIT";
    } catch (error) {
      failure = error;
    }
    ForeignTransaction.#standing.delete(session);
    const opener = this.#opener!;
    opener.tell(unsafe());
    opener.done();
    for (const { statement, answer } of this.#held) {
      if (committed || failure !== null) {
        // Without the server's word nobody knows whether it stands.
        statement.tell(committed ? answer : { error: failure });
        statement.done();
      } else statement.runAgain();
    }
  }
}
