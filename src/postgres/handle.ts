/**
 * The handles that borrowers hold: a function per lease, with its members on a prototype of getters.
 * A proxy costs less to make in V8 (14 against 70 ns), but whatever is read from it or called on it
 * costs more: in JavaScriptCore 90 ns each, and each `await` of a handle reads its `then`.
 */

import { inspectable } from "../pool/describe.ts";
import { LEASE } from "../pool/lease.ts";
import { ignore } from "../pool/safely.ts";
import type { Lease } from "../pool/types.ts";
import type { Connection } from "./connection.ts";
import { isTemplate, postgres } from "./language.ts";
import { largeObject } from "./large_object.ts";
import { listen } from "./listen.ts";
import { NO_MEMBERS } from "./members.ts";
import { Scope, type TransactionControl } from "./scope.ts";
import type { Session } from "./session.ts";
import { begin, nestInPool } from "./transaction.ts";
import { Turns } from "./turns.ts";

/** Called with it, a handle's function gives what is inside; nobody else has it. */
const INSIDE: unique symbol = Symbol("inside");

type Make = (scope: Scope) => unknown;
type Members = Record<PropertyKey, Make>;

/** Makes a handle of this kind: a function that makes statements under the right of `scope`. */
function handleOf(scope: Scope, face: object): Connection {
  const { language } = scope.session;
  const connection = (strings: unknown, ...args: unknown[]): unknown => {
    if (strings === INSIDE) return scope;
    if (!isTemplate(strings)) return language.helper(strings, args);
    return language.tagged(strings, args, scope, connection);
  };
  return scope.handle = Object.setPrototypeOf(connection, face) as Connection;
}

/** A revocable handle of a session for one lease. */
export function lendSession(session: Session, lease: Lease): Connection {
  return lend(session, lease, CONNECTION);
}

/** The same with a `release`, which puts it back: what the `reserve` of a whole pool gives. */
export function reserveSession(session: Session, lease: Lease): Connection {
  return lend(session, lease, RESERVATION);
}

function lend(session: Session, lease: Lease, face: object): Connection {
  const scope = new Scope(session, lease);
  return scope.owner = handleOf(scope, face);
}

/** The handle of a transaction, or a part of it. */
function partOf(part: Scope, control: TransactionControl): unknown {
  part.control = control;
  return handleOf(part, TRANSACTION);
}

/** Runs `fn` in a savepoint of the pool's transaction on the lease of this handle. */
export function nestInLease<T>(conn: Connection, fn: () => T | Promise<T>): Promise<T> {
  return nestInPool((conn as unknown as (key: symbol) => Scope)(INSIDE), fn, partOf);
}

/** `begin` of a lease whose handle nobody else has. */
export function beginAlone(conn: Connection, args: readonly unknown[]): Promise<unknown> {
  return begin((conn as unknown as (key: symbol) => Scope)(INSIDE), args, partOf, true);
}

/** Makes a member that is made once per handle. */
function bound(key: PropertyKey, make: Make): Make {
  return (scope) => scope.once(key, () => make(scope));
}

/** The prototype of a kind of handle. Frozen, so that nobody changes other handles by it. */
function face(members: Members): object {
  const prototype = Object.create(NO_MEMBERS, {
    // Every await asks for it; it need not go all the way.
    then: { value: undefined },
  });
  for (const key of Reflect.ownKeys(members)) {
    const make = members[key]!;
    Object.defineProperty(prototype, key, {
      get(this: (key: symbol) => Scope): unknown {
        return make(this(INSIDE));
      },
    });
  }
  inspectable(prototype, () => "[Connection]");
  return Object.freeze(prototype);
}

function unsafe(scope: Scope): unknown {
  return (text: unknown, ...rest: unknown[]) => scope.session.language.unsafe(text, rest, scope);
}

function file(scope: Scope): unknown {
  return (path: unknown, ...rest: unknown[]) => {
    const query = scope.session.language.file(path, rest, scope);
    const { handler } = query;
    query.handler = (q) => {
      const { refusal } = scope;
      if (refusal !== null) q.reject(refusal);
      else handler(q);
    };
    return query;
  };
}

/** What every kind of handle has: the driver's `ISql`. */
const STATEMENTS: Members = {
  unsafe: bound("unsafe", unsafe),
  file: bound("file", file),
  json: (scope) => scope.session.language.sql.json,
  array: (scope) => scope.session.language.sql.array,
  typed: (scope) => scope.session.language.sql.typed,
  types: (scope) => scope.session.language.sql.types,
  notify: bound(
    "notify",
    ({ handle }) => async (channel: string, payload: unknown) =>
      await handle!`select pg_notify(${channel}, ${"" + payload})`,
  ),
  options: (scope) => scope.session.language.options,
  parameters: (scope) => Object.fromEntries(scope.session.started.parameters),
  PostgresError: () => postgres.PostgresError,
  CLOSE: (scope) => scope.session.language.sql.CLOSE,
  END: (scope) => scope.session.language.sql.END,
};

