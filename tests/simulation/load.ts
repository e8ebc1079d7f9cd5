/** What one pool is put through in the simulated world, what is known of it, and what must hold at every step. */

import {
  type Connection,
  PersistentConnectionPool,
  PoolError,
  type PoolHandle,
  SimpleConnectionPool,
  ThreadedConnectionPool,
} from "../../mod.ts";
import { insideOf } from "../../src/abstract_pool.ts";
import { JobWaiter } from "../../src/pool/jobs.ts";
import type { Waiter } from "../../src/pool/wait_queue.ts";
import type { PoolTotals } from "../../src/pool/types.ts";
import type { PoolEntry } from "../../src/pool/entry.ts";
import type { Permits } from "../../src/pool/permits.ts";
import {
  HEAD,
  isLive,
  PERMITS,
  SLOT,
  slotAt,
  slotOf,
  type Words,
} from "../../src/workers/layout.ts";
import { PermitTable } from "../../src/workers/permit_table.ts";
import { AtomicWords, SharedPermits } from "../../src/workers/shared_permits.ts";
import type { Isolate } from "./isolate.ts";
import type { World } from "./world.ts";

/** Nothing may take longer than this, whatever happens. Virtual milliseconds. */
export const LONGEST = 600_000;
/** What is due by the clock may come so much later, and a permit may lie idle for so long while somebody waits. */
const SLACK = 1_500;
/** After how long everybody knows, at the latest, that no password is right. */
const TOLD = 1_500;
/** Who waits has a chance when a timer comes late: so much longer may it be. */
const CHANCE = 1_200;
/** For so long a permit above the limit may stand in the way of a free one: a few wake-ups. */
const MOVED = 300;
/** A connection on which nothing comes through takes so long to be closed: five seconds, and a look. */
const CLOSED = 6_000;
/** So many attempts may fail in a second, and some more for each who asks and each that has come up. */
const MOST_ATTEMPTS = 30;
/** What takes so long on a network that is well takes too long. */
const SOON = 1_000;

/** What is known of an entry of the ledger. */
type Fate = "pending" | "acknowledged" | "refused" | "unknown";

type Pool = SimpleConnectionPool | ThreadedConnectionPool | PersistentConnectionPool;

/** A kind of pool, and who has a connection for itself in it. */
export type Kind = "simple" | "threaded" | "worker" | "context";

/** One isolate's pool. */
export interface Part {
  readonly isolate: Isolate;
  readonly pool: Pool;
}

/** A call that has not settled. */
interface Call {
  readonly what: string;
  readonly since: number;
  readonly isolate: Isolate;
  /** It was asked for while no password is right, and fails at once. */
  readonly denied: boolean;
}

/** Calls that do not fail, or not at once, when there is no connection. */
const PATIENT: ReadonlySet<string> = new Set(["control", "sql listen"]);

/** Failures of which the outcome is not known: the connection was lost, or cancelled, at work. */
function isUnknown(error: unknown): boolean {
  const code = String((error as { code?: unknown } | null)?.code);
  return !/^(?:2[235]|40|42|53300|0A)/.test(code) && !(error instanceof PoolError && [
    "POOL_CLOSED",
    "POOL_EXHAUSTED",
    "POOL_TIMEOUT",
    "TOO_MANY_WAITING",
    "CONNECT_FAILED",
    "IN_TRANSACTION",
    "TRANSACTION_FAILED",
    "RUN_ENDED",
  ].includes(error.code));
}

/** What a call fails with whose connection is gone. */
const LOST: ReadonlySet<string> = new Set([
  "CONNECTION_CLOSED",
  "CONNECTION_DESTROYED",
  "CONNECTION_LOST",
]);

/** An error in a word. */
export function nameOf(error: unknown): string {
  const { code, name } = (error ?? {}) as { code?: unknown; name?: unknown };
  return String(code ?? name ?? error);
}

/** For how long somebody waits, and after how long it changes its mind; milliseconds. */
export interface Patience {
  readonly timeout: number;
  readonly aborts: number;
}

/** Who has asked for a connection. */
export interface Asked {
  readonly who: string;
  readonly isolate: Isolate;
  readonly step: number;
}

