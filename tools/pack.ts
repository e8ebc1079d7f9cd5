/**
 * The tarball for npm, `pack.ts [--output FILE] [--allow-dirty]`: what `deno pack` makes of that which
 * JSR gets, but with the JavaScript in one file. A process that starts cold is through with that in
 * two thirds of the time that seventy modules take.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { bunCommand } from "./bun.ts";

const root = new URL("..", import.meta.url).pathname;
const { name, version } = JSON.parse(await Deno.readTextFile(`${root}jsr.json`));
const { values } = parseArgs({
  options: { output: { type: "string" }, "allow-dirty": { type: "boolean", default: false } },
});
const output = values.output ?? `${name.slice(1).replace("/", "-")}-${version}.tgz`;

async function run(program: string, args: string[], cwd: string): Promise<void> {
  const { code } = await new Deno.Command(program, { args, cwd, stdin: "null" }).spawn().status;
  if (code !== 0) Deno.exit(code);
}

/** All files but the modules, which are in the one file now. Their declarations stay. */
async function* kept(folder: string): AsyncGenerator<string> {
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    const path = `${folder}/${name}`;
    if (isDirectory) yield* kept(path);
    else if (name === "mod.js" || !name.endsWith(".js")) yield path;
  }
}

const folder = await Deno.makeTempDir({ prefix: "getconn-pack-" });
try {
  const flags = ["--config", "jsr.json", "--no-source-maps"];
  if (values["allow-dirty"]) flags.push("--allow-dirty");
  await run(Deno.execPath(), ["pack", ...flags, "--output", `${folder}/modules.tgz`], root);
  await run("tar", ["xzf", "modules.tgz"], folder);
  const home = `${folder}/package`;
  // The driver stays outside: a program may use it beside the pool, and its classes are looked at.
  const build = ["build", "mod.js", "--target=node", "--format=esm", "--packages=external"];
  await run(await bunCommand(), [...build, "--outfile=../one.js"], home);
  // The first line tells Bun that nothing is left to compile.
  const head = `// @bun\n// The modules of ${name} ${version} in one file.\n`;
  await Deno.writeTextFile(`${home}/mod.js`, head + await Deno.readTextFile(`${folder}/one.js`));
  const files = await Array.fromAsync(kept(home), (path) => path.slice(folder.length + 1));
  await run("tar", ["czf", "one.tgz", ...files.sort()], folder);
  await Deno.copyFile(`${folder}/one.tgz`, output);
} finally {
  await Deno.remove(folder, { recursive: true });
}
