/** Single statements of `pool.sql`: on shared sessions, or alone on one that is borrowed for them. */

import type { PoolEntry } from "../pool/entry.ts";
import { ignore } from "../pool/safely.ts";
import type { Job, JobHost, RunningJob, WaitingJob } from "../pool/jobs.ts";
import { genericError } from "../postgres/errors.ts";
import { Execution, userRequest } from "../postgres/execution.ts";
import type { Built, Language } from "../postgres/language.ts";
import { Observed, summaryFor } from "../postgres/observed.ts";
import { bindCallbacks, type Owner, type Query, silence } from "../postgres/query.ts";
import type { Session } from "../postgres/session.ts";
import { codeOf } from "../postgres/wire/connect_error.ts";
import type { Description } from "../postgres/wire/statements.ts";
import { asDriver, type SqlAccess } from "./access.ts";
import { classify, type Kind } from "../postgres/classify.ts";

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

interface Watched extends Query {
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

/** What a user's function has thrown may be anything; of the reason of the statement's own signal nothing is made. */
function errorOf(reason: unknown, { given }: Query): unknown {
  const signal = given?.signal;
  if (reason instanceof Object || (signal?.aborted && signal.reason === reason)) return reason;
  return new Error(String(reason));
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
      const leave = this.#access.core.admit();
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
      // Rows that were handed out cannot be taken back, should it have to run again.
      const shares = habit.kind === "shared" && !many && query.streaming !== true;
      const { observer } = this.#language;
      if (observer !== null) {
        const { clock } = this.#access.state;
        query.observed = Observed.of(observer, clock, shares ? "shared" : "alone");
      }
      if (shares) return new Pending(query, built, this.#access, query.admitted === true).submit();
      const { description } = built;
      this.#alone(new Statement(query, built, this.#access), habit.kind)
        .catch((reason) => unexecuted(query, description, reason));
    } catch (error) {
      query.reject(this.#language.explain(query, error, built));
    }
  };

  /** `cancel()` of a statement. */
  readonly cancel = async (query: Watched): Promise<void> => {
    const execution = query.execution as Pending | Statement | null;
    if (execution instanceof Statement && execution.session !== null) {
      return await execution.cancel().catch(ignore);
    }
    if (!query.executed) silence(query);
    query.cancelled = true;
    const reason = userRequest();
    if (!(execution instanceof Pending && execution.withdraw(reason))) query.reject(reason);
  };

  async #alone(statement: Statement, kind: Kind): Promise<void> {
    const { query } = statement;
    const signal = query.given?.signal;
    const lease = await this.#access.borrow({ signal, admitted: query.admitted === true });
    const { session } = lease;
    lease.lease.own = true;
    let close = kind === "stateful";
    try {
      if (query.cancelled) {
        close = false;
        return;
      }
      statement.leased = true;
      statement.start(session);
      await session.quiet();
      if (statement.spoilt) close = true;
    } finally {
      lease.giveBack(close);
    }
  }
}

/** How a statement ended at the server. */
interface Answer {
  readonly failed: boolean;
  /** The result, or why it failed. */
  readonly value: unknown;
}

/** It was not executed. */
function unexecuted(query: Query, description: Description, reason: unknown): void {
  const error = errorOf(reason, query);
  query.observed?.refused(description, error);
  query.reject(error);
}

/** A statement that is to share a session: no more than waiting for one takes, as there may be many thousands. */
class Pending implements Job {
  scope: ((fn: () => void) => void) | null = null;
  readonly #query: Watched;
  readonly #description: Description;
  readonly #values: readonly unknown[];
  readonly #access: SqlAccess;
  /** True when it was taken before: it is finished also while the pool closes. */
  readonly #again: boolean;
  /** Takes it back while it waits. */
  #place: WaitingJob | null = null;
  #unlisten: (() => void) | null = null;

  constructor(query: Watched, built: Built, access: SqlAccess, again: boolean) {
    this.#query = query;
    this.#description = built.description;
    this.#values = built.values;
    this.#access = access;
    this.#again = again;
    query.execution = this;
  }

