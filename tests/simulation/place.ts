/** Copies of the project in which its code may be changed. */

import { cpSync, mkdirSync, rmSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The project's folder. */
export const ROOT: string = fileURLToPath(new URL("../../", import.meta.url));
/** All that a run of the simulation needs. */
const NEEDED = [
  "src",
  "mod.ts",
  "tests/simulation",
  "tests/support",
  "tools/std",
  "deno.json",
  "package.json",
];

/** Makes a fresh copy there. */
export function copyProject(place: string): void {
  rmSync(place, { recursive: true, force: true });
  for (const one of NEEDED) {
    const to = join(place, one);
    mkdirSync(dirname(to), { recursive: true });
    cpSync(join(ROOT, one), to, { recursive: true });
  }
  symlinkSync(join(ROOT, "node_modules"), join(place, "node_modules"));
}
