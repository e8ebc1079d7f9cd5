/** What all isolates of a soak write down together, in shared memory: it outlives a worker that is terminated. */

/** More ids than a storm of hours needs. */
const IDS = 2 ** 24;
/** Linux gives process ids below this. */
const PIDS = 2 ** 22;
const ISOLATES = 2 ** 12;

/** The numbers that every isolate counts up. */
const COUNTS = ["ids", "leases", "forgotten", "recovered", "violations", "wall"] as const;
type Count = typeof COUNTS[number];
/** Behind them: commits acknowledged on each pool. */
const PLACES = 32;

/** What became of a row. */
export const Fate = { unknown: 0, acknowledged: 1, undone: 2 } as const;

/** What travels to a worker. */
export interface JournalBuffers {
  readonly counts: SharedArrayBuffer;
  readonly fates: SharedArrayBuffer;
  readonly held: SharedArrayBuffer;
  readonly dead: SharedArrayBuffer;
}

/** One isolate's view. */
export class Journal {
  readonly buffers: JournalBuffers;
  readonly #counts: Int32Array<SharedArrayBuffer>;
  readonly #fates: Uint8Array<SharedArrayBuffer>;
  /** Who has the backend with this process id, and 0 for nobody. */
  readonly #held: Int32Array<SharedArrayBuffer>;
  readonly #dead: Uint8Array<SharedArrayBuffer>;

  /** Without buffers, a new one. */
  constructor(
    buffers: JournalBuffers = {
      counts: new SharedArrayBuffer(PLACES * 4),
      fates: new SharedArrayBuffer(IDS),
      held: new SharedArrayBuffer(PIDS * 4),
      dead: new SharedArrayBuffer(ISOLATES),
    },
  ) {
    this.buffers = buffers;
    this.#counts = new Int32Array(buffers.counts);
    this.#fates = new Uint8Array(buffers.fates);
    this.#held = new Int32Array(buffers.held);
    this.#dead = new Uint8Array(buffers.dead);
  }

  /** A number for a row that nobody else uses. */
  id(): number {
    const id = Atomics.add(this.#counts, 0, 1);
    if (id >= IDS) throw new Error("the journal is full: a shorter storm, please");
    return id;
  }

  /** One more of these. */
  count(what: Count): void {
    Atomics.add(this.#counts, COUNTS.indexOf(what), 1);
  }

  /** How many there are. */
  total(what: Count): number {
    return Atomics.load(this.#counts, COUNTS.indexOf(what));
  }

  /** The server has acknowledged the commit of this row, over the pool with this number. */
  acknowledged(id: number, pool: number): void {
    Atomics.store(this.#fates, id, Fate.acknowledged);
    Atomics.add(this.#counts, COUNTS.length + pool, 1);
  }

  /** How many commits were acknowledged over the pool with this number. */
  commits(pool: number): number {
    return Atomics.load(this.#counts, COUNTS.length + pool);
  }

  /** This row must never be seen: its transaction is not committed. */
  undone(id: number): void {
    Atomics.store(this.#fates, id, Fate.undone);
  }

  /** All rows of this fate. */
  *rows(fate: number): Generator<number> {
    const end = this.total("ids");
    for (let id = 0; id < end; id++) if (this.#fates[id] === fate) yield id;
  }

  /** What became of a row. */
  fate(id: number): number {
    return this.#fates[id] ?? Fate.unknown;
  }

  /** Notes who has a backend now; returns who had it and has not given it back, or 0. */
  lent(pid: number, who: number): number {
    const before = Atomics.exchange(this.#held, pid % PIDS, who);
    return before === who || this.isDead(isolateOf(before)) ? 0 : before;
  }

  /** It is given back. */
  returned(pid: number, who: number): void {
    // Somebody else may have it by now if ours was lost and the system gave its process id anew.
    Atomics.compareExchange(this.#held, pid % PIDS, who, 0);
  }

  /** To be called before an isolate ends. */
  dies(isolate: number): void {
    Atomics.store(this.#dead, isolate, 1);
  }

  /** Whether it has ended, or is about to. */
  isDead(isolate: number): boolean {
    return this.#dead[isolate] === 1;
  }

  /** By how many seconds the wall clock of the whole process is wrong. */
  set wall(seconds: number) {
    Atomics.store(this.#counts, COUNTS.indexOf("wall"), seconds);
  }

  /** Lets Date.now() of this isolate tell the wrong time of the journal. */
  bendClock(): void {
    const real = Date.now;
    const at = COUNTS.indexOf("wall");
    Date.now = () => real.call(Date) + 1_000 * Atomics.load(this.#counts, at);
  }
}

const TASKS = 1_000;

/** The number of a task of an isolate; never 0. */
export function whoIs(isolate: number, task: number): number {
  return isolate * TASKS + task + 1;
}

/** The isolate of a task. */
export function isolateOf(who: number): number {
  return Math.floor((who - 1) / TASKS);
}

/** For people. */
export function nameOf(who: number): string {
  return `task ${(who - 1) % TASKS} of ${isolateName(isolateOf(who))}`;
}

/** For people, and for the server. */
export function isolateName(isolate: number): string {
  return isolate === 0 ? "main" : `worker ${isolate}`;
}
