/**
 * Isolates of the simulated world: several in one, each with pools of its own. What they share is memory, and what
 * they hear of each other's deaths comes by the world's clock. One that dies does so between any two steps of its
 * own on the shared memory; and between two steps another one may do something.
 */

import { AsyncLocalStorage } from "node:async_hooks";
import { type Clock, setCurrentClock } from "../../src/clock.ts";
import type { Timer, WorkerLike } from "../../src/runtime.ts";
import { PERMITS, slotOf } from "../../src/workers/layout.ts";
import { wordsFor } from "../../src/workers/members.ts";
import { PermitTable } from "../../src/workers/permit_table.ts";
import { type Isolates, setCurrentIsolates } from "../../src/workers/isolates.ts";
import { AtomicWords } from "../../src/workers/shared_permits.ts";
import type { Dice } from "../support/dice.ts";
import type { VirtualClock } from "./clock.ts";
import type { SimTransport } from "./network.ts";

/** How long a wake-up, and the news of a death, may take. Milliseconds. */
const WAKE = [0.04, 0.2] as const;
const DEATH = [5, 60] as const;
/** The runtime closes the sockets of the dead after so many milliseconds, at most. */
const SOCKETS = 25;

/** Who has promised a permit and is to die dies within so many steps. */
const LAST_STEPS = 8;

/** What the code counts permits with: each isolate has its own, and here all have the same. */
const CENSUS = new PermitTable(new AtomicWords(new SharedArrayBuffer(4 * wordsFor(1))), 0).census();

/** Told of each step of a permit, when somebody wants to know. */
export const permitSteps: { tell: ((from: string, to: string) => void) | null } = { tell: null };

/** What a permit's word says: free, held, promised by its owner to another, or handed over and not picked up. */
function permitState(word: number): string {
  if (word === 0) return "free";
  const target = word >>> 24;
  if (target === 0) return "held";
  return target === slotOf(word) ? "handed over" : "promised";
}

interface Sleeper {
  readonly isolate: Isolate;
  readonly wake: () => void;
}

/** One isolate. It stands for its worker, too, as its creator sees that. */
export class Isolate implements WorkerLike {
  alive: boolean = true;
  readonly name: string;
  readonly number: number;
  readonly parent: Isolate | null;
  readonly clock: Clock;
  /** The others, as it sees them. */
  readonly others: Isolates;
  readonly transports: Set<SimTransport> = new Set();
  /** After so many steps on shared memory it dies. */
  stepsLeft: number = Infinity;
  /** Told of its death: by whom, and how. */
  readonly watchers: Set<{ readonly by: Isolate; readonly fn: () => void }> = new Set();
  readonly #world: SimIsolates;

  constructor(world: SimIsolates, name: string, number: number, parent: Isolate | null) {
    this.#world = world;
    this.name = name;
    this.number = number;
    this.parent = parent;
    const base = world.clock;
    this.clock = {
      now: () => base.now(),
      wall: () => base.wall(),
      setTimeout: (fn, ms): Timer => {
        const timer = base.timer(() => this.run(fn), ms, this);
        // It may have died in the step that asks for it.
        if (!this.alive) base.clearTimeout(timer);
        return timer;
      },
      clearTimeout: (timer) => base.clearTimeout(timer),
      hold: () => {},
      random: base.random,
    };
    this.others = world.seenBy(this);
  }

  /** Calls back in a turn of its own; returns how to call that off. */
  after(ms: number, fn: () => void): () => void {
    return this.#world.clock.after(ms, () => this.run(fn), this);
  }

  /** Runs something in it, unless it is dead. */
  run(fn: () => void): void {
    if (this.alive) this.#world.run(this, fn);
  }

  /** Runs something in a microtask of it. */
  soon(fn: () => void): void {
    this.#world.clock.quiet = false;
    queueMicrotask(() => this.run(fn));
  }

  terminate(): void {
    this.#world.kill(this);
  }

  postMessage(): void {}
}

