/** One simulated world: what a seed decides, what happens in it, and what must hold at every step. */

import { Dice } from "../support/dice.ts";
import { setCurrentClock } from "../../src/clock.ts";
import { realTurn, VirtualClock } from "./clock.ts";
import { FAIR, Network } from "./network.ts";
import { type Backend, Server } from "./server.ts";

/** What was promised and not kept. */
export class Broken extends Error {
  override readonly name = "Broken";
}

/** A world that takes more steps goes round in a circle. */
const MOST_STEPS = 100_000;
/** How many lines of the log are kept for a failure. */
const LAST_LINES = 60;

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
] as const;
export type Fault = typeof FAULTS[number];

/** A seed's world. */
export class World {
  readonly seed: number;
  /** For what the load does. */
  readonly dice: Dice;
  readonly clock: VirtualClock;
  readonly network: Network;
  readonly server: Server;
  /** Which faults this seed has. */
  readonly faults: ReadonlySet<Fault>;
  /** The last lines of the log. */
  readonly lines: string[] = [];
  /** A hash of the whole log: the same on every runtime. */
  hash = 0x811c9dc5;
  steps = 0;
  readonly #checks: (() => void)[] = [];
  readonly #undo: () => void;
  #failure: unknown = null;

  constructor(seed: number, faults?: ReadonlySet<Fault>) {
    this.seed = seed;
    this.dice = new Dice(seed);
    this.clock = new VirtualClock(new Dice(seed ^ 0x3c6ef372).next);
    const swarm = new Dice(seed ^ 0x5bd1e995);
    this.faults = faults ?? new Set(FAULTS.filter(() => swarm.chance(0.4)));
    this.network = new Network(this.clock, new Dice(seed ^ 0x27d4eb2f));
    this.server = new Server(this.clock, { maxConnections: 64 });
    this.network.servers.set("db", this.server);
    this.#undo = setCurrentClock(this.clock);
    this.#weather(new Dice(seed ^ 0x165667b1));
  }

  /** Something that must hold after every step. */
  check(fn: () => void): void {
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

  /** Goes on until `done()`, or until nothing is left to happen, or `limit` has come. */
  async run(done: () => boolean, limit: number): Promise<void> {
    for (;;) {
      await realTurn();
      for (const check of this.#checks) check();
      if (this.#failure !== null) throw this.#failure;
      if (done()) return;
      if (!this.clock.step(limit)) {
        this.log(`nothing more: ${this.clock.nextAt}`);
        return;
      }
      if (++this.steps > MOST_STEPS) throw new Broken(`no end after ${MOST_STEPS} steps`);
    }
  }

  /** Lets what is under way end; then nothing may be left. */
  dispose(): void {
    this.#undo();
  }

  /** Ends the faults: what is left must come to rest now. */
  calm(): void {
    this.#stopped = true;
    this.network.weather = { ...FAIR };
    this.server.mode = "up";
  }

  #stopped = false;

  /** Faults come and go. */
  #weather(dice: Dice): void {
    const { faults, network, server, clock } = this;
    const has = (fault: Fault, value: number): number => faults.has(fault) ? value : 0;
    const change = (): void => {
      if (this.#stopped) return;
      const stormy = dice.chance(0.5);
      network.weather = {
        latency: faults.has("slow") && dice.chance(0.3) ? [1, dice.of([5, 50, 400])] : FAIR.latency,
        split: has("split", 0.5),
        refuse: stormy ? has("refuse", dice.of([0.2, 0.9])) : 0,
        silent: stormy ? has("silent", dice.of([0.1, 0.5])) : 0,
        reset: stormy ? has("reset", dice.of([0.002, 0.03])) : 0,
        stall: stormy ? has("stall", 0.003) : 0,
      };
      const backends = [...server.backends];
      if (faults.has("kill") && backends.length > 0 && dice.chance(0.5)) {
        const victim = dice.of(backends);
        network.count("backend killed");
        this.log(`kill ${victim.pid}`);
        server.terminate(victim);
      }
      if (faults.has("crash") && dice.chance(0.05)) {
        network.count("server crashed");
        this.log("crash");
        server.crash();
      }
      if (faults.has("restart") && dice.chance(0.05)) {
        network.count("server restarted");
        this.log("restart");
        for (const backend of [...server.backends]) server.terminate(backend);
        server.mode = "down";
        clock.after(dice.of([20, 500, 5_000]), () => {
          server.mode = "starting";
          clock.after(dice.of([1, 100]), () => server.mode = "up");
        });
      }
      if (faults.has("clock") && dice.chance(0.1)) {
        network.count("wall clock set");
        clock.wallAhead += dice.of([-7_200_000, -500, 2_000, 7_200_000]);
      }
      clock.after(dice.of([3, 20, 100, 700]), change);
    };
    change();
  }

  /** The session with this number. */
  backend(pid: number): Backend | null {
    for (const backend of this.server.backends) if (backend.pid === pid) return backend;
    return null;
  }
}
