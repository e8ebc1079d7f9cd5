/**
 * Puts known faults back, one at a time, and tells how many seeds it takes until each is found.
 *
 * Each file in `mutants/` is a patch of `src/` that takes one mend back. `--only NAME,NAME`, `--seeds N` (the most that
 * are tried of each), `--from N`. Ends with 1 when one is not found, or does not apply any more.
 */

import { spawnSync } from "node:child_process";
import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { copyProject, ROOT } from "./place.ts";

const { values } = parseArgs({
  args: process.argv.slice(2),
  options: {
    only: { type: "string" },
    seeds: { type: "string", default: "2000" },
    from: { type: "string", default: "1" },
  },
});

const PATCHES = join(ROOT, "tests/simulation/mutants");
const PLACE = join(ROOT, ".tmp/mutants");

/** How one was found: after how many seeds, and by what. */
function tries(name: string): { seeds: string; what: string } {
  const place = join(PLACE, name);
  copyProject(place);
  const patch = join(PATCHES, `${name}.patch`);
  const applied = spawnSync("patch", ["-s", "-F0", "-p1", "-i", patch], {
    cwd: place,
    encoding: "utf8",
  });
  if (applied.status !== 0) return { seeds: "–", what: "the patch does not apply" };
  const main = join(place, "tests/simulation/main.ts");
  const before = "Bun" in globalThis ? [main] : ["run", "-A", "--no-check", main];
  const args = ["--from", values.from, "--seeds", values.seeds, "--jobs", "1", "--stop"];
  const { stdout } = spawnSync(process.execPath, [...before, ...args], { encoding: "utf8" });
  rmSync(place, { recursive: true, force: true });
  const found = /^seed \d+: (.*)$/m.exec(stdout)?.[1];
  const seeds = /^(\d+) seeds, /m.exec(stdout)?.[1] ?? "?";
  if (found === undefined) return { seeds: `not in ${seeds}`, what: "" };
  return { seeds, what: found.replace(/^Broken: /, "").slice(0, 110) };
}

const known = readdirSync(PATCHES).filter((file) => file.endsWith(".patch"))
  .map((file) => file.replace(/\.patch$/, "")).sort();
// As the table has them, too.
const wanted = values.only?.split(",").map((name) => name.trim().replaceAll(" ", "_")) ?? known;
const unknown = wanted.find((name) => !known.includes(name));
if (unknown !== undefined) {
  console.error(`There is no known fault "${unknown}": there are ${known.join(", ")}`);
  process.exit(2);
}
let missed = 0;
console.log("| fault put back | seeds until it is found | by |");
console.log("|---|---|---|");
for (const name of wanted) {
  const { seeds, what } = tries(name);
  if (what === "" || seeds === "–") missed++;
  console.log(`| ${name.replaceAll("_", " ")} | ${seeds} | ${what} |`);
}
process.exit(missed === 0 ? 0 : 1);
