/** The only file that names a runtime. Everything else stands on what Deno, Bun and Node have in common. */

import fs from "node:fs";
import { AsyncLocalStorage } from "node:async_hooks";
import process from "node:process";
import os from "node:os";

interface Permission {
  readonly name: string;
  readonly variable?: string;
  readonly kind?: string;
  readonly host?: string;
  readonly path?: string;
}

interface DenoLike {
  readonly refTimer?: (id: number) => void;
  readonly unrefTimer?: (id: number) => void;
  readonly permissions: {
    querySync(descriptor: Permission): { state: string };
  };
}

const deno = (globalThis as { Deno?: DenoLike }).Deno;
const BUN = "Bun" in globalThis;

// Said where everybody looks, before something that older ones do not have fails in the middle of work.
if (deno === undefined && Number.parseInt(process.versions?.node ?? "", 10) < 22) {
  throw new Error(
    `@getconn/pool needs Node 22 or later, and this is Node ${process.versions.node}`,
  );
}

function granted(descriptor: Permission): boolean {
  return deno === undefined || deno.permissions.querySync(descriptor).state === "granted";
}

/**
 * An environment variable, or undefined when it is not set, or may not be read: a variable is never
 * needed, so a program without the permission must neither fail nor prompt.
 */
export function env(name: string): string | undefined {
  return granted({ name: "env", variable: name }) ? process.env[name] : undefined;
}

/**
 * Whether a connection to this name or address may be tried without a question to whoever sits before the program;
 * without a port: to any, which is also what asking for a name's addresses takes.
 */
export function mayConnect(host: string, port?: number): boolean {
  const name = host.includes(":") ? `[${host}]` : host;
  return granted({ name: "net", host: port === undefined ? name : `${name}:${port}` });
}

/** False where TLS takes lists of revoked certificates and does not look into them: in Deno. */
export const CHECKS_REVOCATION: boolean = deno === undefined;

/** True where TLS is on a stream of ours: in Deno it cannot be on a socket that reads into a buffer, and heeds no pause. */
export const STREAMS_FOR_TLS: boolean = deno !== undefined;

/**
 * True where what a socket reads is copied into its buffer and told of in one go, so that all can have the same one, and
 * where such a buffer counts as heap: in Bun.
 */
export const READS_AT_ONCE: boolean = BUN;

/** True where a socket of `node:net` shows the one that it stands on: in Bun. */
export const BARES_SOCKETS: boolean = BUN;

/** False on Windows, where files have no rights for group and others. */
export const POSIX: boolean = process.platform !== "win32";

/** What was read of a file. */
export interface FileContent {
  readonly text: string;
  /** Its rights and its kind, as stat has them. */
  readonly mode: number;
  /** Who owns it. */
  readonly uid: number;
}

/** Throws what tells "may not be read" from "is not there", instead of prompting for the permission. */
function assertReadable(path: string): void {
  if (granted({ name: "read", path })) return;
  throw Object.assign(new Error("it may not be read: --allow-read is needed"), { code: "EPERM" });
}

/** Reads a file; throws with a `code`: ENOENT when there is none, EPERM when reading is not permitted. */
export function readFileSync(path: string): FileContent {
  assertReadable(path);
  const { mode, uid } = fs.statSync(path);
  return { text: fs.readFileSync(path, "utf8"), mode, uid };
}

/** The same without holding up the isolate. Its error has `found` when there is such a file all the same. */
export async function readFile(path: string): Promise<FileContent> {
  assertReadable(path);
  const { mode, uid } = await fs.promises.stat(path);
  try {
    return { text: await fs.promises.readFile(path, "utf8"), mode, uid };
  } catch (error) {
    throw Object.assign(error as Error, { found: true });
  }
}

/** The names in a directory, sorted; throws as {@linkcode readFile}. */
export async function readDirectory(path: string): Promise<string[]> {
  assertReadable(path);
  return (await fs.promises.readdir(path)).sort();
}

/** The user's home directory, where programs keep their settings; undefined when it may not be known. */
export function homeDirectory(): string | undefined {
  const home = env("HOME");
  if (home) return home;
  try {
    return granted({ name: "sys", kind: "homedir" }) ? os.homedir() || undefined : undefined;
  } catch {
    return undefined;
  }
}

