/**
 * A storm over the pools: `deno task soak [--minutes N] [--seed S] [--runtime bun]`.
 *
 * Many tasks in several isolates use all kinds of pools on real servers in every way, while the servers,
 * the network, PgBouncer, the workers and the process itself fail at random. What must hold is watched
 * throughout and at the end. The seed is printed; with it the same faults come in the same order again,
 * and each turn of a task makes the same choices.
 *
 * @module
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { PersistentConnectionPool, ThreadedConnectionPool } from "../../mod.ts";
import { textOf } from "../support/faults.ts";
import { aftermath, closeAll } from "./aftermath.ts";
import { CAPS, countLeaks, POOLS } from "./arena.ts";
import { CapWatch } from "./cap.ts";
import { Dice } from "../support/dice.ts";
import { Fleet } from "./fleet.ts";
import { keepCollecting, Timers } from "./growth.ts";
import { Fate, Journal } from "./journal.ts";
import { type Ground, work } from "./load.ts";
import { setUp } from "./stage.ts";
import { Diary, storm } from "./storm.ts";
import { Witness } from "./witness.ts";

const WORKERS = 3;
/** Milliseconds for all that follows a storm, when each part of it needs the longest that it may. */
const PATIENCE = 240_000;

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "1" },
    seed: { type: "string", default: String(Math.floor(Math.random() * 2 ** 31)) },
    runtime: { type: "string", default: "" },
  },
});

if (values.runtime === "bun" && !("Bun" in globalThis)) {
  const file = fileURLToPath(import.meta.url);
  const args = ["-y", "bun", file, "--minutes", values.minutes, "--seed", values.seed];
  const [code] = await once(spawn("npx", args, { stdio: "inherit" }), "close");
  process.exitCode = code as number;
} else {
  await soak(Number(values.minutes), Number(values.seed));
  // Fires only when something is left that keeps the process alive.
  const alarm = setTimeout(() => {
    console.error("VIOLATION: the process does not end by itself");
    process.exit(1);
  }, 10_000) as unknown as { unref?: () => void } | number;
  if (typeof alarm === "number") Deno.unrefTimer(alarm);
  else alarm.unref?.();
}

/** One run; sets the exit code. */
async function soak(minutes: number, seed: number): Promise<void> {
  const runtime = "Bun" in globalThis ? "Bun" : "Deno";
  console.log(`soak on ${runtime}: ${minutes} minutes, --seed ${seed}`);
  const diary = new Diary();
  // What a worker has counted itself is only told.
  const tell = (what: string): void => {
    const last = diary.last.map((line) => `\n    ${line}`).join("");
    if (journal.total("violations") <= 50) {
      console.error(`VIOLATION at ${diary.now}: ${what}\n  after${last}`);
    }
  };
  const journal = new Journal();
  const secret = `secret-${crypto.randomUUID()}`;
  const witness = new Witness(journal, secret, tell);
  for (const type of ["unhandledRejection", "uncaughtException"] as const) {
    process.on(type, (error: unknown) => witness.violated(`${type}: ${textOf(error)}`));
  }
  const duration = minutes * 60_000;
  // What waits for ever outside of every other limit, the storm itself too.
  const hung = setTimeout(() => {
    tell(`the run does not end within ${PATIENCE / 1_000} s after the storm`);
    process.exit(1);
  }, duration + PATIENCE);
  try {
    await run({ witness, journal, secret, diary, tell, seed, duration });
  } catch (error) {
    witness.violated(`the run failed: ${textOf(error)}`);
  }
  clearTimeout(hung);
  report(journal, diary, seed);
}

interface Run {
  readonly witness: Witness;
  readonly journal: Journal;
  readonly secret: string;
  readonly diary: Diary;
  readonly tell: (what: string) => void;
  readonly seed: number;
  readonly duration: number;
}

