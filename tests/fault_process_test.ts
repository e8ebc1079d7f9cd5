/** The process of the pool is stopped and goes on, as a suspended machine or a frozen isolate. */

import { assert, assertEquals } from "@std/assert";
import process from "node:process";
import { test } from "./support/harness.ts";
import { uniqueName } from "./support/postgres.ts";
import { startProgram } from "./support/program.ts";
import { asAdmin, eventually, sessions, testServer } from "./support/server.ts";

for (const killed of [false, true]) {
  const title = killed
    ? "SIGSTOP, all backends killed meanwhile, SIGCONT: the pool finds out by itself and goes on"
    : "SIGSTOP and SIGCONT under load: everything goes on, nothing is lost";
  test(title, async () => {
    const { url } = await testServer();
    const name = uniqueName();
    await using program = startProgram("sleeper", url, name);
    const { child } = program;
    assertEquals(await program.line(), "ready");
    const count = async (): Promise<number> => {
      child.stdin!.write("count\n");
      return Number(await program.line());
    };
    const working = async (): Promise<void> => {
      const before = await count();
      await eventually(async () => assert(await count() > before + 20));
    };
    for (let round = 0; round < 3; round++) {
      await working();
      process.kill(child.pid!, "SIGSTOP");
      if (killed) {
        await asAdmin((sql) =>
          sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity
            where application_name = ${name}`
        );
        await eventually(async () => assertEquals(await sessions(name), 0));
      } else {
        // Longer than checkAfter, and than many timers.
        await asAdmin((sql) => sql`select pg_sleep(0.4)`);
      }
      process.kill(child.pid!, "SIGCONT");
      await working();
    }
    child.stdin!.write("end\n");
    assertEquals(JSON.parse(await program.line()), { errors: [], leased: 0, requestsWaiting: 0 });
    await eventually(async () => assertEquals(await sessions(name), 0));
  });
}

test("SIGSTOP while a caller waits: the time in which nobody lived does not count before it had a chance", async () => {
  const { url } = await testServer();
  await using program = startProgram("frozen", url);
  const { child } = program;
  const ends: string[] = [];
  for (let round = 0; round < 3; round++) {
    child.stdin!.write("wait\n");
    assertEquals(await program.line(), "waiting");
    process.kill(child.pid!, "SIGSTOP");
    // Longer than the caller would wait; what it waits for is there long before.
    await asAdmin((sql) => sql`select pg_sleep(3.2)`);
    process.kill(child.pid!, "SIGCONT");
    ends.push(await program.line());
  }
  child.stdin!.write("end\n");
  assertEquals(ends, Array(3).fill("served"));
});
