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
const STEPS: Record<string, string[]> = {
  "fmt": ["fmt", "--check"],
  "lint": ["lint"],
  "check": ["task", "check"],
  "doc lint": ["run", "-A", "tools/doc_lint.ts"],
  "layers": ["task", "layers"],
  "publish": ["task", "publish:dry"],
  "doc tests": ["run", "-A", "tools/test.ts", "doc"],
  // Where nothing may be skipped: a minute on each runtime.
  ...(Deno.env.get("CI")
    ? {
      "soak": SOAK,
      "soak on Bun": [...SOAK, "--runtime", "bun"],
    }
    : {}),
};

/** A step that takes longer hangs. */
const DEADLINE = 16 * 60_000;

const failed: string[] = [];
for (const [name, args] of Object.entries(STEPS)) {
  console.log(`\n=== ${name}: deno ${args.join(" ")}`);
  const step = new Deno.Command(deno, { args, cwd: root, env, stdin: "null" }).spawn();
  const { success, late } = await ended(step, DEADLINE);
  if (late) console.log(`${name}: stopped after ${DEADLINE / 60_000} minutes`);
  if (!success) failed.push(name);
}

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
if (failed.length > 0) console.log(`\nfailed steps: ${failed.join(", ")}`);
const failures = Number(counts?.[2] ?? 1) + failed.length;
console.log(`${counts?.[1] ?? 0} passed, ${failures} failed`);
Deno.exitCode = success && failures === 0 ? 0 : 1;