async function run({ tell, ...weather }: Run): Promise<void> {
  const { witness, journal, secret, diary, seed } = weather;
  const scope = new Dice(seed).of(["worker", "context"] as const);
  await using stack = new AsyncDisposableStack();
  const timers = new Timers();
  timers.watch();
  const stage = await setUp(stack, journal, { secret, scope });
  const [threaded, persistent] = stage.arenas.map(({ pool }) => pool) as [
    ThreadedConnectionPool,
    PersistentConnectionPool,
  ];
  const fleet = stage.fleet = new Fleet(
    { threaded, persistent, seed, scope, secret },
    witness,
    tell,
  );
  stack.defer(() => fleet.end());
  await fleet.start(WORKERS);
  for (const { pool } of stage.arenas) countLeaks(pool, journal);
  console.log(`${diary.now}: the stage stands; the persistent pool's scope is ${scope}`);
  journal.bendClock();
  const cap = new CapWatch(stage, witness);
  stack.defer(() => cap.stop());
  let over = false;
  const steps = new Map<number, string>();
  const ground: Ground = {
    isolate: 0,
    seed,
    arenas: stage.arenas,
    witness,
    stopped: () => over,
    steps,
  };
  const tasks = work(ground);
  // Also when something else fails: the process would not end.
  stack.defer(() => {
    over = true;
    return tasks;
  });
  stack.defer(keepCollecting());
  const calm = await storm({ ...weather, stage, cap });
  over = true;
  const late = setTimeout(
    () => witness.violated(`main does not end: ${[...steps.values()].join("; ")}`),
    30_000,
  );
  const [failures] = await Promise.all([fleet.stop(), tasks]);
  clearTimeout(late);
  await cap.stop();
  console.log(`${diary.now}: the storm is over`);
  await aftermath(stage, witness, calm);
  await closeAll(stage, witness, timers);
  // None of ours, but one more fault that was survived; what it said is printed.
  for (const _ of stage.bouncers.flatMap(({ crashes }) => crashes)) diary.begins("bouncerEnded");
  tellNumbers(cap, fleet, [witness.failures, ...failures]);
}

function tellNumbers(cap: CapWatch, fleet: Fleet, all: ReadonlyMap<string, number>[]): void {
  const list = POOLS.map((name) =>
    `${name} ${cap.atServer.get(name) ?? "-"} and ${cap.here.get(name) ?? "-"} of ${CAPS[name]}`
  );
  console.log(
    `most sessions at the server (${cap.samples} samples) and sockets here: ${list.join(", ")}; ` +
      `${cap.outlived} statements seen after their worker's end, ${fleet.started} workers`,
  );
  const sums = new Map<string, number>();
  for (const [kind, n] of all.flatMap((map) => [...map])) sums.set(kind, (sums.get(kind) ?? 0) + n);
  const failures = [...sums].sort((a, b) => b[1] - a[1]).map(([kind, n]) => `${kind} ${n}`);
  console.log(`failures seen: ${failures.join(", ")}`);
}

function report(journal: Journal, diary: Diary, seed: number): void {
  const faults = [...diary.counts].sort().map(([kind, n]) => n > 1 ? `${kind} ${n}` : kind);
  console.log(`faults: ${faults.join(", ")}`);
  const of = (fate: number) => [...journal.rows(fate)].length;
  const [leases, forgotten, recovered] = (["leases", "forgotten", "recovered"] as const)
    .map((what) => journal.total(what));
  console.log(
    `${leases} leases, ${of(Fate.acknowledged)} commits acknowledged, ${
      of(Fate.undone)
    } abandoned, ` +
      `${forgotten} leases forgotten, ${recovered} taken back as leaks`,
  );
  const violations = journal.total("violations");
  if (violations === 0) {
    console.log(`soak: everything held, in ${diary.now}`);
    return;
  }
  console.log(`soak: ${violations} violations; again with --seed ${seed}`);
  process.exitCode = 1;
}
