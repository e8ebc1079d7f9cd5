/**
 * The package as users get it: packed and published into folders and registries that last as long as
 * a test, and the programs that take it from there.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { createHash } from "node:crypto";

/** The project's folder, with a slash at its end. */
export const root: string = new URL("../..", import.meta.url).pathname;
/** This Deno. */
export const deno: string = Deno.execPath();

/** What a program did. */
export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** How a program is run. */
export interface RunOptions {
  readonly cwd: string;
  readonly env?: Record<string, string>;
  /** Milliseconds after which it is killed. @default {170_000} */
  readonly timeout?: number;
}

/** Runs a program to its end; `code` is null when it had to be killed. */
export async function run(program: string, args: string[], options: RunOptions): Promise<Outcome> {
  const { cwd, env = {}, timeout = 170_000 } = options;
  // Its own process group, so that what a package manager started ends with it.
  const child = new Deno.Command(program, {
    args,
    cwd,
    env: { NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1", ...env },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    detached: true,
  }).spawn();
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    Deno.kill(-child.pid, "SIGKILL");
  }, timeout);
  try {
    const { code, stdout, stderr } = await child.output();
    const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
    return { code: late ? null : code, stdout: out!, stderr: err! };
  } finally {
    clearTimeout(timer);
  }
}

/** Runs a program that must succeed; gives what it printed. */
export async function succeed(
  program: string,
  args: string[],
  options: RunOptions,
): Promise<string> {
  const { code, stdout, stderr } = await run(program, args, options);
  assertEquals(code, 0, `${program} ${args.join(" ")}\n${stdout}\n${stderr}`);
  return stdout;
}

/** A clean folder, outside of the project, that goes with the test. */
export class Folder implements AsyncDisposable {
  readonly path: string = Deno.makeTempDirSync({ prefix: "getconn-package-" });

  /** Writes a file. */
  write(name: string, content: string | object): void {
    const text = typeof content === "string" ? content : JSON.stringify(content, null, 2);
    const path = `${this.path}/${name}`;
    Deno.mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    Deno.writeTextFileSync(path, text);
  }

  /** Copies a file of the project. */
  copy(from: string, to: string): void {
    this.write(to, Deno.readTextFileSync(root + from));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true });
  }
}

/** What only these tests need, and nobody who develops or uses the pool. */
const TOOLS: Record<string, string> = {
  "@vercel/functions": "3.9.9",
  "esbuild": "0.28.2",
  "jsr": "0.14.3",
  "miniflare": "4.20260730.0",
  [`node-${Deno.build.os}-${Deno.build.arch === "x86_64" ? "x64" : "arm64"}`]: "24.21.0",
  "postgres": JSON.parse(Deno.readTextFileSync(`${root}package.json`)).dependencies.postgres,
  "typescript": "5.9.3",
};

const folders = new Map<string, Promise<string>>();

/** The folder whose node_modules hold {@linkcode TOOLS}. */
export function tools(): Promise<string> {
  return modules(TOOLS);
}

/** A folder whose node_modules hold these: made once per machine, from npm. */
function modules(dependencies: Record<string, string>): Promise<string> {
  const text = JSON.stringify({ private: true, dependencies }, null, 2);
  let folder = folders.get(text);
  if (folder === undefined) folders.set(text, folder = installModules(text));
  return folder;
}

async function installModules(text: string): Promise<string> {
  const name = createHash("sha256").update(text).digest("hex").slice(0, 12);
  const temp = (Deno.env.get("TMPDIR") ?? "/tmp").replace(/\/$/, "");
  const target = `${temp}/getconn-package-${Deno.uid()}-${name}`;
  if (isOurs(target)) return target;
  // Made beside and moved into place: whoever comes second finds the whole.
  const draft = await Deno.makeTempDir({ prefix: "getconn-package-draft-" });
  await Deno.writeTextFile(`${draft}/package.json`, text);
  await succeed("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund"], {
    cwd: draft,
    timeout: 240_000,
  });
  try {
    await Deno.rename(draft, target);
  } catch (error) {
    await Deno.remove(draft, { recursive: true });
    if (!isOurs(target)) throw error;
  }
  return target;
}

function isOurs(path: string): boolean {
  try {
    const stat = Deno.lstatSync(path);
    return stat.isDirectory && stat.uid === Deno.uid() && ((stat.mode ?? 0) & 0o022) === 0;
  } catch {
    return false;
  }
}

/** Node, from npm. */
export async function node(): Promise<string> {
  const name = Object.keys(TOOLS).find((key) => key.startsWith("node-"));
  return `${await tools()}/node_modules/${name}/bin/node`;
}

let bunPath: Promise<string> | undefined;

