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
  readonly id: number;
  readonly log: number[];
  hash: number;
  done: boolean;
  dead: boolean;
  sessions: number;
  lacking: number;
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
  const actors: Actor[] = ids.map((id) => ({
    id,
    log: [],
    hash: 0,
    done: false,
    dead: false,
    sessions: 0,
    lacking: 0,
  }));
  const touched = new Set<number>();
  const seen = new Set<string>();
  const path: string[] = [];
  let undo: [number, number][] = [];
  let order: number[] = [];

  const write = (at: number, value: number): void => {
    touched.add(at);
    undo.push([at, memory[at] as number]);
    memory[at] = value;
  };

  /** Runs one isolate by one step; false when it sleeps. */
  function step(actor: Actor, script: Script): boolean {
    let at = 0;
    let steps = 0;
    let sleeping = false;
    actor.sessions = actor.lacking = 0;
    const use = (word: number, writes: boolean): void => {
      if (indifferent.has(word)) return;
      const all = users[word] = (users[word] as number) | (1 << actors.indexOf(actor));
      if (writes) written[word] = 1;
      if (racy[word] === 1 || written[word] === 0 || (all & (all - 1)) === 0) return;
      racy[word] = 1;
      throw RESTART;
    };
    const op = (word: number, writes: boolean, run: () => number): number => {
      if (at < actor.log.length) return actor.log[at++] as number;
      if ((word < 0 || racy[word] === 1) && steps++ > 0) throw PAUSE;
      if (word >= 0) use(word, writes);
      const result = run();
      actor.log.push(result);
      actor.hash = (Math.imul(actor.hash, 0x01000193) ^ (result + actor.log.length * 31)) | 0;
      at++;
      return result;
    };
    const words: Words = {
      load: (word) => op(word, false, () => memory[word] as number),
      store: (word, value) => void op(word, true, () => (write(word, value), 0)),
      swap: (word, from, to) =>
        op(word, true, () => {
          const old = memory[word] as number;
          if (old === from) write(word, to);
          return old;
        }),
      exchange: (word, value) =>
        op(word, true, () => {
          const old = memory[word] as number;
          write(word, value);
          return old;
        }),
      add: (word, by) => void op(word, true, () => (write(word, (memory[word] as number) + by), 0)),
      or: (word, bits) =>
        void op(word, true, () => (write(word, (memory[word] as number) | bits), 0)),
      and: (word, bits) =>
        void op(word, true, () => (write(word, (memory[word] as number) & bits), 0)),
      wake: (word) => void op(word, true, () => (write(word, (memory[word] as number) + 1), 0)),
    };
    const wait = (ready: () => number | null): number =>
      op(-1, false, () => {
        const value = ready();
        if (value !== null) return value;
        sleeping = true;
        throw PAUSE;
      });
    const isolate: Isolate = {
      words,
      id: actor.id,
      lacking: 0,
      opened: () => {
        op(-1, false, () => 0);
        actor.sessions++;
      },
      closed: () => {
        op(-1, false, () => 0);
        actor.sessions--;
      },
      sleep: (known) =>
        void wait(() => memory[slotAt(slotOf(actor.id), SLOT.WAKE)] !== known ? 1 : null),
      death: (react) =>
        void wait(() => {
          const victim = actors.find((one) => one.dead);
          if (victim === undefined) return null;
          const recorded: Words = {
            ...plain,
            store: (at, value) => (use(at, true), write(at, value)),
            and: (at, bits) => (use(at, true), write(at, (memory[at] as number) & bits)),
            swap: (at, from, to) => {
              use(at, true);
              const old = memory[at] as number;
              if (old === from) write(at, to);
              return old;
            },
          };
          react(recorded, victim.id);
          victim.sessions = 0;
          return 1;
        }),
    };
    const before = actor.log.length;
    try {
      script(isolate);
      actor.done = true;
    } catch (error) {
      if (error !== PAUSE) throw error;
    }
    actor.lacking = isolate.lacking;
    return !(sleeping && actor.log.length === before);
  }

  const fail = (what: string): never => {
    throw new Error(`${what}\nafter ${path.join(" ")}`);
  };

  const visit = (): void => {
    if (order.length !== touched.size) order = [...touched].sort((a, b) => a - b);
    let words = `${order.length}:`;
    for (const at of order) words += `${memory[at]},`;
    const locals = actors.map((one) => `${one.log.length}:${one.hash}:${one.dead}:${one.sessions}`);
    const key = `${words};${locals.join()}`;
    if (seen.size >= most || seen.has(key)) return;
    seen.add(key);
    const standing = actors.reduce((sum, one) => sum + one.sessions, 0);
    if (standing > test.limit) fail(`${standing} sessions stand, and the limit is ${test.limit}`);
    let moved = false;
    actors.forEach((actor, index) => {
      if (actor.done || actor.dead) return;
      const saved = actors.map((one) => ({ ...one, log: one.log.length }));
      const outer = undo;
      undo = [];
      path.push(String(index));
      let went = false;
      try {
        went = step(actor, test.scripts[index] as Script);
      } catch (error) {
        if (error === RESTART) throw error;
        fail(`isolate ${index}: ${error instanceof Error ? error.stack : error}`);
      }
      if (went) {
        moved = true;
        visit();
      }
      path.pop();
      for (const [at, value] of undo.reverse()) memory[at] = value;
      undo = outer;
      restore(saved);
      // It may have died before this step as well.
      if (test.mortal?.includes(index) && !actors.some((one) => one.dead)) {
        actor.dead = true;
        path.push(`${index}†`);
        visit();
        path.pop();
        restore(saved);
      }
    });
    if (moved) return;
    try {
      test.quiet(
        plain,
        actors.map((one) => one.dead ? 0 : one.lacking),
        actors.map((one) => one.sessions),
      );
    } catch (error) {
      fail(`where nothing goes on: ${(error as Error).message}`);
    }
  };

  const restore = (saved: { log: number; hash: number; done: boolean; dead: boolean }[]): void => {
    saved.forEach((was, index) => {
      const actor = actors[index] as Actor;
      const log = actor.log;
      log.length = was.log;
      Object.assign(actor, was, { log });
    });
  };

  visit();
  return seen.size;
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
