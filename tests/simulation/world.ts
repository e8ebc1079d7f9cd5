/** One simulated world: what a seed decides, what happens in it, and what must hold at every step. */

import process from "node:process";
import { Dice } from "../support/dice.ts";
import { realTurn, SERVERS, VirtualClock } from "./clock.ts";
import { FAIR, Network } from "./network.ts";
import { Database } from "./database.ts";
import { type Isolate, SimIsolates } from "./isolate.ts";
import { type Backend, Server } from "./server.ts";

/** What was promised and not kept. */
export class Broken extends Error {
  override readonly name = "Broken";
}

/** A world that takes more steps goes round in a circle. */
const MOST_STEPS = 100_000;
/** How many lines of the log are kept for a failure. */
const LAST_LINES = 100;

/** Kinds of faults; a seed turns each on or off, so that rare combinations come together. */
export const FAULTS = [
  "split",
  "slow",
  "refuse",
  "silent",
  "reset",
  "stall",
  "kill",
  "crash",
  "restart",
  "cancel",
  "clock",
  "freeze",
  "deny",
  "crowd",
  "failover",
  "hooks",
  "death",
  "interrupt",
] as const;
export type Fault = typeof FAULTS[number];

/** What is left out of a seed, to find out what its failure needs. */
export interface Without {
  readonly faults?: ReadonlySet<Fault>;
  /** Things that people would do, by their names. */
  readonly acts?: ReadonlySet<string>;
}

/** A seed's world. */
export class World {
  readonly seed: number;
  /** For what all is set up with. */
  readonly dice: Dice;
  readonly clock: VirtualClock;
  readonly network: Network;
  readonly isolates: SimIsolates;
  /** All servers; each may be the primary. */
  readonly servers: readonly Server[];
  readonly database: Database = new Database();
  /** Which faults this seed has. */
  readonly faults: ReadonlySet<Fault>;
  readonly without: Without;
  /** The last lines of the log. */
  readonly lines: string[] = [];
  /** What people have done, by its names. */
  readonly acts: string[] = [];
  /** A hash of the whole log: the same on every runtime. */
  hash = 0x811c9dc5;
  steps = 0;
  /** For how long it was frozen. */
  frozen = 0;
  /** Since when nothing goes wrong any more. */
  calmSince: number = Infinity;
  /** From when to when no password was right for the last time. */
  deniedSince: number = Infinity;
  deniedUntil: number = -Infinity;
  readonly #checks: ((quiet: boolean) => void)[] = [];
  #failure: Broken | null = null;
  #changes = 0;

