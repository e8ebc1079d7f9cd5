/** What keeps a process alive, and what does not. */

import { assertEquals } from "@std/assert";
import { spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { runner, test } from "./support/harness.ts";
import { startProxy } from "./support/proxy.ts";
import { eventually, testServer } from "./support/server.ts";

const PROGRAM = fileURLToPath(new URL("./fixtures/exit.ts", import.meta.url));

/** Runs the fixture; `during` sees what it has said so far. */
async function run(
  what: string,
  url: string,
  during: (said: () => string) => Promise<unknown> = () => Promise.resolve(),
): Promise<string> {
  const args = runner === "deno" ? ["run", "-A", "--no-check"] : [];
  const child = spawn(process.execPath, [...args, PROGRAM, what, url], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const closed = new Promise((resolve) => child.once("close", resolve));
  let said = "";
  child.stdout.on("data", (data: unknown) => said += String(data));
  const limit = setTimeout(() => child.kill("SIGKILL"), 80_000);
  try {
    await during(() => said);
    assertEquals(await closed, 0, what);
    return said;
  } finally {
    clearTimeout(limit);
    child.kill("SIGKILL");
    await closed;
  }
}

test("a process with idle connections, or with none to be had, ends by itself", async () => {
  const { url } = await testServer();
  await using proxy = await startProxy(url);
  assertEquals(await run("idle connections", url), "end\n");
  await proxy.set("refuse");
  assertEquals(await run("a server that cannot be reached", proxy.url(url)), "end\n");
});

test("a process ends by itself though its pool was used under a test runner's fake timers", async () => {
  const { url } = await testServer();
  assertEquals(await run("a pool that was used under fake timers", url), "end\n");
});

test("a process lives as long as somebody waits without a limit, for a lease or for the server", async () => {
  const { url } = await testServer();
  await using proxy = await startProxy(url);
  assertEquals(await run("a caller that waits for a lease", url), "served\nend\n");
  await proxy.set("refuse");
  const said = await run("a caller that waits for a server", proxy.url(url), async (said) => {
    await eventually(() => assertEquals(said().startsWith("failed\nfailed\n"), true));
    await proxy.set("pass");
  });
  assertEquals(said.endsWith("served\nend\n"), true);
});
