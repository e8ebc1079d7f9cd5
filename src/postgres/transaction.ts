/**
 * `begin` and `savepoint` with the driver's meaning, on plain statements: the driver's own can throw
 * where nobody can catch it when the backend dies under them.
 */

import { currentClock } from "../clock.ts";
import { readOptions, TRANSACTION_MODES } from "../pool/options.ts";
import { ignore, isThenable } from "../pool/safely.ts";
import {
  behind,
  type ByHand,
  checkSavepoint,
  endedByHand,
  isConflict,
  notAgain,
  OpenTransaction,
  OUTCOME_UNKNOWN,
  PLAIN,
  planTransaction,
  retrying,
  TRANSACTION_FAILED,
  type TransactionPlan,
} from "../pool/transactions.ts";
import type { Connection } from "./connection.ts";
import { Execution } from "./execution.ts";
import { bound, face, handleOf, type Make, scopeOf, STATEMENTS } from "./handle.ts";
import { isTemplate, type Sql } from "./language.ts";
import { quoted } from "./listen.ts";
import { innermost, runWithin, Scope } from "./scope.ts";
import type { Session } from "./session.ts";
import { Turns } from "./turns.ts";
import { codeOf } from "./wire/connect_error.ts";
import type { CommandResult } from "./wire/request.ts";

type Body = (sql: unknown) => unknown;

/** `begin` with a mode. Only words, as in the driver's own: a mode is no place for another statement. */
export function beginWith(mode: string): string {
  return `begin ${mode.replace(/[^a-z ]/gi, "")}`;
}

/** What all parts of one transaction have in common. */
class Shared {
  /** The transaction, and its savepoints that are at work. */
  readonly open: Set<Part> = new Set();
  /** Grows with each statement. */
  steps = 0;
  /** The transaction itself; null before its function is called. */
  root: Part | null = null;
  savepoints = 0;
  prepare: string | null = null;
  /** True from the moment when the commit is sent until it is answered. */
  committing = false;

  /** Nothing of it may go on. */
  end(): void {
    for (const part of this.open) part.end();
  }
}

/** A transaction, or a savepoint in one. */
class Part extends Scope {
  readonly shared: Shared;

  constructor(parent: Scope, shared: Shared, name: string, onfailure: (error: unknown) => void) {
    super(parent.session, parent.lease, name, { parent, tally: shared, onfailure });
    this.shared = shared;
    this.leaseHandle = parent.leaseHandle;
    shared.open.add(this);
  }
}

/**
 * True when the transaction that began at `begun` is not open any more: the borrower has sent `commit` or `rollback`,
 * and perhaps `begin` after it.
 */
async function hasEnded(session: Session, begun: number): Promise<boolean> {
  // What nobody waited for may be just that …
  if (session.status === "active") await session.run("");
  // … and may have sent it behind our question.
  while (endOf(session, begun) === "unknown") await session.run("");
  return endOf(session, begun) === "ended";
}

/** Ends the same by a command of ours, unless the borrower has, up to the very turn in which it is sent. */
export async function endUnlessEnded(
  session: Session,
  begun: number,
  command: string,
): Promise<CommandResult | "ended"> {
  do {
    if (await hasEnded(session, begun)) return "ended";
    // From this look to the sending nobody else can run.
  } while (endOf(session, begun) !== null);
  return await session.command(command);
}

/**
 * Whether the borrower has ended the transaction that began at `begun`, as far as is known without a round trip:
 * `unknown` when his commit has no answer. To be asked before anybody else ends it.
 */
export function endOf(session: Session, begun: number): "ended" | "unknown" | null {
  if (session.lastState === "idle" || session.endings !== begun) return "ended";
  return session.mayHaveEnded ? "unknown" : null;
}

