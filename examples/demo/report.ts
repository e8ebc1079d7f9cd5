/** What is printed before and after the load. */

import process from "node:process";
import { type Paint, paint } from "./terminal.ts";
import { duration } from "./format.ts";

/** One thing that must hold. */
export interface Check {
  /** What must hold. */
  readonly name: string;
  /** Whether it does. */
  readonly passed: boolean;
  /** What was found. */
  readonly found: string;
}

/** Name and version of the runtime. */
export function runtime(): string {
  const { bun, deno, node } = process.versions;
  return bun ? `Bun ${bun}` : deno ? `Deno ${deno}` : `Node ${node}`;
}

/** Tells what goes on, and how long it took when it is over. */
export async function step<T>(what: string, work: Promise<T>): Promise<T> {
  const began = performance.now();
  process.stdout.write(`  ${what} … `);
  try {
    const result = await work;
    console.log(paint("dim", duration(performance.now() - began)));
    return result;
  } catch (error) {
    console.log(paint("red", "failed"));
    throw error;
  }
}

/** The audit as a table. */
export function table(checks: readonly Check[], paint: Paint): string {
  const width = Math.max(...checks.map(({ name }) => name.length));
  const failed = checks.filter(({ passed }) => !passed).length;
  const rows = checks.map(({ name, passed, found }) => {
    const verdict = passed ? paint("green", "PASS") : paint("red", "FAIL");
    return `  ${verdict}  ${name.padEnd(width)}  ${paint("dim", found)}`;
  });
  const total = failed === 0
    ? paint("green", `all ${checks.length} checks passed`)
    : paint("red", `${failed} of ${checks.length} checks failed`);
  return ["", `  ${paint("bold", "Audit")}`, ...rows, "", `  ${total}`, ""].join("\n");
}
