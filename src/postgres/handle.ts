/**
 * The handles that borrowers hold: a proxy over one function for all, with a small object per loan.
 * Measured, that costs 12 to 20 ns; a WeakMap costs 550, and closures for all members too much to make.
 */

import fs from "node:fs";
import { LOAN } from "../lease.ts";
import type { Loan } from "../types.ts";
import type { Connection } from "./connection.ts";
import { inside, postgres } from "./driver.ts";
import { largeObject } from "./large_object.ts";
import { listen } from "./listen.ts";
import { Scope } from "./scope.ts";
import type { Session } from "./session.ts";
import { begin, type TransactionControl } from "./transaction.ts";

/** What all proxies stand over. Frozen, so that nothing that is set on one handle shows on another. */
const base = Object.freeze(function connection(): void {}.bind(null));

type Make = (handle: Handle) => unknown;
type Members = Readonly<Record<PropertyKey, Make>>;

/** The object behind one proxy. */
class Handle implements ProxyHandler<typeof base> {
  readonly scope: Scope;
  readonly #members: Members;
  /** Functions that were asked for, so that they stay the same and stay bound. */
  #made: Map<PropertyKey, unknown> | null = null;
  proxy!: Connection;
  readonly control: TransactionControl | null;

  constructor(scope: Scope, members: Members, control: TransactionControl | null = null) {
    this.scope = scope;
    this.#members = members;
    this.control = control;
  }

  get(target: typeof base, key: PropertyKey): unknown {
    const make = this.#members[key];
    return make === undefined ? Reflect.get(target, key) : make(this);
  }

  has(target: typeof base, key: PropertyKey): boolean {
    return this.#members[key] !== undefined || Reflect.has(target, key);
  }

  apply(_target: unknown, _this: unknown, args: unknown[]): unknown {
    const made = callDriver(this.scope.session.sql, args);
    return Array.isArray((args[0] as { raw?: unknown } | undefined)?.raw)
      ? this.scope.own(made)
      : made;
  }

  /** Makes a function once. */
  once(key: PropertyKey, make: () => unknown): unknown {
    this.#made ??= new Map();
    let made = this.#made.get(key);
    if (made === undefined) this.#made.set(key, made = make());
    return made;
  }
}

/**
 * The driver keeps an Error for each template in a program for ever, and V8 keeps with an Error the
 * receivers of the four innermost calls. This call is the fourth, so that no lease is among them.
 */
function callDriver(sql: unknown, args: unknown[]): unknown {
  return Reflect.apply(sql as () => unknown, undefined, args);
}

function proxyOf(handle: Handle): Connection {
  return handle.proxy = new Proxy(base, handle) as unknown as Connection;
}

/** A revocable handle of a session for one loan. */
export function lendSession(session: Session, loan: Loan): Connection {
  const scope = new Scope(session, loan);
  const lease = proxyOf(new Handle(scope, CONNECTION));
  scope.owner = lease;
  return lease;
}

/** The same with a `release`, which puts it back: what the `reserve` of a whole pool gives. */
export function reserveSession(session: Session, loan: Loan): Connection {
  return proxyOf(new Handle(new Scope(session, loan), RESERVATION));
}

/** Makes a member that is made once per handle. */
function bound(key: PropertyKey, make: (handle: Handle) => unknown): Make {
  return (handle) => handle.once(key, () => make(handle));
}

function table(members: Record<PropertyKey, Make>): Members {
  return Object.assign(Object.create(null), members);
}

/** The driver's way to read `(text, args?, options?)`. */
function queryArgs(rest: unknown[]): [unknown[], object] {
  const [args = [], options = {}] = rest as [unknown, unknown];
  return rest.length === 1 && !Array.isArray(args)
    ? [[], args as object]
    : [args as unknown[], options as object];
}

function unsafe({ scope }: Handle): unknown {
  return (text: string, ...rest: unknown[]) => {
    const [args, options] = queryArgs(rest);
    return scope.own(scope.session.sql.unsafe(text, args as never[], options));
  };
}

function file({ scope }: Handle): unknown {
  return (path: string, ...rest: unknown[]) => {
    const [args, options] = queryArgs(rest);
    const query = scope.own(scope.session.sql.file(path, args as never[], options));
    const { handler } = scope;
    // The driver's own would execute the statement after reading, whatever has become of the lease.
    inside(query).handler = (q) => {
      const { refusal } = scope;
      if (refusal !== null) return q.reject(refusal);
      try {
        fs.readFile(path, "utf8", (error, text) => {
          if (error) return q.reject(error);
          q.strings = [text];
          handler(q);
        });
      } catch (error) {
        q.reject(error);
      }
    };
    return query;
  };
}

