/** Says in words what a pool does: for the message of a timeout, for `inspect()` and for console.log. */

import { reasonOf } from "./errors.ts";
import type { PoolLease } from "./lease.ts";
import type { PoolEntry } from "./entry.ts";
import type { PoolState } from "./state.ts";
import type { PoolSettings, PoolStats } from "./types.ts";
import { JobWaiter } from "./jobs.ts";
import type { Waiter } from "./wait_queue.ts";

/** How many connections, and how many of those who wait, `inspect` shows. */
const MOST = 5;
/** How much of a text. */
const MOST_TEXT = 200;

/** A duration as people write it. */
export function duration(ms: number): string {
  if (ms < 1_000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 120_000) return `${(ms / 1_000).toFixed(1)} s`;
  return ms < 7_200_000 ? `${Math.round(ms / 60_000)} min` : `${(ms / 3_600_000).toFixed(1)} h`;
}

/** Where this package's files are, as stacks show it: a frame from there says nothing about who called. */
function ownPlaces(): readonly string[] {
  try {
    // This file is in pool/ of all sources, unless a bundler has put it into the one file that there is.
    const bundled = !/\/pool\/describe\.[jt]s$/.test(import.meta.url);
    const { href, pathname } = new URL(bundled ? import.meta.url : "..", import.meta.url);
    return [href, decodeURIComponent(pathname)];
  } catch {
    // Some bundlers leave no address.
    return [];
  }
}

/** The first frame of a stack that is not of this package; null when there is none. */
export function foreignFrame(stack: string): string | null {
  const own = ownPlaces();
  // The first line of a stack is the message, where there is one.
  for (const line of stack.split("\n")) {
    const frame = line.trim();
    if (!/:\d+\)?$/.test(frame) || own.some((place) => frame.includes(place))) continue;
    return frame.replace(/^at /, "");
  }
  return null;
}

/** The leases, the longest held first. */
function longestHeld(entries: Iterable<PoolEntry>): PoolLease[] {
  const leases: PoolLease[] = [];
  for (const { lease } of entries) if (lease !== null) leases.push(lease);
  return leases.sort((a, b) => a.since - b.since);
}

function placeOf(stack: string | null, how: "called at" | "taken at"): string {
  const frame = stack === null ? null : foreignFrame(stack);
  return frame === null ? "" : `, ${how} ${frame}`;
}

/** A key for people's eyes: what is no short text and no number stays what it is. */
function nameOf(key: unknown): string {
  if (key === null) return "";
  if (typeof key === "number" || (typeof key === "string" && key.length <= 40)) {
    return ` under ${JSON.stringify(key)}`;
  }
  return " under a key";
}

/** A text in one line. */
function short(text: string): string {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > MOST_TEXT ? `${line.slice(0, MOST_TEXT)}…` : line;
}

/**
 * What holds the connections, for the message of a PoolTimeout; begins with a semicolon, or is empty.
 * `elsewhere`: how many of them other workers hold.
 */
export function holders(
  entries: Iterable<PoolEntry>,
  elsewhere: number,
  now: number,
): string {
  const leases = longestHeld(entries);
  const others = elsewhere === 0 ? "" : `; ${elsewhere} are with other workers`;
  const [longest] = leases;
  if (longest === undefined) return others;
  const held = `${duration(now - longest.since)}${placeOf(longest.stack, "taken at")}`;
  return others +
    (leases.length === 1
      ? `; the one that is leased has been for ${held}`
      : `; of the ${leases.length} that are leased, the longest has been for ${held}`);
}

/** What is being opened, in the same way; who waits for that is helped by nothing that is put back. */
export function opening(entries: Iterable<PoolEntry>, now: number): string {
  let count = 0;
  let since = now;
  for (const { state, setOutAt } of entries) {
    if (state !== "connecting") continue;
    count++;
    since = Math.min(since, setOutAt);
  }
  if (count === 0) return "";
  const which = count === 1
    ? "the one that is being opened"
    : `of the ${count} that are being opened, the first`;
  return `; ${which} has been for ${duration(now - since)}: does the server answer?`;
}

