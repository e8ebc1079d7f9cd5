/** The handles of leases and of reservations in them: what may be done with a session of one's own. */

import { LEASE } from "../pool/lease.ts";
import { ignore } from "../pool/safely.ts";
import type { Lease } from "../pool/types.ts";
import type { Connection } from "./connection.ts";
import { bound, face, handleOf, type Make, type Members, STATEMENTS } from "./handle.ts";
import { largeObject } from "./large_object.ts";
import { listen } from "./listen.ts";
import { Scope } from "./scope.ts";
import type { Session } from "./session.ts";
import { begin } from "./transaction.ts";
import { Turns } from "./turns.ts";

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
  return scope.leaseHandle = handleOf(scope, face);
}

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
    part.leaseHandle = scope.leaseHandle;
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
    (scope) => (...args: unknown[]) => begin(scope, args, false),
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
    "it opens sessions of its own; use a client that postgres() makes for it",
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
