/** Leases that nobody puts back. */

import { assertEquals, assertStringIncludes } from "@std/assert";
import { withClock } from "./support/checks.ts";
import { FakePool, settle } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { startProgram } from "./support/program.ts";
import { testServer } from "./support/server.ts";

test("testLeakDetection: a lease held for longer than leakAfter is reported, and again when it comes back", async () => {
  await withClock(async (clock) => {
    const pool = new FakePool(0, 2, { leakAfter: 2_000 });
    const seen: { held: number; stack: string; returned: boolean; collected: boolean }[] = [];
    pool.on("leak", ({ detail }) => void seen.push(detail));
    const quick = await pool.getconn();
    const slow = await pool.getconn();
    await clock.tickAsync(1_500);
    await pool.putconn(quick);
    await clock.tickAsync(1_500);
    await pool.putconn(slow);
    await settle();
    assertEquals(
      seen.map(({ held, returned, collected }) => [held, returned, collected]),
      [[2_000, false, false], [3_000, true, false]],
    );
    for (const { stack } of seen) assertStringIncludes(stack, "fault_leak_test");
    await pool.closeall();
  });
});

test("a lease that is garbage collected is taken back and reported, and so is a cursor or a COPY that was left; what is at work is no garbage, until it is lost", async () => {
  const { url } = await testServer();
  await using program = startProgram("leaker", url);
  assertEquals(JSON.parse(await program.line()), {
    inUse: 3,
    transaction: 1,
    statement: 7,
    realBack: true,
    heard: ["still here"],
    lostBack: true,
    cursorsAndStreamsLent: true,
    waitedFor: [true, true, 6],
    cursorsAndStreamsBack: true,
    leftBehind: 0,
    sessionsKept: true,
    allBack: true,
    reportedHeld: 4,
    reportedCollected: 3,
    stacks: 7,
    keyedStillLent: true,
    lendable: 4,
    statelessBack: true,
    statelessClosed: true,
  });
});

test("a lease under a key that is an object is taken back when both are garbage, and lives as long as the key", async () => {
  await using program = startProgram("forgotten_keys");
  assertEquals(JSON.parse(await program.line()), {
    forgotten: true,
    collected: [true, true],
    same: true,
    back: true,
  });
});
