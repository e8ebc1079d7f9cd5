/**
 * The PostgreSQL server of the tests: the one that `DATABASE_URL` names, or the one that
 * `deno task test` started for all runners, or one that this process starts at the first need.
 *
 * @module
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import postgres from "postgres";

/** What a test needs to know of the server. */
export interface TestServer {
  /** For a superuser. */
  readonly url: string;
  /** The folder of its Unix socket; undefined for a server from `DATABASE_URL`. */
  readonly socketDir?: string;
}

const HOST = fileURLToPath(new URL("./server_host.ts", import.meta.url));

/** The one server of this test run. It has the superuser's rights and `max_connections` = 200. */
export async function testServer(): Promise<TestServer> {
  const { DATABASE_URL, GETCONN_TEST_SERVER } = process.env;
  if (GETCONN_TEST_SERVER) return JSON.parse(GETCONN_TEST_SERVER);
  if (DATABASE_URL) return { url: DATABASE_URL };
  const server = await hostedServer();
  process.env["GETCONN_TEST_SERVER"] = JSON.stringify(server);
  return server;
}

/**
 * Starts a process that holds the server until this one ends. A child of a test would be a leak in
 * the eyes of Deno's sanitizers, and end with the test file; so the shell detaches it, and what is
 * left here is a file to read.
 */
async function hostedServer(): Promise<TestServer> {
  const folder = join(tmpdir(), `getconn-server-of-${process.pid}`);
  const answer = join(folder, "answer.json");
  const permissions = "Deno" in globalThis ? ["run", "-A"] : [];
  try {
    mkdirSync(folder, { mode: 0o700 });
    const args = [process.execPath, ...permissions, HOST, String(process.pid), folder];
    const script = `"$@" </dev/null >"$0/log" 2>&1 &`;
    spawnSync("sh", ["-c", script, folder, ...args], { stdio: "ignore" });
  } catch (error) {
    // Another file of this run is about to start it.
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
  for (const end = Date.now() + 120_000; Date.now() < end;) {
    if (!existsSync(answer)) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      continue;
    }
    const server: TestServer & { host: number } = JSON.parse(readFileSync(answer, "utf8"));
    if (isAlive(server.host)) return server;
    // A run that was killed with all its processes, and had the process id that is ours now.
    rmSync(folder, { recursive: true });
    return await hostedServer();
  }
  const log = readFileSync(join(folder, "log"), "utf8");
  rmSync(folder, { recursive: true });
  throw new Error(`the test server did not start: ${log}`);
}

/** Whether there is a process with this id. */
export function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

/** A plain client with a superuser's rights to observe the server; the test ends it. */
export async function admin(options: postgres.Options<Record<string, never>> = {}): Promise<
  postgres.Sql
> {
  const { url } = await testServer();
  return postgres(url, {
    max: 1,
    onnotice: () => {},
    // The driver's timers would outlive a test.
    max_lifetime: null,
    idle_timeout: 0,
    connection: { application_name: "test admin" },
    ...options,
  });
}

/** Runs `fn` with an {@linkcode admin} client. */
export async function asAdmin<T>(fn: (sql: postgres.Sql) => Promise<T>): Promise<T> {
  const sql = await admin();
  try {
    return await fn(sql);
  } finally {
    await sql.end();
  }
}

/** How many sessions the server has under this `application_name`. */
export function sessions(applicationName: string): Promise<number> {
  return asAdmin(async (sql) => {
    const rows = await sql<{ count: number }[]>`
      select count(*)::int as count from pg_stat_activity
      where application_name = ${applicationName}`;
    return rows[0]!.count;
  });
}

/** Ends a session as an administrator would; true when there was one. */
export function killBackend(pid: number): Promise<boolean> {
  return asAdmin(async (sql) => {
    const rows = await sql<{ done: boolean }[]>`select pg_terminate_backend(${pid}, 5000) as done`;
    return rows[0]!.done;
  });
}

/** Calls `fn` until it no longer throws; then gives its value, or after `timeout` its last error. */
export async function eventually<T>(
  fn: () => T | Promise<T>,
  options: { timeout?: number; interval?: number } = {},
): Promise<T> {
  const { timeout = 60_000, interval = 10 } = options;
  for (const end = Date.now() + timeout;;) {
    try {
      return await fn();
    } catch (error) {
      if (Date.now() > end) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, interval));
  }
}
