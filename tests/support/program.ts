/**
 * Programs of the tests that run in processes of their own, under the runner at hand.
 *
 * @module
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { runner } from "./harness.ts";

/** A running program. */
export interface Program {
  readonly child: ChildProcess;
  /** The next line that it prints; throws when it ends before. */
  line(): Promise<string>;
  /** Ends it when it runs still, and waits for its end. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** Starts `tests/fixtures/NAME.ts`. */
export function startProgram(name: string, ...args: string[]): Program {
  const file = fileURLToPath(new URL(`../fixtures/${name}.ts`, import.meta.url));
  const before = runner === "deno"
    ? ["run", "-A", "--no-check", "--v8-flags=--expose-gc", file]
    : [file];
  const child = spawn(process.execPath, [...before, ...args], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const ended = once(child, "close");
  const lines: string[] = [];
  const waiting: ((line: string | null) => void)[] = [];
  let over = false;
  const reader = createInterface({ input: child.stdout! });
  reader.on("line", (line) => {
    const first = waiting.shift();
    if (first === undefined) lines.push(line);
    else first(line);
  });
  reader.on("close", () => {
    over = true;
    for (const one of waiting) one(null);
  });
  return {
    child,
    async line() {
      const line = lines.shift() ??
        (over ? null : await new Promise<string | null>((resolve) => waiting.push(resolve)));
      if (line === null) throw new Error(`${name} ended`);
      return line;
    },
    async [Symbol.asyncDispose]() {
      child.stdin?.end();
      if (child.exitCode === null && child.signalCode === null) process.kill(child.pid!, "SIGKILL");
      await ended;
    },
  };
}