/** The arguments of `begin`: the driver's, or an object of options in place of its string. */
export function beginArguments(
  args: readonly unknown[],
): { readonly plan: TransactionPlan; readonly body: Body } {
  const [options, body] = args.length === 1 ? ["", args[0]] : args;
  if (options === "" && typeof body === "function") return { plan: PLAIN, body: body as Body };
  const given = typeof options === "string" ? { mode: options } : options;
  if (typeof body !== "function" || typeof given !== "object" || given === null) {
    throw new TypeError(
      "begin takes a function, or options (a string, or an object) and a function",
    );
  }
  return {
    plan: planTransaction(readOptions("begin", given, TRANSACTION_MODES)),
    body: body as Body,
  };
}

/**
 * `begin([options], body)`: commits when the body resolves, rolls back when it throws. `exclusive`: nobody but the body
 * has the lease, and what it has of it is the transaction's handle.
 */
export async function begin(
  outer: Scope,
  args: readonly unknown[],
  exclusive: boolean,
): Promise<unknown> {
  const { plan, body } = beginArguments(args);
  if (plan.nested) {
    const { holder } = outer.lease;
    if (holder instanceof OpenTransaction && holder.here) {
      checkSavepoint(plan);
      return await nest(outer, holder, body);
    }
  }
  const { mode, retry } = plan;
  if (retry === null) return await beginOnce(outer, mode, body, exclusive, null);
  let byHand: ByHand = null;
  const once = (): Promise<unknown> => {
    byHand = null;
    return beginOnce(outer, mode, body, exclusive, (how) => byHand = how);
  };
  // What is lost cannot be tried again on the same lease.
  const again = (error: unknown): boolean => {
    if (!isConflict(error) || outer.refusal !== null) return false;
    if (byHand !== null) throw outer.lease.error(...notAgain(byHand, "begin"), error);
    return true;
  };
  return await retrying(currentClock(), retry, null, once, again);
}

/** Runs the body in a savepoint of the transaction that holds the lease. */
async function nest(
  outer: Scope,
  transaction: OpenTransaction,
  body: Body,
): Promise<unknown> {
  outer.assert();
  const shared = transaction.parts instanceof Shared
    ? transaction.parts
    : sharedOf(outer, transaction);
  return await unlessOver(outer, () => savepoint(shared.root!, [body]));
}

/** Of a transaction of `pool.transaction`, whose function has the lease's own handle. */
function sharedOf(outer: Scope, transaction: OpenTransaction): Shared {
  const shared = new Shared();
  // Whether a statement has failed is the session's state to tell, when the pool commits.
  const root = new Part(outer, shared, "transaction", ignore);
  shared.root = outer.nesting = root;
  transaction.parts = shared;
  const forget = outer.lease.whenOver(() => shared.end());
  root.onend = () => {
    outer.nesting = null;
    forget();
  };
  return shared;
}

/** `pool.transaction` within itself, on the same lease: runs `fn` in a savepoint. */
export async function nestInPool<T>(conn: Connection, fn: () => T | Promise<T>): Promise<T> {
  const outer = scopeOf(conn);
  const { holder } = outer.lease;
  if (!(holder instanceof OpenTransaction)) throw new TypeError("no transaction is open");
  return await nest(outer, holder, fn) as T;
}