/** The name of the operating system's user, when it may be known. */
export function osUser(): string | undefined {
  try {
    if (granted({ name: "sys", kind: "userInfo" })) {
      // Bun has no other source than USER, and says "unknown" where that is not set.
      const name = BUN ? userOf(process.geteuid?.()) : os.userInfo().username;
      if (name) return name;
    }
  } catch {
    // A user without an entry in the system's table: the environment may still know a name.
  }
  return env("USERNAME") ?? env("USER") ?? env("LOGNAME");
}

/** The name of a user in the system's table. */
function userOf(uid: number | undefined): string | undefined {
  if (uid === undefined) return undefined;
  const line = fs.readFileSync("/etc/passwd", "utf8").split("\n")
    .find((line) => line.split(":")[2] === String(uid));
  return line?.split(":")[0];
}

/** A function that runs in the async context (AsyncLocalStorage) of this call, wherever it is called. */
export function bindContext<F extends (...args: never[]) => unknown>(fn: F): F {
  return AsyncLocalStorage.bind(fn);
}

/** Gives a function that runs others in the async context of this call. */
export function snapshotContext(): <T>(fn: () => T) => T {
  return AsyncLocalStorage.snapshot();
}

/** What is used of a channel of `node:diagnostics_channel`. */
export interface DiagnosticsChannel {
  /** Whether somebody listens. */
  readonly hasSubscribers: boolean;
  /** Tells those who listen. */
  publish(message: unknown): void;
}

/** The channels of what begins now and ends later. */
export interface TracingChannels {
  readonly start: DiagnosticsChannel;
  readonly end: DiagnosticsChannel;
  readonly asyncStart: DiagnosticsChannel;
  readonly asyncEnd: DiagnosticsChannel;
  readonly error: DiagnosticsChannel;
  /** Whether somebody listens to any of them. */
  readonly heard: boolean;
}

/** The tracing channels of this name, `tracing:NAME:start` and so on; null where the runtime has none. */
export function tracingChannels(name: string): TracingChannels | null {
  // Asked for only here: whoever does not use it does not load it, and not every host has it.
  const module = process.getBuiltinModule?.("node:diagnostics_channel");
  if (typeof module?.channel !== "function") return null;
  const channel = (event: string): DiagnosticsChannel => module.channel(`tracing:${name}:${event}`);
  const all = {
    start: channel("start"),
    end: channel("end"),
    asyncStart: channel("asyncStart"),
    asyncEnd: channel("asyncEnd"),
    error: channel("error"),
  };
  const list = Object.values(all);
  return {
    ...all,
    get heard() {
      return list.some(({ hasSubscribers }) => hasSubscribers);
    },
  };
}

/** A value that whatever is called within `run` sees, through every await. It costs nothing before the first `run`. */
export class Ambient<T> {
  #storage: AsyncLocalStorage<T> | null = null;

  /** What the innermost `run` around this was given; undefined outside of all. */
  get current(): T | undefined {
    return this.#storage?.getStore();
  }

