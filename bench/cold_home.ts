/** The package as Bun's users have it: JavaScript modules in a node_modules, beside the drivers. */

import { execFile } from "node:child_process";
import {
  cp,
  mkdir,
  mkdtemp,
  readdir,
  realpath,
  rename,
  symlink,
  writeFile,
} from "node:fs/promises";
import { rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const run = promisify(execFile);

/** Installs it in a temporary folder, with the programs of `bench/cold`; that goes with this process. */
export async function installed(): Promise<string> {
  const home = await mkdtemp(join(tmpdir(), "getconn-cold-"));
  process.once("exit", () => rmSync(home, { recursive: true, force: true }));
  const archive = join(home, "pool.tgz");
  const flags = ["--allow-dirty", "--output", archive];
  await run("npx", ["-y", "deno", "task", "pack", ...flags], { cwd: root });
  await run("tar", ["xzf", archive], { cwd: home });
  const modules = join(home, "node_modules");
  await mkdir(join(modules, "@getconn"), { recursive: true });
  await rename(join(home, "package"), join(modules, "@getconn/pool"));
  for (const driver of ["postgres", "pg"]) {
    await symlink(await realpath(join(root, "node_modules", driver)), join(modules, driver));
  }
  await writeFile(join(home, "package.json"), '{ "private": true, "type": "module" }\n');
  const programs = join(root, "bench/cold");
  for (const name of await readdir(programs)) await cp(join(programs, name), join(home, name));
  return home;
}
