/**
 * `deno publish --dry-run` with the manifest jsr.json, without the JSR registry: what the package
 * imports from there (`@std/async`) is served on loopback, from the copy of it that npm has.
 *
 * @module
 */
const root = new URL("..", import.meta.url);
const SERVED = { scope: "std", name: "async", version: "1.4.0" };
const entries = ["abortable", "deadline", "delay", "retry"];

/** The files of the package as JSR would give them: code from npm, types from ours. */
async function packageFiles(): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  const installed = new URL("node_modules/deno-std/async/", root);
  files.set("/_util.js", await Deno.readTextFile(new URL("_util.js", installed)));
  for (const entry of entries) {
    const types = `// @ts-self-types="./${entry}.d.ts"\n`;
    files.set(`/${entry}.js`, types + await Deno.readTextFile(new URL(`${entry}.js`, installed)));
    const own = new URL(`std/async_${entry}.d.ts`, import.meta.url);
    files.set(`/${entry}.d.ts`, await Deno.readTextFile(own));
  }
  return files;
}

/** Every address that Deno asks for, with its answer. */
async function registry(): Promise<Map<string, string>> {
  const { scope, name, version } = SERVED;
  const base = `/@${scope}/${name}`;
  const files = await packageFiles();
  const manifest: Record<string, { size: number; checksum: string }> = {};
  const answers = new Map<string, string>();
  for (const [path, text] of files) {
    const bytes = new TextEncoder().encode(text);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
    manifest[path] = { size: bytes.length, checksum: `sha256-${digest}` };
    answers.set(`${base}/${version}${path}`, text);
  }
  const exports = Object.fromEntries(entries.map((entry) => [`./${entry}`, `./${entry}.js`]));
  answers.set(`${base}/${version}_meta.json`, JSON.stringify({ manifest, exports }));
  const versions = { [version]: {} };
  answers.set(`${base}/meta.json`, JSON.stringify({ scope, name, latest: version, versions }));
  return answers;
}

const answers = await registry();
await using server = Deno.serve(
  { hostname: "127.0.0.1", port: 0, onListen: () => {} },
  (request) => {
    const path = new URL(request.url).pathname;
    const answer = answers.get(path);
    if (answer === undefined) return new Response("not found", { status: 404 });
    const type = path.endsWith(".json") ? "application/json" : "text/javascript";
    return new Response(answer, { headers: { "content-type": type } });
  },
);
const child = new Deno.Command(Deno.execPath(), {
  // The tree of a developer has changes; what is committed is the registry's business.
  args: [
    "publish",
    "--dry-run",
    "--allow-dirty",
    "--config",
    "jsr.json",
    "--no-lock",
    "--reload=jsr:",
  ],
  cwd: root,
  env: { JSR_URL: `http://127.0.0.1:${server.addr.port}` },
  stdin: "null",
}).spawn();
const { code } = await child.status;
Deno.exitCode = code;
