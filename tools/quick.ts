/**
 * The quick gate, for while one works: format, lint, types, layers, and the tests that start no server. Which
 * these are is found by their imports: a test whose imports lead to one of `SERVERS`, however far, is for the whole
 * gate; and so is what explores, by name in `LONG`. `--list` shows what is left.
 *
 * @module
 */
const deno = Deno.execPath();
const root = new URL("..", import.meta.url);
/** What starts a server. */
const SERVERS = ["tests/support/embedded_postgres.ts", "tests/support/server.ts"];
/** What takes a processor many seconds, or waits by the clock, because it goes through many cases. */
const LONG: Readonly<Record<string, string>> = {
  "tests/conninfo_libpq_test.ts": "a psql for each of its cases",
  "tests/permits_test.ts": "every order of the steps of several isolates",
  "tests/simulation_test.ts": "hundreds of simulated worlds",
  "tests/wire_startup_fuzz_test.ts": "peers that fall silent, by the clock",
};

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
  for (const path of Object.keys(LONG)) await Deno.stat(new URL(path, root));
  const files: string[] = [];
  for await (const { name } of Deno.readDir(new URL("tests/", root))) {
    const path = `tests/${name}`;
    if (!name.endsWith("_test.ts") || path in LONG) continue;
    if (!await startsServer(path)) files.push(path);
  }
  return files.sort();
}

/** Runs a step; what it says comes in one piece, so that two lanes do not mix. */
async function passes(args: string[]): Promise<boolean> {
  const began = performance.now();
  const command = new Deno.Command(deno, { args, cwd: root, stdin: "null" });
  const { success, stdout, stderr } = await command.output();
  const seconds = ((performance.now() - began) / 1_000).toFixed(1);
  // The tests' summary, which tells of what was skipped.
  const last = new TextDecoder().decode(stdout).trimEnd().split("\n").at(-1)!;
  console.log(
    `${success ? "ok" : "FAILED"}: deno ${args.slice(0, 3).join(" ")} (${seconds} s) ${last}`,
  );
  if (!success) {
    await Deno.stdout.write(stdout);
    await Deno.stderr.write(stderr);
  }
  return success;
}

async function lane(steps: string[][]): Promise<number> {
  let failed = 0;
  for (const args of steps) if (!await passes(args)) failed++;
  return failed;
}

const tests = await unitTests();
if (Deno.args.includes("--list")) {
  console.log(tests.join("\n"));
  Deno.exit();
}
// The types are one processor's work and as long as all the rest. The tests' types are among them.
const failed = await Promise.all([
  lane([["check", "-q", "."]]),
  lane([
    ["fmt", "--check", "-q"],
    ["lint", "-q"],
    ["task", "-q", "layers"],
    ["test", "-A", "-q", "--no-check", "--parallel", "--reporter=dot", ...tests],
  ]),
]);
Deno.exitCode = failed.every((count) => count === 0) ? 0 : 1;
