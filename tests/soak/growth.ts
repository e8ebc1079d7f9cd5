/** What must not grow: the heap, open files, sockets and timers. */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import process from "node:process";

const { gc, Bun } = globalThis as { gc?: () => void; Bun?: { gc(force: boolean): void } };
// Taken before it is watched.
const { setTimeout, clearTimeout } = globalThis;

/** Collects garbage now. */
export function collect(): void {
  // Fills registers and the stack with something else than a forgotten lease.
  JSON.parse(JSON.stringify(Array.from({ length: 100 }, (_, i) => ({ i }))));
  gc?.();
  Bun?.gc(true);
}

/**
 * Collects again and again, as forgotten leases come back when they are garbage; for a tenth of the time at most, or on
 * a busy machine nothing else would get a turn. Returns how to stop.
 */
export function keepCollecting(): () => void {
  const again = (): void => {
    const begun = performance.now();
    collect();
    timer = setTimeout(again, Math.max(500, 10 * (performance.now() - begun)));
  };
  let timer = setTimeout(again, 500);
  return () => clearTimeout(timer);
}

/** What this process has. */
export interface Size {
  /** MiB. */
  readonly heap: number;
  /** Open files, where the system tells. */
  readonly files: number;
}

/** Measures it after a collection. */
export function measure(): Size {
  collect();
  const files = "/proc/self/fd";
  return {
    heap: process.memoryUsage().heapUsed / 2 ** 20,
    files: existsSync(files) ? readdirSync(files).length : 0,
  };
}

const TCP = "/proc/self/net/tcp";
const HAS_TCP = existsSync(TCP);

/** Established, or being so, or closed on our side alone: the states in which the other side has not ended. */
const STANDING: Readonly<Record<string, string>> = {
  "01": "stands",
  "02": "opens",
  "04": "was ended here",
  "05": "was ended here, which is known there",
};

/**
 * The local ports of the sockets that stand towards a port of this machine, in the eyes of those who
 * opened them; null where the system does not tell. What was closed here, or by the other side, does not count.
 */
export function socketsTo(): Map<number, Map<number, string>> | null {
  if (!HAS_TCP) return null;
  const found = new Map<number, Map<number, string>>();
  for (const line of readFileSync(TCP, "latin1").split("\n").slice(1)) {
    const fields = line.trim().split(/\s+/);
    const [, local, remote, state] = fields;
    const how = STANDING[state ?? ""];
    if (local === undefined || remote === undefined || how === undefined) continue;
    // Without an inode no process has it any more.
    if (fields[9] === "0") continue;
    const port = parseInt(remote.slice(-4), 16);
    const own = parseInt(local.slice(-4), 16);
    found.set(port, (found.get(port) ?? new Map()).set(own, how));
  }
  return found;
}

/** Knows the timers of this isolate that have neither fired nor been cleared. */
export class Timers {
  readonly #live = new Map<unknown, string>();

  /** Timers that are set from now on count. */
  watch(): void {
    // The runtimes' own types for these differ, and so do the values.
    const scope = globalThis as unknown as Record<string, (...args: unknown[]) => unknown>;
    const { setTimeout, clearTimeout, setInterval, clearInterval } = scope;
    const live = this.#live;
    const text = (fn: unknown, ms: unknown) => `${ms} ms: ${String(fn).slice(0, 200)}`;
    scope["setTimeout"] = (fn, ms, ...args) => {
      const timer = setTimeout!(
        () => {
          live.delete(timer);
          (fn as (...all: unknown[]) => void)(...args);
        },
        ms,
      );
      live.set(timer, text(fn, ms));
      return timer;
    };
    scope["setInterval"] = (fn, ms, ...args) => {
      const timer = setInterval!(fn, ms, ...args);
      live.set(timer, text(fn, ms));
      return timer;
    };
    const forget = (clear: typeof clearTimeout) => (timer: unknown) => {
      live.delete(timer);
      return clear!(timer);
    };
    scope["clearTimeout"] = forget(clearTimeout);
    scope["clearInterval"] = forget(clearInterval);
  }

  /** Those that are left, each with what it would do. */
  get left(): string[] {
    return [...this.#live.values()];
  }
}
