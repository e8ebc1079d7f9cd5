/** The workers of a soak. */

import type { PersistentConnectionPool, ThreadedConnectionPool } from "../../mod.ts";
import { textOf } from "../support/faults.ts";
import { isolateName } from "./journal.ts";
import type { Begin, Order, Word } from "./worker.ts";
import type { Witness } from "./witness.ts";
import { pause } from "./works.ts";

/** How a worker ends before the storm does. */
export type Ending = "terminate" | "close" | "throw";

/** What all workers are told alike, and what they join. */
export interface Common extends Pick<Begin, "seed" | "scope" | "secret"> {
  readonly threaded: ThreadedConnectionPool;
  readonly persistent: PersistentConnectionPool;
}

/** One that runs. */
class Member {
  readonly isolate: number;
  readonly #worker: Worker;
  readonly #witness: Witness;
  readonly #waiting = new Map<Word["op"], (word: Word) => void>();

  constructor(
    isolate: number,
    common: Common,
    witness: Witness,
    tell: (what: string) => void,
  ) {
    this.isolate = isolate;
    this.#witness = witness;
    this.#worker = new Worker(new URL("./worker.ts", import.meta.url).href, { type: "module" });
    this.#worker.onmessage = ({ data }: MessageEvent<Word>) => {
      // It has counted that itself.
      if (data.op === "violated") tell(data.what);
      this.#waiting.get(data.op)?.(data);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      if (witness.journal.isDead(isolate)) return;
      witness.violated(`${isolateName(isolate)} failed: ${event.message} ${textOf(event.error)}`);
    };
    const { threaded, persistent, ...rest } = common;
    this.tell({
      op: "begin",
      isolate,
      ...rest,
      journal: witness.journal.buffers,
      threaded: threaded.share(this.#worker),
      persistent: persistent.share(this.#worker),
    });
  }

  tell(order: Order): void {
    this.#worker.postMessage(order);
  }

  /** Its next word of this kind; null when it does not come in time. */
  hears(op: Word["op"], patience: number): Promise<Word | null> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(null), patience);
      this.#waiting.set(op, (word) => {
        clearTimeout(timer);
        resolve(word);
      });
    });
  }

  /** A list that it makes, or none when it does not answer. */
  async asks(op: "steps" | "left" | "leases"): Promise<readonly string[]> {
    const answer = this.hears(op, 5_000);
    this.tell({ op });
    const word = await answer;
    return word?.op === op ? word.list : ["no answer"];
  }

  async ends(how: Ending): Promise<void> {
    const { journal } = this.#witness;
    if (how === "terminate") {
      journal.dies(this.isolate);
      this.#worker.terminate();
      return;
    }
    this.tell({ op: "end", how });
    for (const late = performance.now() + 10_000; !journal.isDead(this.isolate);) {
      if (performance.now() > late) {
        this.#witness.violated(`${isolateName(this.isolate)} does not end itself`);
        break;
      }
      await pause(5);
    }
  }
}

/** All of them. */
export class Fleet {
  readonly #common: Common;
  readonly #witness: Witness;
  readonly #tell: (what: string) => void;
  readonly #members: Member[] = [];
  #next = 1;

  /** `tell` hears of what did not hold in a worker. */
  constructor(common: Common, witness: Witness, tell: (what: string) => void) {
    this.#common = common;
    this.#witness = witness;
    this.#tell = tell;
  }

  /** How many there have been. */
  get started(): number {
    return this.#next - 1;
  }

  /** Starts so many. */
  async start(count: number): Promise<void> {
    await Promise.all(Array.from({ length: count }, (_, i) => this.#enlist(i)));
  }

  /** One ends; another one takes its place, some time later. */
  async replace(place: number, how: Ending, after: number): Promise<void> {
    await this.#at(place).ends(how);
    await pause(after);
    await this.#enlist(place % this.#members.length);
  }

  /** One computes and does nothing else. */
  block(place: number, ms: number): void {
    this.#at(place).tell({ op: "block", ms });
  }

  /** The storm is over: waits for their tasks; gives the failures that they saw. */
  async stop(): Promise<ReadonlyMap<string, number>[]> {
    return await Promise.all(this.#members.map(async (member) => {
      const done = member.hears("done", 30_000);
      member.tell({ op: "stop" });
      const word = await done;
      if (word?.op === "done") return word.failures;
      const steps = await member.asks("steps");
      this.#witness.violated(
        `${isolateName(member.isolate)} does not end: ${
          steps.join("; ") || "no task is under way"
        }`,
      );
      return new Map();
    }));
  }

  /** What each worker has: after the pools are closed its timers, or before that its pools and what it has forgotten. */
  async lists(op: "left" | "leases"): Promise<string[]> {
    const lists = await Promise.all(
      this.#members.map(async (member) =>
        (await member.asks(op)).map((text) => `${isolateName(member.isolate)}: ${text}`)
      ),
    );
    return lists.flat();
  }

  /** Ends all. */
  async end(): Promise<void> {
    await Promise.all(this.#members.map((member) => member.ends("terminate")));
  }

  async #enlist(place: number): Promise<void> {
    const member = new Member(this.#next++, this.#common, this.#witness, this.#tell);
    this.#members[place] = member;
    if (await member.hears("ready", 15_000) === null) {
      this.#witness.violated(`${isolateName(member.isolate)} does not join`);
    }
  }

  #at(place: number): Member {
    return this.#members[place % this.#members.length]!;
  }
}
