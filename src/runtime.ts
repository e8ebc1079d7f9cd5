/** The only file that names a runtime. Everything else stands on what Deno, Bun and Node have in common. */

import process from "node:process";
import os from "node:os";

interface DenoLike {
  readonly refTimer?: (id: number) => void;
  readonly unrefTimer?: (id: number) => void;
  readonly permissions: {
    querySync(descriptor: { name: string; variable?: string; kind?: string }): { state: string };
  };
}

const deno = (globalThis as { Deno?: DenoLike }).Deno;

function granted(descriptor: { name: string; variable?: string; kind?: string }): boolean {
  return deno === undefined || deno.permissions.querySync(descriptor).state === "granted";
}

/**
 * An environment variable, or undefined when it is not set, or may not be read: a variable is never
 * needed, so a program without the permission must neither fail nor prompt.
 */
export function env(name: string): string | undefined {
  return granted({ name: "env", variable: name }) ? process.env[name] : undefined;
}

/** The name of the operating system's user, when it may be known. */
export function osUser(): string | undefined {
  try {
    if (granted({ name: "sys", kind: "userInfo" })) return os.userInfo().username;
  } catch {
    // A user without an entry in the system's table: the environment may still know a name.
  }
  return env("USERNAME") ?? env("USER") ?? env("LOGNAME");
}

/** What setTimeout gives: a number, or an object with `unref` (Node, Bun, and Deno since 2.8). */
export type Timer = ReturnType<typeof setTimeout>;

/** Whether the process stays alive until this timer has fired. */
export function holdTimer(timer: Timer, on: boolean): void {
  const handle = timer as unknown as number | { ref?: () => void; unref?: () => void };
  const how = on ? "ref" : "unref";
  if (typeof handle === "object") handle[how]?.();
  else deno?.[`${how}Timer`]?.(handle);
}
