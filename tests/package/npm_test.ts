import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { test } from "../support/harness.ts";
import { testServer } from "../support/server.ts";
import { bun, deno, Folder, installed, node, succeed, tarball, tools } from "./install.ts";
import { Registry } from "./registry.ts";

const PROGRAM = `
import process from "node:process";
import { PoolError, SimpleConnectionPool } from "@getconn/pool";

const pool = new SimpleConnectionPool(1, 2, process.argv[2], { pool: { timeout: 60_000 } });
await pool.ready();
const [row] = await pool.use((conn) => conn<{ sum: number }[]>\`select 1 + 2 as sum\`);
const sum: number | undefined = row?.sum;
await pool.transaction(async (conn) => {
  await conn\`create temporary table t (n int) on commit drop\`;
});
const lease = await pool.getconn();
await pool.putconn(lease);
try {
  await lease\`select 1\`;
} catch (error) {
  if (!(error instanceof PoolError)) throw error;
  console.log(sum, error.code);
}
`;
const SAID = "3 CONNECTION_RETURNED";
const TSCONFIG = {
  compilerOptions: {
    module: "nodenext",
    target: "esnext",
    // No DOM: neither do all who use it have one, nor does the package want it.
    lib: ["esnext"],
    strict: true,
    noEmit: true,
    types: ["node"],
  },
  include: ["main.ts"],
};

/** Type checks as a user with strict settings would, the package's own declarations included. */
async function check(folder: Folder): Promise<void> {
  folder.write("tsconfig.json", TSCONFIG);
  const tsc = `${await tools()}/node_modules/typescript/bin/tsc`;
  await succeed(await node(), [tsc, "-p", "."], { cwd: folder.path });
}

async function withTarball(folder: Folder): Promise<void> {
  await Deno.writeFile(`${folder.path}/pool.tgz`, await tarball());
  folder.write("package.json", { private: true, type: "module", dependencies: {} });
  folder.write("main.ts", PROGRAM);
}

test("Bun: the tarball by bun add: types, run, one bundled file", async () => {
  await using folder = new Folder();
  const { url } = await testServer();
  await withTarball(folder);
  const options = { cwd: folder.path };
  await succeed(await bun(), ["add", "./pool.tgz", "@types/node@24"], options);
  await check(folder);
  assertEquals((await succeed(await bun(), ["main.ts", url], options)).trim(), SAID);
  await succeed(
    await bun(),
    ["build", "main.ts", "--target=bun", "--outfile=out/main.js"],
    options,
  );
  await Deno.remove(`${folder.path}/node_modules`, { recursive: true });
  assertEquals((await succeed(await bun(), ["out/main.js", url], options)).trim(), SAID);
});

test("Bun: from JSR by bunx jsr add", async () => {
  await using folder = new Folder();
  await using registry = await Registry.start();
  const { url } = await testServer();
  folder.write("package.json", { private: true, type: "module" });
  // What jsr writes, but for the address; it leaves a file that knows the scope as it is.
  folder.write("bunfig.toml", `[install.scopes]\n"@jsr" = "${registry.url}"\n`);
  folder.write("main.ts", PROGRAM);
  const options = {
    cwd: folder.path,
    env: { JSR_URL: registry.url, PATH: `${folder.path}/bin:${Deno.env.get("PATH")}` },
  };
  // jsr calls Bun by its name.
  await Deno.mkdir(`${folder.path}/bin`);
  await Deno.symlink(await bun(), `${folder.path}/bin/bun`);
  const jsr = `${await tools()}/node_modules/jsr/dist/bin.js`;
  await succeed(await node(), [jsr, "add", "--bun", "@getconn/pool"], options);
  const { dependencies } = JSON.parse(await Deno.readTextFile(`${folder.path}/package.json`));
  assertStringIncludes(dependencies["@getconn/pool"], "npm:@jsr/getconn__pool@");
  assert(registry.asked.includes("/@jsr/getconn__pool"));
  assertEquals((await succeed(await bun(), ["main.ts", url], options)).trim(), SAID);
});

test("Node: the tarball by npm install: types, run", async () => {
  await using folder = new Folder();
  const { url } = await testServer();
  await withTarball(folder);
  const options = { cwd: folder.path };
  await succeed("npm", ["install", "./pool.tgz", "@types/node@24", "--no-audit"], options);
  await check(folder);
  assertEquals((await succeed(await node(), ["main.ts", url], options)).trim(), SAID);
});

test("Node before 22 is told at import that it is too old", async () => {
  await using folder = await installed({
    "old.mjs": `
import process from "node:process";
Object.defineProperty(process, "versions", { value: { ...process.versions, node: "20.20.2" } });
await import("@getconn/pool").catch((error) => console.log(error.message));
`,
  });
  const said = await succeed(await node(), ["old.mjs"], { cwd: folder.path });
  assertEquals(said.trim(), "@getconn/pool needs Node 22 or later, and this is Node 20.20.2");
});

test("a bundle that needs one error class takes little more of the package", async () => {
  await using folder = await installed({
    "main.js":
      `import { TooManyWaiting } from "@getconn/pool"; console.log(typeof TooManyWaiting);`,
  });
  const esbuild = `${await tools()}/node_modules/esbuild/bin/esbuild`;
  const flags = ["--bundle", "--format=esm", "--platform=node", "--minify", "--outfile=out.mjs"];
  await succeed(esbuild, ["main.js", ...flags], { cwd: folder.path });
  const { size } = await Deno.stat(`${folder.path}/out.mjs`);
  assert(size < 4_000, `the bundle has ${size} bytes`);
  const said = await succeed(await node(), ["out.mjs"], { cwd: folder.path });
  assertEquals(said.trim(), "function");
});

test("one file by esbuild, as for Deno Deploy: runs without anything beside it", async () => {
  await using folder = new Folder();
  const { url } = await testServer();
  await withTarball(folder);
  await succeed(await bun(), ["add", "./pool.tgz"], { cwd: folder.path });
  const esbuild = `${await tools()}/node_modules/esbuild/bin/esbuild`;
  const flags = [
    "--bundle",
    "--format=esm",
    "--platform=node",
    "--minify",
    "--outfile=out/main.mjs",
  ];
  await succeed(esbuild, ["main.ts", ...flags], { cwd: folder.path });
  const { size } = await Deno.stat(`${folder.path}/out/main.mjs`);
  // The driver alone takes 38 kB of it; the wire engine and libpq's ways of connecting a hundred; statements that are
  // observed, and transactions that are tried again, some fifteen; reading into a buffer beside TLS four.
  assert(size < 295_000, `the bundle has ${size} bytes`);
  console.log(`the bundle has ${size} bytes`);
  await Deno.remove(`${folder.path}/node_modules`, { recursive: true });
  await Deno.remove(`${folder.path}/package.json`);
  const { host } = new URL(url);
  const permissions = ["--no-prompt", `--allow-net=${host}`];
  // process.argv[2] is Deno.args[0].
  const args = ["run", ...permissions, "out/main.mjs", url];
  assertEquals((await succeed(deno, args, { cwd: folder.path })).trim(), SAID);
});