/** All isolates of one world. */
export class SimIsolates {
  readonly clock: VirtualClock;
  readonly all: Isolate[] = [];
  /** How often one is interrupted between two steps on shared memory. */
  interrupts: number = 0;
  /** How often one that has promised a permit dies before that has moved. */
  deaths: number = 0;
  /** Told each time that one is interrupted. */
  oninterrupt: () => void = () => {};
  /** Told of each death. */
  ondeath: (isolate: Isolate) => void = () => {};
  /** In whose turn, and in what has come of it, the code at hand runs. */
  readonly #running = new AsyncLocalStorage<Isolate>();
  #nested = false;
  readonly #dice: Dice;
  readonly #sign: "event" | "lock";
  readonly #sleepers = new Map<number, Sleeper[]>();
  readonly #locks = new Map<string, Isolate>();
  readonly #waiting = new Map<string, Set<{ readonly by: Isolate; readonly fn: () => void }>>();
  readonly #words = new Map<Isolate, SimWords[]>();
  readonly #undo: readonly (() => void)[];

  constructor(clock: VirtualClock, dice: Dice) {
    this.clock = clock;
    this.#dice = dice;
    this.#sign = dice.chance(0.5) ? "event" : "lock";
    this.#undo = [
      setCurrentClock(() => this.#running.getStore()?.clock ?? clock),
      setCurrentIsolates(() => (this.#running.getStore() ?? this.all[0] as Isolate).others),
    ];
  }

  /** The runtime's own again. */
  dispose(): void {
    for (const undo of this.#undo) undo();
  }

  make(parent: Isolate | null): Isolate {
    const number = this.all.length;
    const isolate = new Isolate(this, `i${number}`, number, parent);
    this.all.push(isolate);
    return isolate;
  }

  /** Runs something in an isolate: whatever is made there, then or in what follows, gets its clock. */
  run(isolate: Isolate, fn: () => void): void {
    this.clock.quiet = false;
    this.#running.run(isolate, fn);
  }

  /** It ends, with those that it has made; nothing more comes of it. */
  kill(isolate: Isolate): void {
    if (!isolate.alive) return;
    for (const child of this.all) if (child.parent === isolate) this.kill(child);
    isolate.alive = false;
    this.clock.drop(isolate);
    for (const words of this.#words.get(isolate) ?? []) words.die();
    for (const [at, sleepers] of this.#sleepers) {
      this.#sleepers.set(at, sleepers.filter((one) => one.isolate !== isolate));
    }
    this.ondeath(isolate);
    this.clock.after(this.#dice.next() * SOCKETS, () => {
      for (const transport of [...isolate.transports]) transport.break();
    });
    for (const { by, fn } of isolate.watchers) this.#tell(by, DEATH, fn);
    for (const [name, holder] of [...this.#locks]) if (holder === isolate) this.#free(name);
  }

  #tell(by: Isolate, [from, to]: readonly [number, number], fn: () => void): void {
    if (by.alive) by.after(from + (to - from) * this.#dice.next(), fn);
  }

  // --- memory ---

  #wordsOf(isolate: Isolate, buffer: SharedArrayBuffer): AtomicWords {
    const words = new SimWords(buffer, this, isolate);
    if (!isolate.alive) words.die();
    const all = this.#words.get(isolate);
    if (all === undefined) this.#words.set(isolate, [words]);
    else all.push(words);
    return words;
  }

  /** Between two steps of an isolate: it may die, and others may go on. */
  between(isolate: Isolate): void {
    if (!isolate.alive) return;
    if (--isolate.stepsLeft < 0) return this.kill(isolate);
    if (
      this.interrupts === 0 || this.#nested || !this.#dice.chance(this.interrupts)
    ) return;
    this.#nested = true;
    const { held, coming, owned, free, moving, total } = CENSUS;
    const counted = [held.slice(), coming.slice(), owned.slice()] as const;
    // No time goes by: what others do now would have been done a moment later.
    if (this.clock.step(this.clock.now() + 0.3, isolate)) this.oninterrupt();
    // It may be in the middle of a count.
    held.set(counted[0]);
    coming.set(counted[1]);
    owned.set(counted[2]);
    Object.assign(CENSUS, { free, moving, total });
    this.#nested = false;
  }

  /** An isolate has promised a permit to another one: some do not live to see it move. */
  promised(isolate: Isolate): void {
    if (this.deaths === 0 || isolate.parent === null || isolate.stepsLeft !== Infinity) return;
    if (this.#dice.chance(this.deaths)) isolate.stepsLeft = this.#dice.below(LAST_STEPS);
  }

  sleep(at: number, isolate: Isolate): Promise<void> {
    return new Promise((wake) => {
      let sleepers = this.#sleepers.get(at);
      if (sleepers === undefined) this.#sleepers.set(at, sleepers = []);
      sleepers.push({ isolate, wake });
    });
  }

  wake(at: number): void {
    const sleepers = this.#sleepers.get(at) ?? [];
    this.#sleepers.set(at, []);
    for (const { isolate, wake } of sleepers) this.#tell(isolate, WAKE, wake);
  }

  // --- deaths ---

  /** How an isolate sees the others. */
  seenBy(by: Isolate): Isolates {
    return {
      words: (buffer) => this.#wordsOf(by, buffer),
      deathSign: () => this.#sign,
      onExit: (worker, fn) => {
        const watcher = { by, fn };
        const { watchers, alive } = worker as Isolate;
        if (alive) watchers.add(watcher);
        else this.#tell(by, DEATH, fn);
        return () => watchers.delete(watcher);
      },
      holdLife: (name) => {
        if (!by.alive) return new Promise(() => {});
        if (this.#locks.has(name)) return Promise.resolve(null);
        this.#locks.set(name, by);
        return Promise.resolve(() => this.#free(name));
      },
      onLifeEnd: (name, fn) => {
        const watcher = { by, fn };
        let waiting = this.#waiting.get(name);
        if (waiting === undefined) this.#waiting.set(name, waiting = new Set());
        waiting.add(watcher);
        if (!this.#locks.has(name)) this.#free(name);
        return () => waiting.delete(watcher);
      },
      threadOf: (worker) => (worker as Isolate).number,
      ownThread: () => by.number,
    };
  }

  #free(name: string): void {
    this.#locks.delete(name);
    const waiting = this.#waiting.get(name) ?? new Set();
    for (const watcher of [...waiting]) {
      this.#tell(watcher.by, DEATH, () => {
        if (waiting.delete(watcher)) watcher.fn();
      });
    }
  }
}

/** Shared memory as one isolate works on it. A dead one goes on, to the end of its turn, on a copy. */
class SimWords extends AtomicWords {
  readonly #world: SimIsolates;
  readonly #isolate: Isolate;
  #at: Int32Array;

  constructor(buffer: SharedArrayBuffer, world: SimIsolates, isolate: Isolate) {
    super(buffer);
    this.#world = world;
    this.#isolate = isolate;
    this.#at = this.array;
  }

  die(): void {
    this.#at = new Int32Array(this.#at);
  }

  #step(): Int32Array {
    const { stepsLeft } = this.#isolate;
    if (stepsLeft !== Infinity || this.#world.interrupts > 0) this.#world.between(this.#isolate);
    return this.#at;
  }

  override load(at: number): number {
    return this.#step()[at]!;
  }

  override loadPair(at: number): readonly [number, number] {
    const words = this.#step();
    return [words[at]!, words[at + 1]!];
  }

  override storePair(at: number, first: number, second: number): void {
    this.#step().set([first, second], at);
  }

  override store(at: number, value: number): void {
    const words = this.#step();
    const before = words[at]!;
    words[at] = value;
    if (at >= PERMITS) this.#tell(before, value);
  }

  override swap(at: number, from: number, to: number): number {
    const before = Atomics.compareExchange(this.#step(), at, from, to);
    if (at >= PERMITS && before === from) {
      this.#tell(from, to);
      if (permitState(to) === "promised") this.#world.promised(this.#isolate);
    }
    return before;
  }

  #tell(from: number, to: number): void {
    if (permitSteps.tell === null || !this.#isolate.alive) return;
    const other = permitState(to) === "held" && from !== 0 && (from & 0xffffff) !== (to & 0xffffff);
    permitSteps.tell(permitState(from), other ? "held by another" : permitState(to));
  }

  override exchange(at: number, value: number): number {
    return Atomics.exchange(this.#step(), at, value);
  }

  override add(at: number, by: number): void {
    Atomics.add(this.#step(), at, by);
  }

  override or(at: number, bits: number): void {
    Atomics.or(this.#step(), at, bits);
  }

  override and(at: number, bits: number): void {
    Atomics.and(this.#step(), at, bits);
  }

  override wake(at: number): void {
    Atomics.add(this.#step(), at, 1);
    this.#world.between(this.#isolate);
    if (this.#isolate.alive) this.#world.wake(at);
  }

  override sleep(at: number, seen: number): Promise<unknown> | null {
    // One step: who wakes this word in between has changed it before.
    return this.#step()[at] === seen ? this.#world.sleep(at, this.#isolate) : null;
  }
}
