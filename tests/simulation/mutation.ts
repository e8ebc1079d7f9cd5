/**
 * Mutations made by a tool: StrykerJS's instrumenter puts all that it can think of into `src/pool/` and
 * `src/postgres/wire/`, each behind a switch, and one process tries one after the other on the same seeds.
 *
 * `--mutants N` (at most so many more), `--minutes N`, `--seeds N` (of each), `--order N` (which come first),
 * `--only TEXT` (of a file's name, or a mutant's), `--again survived --round 2` (those that ended so, each once in a
 * round), `--fresh` (forgets what was found, and takes the code as it is now). What is found is kept in `.tmp/mutation/`, so that many short runs make
 * a long one.
 */

import { spawn, spawnSync } from "node:child_process";
import {
  appendFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { Dice } from "../support/dice.ts";
import { copyProject, ROOT } from "./place.ts";
import { simulate } from "./run.ts";

const { values } = parseArgs({
  args: process.argv.slice(2),
  options: {
    mutants: { type: "string", default: "100" },
    minutes: { type: "string", default: "1000" },
    seeds: { type: "string", default: "30" },
    order: { type: "string", default: "1" },
    only: { type: "string", default: "" },
    again: { type: "string" },
    round: { type: "string", default: "1" },
    fresh: { type: "boolean", default: false },
    child: { type: "boolean", default: false },
  },
});

const INSTRUMENTER = ["@stryker-mutator/instrumenter@10.1.1", "typed-inject@5.0.0"];
const HOME = join(ROOT, ".tmp/mutation");
const PLACE = join(HOME, "place");
const LIST = join(HOME, "mutants.json");
const FOUND = join(HOME, "found.jsonl");
const FOLDERS = ["src/pool", "src/postgres/wire"];
/** Who says nothing for so long has hung, in milliseconds. */
const SILENCE = 40_000;
/** A mutant that runs so often in one seed goes round in a circle. */
const HITS = 3_000_000;

interface Mutant {
  readonly id: string;
  readonly file: string;
  readonly line: number;
  readonly kind: string;
  readonly before: string;
  readonly after: string;
}

/** What became of a mutant. */
interface Found extends Mutant {
  readonly end: "killed" | "survived" | "hung" | "not reached" | "at load";
  /** Of how many seeds it changed the log. */
  readonly changed: number;
  readonly seeds: number;
  /** How often it stands where the code came by, without it, in all seeds. */
  readonly hits: number;
  readonly round: string;
  readonly by: string;
}

/** What the switches look at. */
interface Switch {
  activeMutant?: string;
  hitCount?: number;
  hitLimit?: number;
  mutantCoverage?: {
    static: Record<string, number>;
    perTest: Record<string, Record<string, number>>;
  };
  currentTestId?: string;
  still?: boolean;
}

const scope = globalThis as { __stryker__?: Switch };

// --- in the process with the switches ---

/** Tries the mutants whose numbers come by the standard input. */
async function tryAll(): Promise<void> {
  const control = scope.__stryker__ ??= {};
  const seeds = Array.from({ length: Number(values.seeds) }, (_, i) => i + 1);
  const atLoad = control.mutantCoverage?.static ?? {};
  control.activeMutant = "none";
  control.currentTestId = "all";
  const right: string[] = [];
  for (const seed of seeds) {
    const { hash, failure } = await simulate(seed);
    if (failure !== null) {
      throw new Error(`seed ${seed} fails without a mutant`, { cause: failure });
    }
    right.push(hash);
  }
  const reached = control.mutantCoverage!.perTest["all"]!;
  control.still = true;
  let fault: unknown = null;
  process.on("unhandledRejection", (error) => fault ??= error ?? "a rejection nobody hears of");
  process.on("uncaughtException", (error) => fault ??= error);
  const one = async (id: string): Promise<Partial<Found>> => {
    if (reached[id] === undefined) {
      return { end: atLoad[id] === undefined ? "not reached" : "at load" };
    }
    let changed = 0;
    for (const [i, seed] of seeds.entries()) {
      fault = null;
      Object.assign(control, { activeMutant: id, hitCount: 0, hitLimit: HITS });
      const result = await simulate(seed);
      Object.assign(control, { activeMutant: "none", hitCount: undefined });
      await new Promise((resolve) => setTimeout(resolve, 0));
      const failure = result.failure ?? fault;
      if (failure !== null) {
        const by = String((failure as Error).message ?? failure).split("\n")[0]!.slice(0, 200);
        return { end: "killed", seeds: i + 1, by, changed };
      }
      if (result.hash !== right[i]) changed++;
    }
    return { end: "survived", seeds: seeds.length, changed, by: "" };
  };
  for await (const id of createInterface({ input: process.stdin })) {
    const found = await one(id);
    // What it has left behind must not be taken for another one's.
    const clean = found.end !== "killed" || (await simulate(seeds[0]!)).hash === right[0];
    console.log(JSON.stringify({ id, hits: reached[id] ?? 0, ...found }));
    if (!clean) process.exit(0);
  }
  process.exit(0);
}

// --- in the process that leads ---

/** Puts the switches into a copy of the code. */
function prepare(): void {
  rmSync(HOME, { recursive: true, force: true });
  copyProject(PLACE);
  writeFileSync(join(HOME, "package.json"), '{ "private": true }');
  run("npm", ["install", "--no-audit", "--no-fund", "--silent", ...INSTRUMENTER], HOME);
  writeFileSync(
    join(HOME, "instrument.mjs"),
    `
import { readFileSync, writeFileSync } from "node:fs";
import { createInjector } from "typed-inject";
import { createInstrumenter } from "@stryker-mutator/instrumenter";
const quiet = () => {};
const logger = { debug: quiet, info: quiet, warn: console.warn, error: console.error, isDebugEnabled: () => false };
const files = JSON.parse(process.argv[2]).map((name) => ({ name, mutate: true, content: readFileSync(name, "utf8") }));
const instrumenter = createInstrumenter(createInjector().provideValue("logger", logger));
const options = { plugins: null, excludedMutations: ["StringLiteral"], ignorers: [] };
const { files: out, mutants } = await instrumenter.instrument(files, options);
// Counting takes half of the time: it can be ended.
const still = (content) => content.replaceAll("var a = arguments;", "if (ns.still) return;\\n    var a = arguments;");
for (const { name, content } of out) writeFileSync(name, still(content));
const lines = new Map(files.map(({ name, content }) => [name, content.split("\\n")]));
const textOf = (name, { start, end }) => {
  const part = lines.get(name).slice(start.line, end.line + 1);
  part[part.length - 1] = part.at(-1).slice(0, end.column);
  part[0] = part[0].slice(start.column);
  return part.join("\\n");
};
writeFileSync("mutants.json", JSON.stringify(mutants.map(({ id, fileName, location, mutatorName, replacement }) =>
  ({ id, file: fileName.slice(6), line: location.start.line + 1, kind: mutatorName, before: textOf(fileName, location), after: replacement }))));
`,
  );
  const files = FOLDERS.flatMap((folder) =>
    readdirSync(join(PLACE, folder)).filter((name) => name.endsWith(".ts")).map((name) =>
      join("place", folder, name)
    )
  );
  run("node", ["instrument.mjs", JSON.stringify(files)], HOME);
}

function run(program: string, args: readonly string[], cwd: string): void {
  const { status, error } = spawnSync(program, args, { cwd, stdio: "inherit" });
  if (error !== undefined || status !== 0) {
    throw new Error(`${program} ${args[0]} has failed: ${error ?? status}`);
  }
}

function found(): Found[] {
  if (!existsSync(FOUND)) return [];
  const last = new Map<string, Found>();
  for (const line of readFileSync(FOUND, "utf8").split("\n")) {
    if (line !== "") last.set(JSON.parse(line).id, JSON.parse(line));
  }
  return [...last.values()];
}

function shuffled<T>(list: readonly T[], seed: number): T[] {
  const dice = new Dice(seed);
  const all = [...list];
  for (let i = all.length - 1; i > 0; i--) {
    const other = dice.below(i + 1);
    [all[i], all[other]] = [all[other]!, all[i]!];
  }
  return all;
}

/** Gives the mutants to a process, one after the other, and starts another one when it has hung or is spoilt. */
async function lead(wanted: readonly Mutant[], until: number): Promise<void> {
  const rest = [...wanted];
  const note = (mutant: Mutant, end: Partial<Found>): void => {
    const { round } = values;
    const whole = { ...mutant, changed: 0, seeds: 0, hits: 0, by: "", round, ...end };
    appendFileSync(FOUND, `${JSON.stringify(whole)}\n`);
    console.log(
      `${whole.end} ${whole.file}:${whole.line} ${whole.kind} ${
        JSON.stringify(whole.after.slice(0, 80))
      } ${whole.by}`,
    );
  };
  const main = join(PLACE, "tests/simulation/mutation.ts");
  const before = "Bun" in globalThis ? [main] : ["run", "-A", "--no-check", main];
  while (rest.length > 0 && performance.now() < until) {
    const child = spawn(process.execPath, [...before, "--child", "--seeds", values.seeds], {
      cwd: PLACE,
      stdio: ["pipe", "pipe", "inherit"],
    });
    let current: Mutant | null = null;
    let guard: ReturnType<typeof setTimeout> | undefined;
    const next = (): void => {
      clearTimeout(guard);
      current = performance.now() < until ? rest.shift() ?? null : null;
      if (current === null) return void child.stdin.end();
      child.stdin.write(`${current.id}\n`);
      // The first one waits until all seeds have run without any.
      guard = setTimeout(() => child.kill("SIGKILL"), 3 * SILENCE);
    };
    child.stdin.on("error", () => {});
    createInterface({ input: child.stdout }).on("line", (line) => {
      if (!line.startsWith("{") || current === null) return console.log(line);
      note(current, JSON.parse(line));
      next();
    });
    next();
    const died = await new Promise<string | null>((resolve) =>
      child.on("close", (_, signal) => resolve(signal))
    );
    clearTimeout(guard);
    const left = current as Mutant | null;
    if (left === null) continue;
    if (died === "SIGKILL") note(left, { end: "hung" });
    // It ended before it was asked.
    else rest.unshift(left);
  }
}

function report(all: readonly Found[]): void {
  const ends = ["killed", "hung", "survived", "not reached", "at load"] as const;
  console.log(`| folder | ${ends.join(" | ")} |`);
  console.log(`| --- | ${ends.map(() => "---").join(" | ")} |`);
  for (const folder of FOLDERS) {
    const here = all.filter(({ file }) => file.startsWith(`${folder}/`));
    const counts = ends.map((end) => here.filter((one) => one.end === end).length);
    console.log(`| ${folder} | ${counts.join(" | ")} |`);
  }
}

if (values.child) await tryAll();
else {
  if (values.fresh || !existsSync(LIST)) prepare();
  const mutants: Mutant[] = JSON.parse(readFileSync(LIST, "utf8"));
  const known = new Map(found().map((one) => [one.id, one]));
  const wanted = shuffled(mutants, Number(values.order)).filter(({ id, file, kind }) =>
    `${file} ${kind}`.includes(values.only) &&
    (values.again === undefined
      ? !known.has(id)
      : known.get(id)?.end === values.again && known.get(id)?.round !== values.round)
  ).slice(0, Number(values.mutants));
  console.log(`${mutants.length} mutants, ${known.size} tried, ${wanted.length} to try`);
  await lead(wanted, performance.now() + Number(values.minutes) * 60_000);
  report(found());
  process.exit(0);
}