/** All that one pool is put through. */
export class Load {
  readonly world: World;
  readonly kind: Kind;
  /** The pool's parts, the first one's first. */
  readonly parts: Part[] = [];
  /** What became of what was written. */
  readonly ledger: Map<string, Fate> = new Map();
  /** Calls that have not settled. */
  readonly open: Map<number, Call> = new Map();
  /** How often each thing was done, and how it ended. */
  readonly done: Record<string, number> = {};
  /** The highest maxconn there ever is. */
  readonly maxconn: number;
  /** The pool's `timeout`. */
  readonly timeout: number;
  readonly connectTimeout: number;
  /** Whether hooks may fail, hang and call back. */
  readonly hooked: boolean;
  /** Whether hooks hang that are called from now on. */
  hangs: boolean = false;
  /** In some worlds people keep connections for long. */
  readonly lingers: boolean;
  /** In some worlds somebody is always changing the sizes. */
  readonly resizes: boolean;
  /** Whether connections are reserved for long, and nothing is done with them; the sizes are left alone meanwhile. */
  squeezes: boolean = false;
  /** What must not become garbage, as that comes at another time each time. */
  readonly kept: unknown[] = [];
  /** Sessions that are lent, by their number. */
  readonly #lent = new Map<number, string>();
  /** What is lent under keys, by isolate and key. */
  readonly #keyed = new Map<string, Connection>();
  /** When somebody has put back a session, by its number. */
  readonly #returned = new Map<number, number>();
  /** Who waits in a queue. */
  readonly #asked = new Set<Asked>();
  /** Who has got a connection in this step. */
  readonly #served: Asked[] = [];
  /** Sessions with a transaction that moves money. */
  readonly #moving = new Map<number, string>();
  readonly #maxIdle: number;
  readonly #maxLifetime: number;
  readonly #checkAfter: number;
  readonly #validates: boolean;
  /** For how long somebody may have a connection; 0 is for ever. */
  readonly #reclaimAfter: number;
  /** When each connection was seen first. */
  readonly #since = new WeakMap<object, number>();
  /** Since when something has been as it must not stay. */
  readonly #wrong = new Map<unknown, number>();
  /** What was known of attempts to connect, and when. */
  readonly #attempts = new WeakMap<
    object,
    { since: number; failed: number; made: number; asked: number }
  >();
  readonly #minconn: number;
  readonly #options: Record<string, unknown>;
  /** The permits that isolates share, to look at: that is no step of anybody. */
  #table: PermitTable | null = null;
  #calls = 0;
  #entries = 0;
  /** How many sessions there may be. */
  #allowed = 0;
  /** When all connections that may be were there last. */
  #fullAt = -Infinity;

  constructor(world: World, kind: Kind) {
    this.world = world;
    this.kind = kind;
    const { dice } = world;
    this.maxconn = dice.of([1, 2, 3, 5, 8]);
    this.#minconn = dice.below(this.maxconn + 1);
    this.timeout = dice.of([0, 0, 50, 2_000, 30_000]);
    this.connectTimeout = dice.of([2, 30]);
    this.#maxIdle = dice.of([0, 200, 60_000]);
    this.#maxLifetime = dice.of([0, 500, 3_600_000]);
    this.#checkAfter = dice.of([0, 100, 1_000]);
    const reset = dice.chance(0.3);
    this.#validates = dice.chance(0.15);
    const habits = world.diceFor("habits");
    this.lingers = habits.chance(0.25);
    this.resizes = habits.chance(this.lingers ? 0.7 : 0.15);
    const reclaims = world.diceFor("reclaims");
    this.#reclaimAfter = reclaims.chance(0.1) ? reclaims.of([50, 2_000]) : 0;
    this.hooked = world.faults.has("hooks");
    this.#options = {
      ssl: false,
      connect_timeout: this.connectTimeout,
      onnotice: () => {},
      prepare: dice.chance(0.8),
      ...dice.chance(0.1) ? { max_pipeline: dice.of([1, 3]) } : {},
      ...dice.chance(0.15) ? { queryTimeout: dice.of([20, 1_000]) } : {},
      pool: {
        name: "sim",
        timeout: this.timeout,
        maxIdle: this.#maxIdle,
        maxLifetime: this.#maxLifetime,
        checkAfter: this.#checkAfter,
        ...dice.chance(0.2) ? { maxWaiting: 3 } : {},
        ...dice.chance(0.1) ? { maxUses: dice.of([1, 4]) } : {},
        ...this.#validates ? { validate: this.#validate } : {},
        ...dice.chance(0.2) ? { leakAfter: dice.of([100, 5_000]) } : {},
        ...this.#reclaimAfter > 0 ? { leakAfter: 0, reclaimAfter: this.#reclaimAfter } : {},
        ...dice.chance(0.2) ? { reconnectTimeout: dice.of([0, 1_000]) } : {},
        ...this.hooked ? { reset: this.#reset, configure: this.#configure } : {},
        ...reset && !this.hooked ? { reset: (conn: Connection) => conn.unsafe("discard all") } : {},
        ...kind === "context" ? { scope: "context" } : {},
      },
    };
    world.check((quiet) => this.#check(quiet));
  }

  /** How to connect, from an isolate. */
  #settings(isolate: Isolate): Record<string, unknown> {
    return { ...this.#options, transport: this.world.network.connect(isolate) };
  }

  /** Makes the pool, in the world's first isolate. */
  found(): Part {
    const isolate = this.world.isolates.make(null);
    const order = this.world.dice.chance(0.5) ? "random" : "disable";
    const hosts = this.world.faults.has("failover")
      ? `postgres://sim@db0,db1/db?target_session_attrs=read-write&load_balance_hosts=${order}`
      : "postgres://sim@db0/db";
    let pool!: Pool;
    isolate.run(() => {
      const args = [this.#minconn, this.maxconn, hosts, this.#settings(isolate)] as const;
      if (this.kind === "simple") pool = new SimpleConnectionPool(...args);
      else if (this.kind === "threaded") pool = new ThreadedConnectionPool(...args);
      else pool = new PersistentConnectionPool(...args);
    });
    return this.#add({ isolate, pool });
  }

  #add(part: Part): Part {
    this.parts.push(part);
    this.#watchRetire(part);
    const begun = this.world.clock.now();
    part.pool.on("leak", ({ detail: { held } }) => {
      const lived = this.world.clock.now() - begun;
      if (held > lived + 1) this.world.broken(`a lease leaked for ${held} ms in ${lived}`);
    });
    // With and without: what nobody hears of takes another way.
    if (this.world.diceFor(`${part.isolate.name} listens`).chance(0.5)) {
      part.pool.on("release", ({ detail: { used } }) => {
        const lived = this.world.clock.now() - begun;
        if (used < 0 || used > lived + 1) {
          this.world.broken(`a lease was used for ${used} ms in ${lived}`);
        }
      });
    }
    return part;
  }

  /** No connection goes for being idle that minconn needs, nor as lost while it is well. */
  #watchRetire({ isolate, pool }: Part): void {
    const { state, core } = insideOf<Connection>(pool);
    const { connections } = core;
    const { retire } = connections;
    connections.retire = (entry, reason, ...rest) => {
      if (reason === "lost" && entry.lost === null && connections.status(entry) !== "unknown") {
        this.world.broken(`${isolate.name} closes a connection as lost that is well`);
      }
      // What others do meanwhile may come between the look and the deed.
      const alone = state.permits.others === null;
      if (alone && reason === "idle" && state.phase === "open" && state.size <= state.minconn) {
        this.world.broken(
          `${isolate.name} closes an idle one of ${state.size}, and minconn is ${state.minconn}`,
        );
      }
      return retire.call(connections, entry, reason, ...rest);
    };
  }