  /** Calls `fn` with that value. */
  run<R>(value: T, fn: () => R): R {
    return (this.#storage ??= new AsyncLocalStorage()).run(value, fn);
  }
}

/**
 * Up to which length a text of ASCII is put together, letter by letter, faster than by a call into the runtime: in
 * JavaScriptCore it is a rope, which is paid for when it is read.
 */
export const SHORT_TEXT: number = BUN ? 2 : 8;

/** What setTimeout gives: a number, or an object with `unref` (Node, Bun, and Deno since 2.8). */
export type Timer = ReturnType<typeof setTimeout>;

/** Whether the process stays alive until this timer has fired. */
export function holdTimer(timer: Timer, on: boolean): void {
  const handle = timer as unknown as number | { ref?: () => void; unref?: () => void };
  const how = on ? "ref" : "unref";
  if (typeof handle === "object") handle[how]?.();
  else deno?.[`${how}Timer`]?.(handle);
}

/** Whether whatever does I/O belongs to the request that made it, as on Cloudflare Workers. */
export function requestsOwnTheirs(): boolean {
  return globalThis.navigator?.userAgent === "Cloudflare-Workers";
}

/**
 * On Cloudflare Workers whatever does I/O belongs to the request that made it. This gives a function
 * that tells whether the request at hand is the one in which it was made; elsewhere, null.
 */
export function requestBond(): (() => boolean) | null {
  return requestsOwnTheirs() ? bondToRequest() : null;
}

/** The same, where {@linkcode requestsOwnTheirs}. */
export function bondToRequest(): () => boolean {
  // The host lets nobody but its own request look at a signal.
  const { signal } = new AbortController();
  return () => {
    try {
      return !signal.aborted;
    } catch {
      return false;
    }
  };
}

/** What tells that the isolate is about to end. */
export type ShutdownEvent = "SIGINT" | "SIGTERM" | "beforeunload";

/** Calls `fn` at each such event; returns how to stop that. Where the host has no such event nothing is done. */
export function onShutdown(event: ShutdownEvent, fn: () => void): () => void {
  if (event !== "beforeunload") {
    process.on(event, fn);
    return () => void process.off(event, fn);
  }
  const scope = globalThis as Partial<
    Pick<EventTarget, "addEventListener" | "removeEventListener">
  >;
  const listener = (event: Event): void => {
    // Deno goes on until nothing prevents its end any more: as long as we listen.
    event.preventDefault();
    fn();
  };
  scope.addEventListener?.(event, listener);
  return () => scope.removeEventListener?.(event, listener);
}

/** How many listen to a signal, by the module `process`. */
export function shutdownListeners(signal: "SIGINT" | "SIGTERM"): number {
  return process.listenerCount(signal);
}

/** Ends the process with the exit code that a signal gives. */
export function endBySignal(signal: "SIGINT" | "SIGTERM"): void {
  process.exit(128 + os.constants.signals[signal]);
}

/** What the web and node:worker_threads have in common, as far as the death of a worker goes. */
export interface WorkerLike {
  /** Ends it. */
  terminate(): unknown;
  /** Sends it something. */
  // deno-lint-ignore no-explicit-any
  postMessage(message: any, ...rest: any[]): void;
}

interface Emitter {
  once(type: "exit", fn: () => void): unknown;
  off(type: "exit", fn: () => void): unknown;
}

interface LockManagerLike {
  request(
    name: string,
    options: { signal?: AbortSignal; ifAvailable?: boolean },
    fn: (lock: object | null) => unknown,
  ): Promise<unknown>;
}

/** Deno's Web Locks; a worker of Deno tells nobody of its death, but its locks become free. */
function lockManager(): LockManagerLike | undefined {
  const scope = globalThis as { navigator?: { locks?: LockManagerLike } };
  return deno === undefined ? undefined : scope.navigator?.locks;
}

/**
 * How the death of this worker will be seen:
 * - `event`: it tells its creator.
 * - `lock`: it has to hold a lock while it lives.
 */
export function deathSign(worker: unknown): "event" | "lock" {
  const candidate = worker as Partial<Emitter & EventTarget & WorkerLike> | null;
  if (
    typeof candidate !== "object" || candidate === null ||
    typeof candidate.postMessage !== "function" || typeof candidate.terminate !== "function"
  ) throw new TypeError("share() needs a Worker");
  return typeof candidate.once === "function" || lockManager() === undefined ? "event" : "lock";
}

/** The number that a worker has among the threads of the process; null for a web worker of Deno, which has none. */
export function threadOf(worker: unknown): number | null {
  const { threadId } = worker as { readonly threadId?: unknown };
  return typeof threadId === "number" ? threadId : null;
}

/** The number of the thread in which this runs, as {@linkcode threadOf} gives it from outside. */
export function ownThread(): number {
  // Asked for only here: not every host has this module.
  return process.getBuiltinModule("node:worker_threads").threadId;
}

/** Calls `fn` once when the worker has ended, however it came to that; returns how to stop watching. */
export function onExit(worker: unknown, fn: () => void): () => void {
  const emitter = worker as Emitter & EventTarget;
  // Node's exit event; Bun gives its web workers a close event.
  if (typeof emitter.once === "function") {
    emitter.once("exit", fn);
    return () => void emitter.off("exit", fn);
  }
  emitter.addEventListener("close", fn, { once: true });
  return () => emitter.removeEventListener("close", fn);
}

/** Holds the lock `name` until the returned function is called or this isolate ends; null when it is taken. */
export async function holdLife(name: string): Promise<(() => void) | null> {
  const held = Promise.withResolvers<boolean>();
  const free = Promise.withResolvers<void>();
  const request = lockManager()?.request(name, { ifAvailable: true }, (lock) => {
    held.resolve(lock !== null);
    return lock === null ? undefined : free.promise;
  });
  if (request === undefined) return null;
  request.catch(held.reject);
  return await held.promise ? free.resolve : null;
}

/** Calls `fn` when the lock `name` is free; returns how to stop watching. */
export function onLifeEnd(name: string, fn: () => void): () => void {
  const abort = new AbortController();
  lockManager()?.request(name, { signal: abort.signal }, fn).catch(() => {});
  return () => abort.abort();
}