/** A summary of a pool in a few lines, without secrets. */
export function describePool<C extends object>(
  pool: { stats(): PoolStats; readonly options: PoolSettings },
  state: PoolState<C>,
  waiters: Iterable<Waiter<C>>,
): string {
  const now = state.clock.now();
  const stats = pool.stats();
  const lines = [
    `${pool.constructor.name} "${stats.name}", ${state.phase}${
      destination(pool.options.connection)
    }`,
    `  connections: ${stats.poolSize} of ${stats.poolMax}: ${states(stats)}; ` +
    `minconn ${stats.poolMin}`,
    `  getconn: ${stats.requestsNum} calls, ${stats.requestsQueued} waited ` +
    `(${duration(stats.requestsWaitMs)} in all), ${stats.requestsErrors} failed, ` +
    `${stats.requestsWaiting} waiting now`,
    `  connects: ${stats.connectionsNum} (${duration(stats.connectionsMs)} in all), ` +
    `${stats.connectionsErrors} failed, ${stats.connectionsLost} lost`,
  ];
  for (const worker of stats.workers) {
    const which = worker.self ? " (this one)" : "";
    lines.push(`  worker ${worker.worker}${which}: ${states(worker)}`);
  }
  const runs = (entry: PoolEntry): string => {
    const running = state.connector.running?.(entry.resource as object) ?? null;
    if (running === null) return "";
    // A shared connection is at what it began when it gave its last answer.
    const since = entry.state === "shared" ? entry.answeredAt : running.since;
    const long = since === null ? "" : ` for ${duration(now - since)}`;
    return `, runs${long}: ${short(running.text)}`;
  };
  const leases = longestHeld(state.entries);
  for (const lease of leases.slice(0, MOST)) {
    const held = `${duration(now - lease.since)}${nameOf(lease.key)}`;
    const where = placeOf(lease.stack, "taken at");
    lines.push(`  leased for ${held}${where}${runs(lease.entry as PoolEntry)}`);
  }
  if (leases.length > MOST) lines.push(`  and ${leases.length - MOST} more leased`);
  const shared = [...state.entries].filter((entry) => entry.state === "shared")
    .sort((a, b) => a.answeredAt - b.answeredAt);
  for (const entry of shared.slice(0, MOST)) {
    lines.push(`  shared by ${entry.inFlight} statements${runs(entry)}`);
  }
  if (shared.length > MOST) lines.push(`  and ${shared.length - MOST} more shared`);
  let waiting = 0;
  for (const waiter of waiters) {
    if (waiting++ >= MOST) continue;
    const what = waiter instanceof JobWaiter
      ? `pool.sql: ${short(waiter.job.shown ?? "")}`
      : `getconn${nameOf(waiter.key)}${placeOf(waiter.stack, "called at")}`;
    lines.push(`  waits for ${duration(now - waiter.since)}: ${what}`);
  }
  if (waiting > MOST) lines.push(`  and ${waiting - MOST} more waiting`);
  const { failure } = state;
  if (failure !== null) lines.push(`  last failure to connect: ${reasonOf(failure.error)}`);
  return lines.join("\n");
}

function states(counts: PoolStats | PoolStats["workers"][number]): string {
  const { leased, idle, connecting, closing } = counts;
  const shared = "shared" in counts && counts.shared > 0 ? ` ${counts.shared} shared,` : "";
  return `${leased} leased,${shared} ${idle} idle, ${connecting} connecting, ${closing} closing`;
}

function destination({ hosts, user, database }: PoolSettings["connection"]): string {
  if (!Array.isArray(hosts)) return "";
  return `, to ${hosts.join(", ")}, database ${database} as ${user}`;
}

/** Under these names console.log asks an object for its text: in Deno, and in Bun and Node. */
const INSPECT = [Symbol.for("Deno.customInspect"), Symbol.for("nodejs.util.inspect.custom")];

/** Makes console.log print what `text` says. */
export function inspectable<T extends object>(target: T, text: (shown: T) => string): void {
  const value = function (this: T): string {
    return text(this);
  };
  for (const key of INSPECT) Object.defineProperty(target, key, { value, configurable: true });
}