  /** Another isolate joins; null when it dies before, or may not. */
  async join(by: Part, then: (part: Part) => void): Promise<void> {
    const { isolates, faults, clock } = this.world;
    const isolate = isolates.make(by.isolate);
    const dice = this.world.diceFor(`join ${isolate.name}`);
    const handle: PoolHandle = (by.pool as ThreadedConnectionPool).share(isolate);
    if (faults.has("death") && dice.chance(0.15)) isolate.stepsLeft = dice.below(40);
    const at = dice.of([0, 0.2, 5, 300]);
    await new Promise<void>((resolve) => clock.after(at, resolve));
    isolate.run(() => {
      const Kind = this.kind === "threaded" ? ThreadedConnectionPool : PersistentConnectionPool;
      const settings = this.#settings(isolate);
      (Kind.join(handle, settings) as Promise<Pool>).then((pool) => {
        if (isolate.alive) then(this.#add({ isolate, pool }));
      }).catch((error: unknown) =>
        this.world.log(`${isolate.name} may not join: ${nameOf(error)}`)
      );
    });
  }

  /** An isolate is dead: what it waited for does not matter any more. */
  bury(isolate: Isolate): void {
    for (const [id, call] of this.open) if (call.isolate === isolate) this.open.delete(id);
    for (const [id, fate] of this.ledger) {
      if (fate === "pending" && id.startsWith(isolate.name)) this.ledger.set(id, "unknown");
    }
    const at = this.parts.findIndex((part) => part.isolate === isolate);
    if (at >= 0) this.parts.splice(at, 1);
  }

  // --- hooks ---

  /** Whether a connection is still good, in somebody's opinion. */
  readonly #validate = async (conn: Connection): Promise<boolean> => {
    const { world } = this;
    const dice = world.diceFor(`validate ${this.#calls++}`);
    if (dice.chance(0.5)) await conn`select 1`;
    return world.calmSince !== Infinity || dice.chance(0.9);
  };

  readonly #configure = (conn: Connection): unknown => this.#hook("configure", conn);
  readonly #reset = (conn: Connection): unknown => this.#hook("reset", conn);

