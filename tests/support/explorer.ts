/**
 * Explores all interleavings of isolates that work on shared words. The isolates run the real code
 * over a `Words` that stops at every step: to go on by one step, an isolate is run again from its
 * beginning, and gets the results of its earlier steps from a log. States that were seen are not
 * explored again, so that all interleavings of small cases fit into seconds.
 */

import { SLOT, slotAt, slotOf, type Words } from "../../src/workers/layout.ts";

const PAUSE = Symbol("pause");
const RESTART = Symbol("restart");

/** What an isolate may do beside its steps on the words. */
export interface Isolate {
  readonly words: Words;
  readonly id: number;
  /** A session opens, or is gone, at the server. */
  opened(): void;
  closed(): void;
  /** Sleeps until the word WAKE differs from `seen`. */
  sleep(seen: number): void;
  /** Sleeps until an isolate has died; then its sessions end, and `react` runs as one step. */
  death(react: (words: Words, id: number) => void): void;
  /** What the isolate lacks while it sleeps: for the check in the end. */
  lacking: number;
}

/** One isolate's program. It must be deterministic but for what the words tell. */
export type Script = (isolate: Isolate) => void;

/** A case to explore. */
export interface Case {
  /** Prepares the words, and gives the ids of the isolates. */
  setup(words: Words): number[];
  readonly scripts: readonly Script[];
  /** Which isolates may die at any step. */
  readonly mortal?: readonly number[];
  /** How many sessions may stand. */
  readonly limit: number;
  /** Called where nothing can go on. */
  quiet(words: Words, lacking: readonly number[], sessions: readonly number[]): void;
}

interface Actor {
  /** What its steps so far have given. */
  readonly log: number[];
  hash: number;
  done: boolean;
  sessions: number;
  lacking: number;
  /** Runs it by one step; false when it sleeps. */
  step(): boolean;
}

/**
 * Explores a case, but no more than `most` states; returns how many there were. Throws with the way to the
 * first fault.
 */
export function explore(size: number, test: Case, most: number = Infinity): number {
  // Only words that one isolate writes and another uses are places to interrupt. Which these are
  // shows as we go: with each one that is found, everything is explored anew.
  const racy = new Uint8Array(size);
  for (;;) {
    try {
      return exploreWith(racy, test, most);
    } catch (error) {
      if (error !== RESTART) throw error;
    }
  }
}

