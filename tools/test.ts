/**
 * Runs the tests: `test.ts deno bun doc` runs each of the named suites, each against a PostgreSQL server
 * of its own; Deno's beside Bun's, unless `--alone` is given, both are to use DATABASE_URL, or there is
 * but one processor. The last line is `N passed, N failed`. Types are `deno task check`'s, but those of
 * the examples in the documents.
 *
 * The counts come from the runners' JUnit reports. A runner that ends with an error, without a
 * report or without a test counts as one failure more: nothing passes silently.
 *
 * @module
 */
import { type PostgresServer, startPostgres } from "../tests/support/embedded_postgres.ts";
import { delay } from "@std/async/delay";
import { ended } from "./deadline.ts";

const SUITES = ["deno", "bun", "package", "doc"] as const;
type Suite = typeof SUITES[number];
/** A suite that takes longer hangs where no test's deadline sees it: in Bun, an endless loop. */
const DEADLINE = Number(Deno.env.get("GETCONN_TEST_MINUTES") ?? 25) * 60_000;
const root = new URL("..", import.meta.url);
/** What `deno task coverage` reads afterwards. */
const COVERAGE = Deno.args.includes("--coverage") ? ["--coverage=coverage"] : [];
const BESIDE = !Deno.args.includes("--alone") && navigator.hardwareConcurrency > 1 &&
  !Deno.env.get("DATABASE_URL");
// Colours tell a person something, and a log file nothing.
const env = { DENO_JOBS: "2", ...Deno.stdout.isTerminal() ? {} : { NO_COLOR: "1" } };

/** What a runner's report says. */
interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/**
 * `bun` where it is installed, else the one from npm (`deno run npm:bun` does not work); asked for
 * its own path, for a deadline that ended `npx` would leave the Bun under it running.
 */
async function bunCommand(): Promise<string> {
  const ask = ["-e", "console.log(process.execPath)"];
  for (const [program, ...args] of [["bun", ...ask], ["npx", "-y", "bun", ...ask]]) {
    try {
      const { success, stdout } = await new Deno.Command(program!, { args }).output();
      const path = new TextDecoder().decode(stdout).trim();
      if (success && path !== "") return path;
    } catch { /* Not installed. */ }
  }
  throw new Error("there is neither bun nor an npx that brings it");
}

async function command(suite: Suite, report: string): Promise<string[]> {
  const deno = [Deno.execPath(), "test", "-A", `--junit-path=${report}`];
  switch (suite) {
    case "deno":
      return [...deno, "--no-check", ...COVERAGE];
    case "package":
      // Its tests wait for other programs, each in a folder of its own.
      return [...deno, "--no-check", "--parallel", "tests/package/"];
    case "doc":
      return [...deno, "--doc", ...await documented()];
    case "bun":
      return [await bunCommand(), "test", "--reporter=junit", `--reporter-outfile=${report}`];
  }
}

/** The sources and documents whose fences are tested. */
async function documented(): Promise<string[]> {
  const found = ["mod.ts"];
  for (const folder of ["", "docs/", "src/"]) {
    const entries = await Array.fromAsync(Deno.readDir(new URL(folder, root))).catch(() => []);
    if (folder === "src/" && entries.length > 0) found.push(folder);
    for (const { name } of entries) if (name.endsWith(".md")) found.push(folder + name);
  }
  return found.filter((name) => name !== "CHANGELOG.md").sort();
}

function count(report: string): Counts {
  const cases = report.split("<testcase ").slice(1);
  const failed = cases.filter((text) => /<(failure|error)\b/.test(text)).length;
  const skipped = cases.filter((text) => /<skipped\b/.test(text)).length;
  return { passed: cases.length - failed - skipped, failed, skipped };
}

