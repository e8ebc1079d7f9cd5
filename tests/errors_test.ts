/** The errors of several copies of the package in one process are one family. */

import { assertEquals } from "@std/assert";
import * as ours from "../src/pool/errors.ts";
import { test } from "./support/harness.ts";

// Not a literal, for the type checker knows only one. The query makes it a module of its own.
const copy = "../src/pool/errors.ts?copy";
const theirs = await import(copy) as typeof ours;

const counts = { connecting: 0, idle: 0, leased: 0, shared: 0, waiting: 0, maxconn: 1 };
const context = { pool: "p", counts };

/** One error of each class. */
function errors(
  { PoolError, PoolClosed, PoolExhausted, PoolTimeout, TooManyWaiting, ConnectionReturned }:
    typeof ours,
) {
  return {
    PoolError: new PoolError("no", "UNSUPPORTED", context),
    PoolClosed: new PoolClosed(context),
    PoolExhausted: new PoolExhausted(context),
    PoolTimeout: new PoolTimeout(context, 1),
    TooManyWaiting: new TooManyWaiting(context, 1),
    ConnectionReturned: new ConnectionReturned(context),
  };
}

/** Of which of these classes each of these errors is an instance. */
function table(of: ReturnType<typeof errors>, classes: typeof ours): Record<string, string[]> {
  const names = Object.keys(of) as (keyof typeof of)[];
  return Object.fromEntries(
    names.map((error) => [error, names.filter((name) => of[error] instanceof classes[name])]),
  );
}

test("instanceof PoolError and its subclasses: errors of another copy are of the same family", () => {
  assertEquals(theirs.PoolError === ours.PoolError, false, "these are two copies");
  const own = table(errors(ours), ours);
  assertEquals(own, {
    PoolError: ["PoolError"],
    PoolClosed: ["PoolError", "PoolClosed"],
    PoolExhausted: ["PoolError", "PoolExhausted"],
    PoolTimeout: ["PoolError", "PoolExhausted", "PoolTimeout"],
    TooManyWaiting: ["PoolError", "TooManyWaiting"],
    ConnectionReturned: ["PoolError", "ConnectionReturned"],
  });
  assertEquals(table(errors(theirs), ours), own);
  assertEquals(table(errors(ours), theirs), own);
});

test("instanceof of a program's own subclass means that class alone", () => {
  class Ours extends ours.PoolTimeout {}
  class Theirs extends theirs.PoolTimeout {}
  const [one, other] = [new Ours(context, 1), new Theirs(context, 1)];
  assertEquals([one instanceof Ours, other instanceof Theirs], [true, true]);
  assertEquals([one instanceof Theirs, other instanceof Ours], [false, false]);
  assertEquals([errors(theirs).PoolTimeout instanceof Ours], [false]);
  assertEquals([other instanceof ours.PoolExhausted, other instanceof ours.PoolClosed], [
    true,
    false,
  ]);
});

test("instanceof PoolError takes anything, and is false for what is no error of a pool", () => {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  const throwing = new Proxy({}, {
    get() {
      throw new Error("hands off");
    },
  });
  const values = [null, undefined, 7, "PoolError", {}, Object.create(null), new Error("x")];
  for (const value of [...values, throwing, proxy] as unknown[]) {
    assertEquals(value instanceof ours.PoolError, false);
  }
});
