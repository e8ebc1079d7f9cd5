/** Whether a pooler stands in between: what is asked, how often, and what follows from the answers. */

import { assertEquals, assertRejects } from "@std/assert";
import { Poolers } from "../src/postgres/poolers.ts";
import type { Session } from "../src/postgres/session.ts";
import { test } from "./support/harness.ts";

type Asked = Parameters<Poolers["ensure"]>[0];

/** A session whose key says pid 7, at a server with this answer. */
function session(answer: string | Error, port = 5432): { asked: Asked; texts: string[] } {
  const texts: string[] = [];
  const target = { host: "db", hostaddr: null, port, path: null };
  const run = (text: string) => {
    texts.push(text);
    return answer instanceof Error
      ? Promise.reject(answer)
      : Promise.resolve({ row: [answer] } as unknown as Awaited<ReturnType<Session["run"]>>);
  };
  const started = { target, key: { pid: 7, secret: new Uint8Array(4) } };
  return { asked: { run, started } as unknown as Asked, texts };
}

const failing = (code: string) => Object.assign(new Error(code), { code });

test("a pooler is what gives out another pid than the server has; each place is asked once", async () => {
  const poolers = new Poolers();
  for (const [port, answer, between] of [[1, "7", false], [2, "8", true]] as const) {
    const first = session(answer, port), second = session(answer, port);
    assertEquals(await poolers.ensure(first.asked), true);
    assertEquals(await poolers.ensure(second.asked), false);
    assertEquals([first.texts.length, second.texts.length], [1, 0]);
    for (const { asked } of [first, second]) assertEquals(poolers.between(asked), between);
  }
});

test("what does not know its pid counts as a pooler, and a place whose session is lost is asked again", async () => {
  const poolers = new Poolers();
  for (const code of ["42883", "42501", "0A000"]) {
    const { asked } = session(failing(code), Number.parseInt(code));
    assertEquals(await poolers.ensure(asked), true);
    assertEquals(poolers.between(asked), true);
  }
  for (const code of ["57P01", "CONNECTION_CLOSED"]) {
    const lost = session(failing(code), 9);
    await assertRejects(() => poolers.ensure(lost.asked), Error, code);
    // Nothing is known: the safe answer.
    assertEquals(poolers.between(lost.asked), true);
  }
  const well = session("7", 9);
  assertEquals(await poolers.ensure(well.asked), true);
  assertEquals(poolers.between(well.asked), false);
});