/** What every kind of handle has: the driver's `ISql`. */
const STATEMENTS: Record<PropertyKey, Make> = {
  unsafe: bound("unsafe", unsafe),
  file: bound("file", file),
  json: ({ scope }) => scope.session.sql.json,
  array: ({ scope }) => scope.session.sql.array,
  typed: ({ scope }) => scope.session.sql.typed,
  types: ({ scope }) => scope.session.sql.types,
  notify: bound(
    "notify",
    ({ proxy }) => async (channel: string, payload: unknown) =>
      await proxy`select pg_notify(${channel}, ${"" + payload})`,
  ),
  options: ({ scope }) => scope.session.sql.options,
  parameters: ({ scope }) => scope.session.sql.parameters,
  PostgresError: () => postgres.PostgresError,
  CLOSE: ({ scope }) => scope.session.sql.CLOSE,
  END: ({ scope }) => scope.session.sql.END,
};

function refuse(what: string, instead: string): Make {
  return bound(what, ({ scope }) => (): Promise<never> =>
    Promise.reject(
      scope.refusal ??
        scope.loan.error(
          `${what} is not possible on a leased connection: ${instead}`,
          "UNSUPPORTED",
        ),
    ));
}

/** A view of the same session with a `release`, for code that reserves what it was given. */
function reserve({ scope }: Handle): unknown {
  return (): Promise<unknown> => {
    const { refusal, session, loan } = scope;
    if (refusal !== null) return Promise.reject(refusal);
    const part = new Scope(session, loan, "reservation");
    part.owner = scope.owner;
    return Promise.resolve(proxyOf(new Handle(part, RESERVED)));
  };
}

function rollback({ scope }: Handle): unknown {
  return async (): Promise<void> => {
    scope.assert();
    if (scope.session.status !== "idle") await scope.session.run("rollback");
  };
}

function close({ scope }: Handle): unknown {
  return async (): Promise<void> => {
    if (!scope.loan.open) throw scope.loan.returned();
    await scope.session.hangUp();
  };
}

const SESSION: Record<PropertyKey, Make> = {
  ...STATEMENTS,
  closed: ({ scope }) => !scope.loan.open || scope.session.reason !== null,
  transactionStatus: ({ scope }) => scope.loan.open ? scope.session.status : "unknown",
  pid: ({ scope }) => scope.session.pid,
  rollback: bound("rollback", rollback),
  close: bound("close", close),
  begin: bound(
    "begin",
    ({ scope }) => (...args: unknown[]) =>
      begin(scope, args, (part, control) => proxyOf(new Handle(part, TRANSACTION, control))),
  ),
  listen: bound(
    "listen",
    ({ scope }) => (channel: string, fn: (payload: string) => void, onlisten?: () => void) =>
      listen(scope, channel, fn, onlisten),
  ),
  largeObject: bound(
    "largeObject",
    ({ proxy }) => (oid?: number, mode?: number) => largeObject(proxy, oid, mode),
  ),
  reserve: bound("reserve", reserve),
  end: refuse("end", "putconn gives it back, close() closes its session"),
  subscribe: refuse(
    "subscribe",
    "it opens sessions of its own; use the driver's own client for it",
  ),
};

const CONNECTION = table({
  ...SESSION,
  [LOAN]: ({ scope }) => scope.loan,
  [Symbol.asyncDispose]: bound(Symbol.asyncDispose, ({ scope }) => () => scope.loan.putconn()),
});

const RESERVATION = table({
  ...SESSION,
  [LOAN]: ({ scope }) => scope.loan,
  [Symbol.asyncDispose]: bound(Symbol.asyncDispose, ({ scope }) => () => scope.loan.putconn()),
  // Nobody waits for it, and nobody need to know of its failure.
  release: bound("release", ({ scope }) => () => scope.loan.putconn().catch(() => {})),
});

const RESERVED = table({
  ...SESSION,
  release: bound("release", ({ scope }) => () => scope.end()),
});

const TRANSACTION = table({
  ...STATEMENTS,
  savepoint: bound("savepoint", ({ control }) => control!.savepoint),
  prepare: bound("prepare", ({ control }) => control!.prepare),
  begin: bound("begin", ({ scope }) => (): Promise<never> =>
    Promise.reject(
      scope.refusal ??
        scope.loan.error("a transaction is open already: use savepoint", "IN_TRANSACTION"),
    )),
});
