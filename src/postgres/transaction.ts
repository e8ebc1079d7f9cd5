/**
 * `begin` and `savepoint` with the driver's meaning, on plain statements: the driver's own can throw
 * where nobody can catch it when the backend dies under them.
 */

import type { Sql } from "./driver.ts";
import { Scope, type TransactionControl } from "./scope.ts";

/** Makes the handle of a transaction or savepoint. */
export type MakeHandle = (scope: Scope, control: TransactionControl) => unknown;

type Body = (sql: unknown) => unknown;

/** What all scopes of one transaction have in common. */
interface Shared {
  readonly makeHandle: MakeHandle;
  savepoints: number;
  prepare: string | null;
}

/** `begin([options], body)`: commits when the body resolves, rolls back when it throws. */
export async function begin(
  outer: Scope,
  args: readonly unknown[],
  makeHandle: MakeHandle,
): Promise<unknown> {
  const [options, body] = args.length === 1 ? ["", args[0]] : args;
  if (typeof body !== "function" || typeof options !== "string") {
    throw new TypeError("begin takes a function, or a string of options and a function");
  }
  outer.assert();
  const { session, loan } = outer;
  if (session.inScope) throw inTransaction(outer);
  session.inScope = true;
  try {
    // Statements on their way may open a transaction; after this round trip that is known.
    if (session.status === "active") await session.run("");
    outer.assert();
    if (session.lastState !== "idle") throw inTransaction(outer);
    await session.run(`begin ${options.replace(/[^a-z ]/gi, "")}`);
    const shared: Shared = { makeHandle, savepoints: 0, prepare: null };
    return await unlessOver(outer, () => transaction(outer, body as Body, shared));
  } finally {
    session.inScope = false;
  }

  function inTransaction({ loan }: Scope): Error {
    return loan.error("a transaction is open already: use savepoint", "IN_TRANSACTION");
  }

  async function transaction(parent: Scope, body: Body, shared: Shared): Promise<unknown> {
    const { result, uncaught } = await attempt(parent, body, shared, "rollback", "transaction");
    if (shared.prepare !== null) {
      await session.run(`prepare transaction '${shared.prepare}'`);
      return result;
    }
    const { command } = await session.run("commit") as { command?: string };
    // The server answers COMMIT with ROLLBACK when a statement had failed that nobody waited for.
    if (command !== "COMMIT") {
      throw loan.error(
        "the transaction was rolled back, because a statement in it had failed",
        "TRANSACTION_FAILED",
        uncaught(),
      );
    }
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

/** Runs the body; takes back what it did when it, or a statement of it, fails. */
async function attempt(
  parent: Scope,
  body: Body,
  shared: Shared,
  undo: string,
  part: string,
): Promise<Outcome> {
  const { session, loan } = parent;
  let failure: { readonly error: unknown } | null = null;
  const scope = new Scope(session, loan, part, (error) => failure ??= { error });
  scope.owner = parent.owner;
  const first = (): { readonly error: unknown } | null => failure;
  try {
    const value = body(shared.makeHandle(scope, control(scope, shared)));
    const result = await (Array.isArray(value) ? Promise.all(value) : value);
    const failed = first();
    // As in the driver, a failed statement fails the transaction even if the body caught it.
    if (failed !== null) throw failed.error;
    return { result, uncaught: () => first()?.error };
  } catch (error) {
    // When this fails the session is over, which ends the transaction too; the cause is the news.
    await session.run(undo).catch(() => {});
    throw (isAborted(error) && first()?.error) || error;
  } finally {
    scope.end();
  }
}

/** "current transaction is aborted": the consequence of another failure. */
function isAborted(error: unknown): boolean {
  return (error as { code?: unknown } | null)?.code === "25P02";
}

function control(scope: Scope, shared: Shared): TransactionControl {
  return {
    prepare: (name) => {
      shared.prepare = String(name).replace(/[^a-zA-Z0-9$_. -]/g, "");
    },
    savepoint: (...args) => savepoint(scope, args, shared),
  };
}

async function savepoint(
  parent: Scope,
  args: readonly unknown[],
  shared: Shared,
): Promise<unknown> {
  const [first] = args;
  // As a template's tag: one statement in a savepoint.
  if (Array.isArray((first as { raw?: unknown } | undefined)?.raw)) {
    return await savepoint(parent, [(sql: Sql) => Reflect.apply(sql, undefined, args)], shared);
  }
  const [name, body] = args.length === 1 ? [null, first] : args;
  if (typeof body !== "function") {
    throw new TypeError("savepoint takes a function, or a name and a function");
  }
  parent.assert();
  const label = `s${shared.savepoints++}${name ? `_${name}` : ""}`.replace(/"/g, '""');
  await parent.session.run(`savepoint "${label}"`);
  const undo = `rollback to "${label}"`;
  return (await attempt(parent, body as Body, shared, undo, "savepoint")).result;
}
