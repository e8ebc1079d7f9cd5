/** A worker of a soak: joins the pools that can be shared, and runs its tasks until it is told to stop, or ends. */

import process from "node:process";
import { PersistentConnectionPool, type PoolHandle, ThreadedConnectionPool } from "../../mod.ts";
import { textOf } from "../support/faults.ts";
import { type Arena, arenaOf, countLeaks } from "./arena.ts";
import { keepCollecting, Timers } from "./growth.ts";
import { isolateName, Journal, type JournalBuffers } from "./journal.ts";
import { type Ground, work } from "./load.ts";
import { Witness } from "./witness.ts";

/** What a worker is told first. */
export interface Begin {
  readonly op: "begin";
  readonly isolate: number;
  readonly seed: number;
  readonly scope: "worker" | "context";
  readonly secret: string;
  readonly journal: JournalBuffers;
  readonly threaded: PoolHandle;
  readonly persistent: PoolHandle;
}

/** What it is told. */
export type Order =
  | Begin
  | { readonly op: "block"; readonly ms: number }
  | { readonly op: "end"; readonly how: "close" | "throw" }
  | { readonly op: "stop" | "steps" | "left" | "leases" };

/** What it says. */
export type Word =
  | { readonly op: "ready" }
  | { readonly op: "violated"; readonly what: string }
  | { readonly op: "done"; readonly failures: ReadonlyMap<string, number> }
  | { readonly op: "steps" | "left" | "leases"; readonly list: readonly string[] };

interface Scope {
  onmessage: ((event: MessageEvent<Order>) => void) | null;
  postMessage(word: Word): void;
  addEventListener(type: string, fn: (event: Event) => void): void;
  close(): void;
}
const scope = globalThis as unknown as Scope;
keepCollecting();
const timers = new Timers();
timers.watch();
let over = false;
let failing = false;
let ground: Ground | undefined;

function violated(what: string): void {
  scope.postMessage({ op: "violated", what });
}

/** Nothing that happens here may be left unhandled, unless this worker fails on purpose. */
function onUnhandled(error: unknown): void {
  ground?.witness.violated(`unhandled: ${textOf(error)}`);
}
if ("Deno" in globalThis) {
  for (const type of ["unhandledrejection", "error"]) {
    scope.addEventListener(type, (event) => {
      if (failing) return;
      event.preventDefault();
      const { reason, error } = event as { reason?: unknown; error?: unknown };
      onUnhandled(reason ?? error);
    });
  }
} else {
  const rethrow = (error: unknown) => {
    if (failing) process.exit(1);
    onUnhandled(error);
  };
  process.on("unhandledRejection", rethrow);
  process.on("uncaughtException", rethrow);
}

async function begin(given: Begin): Promise<void> {
  const journal = new Journal(given.journal);
  journal.bendClock();
  const { isolate, seed, secret } = given;
  const witness = new Witness(journal, secret, violated);
  const local = (name: string) => ({
    onnotice: () => {},
    connection: { application_name: `soak ${name} ${isolateName(isolate)}` },
  });
  const arenas: Arena[] = [
    arenaOf(
      "threaded",
      await ThreadedConnectionPool.join(given.threaded, local("threaded")),
      journal,
      given.scope,
    ),
    arenaOf(
      "persistent",
      await PersistentConnectionPool.join(given.persistent, local("persistent")),
      journal,
      given.scope,
    ),
  ];
  for (const { pool } of arenas) countLeaks(pool, journal);
  ground = { isolate, seed, arenas, witness, stopped: () => over, steps: new Map() };
  scope.postMessage({ op: "ready" });
  await work(ground);
  scope.postMessage({ op: "done", failures: witness.failures });
}

/** From inside: as a program that is done, or as one that fails. */
function end(how: "close" | "throw"): void {
  const { isolate, witness } = ground!;
  witness.journal.dies(isolate);
  failing = true;
  if (how === "throw") {
    const error = new Error("this worker fails on purpose");
    // Deno prints it whatever the creator does about it.
    error.stack = error.message;
    throw error;
  }
  if ("Deno" in globalThis) scope.close();
  else process.exit(0);
}

function block(ms: number): void {
  for (const until = performance.now() + ms; performance.now() < until;);
}

scope.onmessage = ({ data }) => {
  if (data.op === "begin") {
    begin(data).catch((error) => violated(`worker ${data.isolate}: ${textOf(error)}`));
  } else if (data.op === "block") block(data.ms);
  else if (data.op === "end") end(data.how);
  else if (data.op === "stop") over = true;
  else if (data.op === "steps") {
    scope.postMessage({ op: "steps", list: [...ground?.steps.values() ?? []] });
  } else if (data.op === "leases") {
    const pools = ground?.arenas.map(({ pool }) => pool.inspect()) ?? [];
    const forgotten = ground?.witness.missed.map((after) => `forgotten: ${after}`) ?? [];
    scope.postMessage({ op: "leases", list: [...pools, ...forgotten] });
  } else scope.postMessage({ op: "left", list: timers.left });
};