function refuse(what: string, instead: string): Make {
  return bound(what, (scope) => (): Promise<never> =>
    Promise.reject(
      scope.refusal ??
        scope.lease.error(
          `${what} is not possible on a leased connection: ${instead}`,
          "UNSUPPORTED",
        ),
    ));
}

/**
 * A view of the same session with a `release`, for code that reserves what it was given. Reservations come one after
 * the other, and while one is out, whatever it was made from executes nothing.
 */
function reserve(scope: Scope): unknown {
  return async (): Promise<unknown> => {
    const { refusal, session, lease } = scope;
    if (refusal !== null) throw refusal;
    if (lease.holder !== null && !(lease.holder === scope || scope.turns?.taken)) {
      throw lease.error("a transaction is open: use its own handle", "IN_TRANSACTION");
    }
    const turns = scope.turns ??= newTurns(scope);
    const part = new Scope(session, lease, "reservation");
    part.owner = scope.owner;
    let before: object | null = null;
    let wasIdle = true;
    await new Promise<void>((resolve, refuse) => {
      const start = (): void => {
        before = lease.holder;
        lease.holder = part;
        wasIdle = session.status === "idle";
        resolve();
      };
      turns.take({ keeps: true, start, refuse });
    });
    part.onend = async () => {
      // The next one must not find a transaction of this one.
      if (wasIdle && session.status !== "idle") await rollBack(session).catch(ignore);
      lease.holder = before;
      turns.give();
    };
    return handleOf(part, RESERVED);
  };
}

async function rollBack(session: Session): Promise<void> {
  if (session.status === "active") await session.quiet();
  if (session.lastState !== "idle") await session.command("rollback");
}

/** Turns that end with the lease or its session. */
function newTurns(scope: Scope): Turns {
  const { lease } = scope;
  const turns = new Turns(null);
  lease.whenOver((lost) =>
    turns.refuse(
      scope.refusal ?? lease.error("connection is closed", "CONNECTION_LOST", lost?.reason),
    )
  );
  return turns;
}

function rollback(scope: Scope): unknown {
  return async (): Promise<void> => {
    scope.assert();
    if (scope.session.status !== "idle") await scope.session.command("rollback");
  };
}

function close(scope: Scope): unknown {
  return async (): Promise<void> => {
    // As in psycopg2: to close what is closed, by whomever, does nothing.
    if (scope.session.reason !== null) return;
    if (!scope.lease.open) throw scope.lease.returned();
    scope.lease.expectLoss();
    await scope.session.hangUp();
  };
}

const SESSION: Members = {
  ...STATEMENTS,
  closed: (scope) => !scope.lease.open || scope.session.reason !== null,
  transactionStatus: (scope) => scope.lease.open ? scope.session.status : "unknown",
  pid: (scope) => scope.session.pid,
  rollback: bound("rollback", rollback),
  close: bound("close", close),
  begin: bound(
    "begin",
    (scope) => (...args: unknown[]) => begin(scope, args, partOf, false),
  ),
  listen: bound(
    "listen",
    (scope) => (channel: string, fn: (payload: string) => void, onlisten?: () => void) =>
      listen(scope, channel, fn, onlisten),
  ),
  largeObject: bound(
    "largeObject",
    ({ handle }) => (oid?: number, mode?: number) => largeObject(handle!, oid, mode),
  ),
  reserve: bound("reserve", reserve),
  end: refuse("end", "putconn gives it back, close() closes its session"),
  subscribe: refuse(
    "subscribe",
    "it opens sessions of its own; use the driver's own client for it",
  ),
};

const LEASED: Members = {
  ...SESSION,
  [LEASE]: (scope) => scope.lease,
  [Symbol.asyncDispose]: bound(Symbol.asyncDispose, (scope) => () => scope.lease.putconn()),
};

const CONNECTION = face(LEASED);

const RESERVATION = face({
  ...LEASED,
  // Nobody waits for it, and nobody need to know of its failure.
  release: bound("release", (scope) => () => scope.lease.putconn().catch(ignore)),
});

const RESERVED = face({
  ...SESSION,
  release: bound("release", (scope) => () => scope.end()),
});

const TRANSACTION = face({
  ...STATEMENTS,
  savepoint: bound("savepoint", ({ control }) => control!.savepoint),
  prepare: bound("prepare", ({ control }) => control!.prepare),
  begin: bound("begin", ({ control }) => control!.begin),
});
