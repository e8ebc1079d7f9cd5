import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { test } from "../support/harness.ts";
import { deno, Folder, node, root, run, succeed, tarball, tools, version } from "./install.ts";
import { publishedFiles } from "./registry.ts";

const read = (name: string): Record<string, unknown> =>
  JSON.parse(Deno.readTextFileSync(root + name));

test("name, version and entry are the same in all manifests", () => {
  const [dev, jsr, npm] = [read("deno.json"), read("jsr.json"), read("package.json")];
  for (const key of ["name", "version", "license", "exports"]) {
    assertEquals(dev[key], jsr[key], key);
    assertEquals(npm[key], jsr[key], key);
  }
  const { postgres } = npm["dependencies"] as Record<string, string>;
  assertEquals(jsr["imports"], { postgres: `npm:postgres@${postgres}` });
  const changes = Deno.readTextFileSync(`${root}CHANGELOG.md`);
  assert(
    changes.includes(`## [${version}]`) || changes.includes("## [Unreleased]"),
    `CHANGELOG.md says nothing of ${version}`,
  );
});

test("what is published is the code, its licence, and what a reader wants", async () => {
  const files = await publishedFiles();
  const others = files.filter((path) => !/^(mod\.ts|src\/[\w/]+\.ts)$/.test(path));
  assertEquals(others.sort(), ["CHANGELOG.md", "LICENSE", "README.md", "jsr.json"]);
  const sources = files.filter((path) => path.endsWith(".ts"));
  assert(sources.length > 20);
  for (const path of sources) {
    const text = Deno.readTextFileSync(root + path);
    const code = text.replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "");
    for (const [, name] of code.matchAll(/^(?:import|export)\b[^;]*?\bfrom\s*"([^"]+)";/gm)) {
      if (!name!.startsWith(".")) assertMatch(name!, /^(node:[\w:/]+|postgres)$/, path);
      else {
        const target = new URL(name!, `file:///${path}`).pathname.slice(1);
        assert(files.includes(target), `${path} imports ${target}, which is not published`);
      }
    }
  }
});

test("the tarball for npm holds JavaScript, declarations, and no path of this machine", async () => {
  await using folder = new Folder();
  await Deno.writeFile(`${folder.path}/pool.tgz`, await tarball());
  const list = await succeed("tar", ["tzf", "pool.tgz"], { cwd: folder.path });
  const files = list.trim().split("\n").map((name) => name.replace("package/", ""));
  for (const name of ["mod.js", "mod.d.ts", "README.md", "LICENSE", "CHANGELOG.md"]) {
    assert(files.includes(name), `${name} is missing`);
  }
  for (const name of files) assertMatch(name, /^(mod|src\/[\w/]+)(\.js|\.d\.ts)$|^[\w.]+$/);
  await succeed("tar", ["xzf", "pool.tgz"], { cwd: folder.path });
  const fields = JSON.parse(await Deno.readTextFile(`${folder.path}/package/package.json`));
  assertEquals(Object.keys(fields.dependencies), ["postgres"]);
  assertEquals(fields.version, version);
  const ours = read("package.json");
  for (const key of ["description", "keywords", "engines", "sideEffects"]) {
    assertEquals(fields[key], ours[key], key);
    assert(ours[key] !== undefined, key);
  }
  for (const name of files) {
    const text = await Deno.readTextFile(`${folder.path}/package/${name}`);
    assert(!text.includes(root) && !text.includes("sourceMappingURL"), name);
    if (!name.endsWith(".md")) continue;
    for (const [, link] of text.matchAll(/\]\((?!https?:|#)([^)#]+)[^)]*\)/g)) {
      assert(files.includes(link!), `${name} links to ${link}, which is not there`);
    }
  }
});

test("npm's jsr publishes it too, with a Deno at hand", async () => {
  await using folder = new Folder();
  for (const path of await publishedFiles()) folder.copy(path, path);
  const path = `${await tools()}/node_modules`;
  await Deno.symlink(path, `${folder.path}/node_modules`);
  const jsr = `${path}/jsr/dist/bin.js`;
  // Without DENO_BIN_PATH it would fetch a Deno from dl.deno.land.
  const args = [jsr, "publish", "--dry-run", "--allow-dirty"];
  const { code, stdout, stderr } = await run(await node(), args, {
    cwd: folder.path,
    env: { DENO_BIN_PATH: deno },
  });
  assertEquals(code, 0, stdout + stderr);
  assertStringIncludes(stdout + stderr, `publish of @getconn/pool@${version}`);
});