/** Bun: the one that is installed, else the one from npm. */
export function bun(): Promise<string> {
  return bunPath ??= (async () => {
    const ask = ["-e", "console.log(process.execPath)"];
    for (const [program, ...args] of [["bun", ...ask], ["npx", "-y", "bun", ...ask]]) {
      const found = await run(program!, args, { cwd: root }).catch(() => null);
      if (found?.code === 0 && found.stdout.trim() !== "") return found.stdout.trim();
    }
    throw new Error("there is neither bun nor an npx that brings it");
  })();
}

let packed: Promise<Uint8Array<ArrayBuffer>> | undefined;

/** The npm tarball: what `deno task pack` makes. */
export function tarball(): Promise<Uint8Array<ArrayBuffer>> {
  return packed ??= (async () => {
    await using folder = new Folder();
    const path = `${folder.path}/pool.tgz`;
    await succeed(deno, ["task", "pack", "--allow-dirty", "--output", path], { cwd: root });
    return await Deno.readFile(path);
  })();
}

/** A clean folder in which the package is installed, with these files and what their package.json wants. */
export async function installed(files: Record<string, string | object> = {}): Promise<Folder> {
  const folder = new Folder();
  const target = `${folder.path}/node_modules`;
  await Deno.mkdir(`${target}/@getconn`, { recursive: true });
  await Deno.writeFile(`${folder.path}/pool.tgz`, await tarball());
  await succeed("tar", ["xzf", "pool.tgz"], { cwd: folder.path });
  await Deno.rename(`${folder.path}/package`, `${target}/@getconn/pool`);
  const wanted = files["package.json"];
  const [from, names] = typeof wanted === "string"
    ? await wantedModules(wanted)
    : [await tools(), ["postgres", "@vercel"]];
  for (const name of names) await Deno.symlink(`${from}/node_modules/${name}`, `${target}/${name}`);
  const dependencies = { "@getconn/pool": version, postgres: "*", "@vercel/functions": "*" };
  folder.write("package.json", { private: true, type: "module", dependencies });
  folder.write("deno.json", { nodeModulesDir: "manual" });
  for (const [name, content] of Object.entries(files)) folder.write(name, content);
  return folder;
}

/** Where the dependencies of this package.json are, all but the package itself, and their names or scopes. */
async function wantedModules(text: string): Promise<[folder: string, names: string[]]> {
  const { dependencies, devDependencies } = JSON.parse(text);
  const { "@getconn/pool": _, ...others }: Record<string, string> = {
    ...dependencies,
    ...devDependencies,
  };
  const names = Object.keys(others).map((name) =>
    name.startsWith("@") ? name.split("/")[0]! : name
  );
  return [await modules(others), [...new Set(names)]];
}

/** A program that runs while the test looks at it; killed with its group when disposed. */
export class Program implements AsyncDisposable {
  /** All that it has printed, on both streams. */
  output = "";
  readonly #child: Deno.ChildProcess;
  readonly #reading: Promise<unknown>;

  constructor(program: string, args: string[], options: RunOptions) {
    this.#child = new Deno.Command(program, {
      args,
      cwd: options.cwd,
      env: { NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1", ...options.env },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      detached: true,
    }).spawn();
    this.#reading = Promise.all([this.#read(this.#child.stdout), this.#read(this.#child.stderr)]);
  }

  async #read(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<void> {
    for await (const text of stream.pipeThrough(new TextDecoderStream())) this.output += text;
  }

  /** Waits until it has printed what `pattern` finds, behind `from`. */
  async says(pattern: RegExp, from = 0, timeout = 90_000): Promise<RegExpExecArray> {
    for (const end = Date.now() + timeout; Date.now() < end;) {
      const found = pattern.exec(this.output.slice(from));
      if (found !== null) return found;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error(`no ${pattern} in: ${this.output}`);
  }

  /** Sends it a signal. */
  kill(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  /** Its exit code, or null when it had to be killed after `timeout`. */
  async ends(timeout = 90_000): Promise<number | null> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.#killAll();
    }, timeout);
    const { code } = await this.#child.status;
    clearTimeout(timer);
    await this.#reading;
    return late ? null : code;
  }

  #killAll(): void {
    try {
      Deno.kill(-this.#child.pid, "SIGKILL");
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#killAll();
    await this.#child.status;
    await this.#reading;
  }
}

/** The commands that run a TypeScript file on each runtime. */
export async function runtimes(): Promise<Record<"deno" | "bun" | "node", [string, string[]]>> {
  return { deno: [deno, ["run", "-A"]], bun: [await bun(), []], node: [await node(), []] };
}

/** The version that is published. */
export const version: string = JSON.parse(Deno.readTextFileSync(`${root}jsr.json`)).version;
