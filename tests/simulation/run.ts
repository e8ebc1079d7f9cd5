/** Runs one seed. */

import type { Connection } from "../../mod.ts";
import type { ThreadedConnectionPool } from "../../mod.ts";
import { realTurn } from "./clock.ts";
import { type Kind, Load, nameOf, type Part } from "./load.ts";
import { Person } from "./people.ts";
import { Broken, type Without, World } from "./world.ts";

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
  /** Which kinds of faults it had. */
  readonly kinds: readonly string[];
  /** What people did, by its names. */
  readonly acts: readonly string[];
}

/** Lives through one seed, without some of what the seed brings. */
export async function simulate(seed: number, without: Without = {}): Promise<Result> {
  const world = new World(seed, without);
  const { stackTraceLimit } = Error;
  // Half of the time would go into stacks that nobody reads.
  Error.stackTraceLimit = 0;
  let failure: Error | null = null;
  let load: Load | null = null;
  try {
    const { dice } = world;
    const kind = dice.of<Kind>(["simple", "simple", "threaded", "threaded", "worker", "context"]);
    load = new Load(world, kind);
    await live(world, load);
  } catch (error) {
    failure = error instanceof Error ? error : new Error(String(error));
  } finally {
    // The runtime tells of what nobody has heard of after its turn.
    await realTurn();
    await realTurn();
    failure ??= world.failure;
    world.dispose();
    Error.stackTraceLimit = stackTraceLimit;
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
    kinds: [load?.kind ?? "", ...world.faults],
    acts: world.acts,
  };
}

async function live(world: World, load: Load): Promise<void> {
  const { dice, clock, isolates } = world;
  isolates.ondeath = (isolate) => {
    world.died(isolate);
    load.bury(isolate);
  };
  isolates.oninterrupt = () => world.network.count("worker interrupted");
  const first = load.found();
  const denial = world.diceFor("denial");
  if (world.faults.has("deny") && denial.chance(0.4)) world.deny(denial.of([2_000, 20_000]));
  world.weather();
  const people = (part: Part, count: number, things: number): void => {
    for (let i = 0; i < count; i++) {
      const person = new Person(`${part.isolate.name}p${i}`, load, part);
      part.isolate.run(() => void person.work(things));
    }
  };
  const things = dice.from(3, 12);
  people(first, dice.of([1, 3, 6, 12]), things);
  if (load.kind !== "simple" && load.kind !== "context") {
    for (let workers = dice.of([0, 1, 2, 4]); workers > 0; workers--) {
      first.isolate.run(() =>
        void load.join(first, (part) => people(part, dice.of([1, 3, 6]), things))
      );
    }
  }
  let over = false;
  clock.after(dice.of([500, 5_000, 30_000]), () => over = true);
  await world.run(() => over, Infinity);
  // In the middle of everything, in some worlds.
  const early = world.diceFor("early").chance(0.15);
  if (early) await end(world, load, first, true);
  world.calm();
  await world.run(() => load.quiet, clock.now() + 2_000_000);
  if (!load.quiet) {
    const waits = [...load.open.values()].map(({ what }) => what).join(", ");
    throw new Broken(`these never ended: ${waits}\n${load.inspect()}`);
  }
  // What somebody has left at work ends by itself.
  await world.run(() => load.resting, clock.now() + 200_000);
  if (!early) {
    await probe(world, load);
    await world.run(() => load.resting, clock.now() + 200_000);
    await squeeze(world, load);
    await world.run(() => load.resting, clock.now() + 200_000);
  }
  load.rest();
  if (!early) await end(world, load, first, false);
  // What the network still carries arrives.
  await world.run(() => false, clock.now() + 200_000);
  load.audit();
  if (world.network.open.size > 0) world.broken(`${world.network.open.size} connections are open`);
  if (world.sessions > 0) world.broken(`${world.sessions} sessions are left`);
  if (clock.pending > 0) world.broken(`${clock.pending} timers are left`);
  await world.run(() => true, 0);
}

/** What was said while something was wrong comes so much later at most, in milliseconds. */
const ON_ITS_WAY = 2_000;

/** All is well and nobody has anything: whoever asks gets a connection. */
async function probe(world: World, load: Load): Promise<void> {
  const { clock } = world;
  // A hook that hangs has what it has for so long.
  if (load.hooked) await world.run(() => false, world.calmSince + 40_000);
  const isOld = (error: unknown): boolean =>
    nameOf(error).startsWith("CONNECTION_") ||
    (nameOf(error) === "CONNECT_FAILED" && clock.now() < world.calmSince + ON_ITS_WAY);
  let settled = 0;
  for (const part of load.parts) {
    const { pool, isolate } = part;
    const ask = (conn: Connection): Promise<unknown> => Promise.resolve(conn`select 1`);
    const attempt = (left: number): void => {
      // Where all that there may be are connects that hang, nothing else can be begun before they are given up.
      const timeout = 9_000 + (load.full ? 2_000 * load.connectTimeout : 0);
      const work = pool.use(ask as never, { timeout });
      work.then(() => settled++, (error) => {
        if (pool.closed || nameOf(error) === "TOO_MANY_WAITING") settled++;
        // Of an end, or a refusal, that came before the news of it may be on its way.
        else if (left > 0 && isOld(error)) attempt(left - 1);
        else {
          const said = `all is well, and ${isolate.name} got no connection: ${error}`;
          world.broken(`${said}\n${load.inspect()}`);
        }
      });
    };
    isolate.run(() => attempt(load.maxconn));
  }
  const end = clock.now() + 200_000;
  await world.run(() => settled >= load.parts.length || clock.now() >= end, end + 1);
}

