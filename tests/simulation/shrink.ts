/** Of a seed that fails, as little as still fails in the same way. */

import { type Result, simulate } from "./run.ts";
import type { Fault, Without } from "./world.ts";

/** The least that was found. */
export interface Least {
  readonly without: Without;
  readonly result: Result;
}

/** What a failure says, without its numbers. */
function kindOf({ failure }: Result): string {
  return String(failure?.message).split("\n")[0]!.replaceAll(/\d+/g, "#");
}

/** Leaves out faults, then ever smaller parts of what people do, as long as it fails as before. */
export async function shrink(first: Result, tell: (line: string) => void): Promise<Least> {
  const wanted = kindOf(first);
  const faults = new Set<Fault>();
  const acts = new Set<string>();
  let least: Least = { without: {}, result: first };
  const tries = async (more: { faults?: Fault[]; acts?: string[] }): Promise<boolean> => {
    const without = {
      faults: new Set([...faults, ...more.faults ?? []]),
      acts: new Set([...acts, ...more.acts ?? []]),
    };
    const result = await simulate(first.seed, without);
    if (result.failure === null || kindOf(result) !== wanted) return false;
    for (const fault of without.faults) faults.add(fault);
    for (const act of without.acts) acts.add(act);
    least = { without, result };
    tell(`${result.acts.length} acts, faults: ${result.kinds.slice(1).join(" ")}`);
    return true;
  };
  for (const fault of first.kinds.slice(1)) await tries({ faults: [fault as Fault] });
  for (let size = Math.ceil(first.acts.length / 2); size >= 1; size = size === 1 ? 0 : size >> 1) {
    for (let at = 0; at < least.result.acts.length;) {
      const part = least.result.acts.slice(at, at + size);
      if (!await tries({ acts: part })) at += size;
    }
  }
  return least;
}