async function beginOnce(
  outer: Scope,
  mode: string | undefined,
  body: Body,
  exclusive: boolean,
  onfailed: ((how: ByHand) => void) | null,
): Promise<unknown> {
  outer.assert();
  const { session, lease } = outer;
  const before = lease.holder;
  // A reservation may begin one within itself.
  if ((before !== null && before !== outer) || outer.turns?.taken) throw inTransaction();
  const open = new OpenTransaction(exclusive);
  const shared = new Shared();
  open.parts = shared;
  lease.holder = open;
  session.inScope = true;
  let ahead: Promise<unknown> | null = null;
  try {
    // Statements on their way may open a transaction; after this round trip that is known.
    if (session.status === "active") await session.run("");
    outer.assert();
    if (session.lastState !== "idle") throw inTransaction();
    // Behind a statement that was sent meanwhile it cannot go ahead: the state after that one would be taken for its end.
    if (mode === undefined && session.status === "idle") ahead = session.begin();
    else await session.command(beginWith(mode ?? ""));
    return await unlessOver(outer, transaction);
  } catch (error) {
    // When the server has refused it, that is why the session is over.
    await ahead;
    // A rejection by a server that is still there is its answer.
    if (!shared.committing || session.reason === null) throw error;
    throw lease.error(...OUTCOME_UNKNOWN, error);
  } finally {
    session.inScope = false;
    lease.holder = before;
    // When the session is lost the body may be at work for ever.
    open.end();
  }

  function inTransaction(): Error {
    return lease.error(
      before === null || before === outer
        ? 'a transaction is open already: use savepoint, or begin with nested: "savepoint" in its function'
        : "a transaction is open already, or the connection is reserved",
      "IN_TRANSACTION",
    );
  }

  async function transaction(): Promise<unknown> {
    const begun = session.endings;
    const verify = async (): Promise<void> => {
      if (await hasEnded(session, begun)) throw lease.error(...endedByHand("begin"));
    };
    const { result, uncaught } = await attempt(outer, body, shared, {
      name: "transaction",
      undo: "rollback",
      enter: (part, run) => {
        shared.root = part;
        return ahead === null ? open.run(run) : behind(ahead, () => open.run(run));
      },
      verify,
      failed: () => onfailed?.(endOf(session, begun)),
    });
    // On one that is lost already nothing is sent.
    shared.committing = session.reason === null;
    const last = shared.prepare === null ? "commit" : `prepare transaction '${shared.prepare}'`;
    const done = await endUnlessEnded(session, begun, last);
    shared.committing = false;
    if (done === "ended") throw lease.error(...endedByHand("begin"));
    if (shared.prepare !== null) return result;
    // The server answers COMMIT with ROLLBACK when a statement had failed that nobody waited for.
    if (done.command !== "COMMIT") throw lease.error(...TRANSACTION_FAILED, uncaught());
    return result;
  }
}

/** Rejects as soon as the session is over, also while the body waits for something else. */
async function unlessOver<T>(scope: Scope, run: () => Promise<T>): Promise<T> {
  let forget: () => void = () => {};
  const over = new Promise<never>((_, reject) => forget = scope.session.whenOver(reject));
  try {
    return await Promise.race([run(), over]);
  } finally {
    forget();
  }
}

interface Outcome {
  readonly result: unknown;
  readonly uncaught: () => unknown;
}

/** What differs between a transaction and a savepoint. */
interface Kind {
  readonly name: string;
  /** Takes back what was done. */
  readonly undo: string;
  /** Calls the body so that what it calls is known to come from it. */
  readonly enter: (part: Part, run: () => unknown) => unknown;
  /** Throws when the body, which succeeded, has done what it must not. */
  readonly verify?: () => Promise<void>;
  /** Called when it fails, before anything is taken back. */
  readonly failed?: () => void;
}

/** Runs the body; takes back what it did when it, or a statement of it, fails. */
async function attempt(
  parent: Scope,
  body: Body,
  shared: Shared,
  { name, undo, enter, verify, failed }: Kind,
): Promise<Outcome> {
  const { session, lease } = parent;
  let failure: { readonly error: unknown } | null = null;
  const part = new Part(parent, shared, name, (error) => failure ??= { error });
  const first = (): { readonly error: unknown } | null => failure;
  // What the body has left at work must not go on behind the end: there its statements would stand by themselves.
  const end = (): void => {
    for (const one of shared.open) {
      if (!isWithin(one, part)) continue;
      shared.open.delete(one);
      one.end();
    }
  };
  try {
    const run = async (): Promise<unknown> => {
      const value = body(handleOf(part, TRANSACTION));
      const result =
        await (Array.isArray(value) ? Promise.all(value.map(started)) : started(value));
      const caught = first();
      // As in the driver, a failed statement fails the transaction even if the body caught it.
      if (caught !== null) throw caught.error;
      return result;
    };
    const result = await enter(part, run);
    await verify?.();
    return { result, uncaught: () => first()?.error };
  } catch (error) {
    failed?.();
    // Ended from outside: what it did is taken back already, and the session may be in other hands.
    const ours = part.partOpen && lease.open;
    end();
    // A COPY that nobody goes on with would hold up what takes it back.
    const { current } = session;
    if (ours && current instanceof Execution && current.copy !== null) {
      current.cancel().catch(ignore);
    }
    // When this fails the session is over, which ends the transaction too; the cause is the news.
    if (ours && session.status !== "idle") await session.command(undo).catch(ignore);
    throw (isAborted(error) && first()?.error) || error;
  } finally {
    end();
  }
}

