/** Single statements of `pool.sql`: on shared sessions, or alone on one that is borrowed for them. */

import type { Job } from "../pool/job.ts";
import { bindCallbacks } from "../postgres/callbacks.ts";
import { genericError } from "../postgres/errors.ts";
import { type Owner, type Query, silence } from "../postgres/language.ts";
import { type Kind, kindOf } from "./classify.ts";
import type { SqlDesk } from "./access.ts";
import type { Session } from "../postgres/session.ts";

const STATEMENT: unique symbol = Symbol("statement");
const RESOLVE: unique symbol = Symbol("resolve");
const REJECT: unique symbol = Symbol("reject");

interface Watched extends Query {
  [STATEMENT]?: Statement;
  [RESOLVE]?: (result: unknown) => void;
  [REJECT]?: (reason: unknown) => void;
}

/** Ends of commands that leave something in the session. */
const LEAVES_STATE = new Set([
  "DEALLOCATE",
  "DISCARD ALL",
  "LISTEN",
  "LOAD",
  "PREPARE",
  "RESET",
  "SET",
]);
const OPENS_TRANSACTION = new Set(["BEGIN", "START TRANSACTION"]);

function ignore(): void {}

function onresolve(this: Watched, result: unknown): void {
  this[STATEMENT]!.resolved(result);
}

function onreject(this: Watched, reason: unknown): void {
  this[STATEMENT]!.rejected(reason);
}

/** Executes the statements of one `pool.sql`. */
export class Statements implements Owner {
  readonly #desk: SqlDesk;

  constructor(desk: SqlDesk) {
    this.#desk = desk;
  }

  /** Executes a statement; never throws, as the driver could not catch it. */
  readonly execute = (query: Query): void => {
    // It was rejected then.
    if (query.cancelled) return;
    try {
      if (query.forEachFn !== undefined || query.cursorFn !== undefined) bindCallbacks(query);
      const kind = kindOf(query);
      const statement = new Statement(query);
      if (kind === "shared") statement.withdraw = this.#desk.submit(statement);
      else this.#alone(statement, kind).catch(query.reject);
    } catch (error) {
      query.reject(error);
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
    if (statement?.withdraw?.(reason) !== true) query.reject(reason);
  };

  async #alone(statement: Statement, kind: Kind): Promise<void> {
    const { query } = statement;
    const lease = await this.#desk.borrow();
    const { session } = lease;
    let close = kind === "stateful";
    try {
      if (query.cancelled) {
        close = false;
        return;
      }
      statement.alone = true;
      statement.start(session, ignore);
      await session.quiet();
      if (statement.spoilt) close = true;
    } finally {
      lease.giveBack(close);
    }
  }
}

/** One statement on its way. */
export class Statement implements Job {
  readonly query: Watched;
  /** Where it runs. */
  session: Session | null = null;
  /** Takes it back while it waits for a session. */
  withdraw: ((reason: unknown) => boolean) | null = null;
  /** True when nobody else uses the session meanwhile. */
  alone = false;
  /** True when it has left something behind. */
  spoilt = false;
  readonly proven: boolean = true;
  #done: ((spoilt: boolean) => void) | null = null;

  constructor(query: Query) {
    this.query = query;
    this.query[STATEMENT] = this;
  }

  /** Hands it to a session. */
  start(resource: object, done: (spoilt: boolean) => void): void {
    const { query } = this;
    const session = this.session = resource as Session;
    this.withdraw = null;
    // Of a cursor and a stream the end is seen at the session.
    if (query.cursorFn === undefined && query.streaming !== true) {
      this.#done = done;
      query[RESOLVE] = query.resolve;
      query[REJECT] = query.reject;
      query.resolve = onresolve;
      query.reject = onreject;
    }
    try {
      session.hand(query);
    } catch (error) {
      // What stands in its place: whoever runs it must not fail by it.
      query.reject(error);
    }
  }

  measured(): void {}

  /** It waited for a session in vain. */
  refuse(reason: unknown): void {
    this.query.reject(reason);
  }

  /** The server has done it. */
  resolved(result: unknown): void {
    const { query } = this;
    const command = (result as { command?: string } | null)?.command;
    if (command !== undefined && LEAVES_STATE.has(command)) this.spoilt = true;
    const open = this.alone
      ? this.session!.reason === null && this.session!.lastState !== "idle"
      : command !== undefined && OPENS_TRANSACTION.has(command);
    if (open) query[REJECT]!(unsafeTransaction());
    else query[RESOLVE]!(result);
    this.#finish();
  }

  /** It has failed. */
  rejected(reason: unknown): void {
    const over = this.session!.reason;
    // A pool that closes cancels what runs; but it is the close that the caller should hear of.
    const cancelled = over !== null && (reason as { code?: unknown } | null)?.code === "57014";
    this.query[REJECT]!(cancelled ? over : reason);
    this.#finish();
  }

  #finish(): void {
    const done = this.#done;
    this.#done = null;
    done?.(this.spoilt);
  }
}

/** The driver's code; what to do is the pool's. */
function unsafeTransaction(): Error {
  return genericError(
    "UNSAFE_TRANSACTION",
    "a transaction needs a connection of its own: use pool.transaction(fn) or sql.begin(fn)",
  );
}