/** Of a pool that has become smaller a worker at rest has a connection above the limit; whoever asks gets one below. */
async function squeeze(world: World, load: Load): Promise<void> {
  const { clock } = world;
  const [first, other] = load.parts;
  if (!load.shared || load.hooked || load.maxconn < 3 || first === undefined) return;
  if (other === undefined || world.diceFor("squeeze").chance(0.3)) return;
  load.squeezes = true;
  const held: { release(): void }[] = [];
  const reserve = async ({ pool }: Part): Promise<void> => {
    held.push(await pool.sql.reserve());
  };
  const others = (): Promise<void> =>
    new Promise((resolve, reject) =>
      other.isolate.run(() => void reserve(other).then(resolve, reject))
    );
  let over = false;
  const all = async (): Promise<void> => {
    const { pool, isolate } = first;
    try {
      await load.resize(pool, 0, load.maxconn);
      // The lowest places are taken first: those must be this one's.
      await pool.renew();
      for (let i = 1; i < load.maxconn; i++) await reserve(first);
      await others();
      await load.resize(pool, 0, 2);
      for (const one of held.splice(0, load.maxconn - 1)) one.release();
      await pool.renew();
      await pool.sql`select 1`;
      await new Promise<void>((resolve) => isolate.after(1_000, resolve));
    } finally {
      for (const one of held) one.release();
      over = true;
    }
  };
  first.isolate.run(() => void load.call(first.isolate, "squeeze", all));
  await world.run(() => over, clock.now() + 600_000);
}

/** The pool is closed, in one way or another; `early`: while people are at work, and everything goes wrong. */
async function end(
  world: World,
  load: Load,
  { isolate, pool }: Part,
  early: boolean,
): Promise<void> {
  const { clock } = world;
  const dice = world.diceFor("end");
  let closed = false;
  // A connect is under way, and its hook does not end by itself.
  load.hangs = !early && load.hooked && dice.chance(0.5);
  isolate.run(() => {
    if (load.hangs) pool.renew().then(() => pool.sql`select 1`).catch(() => {});
  });
  if (load.hangs) await world.run(() => false, clock.now() + 50);
  const begun = clock.now();
  const { frozen } = world;
  isolate.run(() => {
    const how = load.hangs || early
      ? dice.of(["close", "closeall"])
      : dice.of(["close", "close", "closeall", "sql.end", "leave"]);
    const asked = how === "sql.end"
      ? [1, 2, 3].map((n) => Promise.resolve(pool.sql`select ${n}::int as n`))
      : [];
    const close = (): Promise<unknown> => {
      if (how === "closeall") return pool.closeall();
      if (how === "sql.end") return pool.sql.end({ timeout: 20 });
      if (how === "leave" && load.kind === "threaded") {
        return (pool as ThreadedConnectionPool).leave({ timeout: 500 })
          .then(() => load.parts.at(-1)!.pool.close({ timeout: 1_000 }));
      }
      return pool.close({ timeout: 1_000 });
    };
    void load.call(isolate, early ? `early ${how}` : how, async () => {
      for (const one of asked) {
        one.catch((error) => {
          // The pool's own limits hold.
          if (["POOL_TIMEOUT", "TOO_MANY_WAITING"].includes(nameOf(error))) return;
          // The news of a session's end may be on its way.
          const old = clock.now() < world.calmSince + ON_ITS_WAY;
          if (old && nameOf(error).startsWith("CONNECTION_")) return;
          world.broken(`what was asked for before the end failed: ${error}`);
        });
      }
      await close().catch((error) => world.broken(`${how} failed: ${error}`));
      await Promise.allSettled(asked);
    }).then(() => closed = true);
  });
  await world.run(() => closed, clock.now() + 600_000);
  if (!closed) throw new Broken("close() never ended");
  const took = clock.now() - begun - (world.frozen - frozen);
  if (took > closingTime(world, load, early, begun)) world.broken(`closing took ${took} ms`);
  if (load.shared || early || world.faults.has("stall")) return;
  const { size } = world.network.open;
  if (size > 0) world.broken(`closing has ended, and ${size} connections are open`);
}

/** How long closing may take, in milliseconds. */
function closingTime(world: World, load: Load, early: boolean, begun: number): number {
  // Shared pools wait for each other, for the dead too.
  if (load.shared) return 40_000;
  // Whatever is under way: leases have a second, and nothing else takes its time.
  const well = !load.hooked && !world.faults.has("stall") && load.untroubledSince(begun);
  if (early && well) return 2_000;
  // A hook that was called before is waited for with patience, and so is a server that does not answer.
  return load.hangs || early || world.faults.has("stall") ? 9_000 : 1_500;
}