/** A statement begins when somebody waits for it: what the body returns is still one of its own. */
function started(value: unknown): unknown {
  if (!isThenable(value)) return value;
  return new Promise((resolve, reject) => void value.then(resolve, reject));
}

/** Whether it is this part, or a part of it. */
function isWithin(one: Scope, part: Scope): boolean {
  for (let at: Scope | null = one; at !== null; at = at.parent) if (at === part) return true;
  return false;
}

/** "current transaction is aborted": the consequence of another failure. */
function isAborted(error: unknown): boolean {
  return codeOf(error) === "25P02";
}

/** A member of a transaction's handle. */
function member(key: string, make: (part: Part) => unknown): Make {
  return bound(key, (scope) => make(scope as Part));
}

const TRANSACTION = face({
  ...STATEMENTS,
  savepoint: member("savepoint", (part) => (...args: unknown[]) => savepoint(part, args)),
  prepare: member("prepare", ({ shared }) => (name: string) => {
    shared.prepare = String(name).replace(/[^a-zA-Z0-9$_. -]/g, "");
  }),
  begin: member("begin", (part) => async (...args: unknown[]) => {
    const { plan, body } = beginArguments(args);
    part.assert();
    if (plan.nested) {
      checkSavepoint(plan);
      return await savepoint(part, [body]);
    }
    throw part.lease.error(
      'a transaction is open already: use savepoint, or begin with nested: "savepoint"',
      "IN_TRANSACTION",
    );
  }),
});

async function savepoint(parent: Part, args: readonly unknown[]): Promise<unknown> {
  const [first] = args;
  // As a template's tag: one statement in a savepoint.
  if (isTemplate(first)) {
    return await savepoint(parent, [(sql: Sql) => Reflect.apply(sql, undefined, args)]);
  }
  const [name, body] = args.length === 1 ? [null, first] : args;
  if (typeof body !== "function") {
    throw new TypeError("savepoint takes a function, or a name and a function");
  }
  // What an open savepoint's own function asks of an outer handle is a part of that savepoint: it must not wait for it.
  const outer = innermost(parent);
  outer.assert();
  const { session, lease } = outer;
  const { shared } = parent;
  const turns = outer.turns ??= new Turns({
    get steps() {
      return shared.steps;
    },
    get busy() {
      return session.status === "active";
    },
    stalled: () =>
      lease.error(
        "another savepoint of this transaction is open and has done nothing for seconds: " +
          "it may wait for this one, which waits for it",
        "IN_TRANSACTION",
      ),
  });
  // Beside each other, one that fails would take back what the others have done.
  await new Promise<void>((start, refuse) => turns.take({ keeps: true, start, refuse }));
  try {
    outer.assert();
    const label = quoted(`s${shared.savepoints++}${name ? `_${name}` : ""}`);
    await session.command(`savepoint ${label}`);
    // Meanwhile it may have ended.
    outer.assert();
    const kind = { name: "savepoint", undo: `rollback to ${label}`, enter: runWithin };
    return (await attempt(outer, body as Body, shared, kind)).result;
  } finally {
    turns.give();
  }
}
