/** The course of a storm: a seed gives the same faults in the same order, each with the same measures. */

import type { CapWatch } from "./cap.ts";
import { Dice } from "../support/dice.ts";
import { FAULTS, type Measure, SORTS } from "./faults.ts";
import { eventually } from "../support/server.ts";
import { measure, type Size } from "./growth.ts";
import { failOver, type Stage } from "./stage.ts";
import type { Witness } from "./witness.ts";
import { pause } from "./works.ts";

/** The primary dies when so much of the storm is over. */
const FAILOVER_AT = 0.65;
/** The first rounds fill caches. */
const CALM = 3;

/** One fault. */
export interface Fault extends Measure {
  readonly kind: string;
  /** Milliseconds of peace before it. */
  readonly after: number;
}

/** Faults of one sort in a row. */
export interface Round {
  readonly sort: "server" | "network";
  readonly faults: readonly Fault[];
}

/** The list for a seed, without end. */
export function* rounds(seed: number): Generator<Round, never> {
  const dice = new Dice(seed);
  // Each kind comes once before any comes again: a short storm shall have most of them.
  const decks = { server: [] as string[], network: [] as string[] };
  for (let number = 0;; number++) {
    const sort = number % 2 === 0 ? "server" : "network";
    const faults = Array.from({ length: dice.from(4, 8) }, () => {
      if (decks[sort].length === 0) decks[sort].push(...SORTS[sort]);
      const [kind] = decks[sort].splice(dice.from(0, decks[sort].length - 1), 1);
      const [after, lasts, size] = [dice.from(20, 300), dice.from(50, 500), dice.from(0, 200)];
      return { kind: kind!, after, lasts, size };
    });
    yield { sort, faults };
  }
}

/** Remembers what was done, and when. */
export class Diary {
  readonly #begun = performance.now();
  readonly #lines: string[] = [];
  /** How often each kind came. */
  readonly counts: Map<string, number> = new Map();

  /** Writes down that something begins; the returned function, that it is over. */
  begins(kind: string, details = ""): () => void {
    this.counts.set(kind, (this.counts.get(kind) ?? 0) + 1);
    const at = this.#lines.push(`${this.now} ${kind} ${details}, under way`) - 1;
    const line = `${this.now} ${kind} ${details}`;
    return () => void (this.#lines[at] = `${line}, over at ${this.now}`);
  }

  /** Seconds since the beginning. */
  get now(): string {
    return `+${((performance.now() - this.#begun) / 1_000).toFixed(2)} s`;
  }

  /** What happened last. */
  get last(): string[] {
    return this.#lines.slice(-6);
  }
}

/** What the storm needs. */
export interface Weather {
  readonly stage: Stage;
  readonly witness: Witness;
  readonly diary: Diary;
  readonly cap: CapWatch;
  readonly seed: number;
  readonly duration: number;
  readonly secret: string;
}

/** Round after round until the time is over; gives what the process had after the first ones. */
export async function storm(weather: Weather): Promise<Size> {
  const { stage, cap, seed, duration } = weather;
  const begun = performance.now();
  const past = () => (performance.now() - begun) / duration;
  let calm: Size | undefined;
  let number = 0;
  for (const { sort, faults } of rounds(seed)) {
    cap.serverCounts = sort === "server";
    for (const fault of faults) await strike(weather, fault);
    cap.serverCounts = false;
    if (sort === "network") await mend(weather);
    if (++number === CALM) calm = measure();
    if (stage.standby !== null && past() > FAILOVER_AT) await change(weather);
    if (past() > 1) return calm ?? measure();
  }
  throw new Error("unreachable");
}

async function strike({ stage, witness, diary }: Weather, fault: Fault): Promise<void> {
  const { kind, after, lasts, size } = fault;
  await pause(after);
  const over = diary.begins(kind, `(${lasts} ms, ${size})`);
  try {
    await FAULTS[kind]!(stage, fault);
  } catch (error) {
    witness.violated(`${kind} failed: ${error instanceof Error ? error.stack : error}`);
  }
  over();
}

/** The primary dies; every pool has to find the new one. */
async function change({ stage, witness, diary, secret }: Weather): Promise<void> {
  const over = diary.begins("failover");
  try {
    await failOver(stage, secret);
  } catch (error) {
    witness.violated(`failover failed: ${error instanceof Error ? error.stack : error}`);
  }
  const before = stage.arenas.map(({ number }) => stage.journal.commits(number));
  const missing = () =>
    stage.arenas.filter(({ number }, i) => stage.journal.commits(number) < before[i]! + 5);
  for (const end = performance.now() + 60_000; missing().length > 0;) {
    if (performance.now() > end) {
      const names = missing().map(({ name }) => name).join(", ");
      witness.violated(`not found within 60 s of the failover the new primary: ${names}`);
      break;
    }
    await pause(20);
  }
  over();
}

/**
 * What a broken network has left at the server, maybe in the middle of a statement, is none of ours any more. The judge
 * has other limits than the accused, and as many connections may be opened now as a machine can bear: it asks again.
 */
async function mend({ stage: { nets, admin }, witness }: Weather): Promise<void> {
  try {
    for (const proxy of nets.flatMap(({ proxies }) => proxies)) {
      await proxy.set("pass");
      proxy.cut("reset");
    }
    await eventually(() =>
      admin.rows(
        `select pg_terminate_backend(pid, 10000) from pg_stat_activity
         where application_name like 'soak %'`,
      ), { timeout: 30_000 });
  } catch (error) {
    witness.violated(`the network was not mended: ${error instanceof Error ? error.stack : error}`);
  }
}
