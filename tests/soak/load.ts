/** The tasks of a soak: each borrows at random, looks whether the lease is a clean one, and works. */

import type { Connection } from "../../mod.ts";
import type { Arena } from "./arena.ts";
import { Dice } from "../support/dice.ts";
import { nameOf, whoIs } from "./journal.ts";
import { Stalls } from "./stalls.ts";
import type { Witness } from "./witness.ts";
import { listen, pause, type Work, worksOf } from "./works.ts";

/** What the tasks of one isolate share. */
export interface Ground {
  readonly isolate: number;
  readonly seed: number;
  readonly arenas: readonly Arena[];
  readonly witness: Witness;
  readonly stopped: () => boolean;
  /** Where each task is: tells of one that does not end. */
  readonly steps: Map<number, string>;
}

/** One task. */
interface Task {
  readonly who: number;
  readonly stalls: Stalls;
  readonly arena: Arena;
  readonly ground: Ground;
}

/** One turn of a task; has its own dice, so that no turn depends on how another one ended. */
interface Turn extends Task {
  readonly dice: Dice;
}

/** Starts all tasks of an isolate; resolves when the storm is over and they have ended. */
export async function work(ground: Ground): Promise<void> {
  using stalls = new Stalls();
  let number = 0;
  const tasks: Promise<void>[] = [];
  for (const arena of ground.arenas) {
    for (let i = 0; i < arena.tasks; i++) {
      tasks.push(run({ who: whoIs(ground.isolate, number++), stalls, arena, ground }));
    }
  }
  await Promise.all(tasks);
}

async function run(task: Task): Promise<void> {
  const { who, arena, ground } = task;
  for (let number = 0; !ground.stopped(); number++) {
    const dice = new Dice(mix(ground.seed, who, number));
    const turn = { ...task, dice };
    try {
      await arena.within(() => dice.chance(0.1) ? share(turn) : borrow(turn));
    } catch (error) {
      ground.witness.failed(error);
      // A server that is away shall not make this a busy loop.
      await pause(dice.from(1, 20));
    }
    ground.steps.delete(who);
    if (dice.chance(0.05)) await pause(dice.from(1, 50));
  }
}

function mix(seed: number, who: number, number: number): number {
  return Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(who, 0x85ebca6b) ^
    Math.imul(number + 1, 0xc2b2ae35);
}

function step({ who, arena, ground }: Task, what: string): void {
  ground.steps.set(who, `${nameOf(who)} on ${arena.name}: ${what}`);
}

/** A single statement of pool.sql, beside others on a shared connection. */
async function share(turn: Turn): Promise<void> {
  const { arena } = turn;
  step(turn, "pool.sql");
  const id = arena.journal.id();
  await arena.pool.sql`insert into ledger values (${id})`;
  arena.journal.acknowledged(id, arena.number);
}

async function borrow(turn: Turn): Promise<void> {
  const { who, stalls, arena, dice, ground: { witness } } = turn;
  const timeout = dice.of([0, 50, 300, 2_000, 5_000]);
  const key = arena.keys && dice.chance(0.1) ? nameOf(who) : null;
  const abort = new AbortController();
  const timer = dice.chance(0.1)
    ? setTimeout(() => abort.abort(new Error("left")), dice.from(0, 100))
    : undefined;
  const begun = performance.now() - stalls.total;
  step(turn, `getconn, timeout ${timeout}`);
  let conn: Connection;
  try {
    conn = await arena.lend(key, { timeout, signal: abort.signal });
  } finally {
    clearTimeout(timer);
    witness.settled(performance.now() - stalls.total - begun, timeout, who);
  }
  // Over PgBouncer the server's process is known only when it answers.
  let pid = arena.direct ? conn.pid : 0;
  let one: Work | undefined;
  try {
    if (pid !== 0) witness.lent(pid, who);
    step(turn, "probe");
    const answered = await probe(turn, conn);
    if (pid === 0 && arena.sessions) witness.lent(pid = answered, who);
    one = dice.of(worksOf(arena));
    step(turn, one.name || String(one));
    await one(conn, turn);
  } finally {
    // Before the pool may lend it again.
    if (pid !== 0) witness.journal.returned(pid, who);
    // Nobody finds it again under a key but by that key; so only those without are forgotten.
    if (arena.keys && key === null && one !== listen && dice.chance(0.02)) {
      witness.forgets(conn, `${arena.name}: ${one?.name || String(one)}`);
    } else await giveBack(turn, conn, key);
  }
}

async function giveBack(turn: Turn, conn: Connection, key: string | null): Promise<void> {
  const { arena, dice, ground: { witness } } = turn;
  step(turn, "putconn");
  const back = arena.giveBack(conn, key, dice.chance(0.03));
  if (dice.chance(0.7) || !arena.keys) await back;
  else back.catch((error) => witness.violated(`putconn rejected: ${error}`));
}

interface Probe {
  readonly fresh: boolean;
  readonly pid: number;
  readonly channels: number;
}

/** A fresh lease is in no transaction: now() is the moment of this very statement. Gives the backend. */
async function probe({ who, arena, ground: { witness } }: Turn, conn: Connection): Promise<number> {
  const name = `${nameOf(who)} on ${arena.name}`;
  // It may be lost by now, which is no fault; anything but that and idle is.
  const { transactionStatus: state } = conn;
  if (state !== "idle" && state !== "unknown") witness.violated(`${name} was lent ${state}`);
  // In one message, for a statement that is prepared first begins its transaction a little earlier.
  const [row] = await conn.unsafe<Probe[]>(
    `select now() = statement_timestamp() as fresh, pg_backend_pid() as pid,
      (select count(*)::int from pg_listening_channels()) as channels`,
  );
  if (row?.fresh !== true || row.channels !== 0) {
    witness.violated(`${name} was lent a dirty session: ${JSON.stringify(row)}`);
  }
  if (arena.direct && row?.pid !== conn.pid) {
    witness.violated(`${name}: pid ${conn.pid} answers as ${row?.pid}`);
  }
  return row?.pid ?? 0;
}
