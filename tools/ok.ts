/**
 * The one gate. Every step runs, also after a failed one, so that one run tells all; the tests come
 * last, and the last line counts each failed step before them as a failure.
 *
 * @module
 */
import { ended } from "./deadline.ts";

const deno = Deno.execPath();
const root = new URL("..", import.meta.url);
const env = Deno.stdout.isTerminal() ? {} : { NO_COLOR: "1" };

/** Not `deno task soak`, which would leave the soak running when it is stopped. */
const SOAK = ["run", "-A", "--v8-flags=--expose-gc", "tests/soak/main.ts", "--minutes", "1"];
/** Before the tests, two at a time: most take one processor. */
const STEPS: readonly (readonly [name: string, args: readonly string[]])[] = [
  ["check", ["task", "check"]],
  ["fmt", ["fmt", "--check"]],
  ["lint", ["lint"]],
  ["doc lint", ["run", "-A", "tools/doc_lint.ts"]],
  ["layers", ["task", "layers"]],
  ["publish", ["task", "publish:dry"]],
  ["doc tests", ["run", "-A", "tools/test.ts", "doc"]],
];
/** Where nothing may be skipped: a minute on each runtime, alone, as what they hold has limits in time. */
const SOAKS: typeof STEPS = Deno.env.get("CI")
  ? [["soak", SOAK], ["soak on Bun", [...SOAK, "--runtime", "bun"]]]
  : [];

/** A step that takes longer hangs. */
const DEADLINE = 16 * 60_000;

/** Failed steps, and the end of what each said: once more at the end, where it is looked for. */
const failed = new Map<string, string>();

/** Runs a step; what it says comes in one piece, as another one runs beside it. */
async function step(name: string, args: readonly string[]): Promise<void> {
  const began = performance.now();
  const log = await Deno.makeTempFile({ prefix: "getconn-step-" });
  try {
    // Into a file: a program that it leaves behind may hold a pipe open.
    const child = new Deno.Command("sh", {
      args: ["-c", 'exec "$@" >"$0" 2>&1', log, deno, ...args],
      cwd: root,
      env,
      stdin: "null",
    }).spawn();
    const { success, late } = await ended(child, DEADLINE);
    const seconds = ((performance.now() - began) / 1_000).toFixed(1);
    console.log(`\n=== ${name}: deno ${args.join(" ")} (${seconds} s)`);
    const said = (await Deno.readTextFile(log)).trimEnd();
    console.log(said);
    if (late) console.log(`${name}: stopped after ${DEADLINE / 60_000} minutes`);
    if (!success) failed.set(name, said.split("\n").slice(-40).join("\n"));
  } finally {
    await Deno.remove(log);
  }
}

const left = [...STEPS];
async function lane(): Promise<void> {
  for (let next = left.shift(); next !== undefined; next = left.shift()) await step(...next);
}
await Promise.all([lane(), lane()]);
for (const soak of SOAKS) await step(...soak);

console.log("\n=== tests: deno task test");
const child = new Deno.Command(deno, {
  args: ["task", "test"],
  cwd: root,
  env,
  stdin: "null",
  stdout: "piped",
}).spawn();
let last = "";
let rest = "";
for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + text).split("\n");
  rest = lines.pop()!;
  for (const line of lines) {
    if (last !== "") console.log(last);
    last = line;
  }
}
const { success } = await child.status;
const counts = /^(\d+) passed, (\d+) failed$/.exec(last);
if (counts === null) console.log(last);
for (const [name, said] of failed) console.log(`\n=== failed: ${name}\n${said}`);
if (failed.size > 0) console.log(`\nfailed steps: ${[...failed.keys()].join(", ")}`);
const failures = Number(counts?.[2] ?? 1) + failed.size;
console.log(`${counts?.[1] ?? 0} passed, ${failures} failed`);
Deno.exitCode = success && failures === 0 ? 0 : 1;
