import { assertEquals, assertRejects } from "@std/assert";
import { isPooled } from "../src/postgres/pooler.ts";
import { test } from "./support/harness.ts";

type Asked = Parameters<typeof isPooled>[0];

/** A session whose key says pid -7, at a server with this answer. */
function session(answer: string | Error): Asked {
  const run = () =>
    answer instanceof Error ? Promise.reject(answer) : Promise.resolve({ row: [answer] });
  return { run, started: { key: { pid: -7 } } } as unknown as Asked;
}

test("a pooler is what gives out another pid than the server has, and what does not know the server's", async () => {
  assertEquals(await isPooled(session("-7")), false);
  assertEquals(await isPooled(session("8")), true);
  // Said already, and the server is not asked.
  assertEquals(await isPooled(session("8"), "-7"), false);
  assertEquals(await isPooled(session("-7"), null), true);
  for (const code of ["42883", "42501", "0A000"]) {
    assertEquals(await isPooled(session(Object.assign(new Error(code), { code }))), true);
  }
  for (const code of ["57P01", "CONNECTION_CLOSED"]) {
    const lost = session(Object.assign(new Error(code), { code }));
    await assertRejects(() => isPooled(lost), Error, code);
  }
});
