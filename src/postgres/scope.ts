/** The right to execute statements on a session: a lease, or a part of it such as a transaction. */

import { ignore } from "../pool/safely.ts";
import { AsyncLocalStorage } from "node:async_hooks";
import type { Lease } from "../pool/types.ts";
import type { Connection } from "./connection.ts";
import { cancel, execute } from "./execution.ts";
import { bindCallbacks, type Owner, type Query } from "./query.ts";
import type { Session } from "./session.ts";
import type { Turns } from "./turns.ts";
import { FOREIGN } from "./wire/connect_error.ts";

/** What a part of a transaction has beside the rights of other parts. */
export interface Within {
  /** What it is a part of. */
  readonly parent: Scope;
  /** Hears of each statement that fails. */
  readonly onfailure: (error: unknown) => void;
  /** Common to all parts of the transaction; grows with each statement. */
  readonly tally: { steps: number };
}

/** A savepoint in whose function the code at hand runs, and the one around it, which may be another connection's. */
interface Flow {
  readonly scope: Scope;
  outer: Flow | null;
}

const flow: AsyncLocalStorage<Flow> = new AsyncLocalStorage();

function openFrom(found: Flow | null): Flow | null {
  let at = found;
  while (at !== null && !at.scope.partOpen) at = at.outer;
  return at;
}

/** Runs a savepoint's function: what it asks of the handles around it is known to come from it. */
export function runWithin<T>(scope: Scope, fn: () => T): T {
  const outer = openFrom(flow.getStore() ?? null);
  // Work that each time starts the next one and ends: the chain must not grow with it.
  for (let at = outer; at !== null; at = at.outer) at.outer = openFrom(at.outer);
  return flow.run({ scope, outer }, fn);
}

/** The part of `scope` in whose function the code at hand runs: the innermost that is open; else `scope` itself. */
export function innermost(scope: Scope): Scope {
  for (let run = flow.getStore() ?? null; run !== null; run = run.outer) {
    let found = scope;
    for (let at: Scope | null = run.scope; at !== null && at !== scope; at = at.parent) {
      if (found === scope && at.partOpen) found = at;
      if (at.parent === scope) return found;
    }
  }
  return scope;
}

/** One holder's right to execute statements on a session. */
export class Scope implements Owner {
  readonly session: Session;
  readonly lease: Lease;
  /** The lease's handle: not garbage while a statement or a part of the lease is at work. */
  leaseHandle: unknown = null;
  /** What its holder has. */
  handle: Connection | null = null;
  onend: (() => void) | null = null;
  /** Whose turn it is among its parts that exclude each other: savepoints, reservations. Null until there was one. */
  turns: Turns | null = null;
  /** The transaction of `pool.transaction` on this lease, when something was nested in it. */
  nesting: Scope | null = null;
  /** Functions that were asked for, so that they stay the same and stay bound. */
  #made: Map<PropertyKey, unknown> | null = null;
  /** What holds the right beside the lease; null when nothing does. */
  readonly #part: string | null;
  #partOpen = true;
  readonly #within: Within | null;

  constructor(
    session: Session,
    lease: Lease,
    part: string | null = null,
    within: Within | null = null,
  ) {
    this.session = session;
    this.lease = lease;
    this.#part = part;
    this.#within = within;
  }

  /** What it is a part of; null for what is no part of a transaction. */
  get parent(): Scope | null {
    return this.#within?.parent ?? null;
  }

  /** True until the part has ended. */
  get partOpen(): boolean {
    return this.#partOpen;
  }

  /** Whoever shows a statement as JSON shows nothing of its session, whose key for cancel requests is a secret. */
  toJSON(): undefined {}

  /** Makes a function once. */
  once(key: PropertyKey, make: () => unknown): unknown {
    this.#made ??= new Map();
    let made = this.#made.get(key);
    if (made === undefined) this.#made.set(key, made = make());
    return made;
  }

  /** Ends the right, before the lease ends. */
  end(): void {
    if (!this.#partOpen) return;
    this.#partOpen = false;
    this.turns?.refuse(this.refusal);
    this.onend?.();
  }

  /** Why nothing can be executed, or null. */
  get refusal(): Error | null {
    const { lease, session } = this;
    if (!lease.open) return lease.returned();
    const { reason } = session;
    // What ends a part, too.
    if (reason !== null) {
      const message = reason.message === FOREIGN ? FOREIGN : "connection is closed";
      return lease.error(message, "CONNECTION_LOST", reason);
    }
    return this.#partOpen ? null : lease.error(
      `the ${this.#part} has ended, and what belongs to it cannot be used any more`,
      "UNSUPPORTED",
    );
  }

  /** Throws when nothing can be executed. */
  assert(): void {
    const { refusal } = this;
    if (refusal !== null) throw refusal;
  }

  /** Executes a statement; never throws, as the driver could not catch it. */
  execute(query: Query): void {
    const { refusal } = this;
    if (refusal !== null) return query.reject(refusal);
    if (query.forEachFn !== undefined || query.cursorFn !== undefined) bindCallbacks(query);
    if (this.turns?.taken) return this.#executeLater(query);
    if (this.nesting?.turns?.taken) return this.#executeNested(this.nesting, query);
    this.#execute(query);
  }

  /** It belongs to the savepoint in whose function it was called; outside of all it waits until they are over. */
  #executeNested(root: Scope, query: Query): void {
    const scope = innermost(root);
    if (scope.turns?.taken) scope.#executeLater(query);
    else scope.#execute(query);
  }

  #execute(query: Query): void {
    const within = this.#within;
    if (within !== null) {
      within.tally.steps++;
      query.catch(within.onfailure);
    }
    execute(this.session, query);
  }

  /** A part has the session for itself. */
  #executeLater(query: Query): void {
    if (this.#within === null) {
      return query.reject(
        this.lease.error(
          "the connection is reserved: use what reserve() gave, or release it before",
          "IN_TRANSACTION",
        ),
      );
    }
    // What the savepoint's own function asks for is a part of it.
    if (innermost(this) !== this) return this.#execute(query);
    this.turns!.take({
      keeps: false,
      start: () => {
        const { refusal } = this;
        if (refusal !== null) query.reject(refusal);
        else this.#execute(query);
      },
      refuse: (reason) => query.reject(reason),
    });
  }

  /** Cancels a statement: that of a lease that is over must not hit the next borrower's. */
  cancel(query: Query): Promise<void> {
    if (!this.lease.open) return Promise.resolve();
    return cancel(query).catch(ignore);
  }
}