/** Runs one; where `quiet` what it prints is printed when it has ended. */
async function run(suite: Suite, folder: string, quiet: boolean): Promise<Counts> {
  await using stack = new AsyncDisposableStack();
  const variables = await serverVariables(stack);
  const report = `${folder}/${suite}.xml`;
  const [program, ...args] = await command(suite, report);
  const title = `\n=== ${suite}: ${program} ${
    args.filter((arg) => !arg.includes(folder)).join(" ")
  }`;
  console.log(title + (quiet ? ", beside the others; its output comes at its end" : ""));
  const started = performance.now();
  const child = new Deno.Command(program!, {
    args,
    cwd: root,
    env: { ...env, ...variables },
    stdin: "null",
    stdout: quiet ? "piped" : "inherit",
    stderr: quiet ? "piped" : "inherit",
  }).spawn();
  const printed = quiet ? keep(child) : null;
  const { success, late } = await ended(child, DEADLINE);
  if (printed !== null) console.log(`${title}\n${await printed()}`);
  const counts = count(await Deno.readTextFile(report).catch(() => ""));
  const problems: string[] = [];
  if (late) problems.push(`stopped after ${DEADLINE / 60_000} minutes`);
  if (counts.passed + counts.failed === 0) problems.push("no test ran");
  if (!success && counts.failed === 0) problems.push("the runner failed outside of its tests");
  if (counts.skipped > 0 && Deno.env.get("GETCONN_NO_SKIP")) problems.push("tests were skipped");
  for (const problem of problems) console.log(`${suite}: ${problem}`);
  counts.failed += problems.length;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const { passed, failed, skipped } = counts;
  console.log(`${suite}: ${passed} passed, ${failed} failed, ${skipped} skipped in ${seconds} s`);
  return counts;
}

/**
 * Keeps what a program prints; call the result after its end. Programs that it has left behind may hold
 * its output open: they are not waited for.
 */
function keep({ stdout, stderr }: Deno.ChildProcess): () => Promise<string> {
  let text = "";
  const read = async (stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<void> => {
    for await (const part of stream.pipeThrough(new TextDecoderStream())) text += part;
  };
  const all = Promise.all([read(stdout), read(stderr)]);
  return async () => {
    await Promise.race([all, delay(1_000)]);
    return text;
  };
}

/**
 * What `tests/support/server.ts` reads, so that all files of a suite share one server. The examples in
 * the documentation read DATABASE_URL, as a program does.
 */
async function serverVariables(stack: AsyncDisposableStack): Promise<Record<string, string>> {
  if (Deno.env.get("DATABASE_URL")) return {};
  const server: PostgresServer = stack.use(
    await startPostgres({ config: { max_connections: 200 } }),
  );
  const { url, socketDir } = server;
  return { GETCONN_TEST_SERVER: JSON.stringify({ url, socketDir }), DATABASE_URL: url };
}

async function main(): Promise<Counts> {
  const suites = SUITES.filter((suite) => Deno.args.includes(suite));
  const total: Counts = { passed: 0, failed: 0, skipped: 0 };
  await using stack = new AsyncDisposableStack();
  const folder = await Deno.makeTempDir({ prefix: "getconn-test-" });
  stack.defer(() => Deno.remove(folder, { recursive: true }));
  const add = (counts: Counts): void => {
    for (const key of ["passed", "failed", "skipped"] as const) total[key] += counts[key];
  };
  const one = async (suite: Suite, quiet: boolean): Promise<void> =>
    add(await run(suite, folder, quiet));
  // Most of a suite's time goes by in waiting, and on one core.
  const together = suites.filter((suite) => BESIDE && (suite === "deno" || suite === "bun"));
  await Promise.all(together.map((suite, i) => one(suite, i > 0)));
  for (const suite of suites) if (!together.includes(suite)) await one(suite, false);
  return total;
}

let total: Counts = { passed: 0, failed: 1, skipped: 0 };
try {
  total = await main();
} catch (error) {
  console.error(error);
}
if (total.skipped > 0) console.log(`${total.skipped} skipped`);
console.log(`${total.passed} passed, ${total.failed} failed`);
Deno.exitCode = total.failed === 0 && total.passed > 0 ? 0 : 1;
