/** Pools in a simulated world: every order of events that a seed brings, and the same one again. */

import { assert, assertEquals } from "@std/assert";
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { runner, test } from "./support/harness.ts";
import { type Result, simulate } from "./simulation/run.ts";

const SEEDS = 300;
/** Seeds that have failed once. */
const KEPT: readonly number[] = [
  226,
  469,
  1060,
  1361,
  50_338,
  70_088,
  100_235,
  100_657,
  2_000_121,
  4_000_291,
  6_000_689,
  8_000_098,
  8_000_132,
  8_000_144,
  8_000_522,
  20_006_321,
  30_003_210,
  30_007_096,
  30_008_388,
  40_001_462,
  40_001_532,
  40_006_990,
  50_002_102,
  50_006_228,
  60_011_124,
  60_022_159,
  60_031_173,
  70_022_077,
  70_040_791,
  70_040_867,
  80_004_144,
];

function told({ seed, failure, lines }: Result): string {
  return `deno task simulate --seed ${seed}\n${lines.slice(-30).join("\n")}\n${failure}`;
}

test("a pool keeps its promises in simulated worlds, whatever the order of events", async () => {
  const begin = Number(process.env["SIMULATION_FROM"] ?? 1_000);
  const faults: Record<string, number> = {};
  const done: Record<string, number> = {};
  const seeds = [...KEPT, ...Array.from({ length: SEEDS }, (_, i) => begin + i)];
  for (const seed of seeds) {
    const result = await simulate(seed);
    assert(result.failure === null, told(result));
    for (const [kind, count] of Object.entries(result.faults)) {
      faults[kind] = (faults[kind] ?? 0) + count;
    }
    for (const [kind, count] of Object.entries(result.done)) {
      done[kind] = (done[kind] ?? 0) + count;
    }
  }
  // A world in which nothing goes wrong proves nothing.
  for (
    const kind of [
      "connect refused",
      "connect without an answer",
      "connection reset",
      "connection stalled",
      "backend killed",
      "server crashed",
      "server restarted",
      "wall clock set",
      "process frozen",
      "passwords refused",
      "server crowded",
      "fail-over",
      "hook hangs",
      "worker died",
      "worker interrupted",
    ]
  ) assert(faults[kind]! > 0, `no ${kind} in ${SEEDS} seeds`);
  for (const kind of ["getconn", "use", "transaction", "sql select", "sql insert", "sql begin"]) {
    assert(done[`${kind}: ok`]! > SEEDS / 10, `${done[`${kind}: ok`]} × ${kind} in ${SEEDS} seeds`);
  }
}, { timeout: 900_000 });

test("what fails in a simulated world without anybody hearing of it breaks the run", () => {
  // In a process of its own: here the harness would hear of it.
  const world = new URL("./simulation/world.ts", import.meta.url);
  const code = `
    import { World } from ${JSON.stringify(world)};
    const world = new World(1);
    for (let at = 0; at < 5; at++) world.clock.after(at, () => {});
    world.clock.after(1, () => void Promise.reject(new Error("lost")));
    await world.run(() => false, 10).catch(() => {});
    console.log(world.failure?.message.split("\\n")[0]);`;
  const args = runner === "deno" ? ["eval", code] : ["-e", code];
  const { stdout, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" });
  assertEquals(stdout.trim(), "nobody hears of a failure: Error: lost", stderr);
});

test("a seed brings the same events again, on Deno and on Bun", async () => {
  const own: string[] = [];
  for (const seed of [5, 17, 28, 46]) {
    const { hash, steps } = await simulate(seed);
    assertEquals((await simulate(seed)).hash, hash, `seed ${seed}`);
    own.push(`seed ${seed}: hash ${hash}, ${steps} steps`);
  }
  const main = fileURLToPath(new URL("./simulation/main.ts", import.meta.url));
  const others = own.map((_, i) => {
    const args = [main, "--seed", String([5, 17, 28, 46][i])];
    return runner === "deno"
      ? other("bun", args)
      : other("deno", ["run", "-A", "--no-check", ...args]);
  });
  assertEquals(others, own);
}, { timeout: 300_000 });

/** The last line that the other runtime prints. */
function other(program: string, args: readonly string[]): string {
  for (const [first, ...rest] of [[program, ...args], ["npx", "-y", program, ...args]]) {
    const { status, stdout, error } = spawnSync(first!, rest, { encoding: "utf8" });
    if (error === undefined && status === 0) return stdout.trim().split("\n").at(-1)!;
  }
  throw new Error(`${program} did not run the simulation`);
}

test("the known faults of the simulation fit into src/ as it is", () => {
  const root = fileURLToPath(new URL("..", import.meta.url));
  const folder = "tests/simulation/mutants";
  const patches = readdirSync(`${root}${folder}`).filter((name) => name.endsWith(".patch"));
  assert(patches.length >= 16);
  for (const name of patches) {
    const args = ["apply", "--check", `${folder}/${name}`];
    const { status, stderr } = spawnSync("git", args, { cwd: root, encoding: "utf8" });
    assertEquals(status, 0, `${name}: ${stderr}`);
  }
});