  get shown(): string {
    return summaryFor(this.#description).text;
  }

  get proven(): boolean {
    return habitOf(this.#description).quick;
  }

  /** Runs it on a shared session as soon as there is one with room. */
  submit(): void {
    const signal = this.#query.given?.signal;
    if (signal?.aborted) return unexecuted(this.#query, this.#description, signal.reason);
    this.#place = this.#access.core.sharing.submit(this, this.#again);
    if (this.#place === null || signal === undefined) return;
    const abort = (): void => void this.withdraw(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    this.#unlisten = () => signal.removeEventListener("abort", abort);
  }

  /** Takes it back and rejects it; false when it does not wait. */
  withdraw(reason: unknown): boolean {
    return this.#place?.withdraw(reason) === true;
  }

  begin(): Statement {
    this.#unlisten?.();
    return new Statement(
      this.#query,
      { description: this.#description, values: this.#values },
      this.#access,
    );
  }

  refuse(reason: unknown): void {
    this.#unlisten?.();
    const waited = this.#place !== null || this.#again;
    const error = asDriver(errorOf(reason, this.#query), !waited);
    unexecuted(this.#query, this.#description, error);
  }
}

/** One statement on its way. */
export class Statement extends Execution implements RunningJob {
  declare readonly query: Watched;
  entry: PoolEntry | null = null;
  host: JobHost | null = null;
  unproven = false;
  /** True when nobody else uses the session meanwhile. */
  leased = false;
  /** True when it has left something behind. */
  spoilt = false;
  readonly #access: SqlAccess;
  /** True when whoever waited for it has been told. */
  #abandoned = false;

  constructor(query: Watched, built: Built, access: SqlAccess) {
    super(query, built);
    this.#access = access;
  }

  measured(quick: boolean): void {
    habitOf(this.built.description).measured(quick);
  }

  override get unordered(): boolean {
    return !this.leased;
  }

  /** Hands it to a session. */
  start(resource: object): void {
    try {
      this.run(resource as Session);
    } catch (error) {
      // What stands in its place: whoever runs it must not fail by it.
      this.rejected(error);
    }
  }

  protected override resolved(result: unknown): void {
    const command = (result as { command?: string } | null)?.command;
    if (command !== undefined && LEAVES_STATE.has(command)) this.spoilt = true;
    this.#answered(false, result);
  }

  protected override rejected(reason: unknown): void {
    this.#answered(true, reason);
  }

  protected override abandoned(reason: unknown): void {
    this.#abandoned = true;
    this.tell(true, reason);
  }

  /** The server has done it, or it has failed. */
  #answered(failed: boolean, value: unknown): void {
    const session = this.session!;
    const open = session.lastState !== "idle" && session.reason === null;
    if (this.leased) {
      const { cursorFn, streaming } = this.query;
      // Of a cursor and a stream the end is seen at the session.
      const leaves = open && !failed && cursorFn === undefined && streaming !== true;
      return leaves ? this.tell(true, unsafe()) : this.tell(failed, value);
    }
    if (open || ForeignTransaction.stands(session)) {
      return ForeignTransaction.of(session).add(this, { failed, value });
    }
    this.tell(failed, value);
    this.end(this.spoilt);
  }

  /** Settles it. */
  tell(failed: boolean, value: unknown): void {
    if (!failed) return this.query.resolve(value);
    const over = this.session!.reason;
    // A pool that closes cancels what runs; but it is the close that the caller should hear of.
    const cancelled = over !== null && codeOf(value) === "57014";
    this.query.reject(cancelled ? over : value);
  }

  /** Its session is done with it; it ran in a transaction that does not count. */
  runAgain(): void {
    this.end(true);
    if (!this.#abandoned) new Pending(this.query, this.built, this.#access, true).submit();
  }

  /** Its session is done with it; when it is spoilt, with everybody. */
  end(spoilt: boolean): void {
    this.host!.ended(this, spoilt);
  }
}

/** The driver's code; what to do is the pool's. */
function unsafe(): Error {
  const message =
    "a transaction needs a connection of its own: use pool.transaction(fn) or sql.begin(fn)";
  return genericError("UNSAFE_TRANSACTION", message);
}

/**
 * A transaction that a shared statement has left open, whatever its text had said. What is on its way behind it runs
 * in that transaction, so that nobody hears of an answer before it is committed; when it cannot be, they run again
 * elsewhere. The session gets nothing new meanwhile (it does not share then), and is closed afterwards.
 */
class ForeignTransaction {
  static readonly #standing = new Map<Session, ForeignTransaction>();
  readonly #session: Session;
  readonly #held: { readonly statement: Statement; readonly answer: Answer }[] = [];
  #opener: Statement | null = null;

  private constructor(session: Session) {
    this.#session = session;
    ForeignTransaction.#standing.set(session, this);
    void session.quiet().then(() => this.#end());
  }

  static stands(session: Session): boolean {
    const standing = ForeignTransaction.#standing;
    return standing.size > 0 && standing.has(session);
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
    opener.tell(true, unsafe());
    opener.end(true);
    for (const { statement, answer } of this.#held) {
      if (committed || failure !== null) {
        // Without the server's word nobody knows whether it stands.
        if (committed) statement.tell(answer.failed, answer.value);
        else statement.tell(true, failure);
        statement.end(true);
      } else statement.runAgain();
    }
  }
}