function exploreWith(racy: Uint8Array, test: Case, most: number): number {
  const memory = new Int32Array(racy.length);
  const plain: Words = direct(memory);
  const ids = test.setup(plain);
  // These say who is served first: nothing stands or falls with that.
  const indifferent = new Set(
    ids.flatMap((id) => [SLOT.SINCE, SLOT.URGENT].map((word) => slotAt(slotOf(id), word))),
  );
  const users = new Uint8Array(racy.length);
  const written = new Uint8Array(racy.length);
  // A state is kept as 52 bits of its hash: two of a million share one by a chance of 1 in 10,000.
  const seen = new Set<number>();
  const path: string[] = [];
  let undo: number[] = [];
  let dead: Actor | null = null;
  /** How the words differ from those of the beginning, whichever way they came there. */
  let low = 0;
  let high = 0;

  const write = (at: number, value: number): number => {
    const old = memory[at] as number;
    undo.push(at, old);
    memory[at] = value;
    low ^= mix(at, old) ^ mix(at, value);
    high ^= mix(~at, old) ^ mix(~at, value);
    return old;
  };

  const use = (word: number, index: number, writes: boolean): void => {
    if (indifferent.has(word)) return;
    const all = users[word] = (users[word] as number) | (1 << index);
    if (writes) written[word] = 1;
    if (racy[word] === 1 || written[word] === 0 || (all & (all - 1)) === 0) return;
    racy[word] = 1;
    throw RESTART;
  };

  const actors: Actor[] = ids.map((id, index) => {
    const script = test.scripts[index] as Script;
    const log: number[] = [];
    const wake = slotAt(slotOf(id), SLOT.WAKE);
    let at = 0;
    let steps = 0;
    let sleeping = false;

    /** A step on a word that others use, or none (-1), is a place to stop before. */
    const enter = (word: number, writes: boolean): void => {
      if ((word < 0 || racy[word] === 1) && steps++ > 0) throw PAUSE;
      if (word >= 0) use(word, index, writes);
    };
    const leave = (result: number): number => {
      log.push(result);
      actor.hash = (Math.imul(actor.hash, 0x01000193) ^ (result + log.length * 31)) | 0;
      at++;
      return result;
    };
    // What is in the log has happened: that is most of a step, so it comes first and makes nothing.
    const change = (word: number, next: (old: number) => number): number => {
      if (at < log.length) return log[at++] as number;
      enter(word, true);
      write(word, next(memory[word] as number));
      return leave(0);
    };
    const wait = (ready: () => boolean): void => {
      if (at < log.length) return void at++;
      enter(-1, false);
      if (!ready()) {
        sleeping = true;
        throw PAUSE;
      }
      leave(1);
    };
    const words: Words = {
      load: (word) => {
        if (at < log.length) return log[at++] as number;
        enter(word, false);
        return leave(memory[word] as number);
      },
      swap: (word, from, to) => {
        if (at < log.length) return log[at++] as number;
        enter(word, true);
        const old = memory[word] as number;
        if (old === from) write(word, to);
        return leave(old);
      },
      exchange: (word, value) => {
        if (at < log.length) return log[at++] as number;
        enter(word, true);
        return leave(write(word, value));
      },
      store: (word, value) => void change(word, () => value),
      add: (word, by) => void change(word, (old) => old + by),
      or: (word, bits) => void change(word, (old) => old | bits),
      and: (word, bits) => void change(word, (old) => old & bits),
      wake: (word) => void change(word, (old) => old + 1),
    };
    const recorded: Words = {
      ...plain,
      store: (word, value) => (use(word, index, true), void write(word, value)),
      and: (word, bits) => (use(word, index, true), void write(word, memory[word]! & bits)),
      swap: (word, from, to) => {
        use(word, index, true);
        const old = memory[word] as number;
        if (old === from) write(word, to);
        return old;
      },
    };
    const session = (by: number): void => {
      if (at < log.length) at++;
      else {
        enter(-1, false);
        leave(0);
      }
      actor.sessions += by;
    };
    const isolate: Isolate = {
      words,
      id,
      lacking: 0,
      opened: () => session(1),
      closed: () => session(-1),
      sleep: (known) => wait(() => memory[wake] !== known),
      death: (react) =>
        wait(() => {
          if (dead === null) return false;
          react(recorded, ids[actors.indexOf(dead)]!);
          dead.sessions = 0;
          return true;
        }),
    };
    const actor: Actor = {
      log,
      hash: 0,
      done: false,
      sessions: 0,
      lacking: 0,
      step() {
        const before = log.length;
        at =
          steps =
          actor.sessions =
          isolate.lacking =
            0;
        sleeping = false;
        try {
          script(isolate);
          actor.done = true;
        } catch (error) {
          if (error !== PAUSE) throw error;
        }
        actor.lacking = isolate.lacking;
        return !(sleeping && log.length === before);
      },
    };
    return actor;
  });

  const fail = (what: string): never => {
    throw new Error(`${what}\nafter ${path.join(" ")}`);
  };

  const visit = (): void => {
    if (seen.size >= most) return;
    let one = low;
    let other = high;
    let standing = 0;
    for (const actor of actors) {
      const { log, hash, sessions } = actor;
      const known = (log.length << 8) + (sessions << 1) + Number(actor === dead);
      one = mix(one ^ hash, known);
      other = mix(other ^ known, hash);
      standing += sessions;
    }
    const key = (one >>> 0) * 0x10_0000 + (other >>> 12);
    if (seen.has(key)) return;
    seen.add(key);
    if (standing > test.limit) fail(`${standing} sessions stand, and the limit is ${test.limit}`);
    let moved = false;
    for (let index = 0; index < actors.length; index++) {
      const actor = actors[index] as Actor;
      if (actor.done || actor === dead) continue;
      const { hash, lacking, sessions } = actor;
      const length = actor.log.length;
      // A step may end the sessions of the one that is dead.
      const left = dead?.sessions ?? 0;
      const outer = undo;
      const [lowest, highest] = [low, high];
      undo = [];
      path.push(String(index));
      let went = false;
      try {
        went = actor.step();
      } catch (error) {
        if (error === RESTART) throw error;
        fail(`isolate ${index}: ${error instanceof Error ? error.stack : error}`);
      }
      if (went) {
        moved = true;
        visit();
      }
      path.pop();
      for (let at = undo.length - 2; at >= 0; at -= 2) memory[undo[at]!] = undo[at + 1]!;
      undo = outer;
      [low, high] = [lowest, highest];
      actor.log.length = length;
      actor.hash = hash;
      actor.lacking = lacking;
      actor.done = false;
      actor.sessions = sessions;
      if (dead !== null) dead.sessions = left;
      // It may have died before this step as well.
      if (dead === null && test.mortal?.includes(index)) {
        dead = actor;
        path.push(`${index}†`);
        visit();
        path.pop();
        dead = null;
      }
    }
    if (moved) return;
    try {
      test.quiet(
        plain,
        actors.map((one) => one === dead ? 0 : one.lacking),
        actors.map((one) => one.sessions),
      );
    } catch (error) {
      fail(`where nothing goes on: ${(error as Error).message}`);
    }
  };

  visit();
  return seen.size;
}

/** One number of two, such that near ones lie far apart. */
function mix(one: number, other: number): number {
  let hash = Math.imul(one ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(other, 0xc2b2ae35);
  hash = Math.imul(hash ^ (hash >>> 15), 0x27d4eb2f);
  hash = Math.imul(hash ^ (hash >>> 13), 0x165667b1);
  return hash ^ (hash >>> 16);
}

function direct(memory: Int32Array): Words {
  return {
    load: (at) => memory[at] as number,
    store: (at, value) => void (memory[at] = value),
    swap: (at, from, to) => {
      const old = memory[at] as number;
      if (old === from) memory[at] = to;
      return old;
    },
    exchange: (at, value) => {
      const old = memory[at] as number;
      memory[at] = value;
      return old;
    },
    add: (at, by) => void (memory[at] = (memory[at] as number) + by),
    or: (at, bits) => void (memory[at] = (memory[at] as number) | bits),
    and: (at, bits) => void (memory[at] = (memory[at] as number) & bits),
    wake: (at) => void (memory[at] = (memory[at] as number) + 1),
  };
}
