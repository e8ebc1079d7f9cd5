/** The whole pool against a simple reference, under random storms. `MODEL_SEED=n` replays one. */

import { assert, assertEquals, assertLessOrEqual, assertStrictEquals } from "@std/assert";
import process from "node:process";
import { type Outcome, outcome, withClock } from "./_checks.ts";
import { FakePool, settle, type Thing } from "./_fake.ts";
import { test } from "./_harness.ts";

/** Random numbers that a seed repeats (mulberry32). */
class Dice {
  #state: number;

  constructor(seed: number) {
    this.#state = seed;
  }

  next(): number {
    let t = this.#state += 0x6d2b79f5;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  }

  below(n: number): number {
    return Math.floor(this.next() * n);
  }

  chance(p: number): boolean {
    return this.next() < p;
  }

  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
}

interface Call {
  readonly number: number;
  readonly key: unknown;
  readonly abort: AbortController;
  readonly deadline: number;
  readonly impatient: boolean;
  readonly seen: Outcome<Thing>;
  done: boolean;
}

interface Lease {
  readonly conn: Thing;
  readonly thing: Thing;
  readonly key: unknown;
}

/** A clock that fires its timers without turns in between: harder than the real one. */
interface Ticker {
  tick(ms: number): void;
  countTimers(): number;
  setSystemTime(now: number): void;
}

const KEYS = ["k", 0, NaN, "", Symbol("key")];
const NONE = Symbol("none");

class Storm {
  readonly log: string[] = [];
  readonly #dice: Dice;
  readonly #clock: Ticker;
  readonly #pool: FakePool;
  readonly #calls: Call[] = [];
  readonly #leases = new Map<number, Lease>();
  readonly #stale: Thing[] = [];
  readonly #returns: Outcome<void>[] = [];
  #elapsed = 0;
  #fault: unknown = NONE;
  #over = false;

