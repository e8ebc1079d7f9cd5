/**
 * The quick gate, for while one works: format, lint, types, layers, and the tests that start no server. Which
 * these are is found by their imports: a test whose imports lead to one of `SERVERS`, however far, is for the whole gate.
 *
 * @module
 */
const deno = Deno.execPath();
const root = new URL("..", import.meta.url);
/** What starts a server. */
const SERVERS = ["tests/support/embedded_postgres.ts", "tests/support/server.ts"];

const starts = new Map<string, boolean>();

/** Whether the imports of a file lead to what starts a server. */
async function startsServer(path: string): Promise<boolean> {
  const known = starts.get(path);
  if (known !== undefined) return known;
  // Until it is known: imports that go in a circle lead nowhere new.
  starts.set(path, false);
  const code = await Deno.readTextFile(new URL(path, root)).catch(() => "");
  const names = [...code.matchAll(/\b(?:from|import)\s*\(?\s*"(\.[^"]+)"/g)].map(([, name]) =>
    name!
  );
  const targets = names.map((name) =>
    new URL(name, new URL(path, root)).href.slice(root.href.length)
  );
  let found = SERVERS.includes(path);
  for (const target of targets) found = await startsServer(target) || found;
  starts.set(path, found);
  return found;
}

async function unitTests(): Promise<string[]> {
  const files: string[] = [];
  for await (const { name } of Deno.readDir(new URL("tests/", root))) {
    const path = `tests/${name}`;
    if (name.endsWith("_test.ts") && !await startsServer(path)) files.push(path);
  }
  return files.sort();
}

const STEPS = [
  ["fmt", "--check", "-q"],
  ["lint", "-q"],
  ["check", "-q", "."],
  ["task", "-q", "layers"],
  ["test", "-A", "-q", "--parallel", ...await unitTests()],
];
if (Deno.args.includes("--list")) {
  console.log((await unitTests()).join("\n"));
  Deno.exit();
}
let failed = 0;
for (const args of STEPS) {
  const { success } = await new Deno.Command(deno, { args, cwd: root, stdin: "null" }).spawn()
    .status;
  if (success) continue;
  failed++;
  console.error(`failed: deno ${args.slice(0, 2).join(" ")}`);
}
Deno.exitCode = failed === 0 ? 0 : 1;
