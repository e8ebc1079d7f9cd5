import { assert, assertEquals } from "@std/assert";
import { test } from "./support/harness.ts";
import { admin, eventually, killBackend, sessions, testServer } from "./support/server.ts";

test("testServer() gives one running server to all tests of a run", async () => {
  const [one, two] = await Promise.all([testServer(), testServer()]);
  assertEquals(one.url, two.url);
  const sql = await admin();
  try {
    const [row] = await sql<{ super: string; max: string }[]>`
      select current_setting('is_superuser') as super, current_setting('max_connections') as max`;
    assertEquals(row?.super, "on");
    assert(Number(row?.max) >= 100);
  } finally {
    await sql.end();
  }
});

test("sessions() counts by application_name, killBackend() ends one", async () => {
  const name = `harness ${crypto.randomUUID()}`;
  const sql = await admin({ connection: { application_name: name } });
  const [row] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`;
  assertEquals(await sessions(name), 1);
  assertEquals(await killBackend(row!.pid), true);
  await eventually(async () => assertEquals(await sessions(name), 0));
  await sql.end();
});