  #hook(name: string, conn: Connection): unknown {
    const { world } = this;
    const dice = world.diceFor(`${name} ${this.#calls++}`);
    if (this.hangs) return new Promise((never) => this.kept.push(never));
    if (world.calmSince !== Infinity) return undefined;
    switch (dice.below(12)) {
      case 0:
        throw new Error(`${name} does not like it`);
      case 1:
        world.network.count("hook hangs");
        return new Promise((never) => this.kept.push(never));
      case 2:
        return conn.unsafe("select pg_sleep(0.3)");
      case 3:
        return conn.unsafe("begin");
      case 4:
        return conn.unsafe("selec");
      case 5:
        // It calls back into the pool.
        return this.parts[0]!.pool.sql`select 1`;
      case 6:
        return Promise.reject(Object.create(null));
      default:
        return name === "reset" ? conn.unsafe("discard all") : undefined;
    }
  }

  // --- calls ---

  /** Changes the sizes: several times in one turn, perhaps, and each counts for what is opened by it. */
  async resize(pool: Pool, minconn: number, maxconn: number): Promise<void> {
    this.#allowed = Math.max(this.#allowed, maxconn);
    await pool.resize(minconn, maxconn);
  }

  /** True when several isolates share it, or could. */
  get shared(): boolean {
    return this.kind === "threaded" || this.kind === "worker";
  }

  /** True when all permits are taken. */
  get full(): boolean {
    const { permits } = insideOf(this.parts[0]!.pool as SimpleConnectionPool).state;
    return this.#takenOf(permits) >= permits.limit;
  }

  /** True when nobody waits for anything. */
  get quiet(): boolean {
    return this.open.size === 0;
  }

  /** Runs a call and notes how it ends; never rejects. */
  async call<T>(isolate: Isolate, what: string, fn: () => Promise<T>): Promise<T | undefined> {
    // The last turn of the dead goes on to its end, and nobody hears of it.
    if (!isolate.alive) return await new Promise<never>(() => {});
    const id = this.#calls++;
    const denied = !PATIENT.has(what) && this.#denied();
    this.open.set(id, { what, since: this.world.clock.now(), isolate, denied });
    this.world.log(`${id} ${what}`);
    let end = "ok";
    try {
      return await fn();
    } catch (error) {
      end = nameOf(error);
      // Cancelled without having asked for it.
      if (end === "57014") this.world.broken(`${what} was hit by another's cancel request`);
      this.#checkFailure(isolate, what, error, id);
      return undefined;
    } finally {
      if (this.open.delete(id)) {
        this.world.log(`${id} ${what}: ${end}`);
        const key = `${what}: ${end}`;
        this.done[key] = (this.done[key] ?? 0) + 1;
      }
    }
  }

  /** Whatever goes wrong, nobody hears of a slip of the code; and no connection is lost where all is well. */
  #checkFailure(isolate: Isolate, what: string, error: unknown, id: number): void {
    const { world } = this;
    if (
      error instanceof TypeError || error instanceof RangeError || error instanceof ReferenceError
    ) {
      world.broken(`${what} failed: ${error}`);
    }
    const call = this.open.get(id);
    const part = this.parts.find((part) => part.isolate === isolate);
    if (call === undefined || part === undefined || !LOST.has(nameOf(error))) return;
    // What somebody else who has the same key puts back takes what is under way with it.
    if (what === "keyed") return;
    const { phase } = insideOf(part.pool as SimpleConnectionPool).state;
    // What is stalled is lost much later.
    if (
      phase !== "open" || this.#reclaimAfter > 0 || this.hooked || world.faults.has("stall")
    ) return;
    // What was on its way when it began was hit perhaps.
    if (this.untroubledSince(call.since - SOON)) {
      world.broken(`${what} failed, and nothing was wrong: ${error}`);
    }
  }

  /** Somebody asks for a connection in the pool's queue. */
  asks(isolate: Isolate, who: string): Asked {
    const asked = { who, isolate, step: this.world.steps };
    this.#asked.add(asked);
    return asked;
  }

  /** It has got one, or will get none. */
  answered(asked: Asked, served: boolean): void {
    if (this.#asked.delete(asked) && served) this.#served.push(asked);
  }

  /** Nobody gets a connection before somebody who has asked in an earlier step and still waits. */
  #checkOrder(): void {
    for (const { who, isolate, step } of this.#served) {
      if (!isolate.alive) continue;
      for (const other of this.#asked) {
        if (other.isolate === isolate && other.step < step) {
          this.world.broken(`${who} got a connection before ${other.who}, who asked before`);
        }
      }
    }
    this.#served.length = 0;
  }

  /** What has begun at `begun` is over: soon, unless something was in the way. */
  soon(what: string, begun: number, limit = 0): void {
    const { world } = this;
    const took = world.clock.now() - begun;
    if (took > limit + SOON && this.untroubledSince(begun)) {
      world.broken(`${what} took ${took} ms`);
    }
  }

  /** True when the network has been well since. */
  untroubledSince(time: number): boolean {
    const { network } = this.world;
    return network.troubledAt < time && network.weather.latency[1] <= 1;
  }

  /** Waits for a connection, for no longer than was said. */
  async wait<T>(part: Part, patience: Patience, wait: () => Promise<T>): Promise<T> {
    const { world } = this;
    const { timeout, aborts } = patience;
    const begun = world.clock.now();
    const { frozen } = world;
    const tooLong = (): void => {
      const took = world.clock.now() - begun - (world.frozen - frozen);
      const limit = timeout > 0 ? timeout : 2_000 * this.connectTimeout + 30_000;
      if (took > limit + CHANCE) world.broken(`a wait of ${timeout} ms took ${took}`);
      if (took > aborts + CHANCE) world.broken(`a wait aborted after ${aborts} ms took ${took}`);
    };
    try {
      return await wait();
    } catch (error) {
      if (
        world.calmSince + 6_000 < begun && nameOf(error) === "POOL_TIMEOUT" && timeout >= 8_000 &&
        this.#couldOpen(part, begun)
      ) world.broken("a wait was in vain though the network is well and connections are free");
      throw error;
    } finally {
      if (part.isolate.alive) tooLong();
    }
  }

  /** True when no password is right for a while, nobody has a session, and nothing else is in the way. */
  #denied(): boolean {
    const { world, connectTimeout } = this;
    const now = world.clock.now();
    return !this.hooked && world.sessions === 0 && world.network.weather.latency[1] < 1 &&
      world.network.troubledAt < now - 1_000 * connectTimeout &&
      world.deniedSince <= now && now + TOLD <= world.deniedUntil;
  }

  /** True when the pool could have opened a connection all along since. */
  #couldOpen({ pool }: Part, since: number): boolean {
    const { poolSize, closing } = pool.stats();
    const now = this.world.clock.now();
    return poolSize === 0 && closing === 0 && now - since > 3_000 &&
      this.world.faults.size < 100 &&
      !["silent", "slow", "stall", "freeze", "hooks"].some((fault) =>
        this.world.faults.has(fault as never)
      );
  }

  /** An entry of the ledger to be written by an isolate. */
  newEntry(isolate: Isolate): string {
    const id = `${isolate.name}e${this.#entries++}`;
    // The last turn of the dead goes on to its end.
    this.ledger.set(id, isolate.alive ? "pending" : "unknown");
    return id;
  }

  /** Notes what became of the entries of one transaction. */
  async writes<T>(ids: readonly string[], work: Promise<T>): Promise<T> {
    try {
      const result = await work;
      for (const id of ids) this.#settle(id, "acknowledged");
      return result;
    } catch (error) {
      this.world.log(`${ids}: ${nameOf(error)}`);
      for (const id of ids) this.#settle(id, isUnknown(error) ? "unknown" : "refused");
      throw error;
    }
  }

  #settle(id: string, fate: Fate): void {
    // What has died has heard nothing.
    if (this.ledger.get(id) === "pending") this.ledger.set(id, fate);
  }

  /** Works with a session that nobody else may have meanwhile. */
  async holding(
    conn: Connection,
    who: string,
    work: () => Promise<void>,
  ): Promise<void> {
    const { pid } = conn;
    this.#take(conn, who);
    try {
      await work();
    } finally {
      this.#returned.set(pid, this.world.clock.now());
      if (this.#lent.get(pid) === who) this.#lent.delete(pid);
    }
  }

  /** Somebody has got what is lent under a key: the same as whoever has it already. */
  takeKeyed(isolate: Isolate, key: string, conn: Connection): void {
    const who = `${isolate.name} ${key}`;
    const other = this.#keyed.get(who);
    if (other === conn) return;
    const { pid } = conn;
    // What was taken back is closed a moment later.
    if (
      other !== undefined && this.#reclaimAfter === 0 &&
      this.world.network.leadingTo(other.pid) !== null
    ) {
      this.world.broken(`${who} got session ${pid}, and ${other.pid} is lent under the same key`);
    }
    this.#take(conn, who);
    this.#keyed.set(who, conn);
  }

  /** Somebody puts it back, for all who have it. */
  returnKeyed(isolate: Isolate, key: string, conn: Connection): void {
    const who = `${isolate.name} ${key}`;
    if (this.#keyed.get(who) !== conn) return;
    this.#keyed.delete(who);
    const { pid } = conn;
    this.#returned.set(pid, this.world.clock.now());
    if (this.#lent.get(pid) === who) this.#lent.delete(pid);
  }

  /** One session has one transaction at a time, whoever has the session. */
  async moving(conn: Connection, id: string, work: () => Promise<void>): Promise<void> {
    const { pid } = conn;
    const other = this.#moving.get(pid);
    if (other !== undefined && this.world.backend(pid) !== null) {
      this.world.broken(`${id} moves money on session ${pid}, beside ${other}`);
    }
    this.#moving.set(pid, id);
    try {
      await work();
    } finally {
      if (this.#moving.get(pid) === id) this.#moving.delete(pid);
    }
  }

  /** In a transaction too: its function is called before `begin` goes out. */
  #take(conn: Connection, what: string): void {
    const { pid } = conn;
    const other = this.#lent.get(pid);
    if (other !== undefined && this.world.backend(pid) !== null) {
      this.world.broken(`${what} got session ${pid}, which ${other} has`);
    }
    const session = this.world.backend(pid)?.session;
    if (session !== undefined && (session.state !== "I" || session.channels.size > 0)) {
      this.world.broken(`${what} got session ${pid} with ${session.leftovers}`);
    }
    this.#lent.set(pid, what);
    this.#checkFresh(pid, what);
  }

  /** What nobody has used for longer than checkAfter was checked. */
  #checkFresh(pid: number, what: string): void {
    const { world } = this;
    const transport = world.network.leadingTo(pid);
    if (
      // A hook may have had it for long, and in its own opinion it is good.
      transport === null || this.hooked || this.#validates || this.squeezes ||
      world.faults.has("clock") ||
      world.faults.has("freeze") ||
      world.network.weather.latency[1] > 1
    ) return;
    const since = Math.max(transport.usedAt, this.#returned.get(pid) ?? -Infinity);
    const unused = world.clock.now() - since;
    if (unused > this.#checkAfter + SOON / 10) {
      world.broken(`${what} got session ${pid}, of which nothing was heard for ${unused} ms`);
    }
  }

  // --- checks ---

  #check(quiet: boolean): void {
    const { world } = this;
    const { sessions } = world.network;
    if (quiet && sessions <= this.#allowed) return;
    if (this.#served.length > 0) this.#checkOrder();
    const now = world.clock.now();
    const [first] = this.parts;
    let taken = 0, limit = 0;
    if (first !== undefined) {
      const { permits } = insideOf(first.pool as SimpleConnectionPool).state;
      taken = this.#takenOf(permits);
      limit = this.#limitOf(permits);
      // After a resize there may be more for a while, but not still more.
      this.#allowed = Math.max(limit, Math.min(this.#allowed, taken));
      if (sessions > this.#allowed) {
        world.broken(`${sessions} sessions, ${this.#allowed} allowed`);
      }
      this.#checkPermits(permits, now - world.frozen);
    }
    // Who waits for a connection that is lent waits for that, and not for a login.
    if (first === undefined || this.#loggedIn() >= limit) this.#fullAt = now;
    for (const { what, since, denied } of this.open.values()) {
      const told = Math.max(since, this.#fullAt) + TOLD;
      // A frozen process may have slept through the end of it.
      const still = now <= world.deniedUntil;
      if (denied && still && now > told && world.network.troubledAt < since) {
        world.broken(`${what} waits since ${since}, though no password is right`);
      }
      if (now - since > LONGEST + world.frozen) {
        world.broken(`${what} has waited for ${now - since} ms\n${this.inspect()}`);
      }
    }
    for (const part of this.parts) this.#checkPart(part, now - world.frozen, taken, limit);
  }

  /** How many permits are taken, in all isolates. */
  #takenOf(permits: Permits): number {
    return permits instanceof SharedPermits ? this.#tableOf(permits).census().total : permits.held;
  }

  #limitOf(permits: Permits): number {
    return permits instanceof SharedPermits ? permits.words.array[HEAD.LIMIT]! : permits.limit;
  }

  #tableOf({ words }: SharedPermits): PermitTable {
    return this.#table ??= new PermitTable(new AtomicWords(words.array.buffer), 0);
  }

  /** How many connections all isolates have that need no login any more. */
  #loggedIn(): number {
    let sum = 0;
    for (const { pool } of this.parts) {
      const { counts } = insideOf(pool as SimpleConnectionPool).state;
      sum += counts.idle + counts.checking + counts.leased + counts.shared + counts.returning +
        counts.closing;
    }
    return sum;
  }

  /** While a permit above the limit is held nobody may take one below it: it must not stay there. */
  #checkPermits(permits: Permits, now: number): void {
    if (!(permits instanceof SharedPermits)) return;
    const { array } = permits.words;
    this.#checkPromises(this.#tableOf(permits).words, array, now);
    if (array[HEAD.LIMIT] === array[HEAD.HIGH]) return void this.#wrong.delete(permits);
    const { words } = this.#tableOf(permits);
    const limit = PERMITS + array[HEAD.LIMIT]!, high = PERMITS + array[HEAD.HIGH]!;
    let above = false;
    for (let at = limit; at < high; at++) {
      const word = array[at]!;
      above ||= word !== 0 && isLive(words, word & 0xff_ffff);
    }
    if (!above) return void this.#wrong.delete(permits);
    let taken = 0;
    for (let at = PERMITS; at < high; at++) if (array[at] !== 0) taken++;
    // Who has tried and got none; not who waits for a connect, or for the next attempt.
    const wanted = this.parts.some(({ pool }) =>
      (insideOf<Connection>(pool).state.permits.others?.lacked ?? 0) > 0
    );
    this.#must(
      !wanted || taken >= limit - PERMITS,
      permits,
      now,
      () =>
        `somebody waits, and a permit above the limit keeps it from a free one\n${this.inspect()}`,
      MOVED,
    );
  }

  /** What was promised to another isolate comes to it, as soon as a connection is closed. */
  #checkPromises(words: Words, array: Int32Array<SharedArrayBuffer>, now: number): void {
    for (let at = PERMITS, end = at + array[HEAD.HIGH]!; at < end; at++) {
      const word = array[at]!;
      const target = word >>> 24;
      this.#must(
        target === 0 || target === slotOf(word) || !isLive(words, word & 0xff_ffff),
        at,
        now,
        () => `permit ${at - PERMITS} is promised, and does not move\n${this.inspect()}`,
        CLOSED,
      );
    }
  }

  #checkPart({ isolate, pool }: Part, now: number, taken: number, limit: number): void {
    const { world } = this;
    const { state, core } = insideOf<Connection>(pool);
    const { permits, counts, entries, options: { maxIdle } } = state;
    const { held } = permits;
    if (entries.size !== held && state.phase !== "closed") {
      world.broken(`${isolate.name} has ${entries.size} connections and ${held} permits`);
    }
    if (state.phase !== "open") return;
    const elsewhere = taken - held;
    // Nobody waits for what could be opened.
    const busy = counts.connecting + counts.checking + counts.returning + counts.leased +
      counts.shared + counts.closing;
    this.#checkImpatient(isolate, pool, now);
    this.#checkAttempts(isolate, state.counters, now);
    if (state.waiting > 0 && this.timeout > 0) this.#checkJobs(isolate, core.waiters(), now);
    // Nobody counts for ever on what gives no sign. Where all are taken, what is being reset is all that one can wait for.
    const { patience } = state.growth;
    const { oldest, silent } = state.coming;
    const inVain = taken >= limit && counts.connecting === silent.connecting &&
      counts.checking === silent.checking;
    this.#must(
      state.waiting === 0 || now + world.frozen - oldest <= patience || inVain,
      state.coming,
      now,
      () => `${isolate.name}: somebody waits for what hangs\n${this.inspect()}`,
    );
    const forgotten = state.waiting > 0 && busy === 0 && state.failure === null && taken < limit;
    this.#must(
      !forgotten,
      pool,
      now,
      () => `${isolate.name}: somebody waits and nothing is done for it\n${this.inspect()}`,
    );
    // What minconn says is opened.
    this.#must(
      state.size + elsewhere >= state.minconn || taken >= limit || this.#connects,
      counts,
      now,
      () => `${isolate.name} has fewer than ${state.minconn} connections\n${this.inspect()}`,
    );
    // Idle connections go in time.
    // Where others have some as well, it is for them to close theirs.
    this.#must(
      // Those that workers have idle are below the limit, as long as others have what is above it.
      permits instanceof SharedPermits || core.connections.idle.length === 0 ||
        held <= limit,
      core,
      now,
      () => `${isolate.name} keeps idle connections, though there are more than maxconn`,
    );
    if (this.#reclaimAfter > 0) this.#checkReclaimed(isolate, entries, now);
    const surplus = elsewhere === 0 && state.size > state.minconn;
    const lifetime = this.#maxLifetime === 0 ? Infinity : this.#maxLifetime;
    for (const entry of core.connections.idle) {
      let since = this.#since.get(entry);
      if (since === undefined) this.#since.set(entry, since = now);
      if (now - since > lifetime + SLACK) {
        world.broken(`a connection lives for ${now - since} ms, ${lifetime} are allowed`);
      }
      const over = surplus && maxIdle > 0 && maxIdle !== Infinity &&
        now + world.frozen - entry.idleSince > maxIdle;
      this.#must(!over, entry, now, () => `a connection is idle for longer than ${maxIdle} ms`);
    }
  }

  /** A statement waits for a connection no longer than the pool's timeout. */
  #checkJobs(isolate: Isolate, waiters: Iterable<Waiter<Connection>>, now: number): void {
    for (const waiter of waiters) {
      if (!(waiter instanceof JobWaiter)) continue;
      const waits = now + this.world.frozen - waiter.since;
      this.#must(
        waits <= this.timeout,
        waiter,
        now,
        () => `${isolate.name}: a statement waits for ${waits} ms\n${this.inspect()}`,
      );
      return;
    }
  }

  /** While connecting fails there are pauses, but for those who do not wait. */
  #checkAttempts(isolate: Isolate, counters: PoolTotals, now: number): void {
    const { connectionsNum, connectionsErrors: failed, requestsNum: asked } = counters;
    const known = this.#attempts.get(counters);
    if (known !== undefined && now - known.since < 1_000) return;
    const made = connectionsNum - failed;
    this.#attempts.set(counters, { since: now, failed, made, asked });
    if (known === undefined) return;
    const some = MOST_ATTEMPTS * (now - known.since) / 1_000;
    // What was under way then may have failed since.
    const more = Math.max(0, made - known.made);
    const most = some + 3 * (asked - known.asked) + this.maxconn * (more + 1);
    if (failed - known.failed > most) {
      const time = now - known.since;
      this.world.broken(`${isolate.name}: ${failed - known.failed} connects failed in ${time} ms`);
    }
  }

  /** Nobody has a connection for longer than reclaimAfter. */
  #checkReclaimed(isolate: Isolate, entries: Iterable<PoolEntry>, now: number): void {
    for (const { lease } of entries) {
      if (lease === null || !lease.open || lease.own) continue;
      const held = now + this.world.frozen - lease.since;
      this.#must(
        held <= this.#reclaimAfter,
        lease,
        now,
        () => `${isolate.name}: a connection is lent for ${held} ms\n${this.inspect()}`,
      );
    }
  }

  /**
   * True when somebody opens a connection, or waits until it is time to try again. Where isolates share, what another one
   * closes counts as there until it is gone.
   */
  get #connects(): boolean {
    return this.parts.some(({ pool }) => {
      const { backoff, counts: { connecting, closing } } = insideOf<Connection>(pool).state;
      return backoff.troubled || connecting > 0 || (this.shared && closing > 0);
    });
  }

  /** Who would not wait is in the queue only for what is on its way to it. */
  #checkImpatient(isolate: Isolate, pool: Pool, now: number): void {
    const { state, core } = insideOf<Connection>(pool);
    const { counts, permits } = state;
    // While connecting fails one attempt tells for all.
    const tells = state.backoff.troubled && counts.connecting > 0;
    if (permits.others !== null || state.waiting === 0 || tells) {
      return void this.#wrong.delete(permits);
    }
    const coming = counts.connecting + counts.checking + counts.returning + counts.shared +
      counts.closing;
    let place = 0;
    let vain = false;
    for (const waiter of core.waiters()) vain ||= ++place > coming && waiter.impatient;
    this.#must(
      !vain,
      permits,
      now,
      () => `${isolate.name}: who does not wait waits, and nothing comes\n${this.inspect()}`,
      CHANCE / 10,
    );
  }

  /** What the pool says of itself. */
  inspect(): string {
    return this.parts.map(({ isolate, pool }) => {
      const { permits } = insideOf(pool as SimpleConnectionPool).state;
      if (!(permits instanceof SharedPermits)) return `${isolate.name}: ${pool.inspect()}`;
      const { words } = permits;
      const { id, mine } = permits.table;
      const high = words.array.slice(PERMITS, PERMITS + words.array[HEAD.HIGH]!);
      const table = [...high].map((word) => word.toString(16)).join(" ");
      const tenants = Array.from(
        { length: this.world.isolates.all.length + 1 },
        (_, slot) => words.array[slotAt(slot, SLOT.TENANT)]!.toString(16),
      ).join(" ");
      const own = mine.map((at) => at - PERMITS).join(" ");
      return `${isolate.name} (${
        id.toString(16)
      }, limit ${permits.limit} of ${table}, own ${own}, tenants ${tenants}, lacks ${permits.lacked}): ${pool.inspect()}`;
    }).join("\n");
  }

  /** What must not last. */
  #must(
    holds: boolean,
    about: unknown,
    now: number,
    what: () => string,
    slack: number = SLACK,
  ): void {
    if (holds) {
      if (this.#wrong.size > 0) this.#wrong.delete(about);
      return;
    }
    const since = this.#wrong.get(about);
    if (since === undefined) this.#wrong.set(about, now);
    else if (now - since > slack) this.world.broken(what());
  }

  /** What must be true of the tables once all is over. */
  audit(): void {
    const { database } = this.world;
    for (const [id, fate] of this.ledger) {
      const there = database.entries.has(id);
      if (fate === "acknowledged" && !there) {
        this.world.broken(`${id} was acknowledged and is lost`);
      }
      if (fate === "refused" && there) this.world.broken(`${id} was refused and is there`);
      if (fate === "pending") this.world.broken(`${id} has never ended`);
    }
    const sum = database.accounts.reduce((a, b) => a + b, 0);
    if (sum !== 0) this.world.broken(`money was made: ${sum}`);
  }

  /** True when nobody has anything, or waits for it. */
  get resting(): boolean {
    return this.parts.every(({ pool }) => {
      const { leased, counts, waiting } = insideOf<Connection>(pool).state;
      return leased + counts.shared + waiting === 0;
    }) && this.parts.every(({ pool }) => {
      // What isolates tell of themselves comes later.
      const { leased, shared, requestsWaiting } = pool.stats();
      return leased + shared + requestsWaiting === 0;
    });
  }

  /** Once nobody has anything: nothing is lent, and the numbers are possible. */
  rest(): void {
    for (const { pool, isolate } of this.parts) {
      const { leased, shared, requestsWaiting, usageMs } = pool.stats();
      if (leased + shared + requestsWaiting > 0) {
        this.world.broken(
          `${isolate.name}: nobody has anything, and yet ${leased} leased, ${shared} shared, ${requestsWaiting} waiting\n${this.inspect()}`,
        );
      }
      const most = this.world.clock.now() * this.maxconn + 1_000;
      if (usageMs > most || usageMs < 0) {
        this.world.broken(`connections were lent for ${usageMs} ms`);
      }
    }
  }
}