  constructor(seed: number, clock: Ticker) {
    const dice = this.#dice = new Dice(seed);
    this.#clock = clock;
    const maxconn = 1 + dice.below(5);
    const hook = (probability: number) => (conn: Thing): unknown => {
      if (dice.chance(probability)) conn.status = "intrans";
      if (dice.chance(probability)) throw new Error("hook");
      return dice.chance(0.5) ? undefined : Promise.resolve();
    };
    this.#pool = new FakePool(dice.below(maxconn + 1), maxconn, {
      name: "model",
      timeout: dice.of([0, 100, Infinity]),
      maxWaiting: dice.of([0, 0, 2]),
      maxIdle: dice.of([0, 300, 60_000]),
      maxLifetime: dice.of([0, 500, 3_600_000]),
      checkAfter: dice.of([0, 50, 1_000, Infinity]),
      configure: dice.chance(0.3) ? hook(0.2) : undefined,
      reset: dice.chance(0.4) ? hook(0.2) : undefined,
      leakAfter: dice.of([0, 200]),
      reconnectTimeout: dice.of([0, 1_000, 300_000]),
    });
    // The pool calls this at the instant of lending.
    Object.assign(this.#pool.fake, {
      ref: (thing: Thing) =>
        this.#guarded(() => assertEquals(thing.status, "idle", "a dirty thing was lent")),
    });
    for (const type of ["lost", "remove", "acquire", "release", "leak"] as const) {
      if (dice.chance(0.3)) this.#pool.on(type, () => this.#meddle());
    }
  }

  async run(steps: number): Promise<void> {
    for (let i = 0; i < steps; i++) {
      this.#step();
      // Now and then several things happen in one turn.
      if (this.#dice.chance(0.3)) continue;
      await settle();
      this.#check();
    }
    await settle();
    await this.#end();
  }

  /** A listener that calls back into the pool. */
  #meddle(): void {
    if (this.#over || this.#dice.chance(0.85) || this.#calls.length > 2_000) return;
    if (this.#dice.chance(0.5)) this.#put(false);
    else if (this.#dice.chance(0.5)) this.#abort();
    else this.#get();
  }

  #step(): void {
    const dice = this.#dice;
    const { fake } = this.#pool;
    const roll = dice.below(100);
    if (roll < 27) this.#get();
    else if (roll < 47) this.#put(dice.chance(0.1));
    else if (roll < 65) this.#release();
    else if (roll < 71) this.#abort();
    else if (roll < 81) this.#pass();
    else if (roll < 84) this.#kill();
    else if (roll < 87) this.#dirty();
    else if (roll < 90) this.#misuse();
    else if (roll < 93) this.#toggle();
    else if (roll < 95) {
      fake.failure = fake.failure === null ? new Error("away") : null;
      this.log.push(`failure ${fake.failure !== null}`);
    } else if (roll < 97) this.#resize();
    else if (roll < 98) {
      this.log.push("renew");
      this.#returns.push(outcome(this.#pool.renew()));
    } else {
      this.log.push("ready");
      outcome(this.#pool.ready());
    }
  }

  #get(): void {
    const dice = this.#dice;
    const pool = this.#pool;
    const key = dice.chance(0.25) ? dice.of(KEYS) : null;
    const timeout = dice.of([undefined, 0, 0, 150, Infinity]);
    const abort = new AbortController();
    if (dice.chance(0.03)) abort.abort(new Error("aborted before"));
    const limit = timeout ?? pool.options.timeout;
    const number = this.#calls.length;
    this.log.push(`get #${number} key ${String(key)} timeout ${limit}`);
    // A lost connection under a key is taken from whoever has it.
    if (key !== null && !abort.signal.aborted) {
      for (const lease of this.#leases.values()) {
        if (Object.is(lease.key, key) && lease.thing.closed) this.#end_(lease);
      }
    }
    const promise = pool.getconn(key, { timeout, signal: abort.signal });
    const call: Call = {
      number,
      key,
      abort,
      deadline: limit === 0 ? Infinity : this.#elapsed + limit,
      impatient: limit === 0,
      seen: outcome(promise),
      done: false,
    };
    this.#calls.push(call);
    promise.then(
      (conn) => this.#guarded(() => this.#got(call, conn)),
      () => call.done = true,
    );
  }

  #got(call: Call, conn: Thing): void {
    call.done = true;
    this.log.push(`got #${call.number}`);
    let thing: Thing;
    try {
      thing = this.#pool.fake.byId(conn.hello());
    } catch {
      // A listener or another caller of the key has put it back before this one had its turn.
      assert(this.#stale.includes(conn), "a dead lease was given that had never been alive");
      return;
    }
    if (call.key === null) {
      const passed = this.#calls.find((one) =>
        one.number < call.number && one.key === null && !one.done
      );
      assertEquals(passed?.number, undefined, `#${call.number} was served before`);
    }
    const other = this.#leases.get(thing.id);
    if (other !== undefined) {
      assertStrictEquals(other.conn, conn, `thing ${thing.id} was lent twice`);
      assert(call.key !== null && Object.is(other.key, call.key));
      return;
    }
    for (const lease of this.#leases.values()) {
      assert(call.key === null || !Object.is(lease.key, call.key), "one key has two leases");
    }
    this.#leases.set(thing.id, { conn, thing, key: call.key });
  }

  #end_(lease: Lease): void {
    this.#leases.delete(lease.thing.id);
    this.#stale.push(lease.conn);
  }

  #put(close: boolean): void {
    if (this.#leases.size === 0) return;
    const lease = this.#dice.of([...this.#leases.values()]);
    this.log.push(`put ${lease.thing.id} ${lease.thing.status}${close ? " close" : ""}`);
    this.#end_(lease);
    const key = this.#dice.chance(0.5) ? lease.key : undefined;
    this.#returns.push(outcome(this.#pool.putconn(lease.conn, key, close)));
  }

  #release(): void {
    const { held } = this.#pool.fake;
    if (held.length === 0) return;
    const [step] = held.splice(this.#dice.below(held.length), 1);
    const fails = this.#dice.chance(0.15);
    this.log.push(`${step?.kind} ${step?.thing?.id ?? ""} ${fails ? "fails" : "goes on"}`);
    if (fails) step?.fail();
    else step?.go();
  }

  #abort(): void {
    const pending = this.#calls.filter((one) => !one.done);
    if (pending.length === 0) return;
    const call = this.#dice.of(pending);
    this.log.push(`abort #${call.number}`);
    call.abort.abort(new Error("aborted"));
  }

  #pass(): void {
    const ms = this.#dice.of([1, 10, 60, 100, 400, 1_000, 6_000, 40_000]);
    if (this.#dice.chance(0.2)) {
      const jump = this.#dice.of([-3_600_000, -500, 500, 3_600_000]);
      this.log.push(`clock jumps ${jump}`);
      this.#clock.setSystemTime(Date.now() + jump);
    }
    this.log.push(`${ms} ms pass`);
    this.#elapsed += ms;
    this.#clock.tick(ms);
  }

  #kill(): void {
    const alive = this.#pool.fake.things.filter((one) => !one.closed);
    if (alive.length === 0) return;
    const thing = this.#dice.of(alive);
    this.log.push(`kill ${thing.id}`);
    thing.die();
  }

  #dirty(): void {
    const lent = [...this.#leases.values()].filter(({ thing }) => !thing.closed);
    if (lent.length === 0) return;
    const { thing } = this.#dice.of(lent);
    thing.status = this.#dice.of(["intrans", "inerror", "active", "idle"] as const);
    this.log.push(`${thing.id} is ${thing.status}`);
  }

  /** What is refused changes nothing. */
  #misuse(): void {
    const before = this.#pool.stats();
    const stale = this.#stale.at(-1) ?? null;
    const [lease] = this.#leases.values();
    this.#expect(this.#pool.putconn(stale as Thing), "UNKEYED_CONNECTION");
    if (lease !== undefined) {
      this.#expect(this.#pool.putconn(lease.conn, "no such key"), "WRONG_KEY");
    }
    assertEquals(this.#pool.stats(), before);
  }

  #expect(promise: Promise<unknown>, word: string): void {
    const seen = outcome(promise);
    promise.catch(() => this.#guarded(() => assertEquals(seen.word, word)));
  }

  #toggle(): void {
    const { hold } = this.#pool.fake;
    const kind = this.#dice.of(["open", "close", "check", "rollback"] as const);
    if (!hold.delete(kind)) hold.add(kind);
    this.log.push(`${hold.has(kind) ? "hold" : "do not hold"} ${kind}`);
  }

  #resize(): void {
    const maxconn = 1 + this.#dice.below(6);
    const minconn = this.#dice.below(maxconn + 1);
    const { fake } = this.#pool;
    this.log.push(`resize ${minconn} ${maxconn}`);
    fake.mostAllowed = Math.max(fake.mostAllowed, maxconn);
    this.#returns.push(outcome(this.#pool.resize(minconn, maxconn)));
  }

  #guarded(check: () => void): void {
    try {
      check();
    } catch (error) {
      this.#fault = this.#fault === NONE ? error : this.#fault;
    }
  }

  /** What holds whenever nothing can go on by itself. */
  #check(): void {
    if (this.#fault !== NONE) throw this.#fault;
    const { fake } = this.#pool;
    const stats = this.#pool.stats();
    const { poolSize, connecting, idle, leased, closing, requestsWaiting, poolMax } = stats;
    assertEquals(poolSize, connecting + idle + leased);
    assertEquals(fake.opening + fake.standing, poolSize + closing, "an entry without a permit");
    assertLessOrEqual(fake.most, fake.mostAllowed);
    // A step of what is being closed meanwhile is nothing that the pool still waits for.
    const steps = (kind: string) =>
      fake.held.filter((one) => one.kind === kind && one.thing?.status !== "unknown").length;
    const [checking, returning] = [steps("check"), steps("rollback")];
    assertLessOrEqual(this.#leases.size + checking, leased);
    assertLessOrEqual(leased, this.#leases.size + checking + returning);
    if (requestsWaiting > 0 && idle > 0) assert(checking > 0, "a waiter waits beside an idle one");
    const pending = this.#calls.filter((one) => !one.done);
    assertEquals(pending.length, requestsWaiting);
    for (const call of pending) {
      assert(!call.abort.signal.aborted, `#${call.number} was aborted and waits`);
      assert(call.deadline > this.#elapsed, `#${call.number} waits beyond its deadline`);
      if (call.impatient) {
        assert(
          connecting + checking + returning + closing > 0,
          `#${call.number} waits for nothing`,
        );
      }
    }
    const own = this.#clock.countTimers() - pending.filter((one) => one.deadline < Infinity).length;
    const limited = fake.held.filter(({ kind }) => kind === "check" || kind === "rollback").length;
    assertLessOrEqual(own, 1 + limited, "the pool has more than one timer");
    const coming = connecting + checking + returning + closing;
    if (requestsWaiting > 0 && coming === 0 && poolSize < poolMax) {
      assert(own > 0, "nobody will try again for who waits");
    }
  }

  /** After the storm all can be lent, and nothing is left in the end. */
  async #end(): Promise<void> {
    this.#check();
    const pool = this.#pool;
    const { fake } = pool;
    this.log.push("end");
    this.#over = true;
    if (this.#dice.chance(0.5)) await this.#calm();
    if (this.#dice.chance(0.5)) fake.hold.clear();
    const closing = outcome(
      this.#dice.chance(0.5) ? pool.closeall() : pool.close({ timeout: 1_000 }),
    );
    for (let i = 0; i < 20; i++) {
      await settle();
      for (const step of fake.held.splice(0)) step.go();
      if (this.#dice.chance(0.3)) this.#put(false);
      this.#clock.tick(100);
    }
    await settle();
    assertEquals(closing.word, "ok");
    if (this.#fault !== NONE) throw this.#fault;
    assertEquals(fake.standing, 0);
    assertEquals(this.#calls.filter((one) => !one.done), [], "a call never settled");
    assertEquals(this.#returns.filter((one) => !one.settled), [], "a return never settled");
    assertEquals(this.#clock.countTimers(), 0, "a timer is left");
  }

  async #calm(): Promise<void> {
    const pool = this.#pool;
    const { fake } = pool;
    fake.failure = null;
    fake.hold.clear();
    for (let i = 0; i < 60; i++) {
      for (const step of fake.held.splice(0)) step.go();
      for (const lease of [...this.#leases.values()]) {
        // A listener may have put it back meanwhile.
        if (!this.#leases.has(lease.thing.id)) continue;
        this.#end_(lease);
        this.#returns.push(outcome(pool.putconn(lease.conn)));
      }
      await settle();
      this.#clock.tick(1_000);
    }
    await settle();
    this.#check();
    assertEquals(this.#calls.filter((one) => !one.done), [], "a call never settled");
    assertEquals(this.#returns.filter((one) => !one.settled), [], "a return never settled");
    assertEquals(this.#returns.filter((one) => one.word !== "ok").map((one) => one.word), []);
    assertEquals(pool.stats().leased, 0);
    for (let tries = 0; tries < 200 && this.#leases.size < pool.maxconn; tries++) {
      const seen = pool.getconn(null, { timeout: 5_000 });
      const got = outcome(seen);
      seen.then((conn) => {
        const thing = fake.byId(conn.hello());
        this.#leases.set(thing.id, { conn, thing, key: null });
      }, () => {});
      await settle();
      this.#clock.tick(got.settled ? 1 : 6_000);
      await settle();
    }
    assertEquals(this.#leases.size, pool.maxconn, "a slot is lost");
  }
}

const SEED = process.env["MODEL_SEED"];

test("AbstractConnectionPool keeps its rules in 1 000 random storms of 80 steps", async () => {
  const first = SEED === undefined ? Math.floor(Math.random() * 1e9) : Number(SEED);
  for (let seed = first; seed < first + (SEED === undefined ? 1_000 : 1); seed++) {
    await withClock(async (clock) => {
      const storm = new Storm(seed, clock as unknown as Ticker);
      try {
        await storm.run(80);
      } catch (error) {
        const steps = storm.log.map((line, i) => `${i}: ${line}`).join("\n");
        throw new Error(`MODEL_SEED=${seed} fails after\n${steps}`, { cause: error });
      }
    });
  }
});