  constructor(seed: number, without: Without = {}) {
    this.seed = seed;
    this.without = without;
    this.dice = new Dice(seed);
    this.clock = new VirtualClock(new Dice(seed ^ 0x3c6ef372).next);
    const swarm = new Dice(seed ^ 0x5bd1e995);
    this.faults = new Set(
      FAULTS.filter((fault) => swarm.chance(0.35) && !without.faults?.has(fault)),
    );
    this.isolates = new SimIsolates(this.clock, new Dice(seed ^ 0x41c64e6d));
    this.network = new Network(this.clock, new Dice(seed ^ 0x27d4eb2f));
    const { database } = this;
    this.servers = [false, true].map((standby, i) =>
      new Server({ after: (ms, fn) => this.clock.after(ms, fn, SERVERS) }, {
        database,
        standby,
        firstPid: 1_000 + i * 100_000,
      })
    );
    for (const [i, server] of this.servers.entries()) this.network.servers.set(`db${i}`, server);
    process.on("unhandledRejection", this.#unheard);
    process.on("uncaughtException", this.#unheard);
  }

  /** Dice of its own for one thing: what else happens does not change how they fall. */
  diceFor(name: string): Dice {
    let hash = this.seed | 0;
    for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
    return new Dice(hash);
  }

  get primary(): Server {
    return this.servers.find(({ standby }) => !standby)!;
  }

  /** Something that must hold after every step; it is told whether only servers have done anything. */
  check(fn: (quiet: boolean) => void): void {
    this.#checks.push(fn);
  }

  log(line: string): void {
    const text = `${this.clock.now().toFixed(3)} ${line}`;
    for (let i = 0; i < text.length; i++) {
      this.hash = Math.imul(this.hash ^ text.charCodeAt(i), 0x01000193);
    }
    this.lines.push(text);
    if (this.lines.length > LAST_LINES) this.lines.shift();
  }

  /** A promise is broken: the run ends. */
  broken(what: string): void {
    this.#failure ??= new Broken(what);
  }

  /** The first promise that was broken; null while all hold. */
  get failure(): Broken | null {
    return this.#failure;
  }

  /** Goes on until `done()`, or until nothing is left to happen, or `limit` has come. */
  async run(done: () => boolean, limit: number): Promise<void> {
    for (;;) {
      // What servers do among themselves leaves nothing to be waited for.
      if (!this.clock.quiet) await realTurn();
      for (const check of this.#checks) check(this.clock.quiet);
      if (this.#failure !== null) throw this.#failure;
      if (done()) return;
      if (!this.clock.step(limit)) {
        this.log(`nothing more: ${this.clock.nextAt}`);
        return;
      }
      if (++this.steps > MOST_STEPS) throw new Broken(`no end after ${MOST_STEPS} steps`);
    }
  }

  /** What fails where nobody hears of it ends a program. */
  readonly #unheard = (error: unknown): void => {
    this.broken(`nobody hears of a failure: ${(error as Error)?.stack ?? error}`);
  };

  /** The runtime's own clock again. */
  dispose(): void {
    process.off("unhandledRejection", this.#unheard);
    process.off("uncaughtException", this.#unheard);
    this.isolates.dispose();
  }

  /** Ends the faults: what is left must come to rest now. */
  calm(): void {
    this.calmSince = this.clock.now();
    this.network.weather = { ...FAIR };
    this.isolates.interrupts = this.isolates.deaths = 0;
    for (const server of this.servers) {
      server.mode = "up";
      server.denies = server.crowded = false;
    }
    for (const isolate of this.isolates.all) isolate.stepsLeft = Infinity;
    this.deniedUntil = Math.min(this.deniedUntil, this.calmSince);
  }

  /** Faults come and go. */
  weather(): void {
    const { network, clock, servers } = this;
    if (this.calmSince !== Infinity) return;
    const dice = this.diceFor(`weather ${this.#changes++}`);
    const has = (fault: Fault, value: number): number => this.faults.has(fault) ? value : 0;
    const stormy = dice.chance(0.5);
    network.weather = {
      latency: has("slow", 1) && dice.chance(0.3) ? [1, dice.of([5, 50, 400])] : FAIR.latency,
      split: has("split", 0.5),
      refuse: stormy ? has("refuse", dice.of([0.2, 0.9])) : 0,
      silent: stormy ? has("silent", dice.of([0.1, 0.5])) : 0,
      reset: stormy ? has("reset", dice.of([0.002, 0.03])) : 0,
      stall: stormy ? has("stall", 0.003) : 0,
    };
    if (network.weather.latency[1] > 1) network.troubledAt = clock.now();
    this.isolates.interrupts = has("interrupt", dice.of([0.01, 0.1, 0.3]));
    this.isolates.deaths = has("death", 0.1);
    const backends = servers.flatMap((server) => [...server.backends]);
    if (backends.length > 0 && dice.chance(has("kill", 0.5))) this.kill(dice.of(backends));
    if (dice.chance(has("crash", 0.05))) {
      this.happens("server crashed");
      dice.of(servers).crash();
    }
    if (dice.chance(has("restart", 0.05))) this.#restart(dice);
    if (dice.chance(has("failover", 0.08))) this.#failOver(dice);
    if (dice.chance(has("clock", 0.1))) this.setClock(dice);
    if (dice.chance(has("freeze", 0.04))) {
      this.happens("process frozen");
      const time = dice.of([60, 600, 5_000, 60_000]);
      this.frozen += time;
      clock.freeze(time);
    }
    if (dice.chance(has("deny", 0.1))) this.deny(dice.of([50, 1_000, 20_000]));
    if (dice.chance(has("crowd", 0.1))) {
      this.happens("server crowded");
      for (const server of servers) server.crowded = true;
      clock.after(dice.of([50, 2_000]), () => {
        for (const server of servers) server.crowded = false;
      });
    }
    const workers = this.isolates.all.filter(({ alive, parent }) => alive && parent !== null);
    if (workers.length > 0 && dice.chance(has("death", 0.15))) {
      // At the next step that it does, or some steps later.
      dice.of(workers).stepsLeft = dice.of([0, 3, 20, 100]);
    }
    clock.after(dice.of([3, 20, 100, 700]), () => this.weather());
  }

  /** Somebody sets the time of day. */
  setClock(dice: Dice): void {
    this.happens("wall clock set");
    this.clock.wallAhead += dice.of([-7_200_000, -500, 2_000, 7_200_000]);
  }

  /** No password is right for so long. */
  deny(ms: number): void {
    const now = this.clock.now();
    if (now < this.deniedUntil) return;
    this.happens("passwords refused");
    this.deniedSince = now;
    this.deniedUntil = now + ms;
    for (const server of this.servers) server.denies = true;
    this.clock.after(ms, () => {
      for (const server of this.servers) server.denies = false;
    });
  }

  happens(fault: string): void {
    this.network.count(fault);
    this.log(fault);
  }

  /** A session is ended by an administrator. */
  kill(backend: Backend): void {
    this.happens("backend killed");
    for (const server of this.servers) {
      if (server.backends.has(backend)) server.terminate(backend);
    }
  }

  #restart(dice: Dice): void {
    this.happens("server restarted");
    const server = dice.of(this.servers);
    for (const backend of [...server.backends]) server.terminate(backend);
    server.mode = "down";
    this.clock.after(dice.of([20, 500, 5_000]), () => {
      if (server.mode !== "down") return;
      server.mode = "starting";
      this.clock.after(dice.of([1, 100]), () => server.mode = "up");
    });
  }

  /** The primary is gone; the standby takes its place, and what was the primary comes back as a standby. */
  #failOver(dice: Dice): void {
    this.happens("fail-over");
    const [old, next] = this.primary === this.servers[0]
      ? this.servers
      : [...this.servers].reverse();
    old!.crash();
    old!.mode = "down";
    old!.standby = true;
    next!.promote();
    this.clock.after(dice.of([20, 500, 5_000]), () => old!.mode = "up");
  }

  /** The session with this number. */
  backend(pid: number): Backend | null {
    for (const { backends } of this.servers) {
      for (const backend of backends) if (backend.pid === pid) return backend;
    }
    return null;
  }

  /** How many sessions there are at the servers. */
  get sessions(): number {
    return this.servers.reduce((sum, { backends }) => sum + backends.size, 0);
  }

  /** An isolate dies. */
  died(isolate: Isolate): void {
    this.network.count("worker died");
    this.log(`worker died (${isolate.name})`);
  }
}
