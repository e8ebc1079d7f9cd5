/** Nothing global of the runtime is replaced, whatever is done with a session. */

import { assertEquals } from "@std/assert";
import process from "node:process";
import { test } from "./support/harness.ts";
import { lent } from "./support/postgres.ts";

/** Everything that somebody could have replaced: globals, and what they hold. */
function globals(): Map<string, unknown> {
  const seen = new Map<string, unknown>();
  const scope = globalThis as unknown as Record<string, unknown>;
  for (const name of Object.getOwnPropertyNames(scope)) {
    const { value } = Object.getOwnPropertyDescriptor(scope, name)!;
    seen.set(name, value);
    if (typeof value !== "function") continue;
    const prototype = (value as { prototype?: object }).prototype;
    for (const key of prototype ? Object.getOwnPropertyNames(prototype) : []) {
      seen.set(`${name}#${key}`, Object.getOwnPropertyDescriptor(prototype!, key)!.value);
    }
  }
  seen.set("process.env", process.env);
  return seen;
}

test("no global is replaced while statements run, or after", async () => {
  const before = globals();
  const during: Map<string, unknown>[] = [];
  await using it = await lent({
    transform: {
      row: (row: unknown) => {
        during.push(globals());
        return row;
      },
    },
  });
  await it.conn`select 1 as a`;
  await it.conn.begin((sql) => sql`select ${1}::int as a`);
  during.push(globals());
  assertEquals(during.length, 3);
  for (const now of during) {
    for (const [name, value] of before) assertEquals(Object.is(now.get(name), value), true, name);
  }
});
