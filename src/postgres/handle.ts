/**
 * The handles that borrowers hold: a function per lease, with its members on a prototype of getters.
 * A proxy costs less to make in V8 (14 against 70 ns), but whatever is read from it or called on it
 * costs more: in JavaScriptCore 90 ns each, and each `await` of a handle reads its `then`.
 */

import { inspectable } from "../pool/describe.ts";
import type { Connection } from "./connection.ts";
import { isTemplate, postgres } from "./language.ts";
import { NO_MEMBERS } from "./members.ts";
import type { Scope } from "./scope.ts";

/** Called with it, a handle's function gives what is inside; nobody else has it. */
const INSIDE: unique symbol = Symbol("inside");

/** Gives a member of a handle under the right of its scope. */
export type Make = (scope: Scope) => unknown;
/** The members of a kind of handle. */
export type Members = Record<PropertyKey, Make>;

/** Makes a handle of this kind: a function that makes statements under the right of `scope`. */
export function handleOf(scope: Scope, face: object): Connection {
  const { language } = scope.session;
  const connection = (strings: unknown, ...args: unknown[]): unknown => {
    if (strings === INSIDE) return scope;
    if (!isTemplate(strings)) return language.helper(strings, args);
    return language.tagged(strings, args, scope, connection);
  };
  return scope.handle = Object.setPrototypeOf(connection, face) as Connection;
}

/** The scope behind a handle. */
export function scopeOf(conn: Connection): Scope {
  return (conn as unknown as (key: symbol) => Scope)(INSIDE);
}

/** Makes a member that is made once per handle. */
export function bound(key: PropertyKey, make: Make): Make {
  return (scope) => scope.once(key, () => make(scope));
}

/** The prototype of a kind of handle. Frozen, so that nobody changes other handles by it. */
export function face(members: Members): object {
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
export const STATEMENTS: Members = {
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
