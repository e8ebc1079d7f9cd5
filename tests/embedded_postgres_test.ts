import { assert, assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { chmod, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import postgres from "postgres";
import { startPostgres } from "./support/embedded_postgres.ts";
import { makeCertificates } from "./support/certs.ts";
import { runner, test } from "./support/harness.ts";
import { eventually, isAlive } from "./support/server.ts";

const OWNER = fileURLToPath(new URL("./fixtures/server_owner.ts", import.meta.url));

type Options = postgres.Options<Record<string, never>>;

/** One query over a connection of its own. */
async function ask(url: string, expression: string, options: Options = {}): Promise<unknown> {
  const sql = postgres(url, { max: 1, max_lifetime: null, onnotice: () => {}, ...options });
  try {
    const [row] = await sql.unsafe<{ value: unknown }[]>(`select ${expression} as value`);
    return row?.value;
  } finally {
    await sql.end({ timeout: 1 });
  }
}

/** Starts the fixture under this runtime, kills it without warning, and looks at what is left. */
async function killOwner(
  command: string[] = [],
  options: { cwd?: string; env?: Record<string, string> } = {},
): Promise<{ uid: number }> {
  const run = runner === "deno" ? ["run", "-A", "--no-check"] : [];
  const [program, ...args] = [...command, process.execPath, ...run, OWNER];
  const { cwd, env } = options;
  const child = spawn(program!, args, {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
    ...(cwd === undefined ? {} : { cwd }),
  });
  const closed = new Promise((resolve) => child.once("close", resolve));
  let output = "";
  let errors = "";
  child.stdout.on("data", (data: unknown) => output += String(data));
  child.stderr.on("data", (data: unknown) => errors += String(data));
  try {
    const said = await eventually(() => {
      assert(output.includes("\n"), `the owner says nothing but: ${errors}`);
      return JSON.parse(output) as { url: string; dataDir: string; pid: number; uid: number };
    }, {});
    assertEquals(await ask(said.url, "1"), 1);
    assert(isAlive(said.pid) && existsSync(said.dataDir));
    child.kill("SIGKILL");
    await eventually(() => {
      assert(!isAlive(said.pid), "the server still runs");
      assert(!existsSync(said.dataDir), "the data are still there");
    });
    return said;
  } finally {
    child.kill("SIGKILL");
    await closed;
  }
}

test("startPostgres() stops, starts again with its data, and leaves nothing", async () => {
  await using server = await startPostgres({ config: { max_connections: 7 } });
  assertEquals(await ask(server.url, "current_setting('max_connections')"), "7");
  await ask(server.url, "1; create table t as select 42 as n; select 1");
  const pid = await server.pid();
  for (const mode of ["smart", "fast", "immediate"] as const) {
    await server.stop(mode);
    await assertRejects(() => ask(server.url, "1", { connect_timeout: 5 }));
    await server.start();
    assertEquals(await ask(server.url, "(select n from t)"), 42);
  }
  assertNotEquals(await server.pid(), pid);
  await server.reload({ work_mem: "5MB" });
  await eventually(async () =>
    assertEquals(await ask(server.url, "current_setting('work_mem')"), "5MB")
  );
  process.kill((await server.pid())!, "SIGKILL");
  await eventually(() => assertRejects(() => ask(server.url, "1", { connect_timeout: 5 })));
  await server.start();
  assertEquals(await ask(server.url, "(select n from t)"), 42);
  await server.dispose();
  await server.dispose();
  assert(!existsSync(server.dataDir));
});

test("startPostgres() serves TCP and a Unix socket, and asks for the password", async () => {
  await using server = await startPostgres({ user: "some one", password: "p@ss word" });
  assertEquals(await ask(server.url, "current_user::text"), "some one");
  const { port, user: username, password, database } = server;
  const socket = { port, username, password, database };
  const unix = `${server.socketDir}/.s.PGSQL.${port}`;
  assertEquals(await ask("", "inet_server_addr()", { ...socket, path: unix }), null);
  await assertRejects(() => ask(server.url, "1", { password: "wrong" }), Error, "password");
});

test("startPostgres() runs several servers at once", async () => {
  const servers = await Promise.all([startPostgres(), startPostgres(), startPostgres()]);
  try {
    assertEquals(new Set(servers.map((server) => server.port)).size, 3);
    for (const server of servers) {
      assertEquals(await ask(server.url, "current_setting('data_directory')"), server.dataDir);
    }
  } finally {
    await Promise.all(servers.map((server) => server.dispose()));
  }
});

test("startPostgres() serves TLS, and pg_hba.conf is replaceable", async () => {
  const { ca, server: { cert, key } } = await makeCertificates();
  const hba = "hostssl all all all scram-sha-256\nhost all all all reject\n";
  await using server = await startPostgres({ ssl: { cert, key }, hba });
  const query = "(select ssl from pg_stat_ssl where pid = pg_backend_pid())";
  const verified = { ca, rejectUnauthorized: true, servername: "localhost" };
  assertEquals(await ask(server.url, query, { ssl: verified, host: "localhost" }), true);
  await assertRejects(() => ask(server.url, query, { ssl: "verify-full" }));
  await assertRejects(() => ask(server.url, query, { ssl: false }), Error, "rejects connection");
});

test("startPostgres() tells why the server did not start", async () => {
  const config = { shared_buffers: "nonsense" };
  await assertRejects(() => startPostgres({ config }), Error, "shared_buffers");
});

test("startPostgres() leaves no server and no data when its owner is killed", async () => {
  await killOwner();
});

test("startPostgres() works in a folder that only its owner may enter", async () => {
  const closed = await mkdtemp(join(tmpdir(), "getconn-closed-"));
  try {
    await killOwner([], { cwd: closed });
    // Where the temporary folder is closed as well, /tmp is open.
    await killOwner([], { cwd: closed, env: { TMPDIR: closed } });
  } finally {
    await rm(closed, { recursive: true });
  }
});

test("startPostgres() makes its binaries once, and uses none that others can change", async () => {
  const temp = await mkdtemp(join(tmpdir(), "getconn-temp-"));
  const env = { TMPDIR: temp };
  const made = async () => (await readdir(temp)).filter((name) => !name.includes("-run-")).sort();
  try {
    await chmod(temp, 0o755);
    await Promise.all([killOwner([], { env }), killOwner([], { env })]);
    const [name, ...more] = await made();
    assertEquals(more, []);
    const foreign = join(temp, name!);
    await chmod(foreign, 0o777);
    await writeFile(join(foreign, "bin", "postgres"), "#!/bin/sh\nexit 1\n");
    await killOwner([], { env });
    const both = await made();
    assertEquals(both.length, 2);
    assert(both[1]!.startsWith(`${name}-`), both[1]);
    await killOwner([], { env });
    assertEquals(await made(), both);
  } finally {
    await rm(temp, { recursive: true });
  }
});

test("startPostgres() works for an ordinary user", async () => {
  if (process.getuid?.() !== 0) {
    assertNotEquals((await killOwner()).uid, 0);
    return;
  }
  // The capability lets that user read the runtime and this project wherever root has put them.
  const caps = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"];
  const user = ["--reuid=daemon", "--regid=daemon", "--clear-groups", ...caps];
  assertNotEquals((await killOwner(["setpriv", ...user])).uid, 0);
}, { skip: process.platform !== "linux" && process.getuid?.() === 0 && "setpriv is Linux's" });
