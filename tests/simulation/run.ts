/** Runs one seed. */

import { Load } from "./load.ts";
import { Broken, type Fault, World } from "./world.ts";

/** How a seed's run ended. */
export interface Result {
  readonly seed: number;
  /** What was broken; null when all held. */
  readonly failure: Error | null;
  /** The last lines of the log. */
  readonly lines: readonly string[];
  /** Of the whole log. */
  readonly hash: string;
  readonly steps: number;
  /** Virtual milliseconds. */
  readonly lived: number;
  readonly faults: Readonly<Record<string, number>>;
  readonly done: Readonly<Record<string, number>>;
}

/** Lives through one seed; `faults` instead of those that the seed chooses. */
export async function simulate(seed: number, faults?: ReadonlySet<Fault>): Promise<Result> {
  const world = new World(seed, faults);
  let failure: Error | null = null;
  let load: Load | null = null;
  try {
    load = new Load(world);
    const clients = world.dice.of([1, 3, 6, 12]);
    load.begin(clients, world.dice.from(3, 12));
    let clientsDone = false;
    world.clock.after(world.dice.of([500, 5_000, 30_000]), () => clientsDone = true);
    await world.run(() => clientsDone, Infinity);
    world.calm();
    const { pool } = load;
    const closing = load;
    await world.run(() => closing.quiet, world.clock.now() + 2_000_000);
    if (!load.quiet) {
      const waits = [...load.open.values()].map(({ what }) => what).join(", ");
      throw new Broken(`these never ended: ${waits}\n${pool.inspect()}`);
    }
    let closed = false;
    void load.call("close", () => pool.close({ timeout: 1_000 })).then(() => closed = true);
    await world.run(() => closed, world.clock.now() + 600_000);
    if (!closed) throw new Broken("close() never ended");
    // What the network still carries arrives.
    await world.run(() => false, world.clock.now() + 200_000);
    load.audit();
    if (world.network.open.size > 0) {
      world.broken(`${world.network.open.size} connections are open`);
    }
    if (world.server.backends.size > 0) {
      world.broken(`${world.server.backends.size} sessions are left`);
    }
    if (world.clock.pending > 0) world.broken(`${world.clock.pending} timers are left`);
    await world.run(() => true, 0);
  } catch (error) {
    failure = error instanceof Error ? error : new Error(String(error));
  } finally {
    world.dispose();
  }
  return {
    seed,
    failure,
    lines: world.lines,
    hash: (world.hash >>> 0).toString(16).padStart(8, "0"),
    steps: world.steps,
    lived: world.clock.now(),
    faults: world.network.faults,
    done: load?.done ?? {},
  };
}
