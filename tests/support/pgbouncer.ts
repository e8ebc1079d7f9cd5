/**
 * A real PgBouncer before the test server: Debian's package `pgbouncer`.
 *
 * @module
 */
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import * as fs from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { freePort } from "./embedded_postgres.ts";
import { own, sharedTemp, spawnAsServer } from "./embedded_postgres_setup.ts";
import { eventually, testServer } from "./server.ts";

const PROGRAM = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"]
  .find((path) => existsSync(path));

/** Why a test with it cannot run here. */
export const noPgBouncer: string | false = PROGRAM === undefined &&
  "pgbouncer is not installed (Debian: apt-get install pgbouncer)";

/** Ends the program when its owner closes the pipe, or is gone; ends with it. */
const SUPERVISOR = `exec 3<&0; "$@" >/dev/null 3<&- & program=$!
(read -r _ <&3; kill -TERM $program) >/dev/null 2>&1 & wait $program; code=$?; kill $!; exit $code`;

/**
 * A running PgBouncer. When it ends of itself it is started again, as a service manager does: 1.18, which
 * Debian has, may end with "bad client state" when a cancel request and another end meet (its issues 801
 * and 822).
 */
export class PgBouncer implements AsyncDisposable {
  readonly url: string;
  /** What it said last before it ended of itself, each time. */
  readonly crashes: string[] = [];
  readonly #folder: string;
  readonly #port: number;
  readonly #ini: (url: string) => string;
  #child: ChildProcess | undefined;
  #restart: Promise<void> = Promise.resolve();

  /** Use {@linkcode startPgBouncer}. */
  constructor(folder: string, port: number, url: string, ini: (url: string) => string) {
    this.#ini = ini;
    this.#folder = folder;
    this.#port = port;
    const target = new URL(url);
    target.host = `127.0.0.1:${port}`;
    this.url = target.href;
  }

  /** Names the server to which it connects from its next start on. */
  async target(url: string): Promise<void> {
    await fs.writeFile(join(this.#folder, "pgbouncer.ini"), this.#ini(url));
  }

  /** Starts it; resolves when it takes connections. */
  async start(): Promise<void> {
    const args = ["-c", SUPERVISOR, "sh", PROGRAM!, join(this.#folder, "pgbouncer.ini")];
    const child = await spawnAsServer("sh", args, { stdio: ["pipe", "ignore", "pipe"] });
    this.#child = child;
    child.stdin!.on("error", () => {});
    let last = "";
    child.stderr!.setEncoding("utf8").on("data", (text: string) => {
      last = (last + text).slice(-1_000);
    });
    let ready = false;
    const ended = once(child, "close").then(([code]) => {
      if (this.#child !== child) return;
      this.#child = undefined;
      const what = `PgBouncer has ended of itself with code ${code}: ${last.trim()}`;
      // One that cannot even start is not started again.
      if (!ready) throw new Error(what);
      console.error(what);
      this.crashes.push(last);
      this.#restart = this.start();
      this.#restart.catch(() => {});
    });
    await Promise.race([eventually(() => this.#knock()), ended]);
    ready = true;
  }

  /** Stops it at once, whoever is connected. */
  async stop(): Promise<void> {
    await this.#restart;
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined) return;
    const exited = once(child, "close");
    child.stdin?.end();
    await exited;
  }

  /** Stops it and removes its folder. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await fs.rm(this.#folder, { recursive: true, force: true });
  }

  async #knock(): Promise<void> {
    const socket = connect(this.#port, "127.0.0.1");
    const closed = once(socket, "close").catch(() => {});
    try {
      await once(socket, "connect");
    } finally {
      socket.destroy();
      await closed;
    }
  }
}

/** Starts one with `size` connections to a server: by default that of the tests. */
export async function startPgBouncer(
  mode: "session" | "transaction",
  size: number,
  more: Record<string, string | number> = {},
  server?: string,
): Promise<PgBouncer> {
  const url = server ?? (await testServer()).url;
  const { username, password } = new URL(url);
  const folder = await fs.mkdtemp(join(await sharedTemp(), "getconn-pgbouncer-"));
  const listen = await freePort();
  const settings = {
    listen_addr: "127.0.0.1",
    listen_port: listen,
    unix_socket_dir: "",
    auth_type: "scram-sha-256",
    auth_file: join(folder, "users.txt"),
    pool_mode: mode,
    default_pool_size: size,
    max_client_conn: 100,
    ignore_startup_parameters: "extra_float_digits",
    server_login_retry: 0.2,
    ...more,
  };
  const lines = Object.entries(settings).map(([key, value]) => `${key} = ${value}`);
  const ini = (url: string): string => {
    const { hostname, port, pathname } = new URL(url);
    const target = `host=${hostname} port=${port} dbname=${pathname.slice(1)}`;
    return `[databases]\n${pathname.slice(1)} = ${target}\n[pgbouncer]\n${lines.join("\n")}\n`;
  };
  const user = `"${decodeURIComponent(username)}" "${decodeURIComponent(password)}"\n`;
  await fs.writeFile(join(folder, "users.txt"), user, { mode: 0o600 });
  const bouncer = new PgBouncer(folder, listen, url, ini);
  await bouncer.target(url);
  await own(folder);
  await bouncer.start();
  return bouncer;
}
