/**
 * The whole pool against a simple reference, under random storms that fast-check draws and shrinks.
 * `MODEL_SEED` and `MODEL_PATH`, which a failure prints as seed and path, replay one.
 */

import { assertEquals } from "@std/assert";
import fc from "fast-check";
import process from "node:process";
import { outcome, withClock } from "./support/checks.ts";
import { Dice } from "./support/dice.ts";
import { FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { Reference, type Ticker } from "./support/model.ts";

const KEYS = ["k", 0, NaN, "", Symbol("key")];

/** A pool of random sizes and options, whose hooks fail now and then. */
function randomPool(dice: Dice, mood: { calm: boolean }): FakePool {
  const maxconn = 1 + dice.below(5);
  const hook = (probability: number) => (conn: Thing): unknown => {
    if (mood.calm) return undefined;
    if (dice.chance(probability)) conn.status = "intrans";
    if (dice.chance(probability)) throw new Error("hook");
    return dice.chance(0.5) ? undefined : Promise.resolve();
  };
  return new FakePool(dice.below(maxconn + 1), maxconn, {
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
}

class Storm extends Reference {
  readonly #dice: Dice;
  readonly #mood: { calm: boolean };
  #over = false;

  constructor(dice: Dice, clock: Ticker) {
    const mood = { calm: false };
    super(randomPool(dice, mood), clock);
    this.#dice = dice;
    this.#mood = mood;
    // The pool calls this at the instant of lending.
    Object.assign(this.pool.fake, {
      ref: (thing: Thing) =>
        this.guarded(() => assertEquals(thing.status, "idle", "a dirty thing was lent")),
    });
    for (const type of ["lost", "remove", "acquire", "release", "leak"] as const) {
      if (dice.chance(0.3)) this.pool.on(type, () => this.#meddle());
    }
  }

  async run(steps: number): Promise<void> {
    for (let i = 0; i < steps; i++) {
      this.#step();
      // Now and then several things happen in one turn.
      if (this.#dice.chance(0.3)) continue;
      await settle();
      this.check();
    }
    await settle();
    await this.#end();
  }

  /** A listener that calls back into the pool. */
  #meddle(): void {
    if (this.#over || this.#dice.chance(0.85) || this.calls.length > 2_000) return;
    const deed = this.#dice.below(4);
    if (deed < 2) this.#put(false);
    else if (deed === 2) this.#abort();
    else this.#get();
  }

  #step(): void {
    const dice = this.#dice;
    const { fake } = this.pool;
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
      this.returns.push(outcome(this.pool.renew()));
    } else {
      this.log.push("ready");
      outcome(this.pool.ready());
    }
  }

  #get(): void {
    const dice = this.#dice;
    const key = dice.chance(0.25) ? dice.of(KEYS) : null;
    const timeout = dice.of([undefined, 0, 0, 150, Infinity]);
    this.get(key, timeout, dice.chance(0.03));
  }

  #put(close: boolean): void {
    if (this.leases.size === 0) return;
    const lease = this.#dice.of([...this.leases.values()]);
    this.put(lease, this.#dice.chance(0.5), close);
  }

  #release(): void {
    const { held } = this.pool.fake;
    if (held.length === 0) return;
    const [step] = held.splice(this.#dice.below(held.length), 1);
    const fails = this.#dice.chance(0.15);
    this.log.push(`${step?.kind} ${step?.thing?.id ?? ""} ${fails ? "fails" : "goes on"}`);
    if (fails) step?.fail();
    else step?.go();
  }

  #abort(): void {
    const pending = this.calls.filter((one) => !one.done);
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
      this.clock.setSystemTime(Date.now() + jump);
    }
    this.log.push(`${ms} ms pass`);
    this.elapsed += ms;
    this.clock.tick(ms);
  }

  #kill(): void {
    const alive = this.pool.fake.things.filter((one) => !one.closed);
    if (alive.length === 0) return;
    const thing = this.#dice.of(alive);
    this.log.push(`kill ${thing.id}`);
    thing.die();
  }

  #dirty(): void {
    const lent = [...this.leases.values()].filter(({ thing }) => !thing.closed);
    if (lent.length === 0) return;
    const { thing } = this.#dice.of(lent);
    thing.status = this.#dice.of(["intrans", "inerror", "active", "idle"] as const);
    this.log.push(`${thing.id} is ${thing.status}`);
  }

  /** What is refused changes nothing. */
  #misuse(): void {
    const before = this.pool.stats();
    const stale = this.stale.at(-1) ?? null;
    const [lease] = this.leases.values();
    this.#expect(this.pool.putconn(stale as Thing), "UNKEYED_CONNECTION");
    if (lease !== undefined) {
      this.#expect(this.pool.putconn(lease.conn, "no such key"), "WRONG_KEY");
    }
    assertEquals(this.pool.stats(), before);
  }

  #expect(promise: Promise<unknown>, word: string): void {
    const seen = outcome(promise);
    promise.catch(() => this.guarded(() => assertEquals(seen.word, word)));
  }

  #toggle(): void {
    const { hold } = this.pool.fake;
    const kind = this.#dice.of(["open", "close", "check", "rollback"] as const);
    if (!hold.delete(kind)) hold.add(kind);
    this.log.push(`${hold.has(kind) ? "hold" : "do not hold"} ${kind}`);
  }

  #resize(): void {
    const maxconn = 1 + this.#dice.below(6);
    const minconn = this.#dice.below(maxconn + 1);
    const { fake } = this.pool;
    this.log.push(`resize ${minconn} ${maxconn}`);
    fake.mostAllowed = Math.max(fake.mostAllowed, maxconn);
    this.returns.push(outcome(this.pool.resize(minconn, maxconn)));
  }

  /** After the storm all can be lent, and nothing is left in the end. */
  async #end(): Promise<void> {
    this.check();
    const pool = this.pool;
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
      this.clock.tick(100);
    }
    await settle();
    assertEquals(closing.word, "ok");
    this.assertNoFault();
    assertEquals(fake.standing, 0);
    assertEquals(this.calls.filter((one) => !one.done), [], "a call never settled");
    assertEquals(this.returns.filter((one) => !one.settled), [], "a return never settled");
    assertEquals(this.clock.countTimers(), 0, "a timer is left");
  }

  async #calm(): Promise<void> {
    const pool = this.pool;
    const { fake } = pool;
    fake.failure = null;
    fake.hold.clear();
    this.#mood.calm = true;
    for (let i = 0; i < 60; i++) {
      for (const step of fake.held.splice(0)) step.go();
      for (const lease of [...this.leases.values()]) {
        // A listener may have put it back meanwhile.
        if (!this.leases.has(lease.thing.id)) continue;
        this.endLease(lease);
        this.returns.push(outcome(pool.putconn(lease.conn)));
      }
      await settle();
      this.clock.tick(1_000);
    }
    await settle();
    this.check();
    assertEquals(this.calls.filter((one) => !one.done), [], "a call never settled");
    assertEquals(this.returns.filter((one) => !one.settled), [], "a return never settled");
    assertEquals(this.returns.filter((one) => one.word !== "ok").map((one) => one.word), []);
    assertEquals(pool.stats().leased, 0);
    for (let tries = 0; tries < 200 && this.leases.size < pool.maxconn; tries++) {
      const seen = pool.getconn(null, { timeout: 5_000 });
      const got = outcome(seen);
      seen.then((conn) => {
        const thing = fake.byId(conn.hello());
        this.leases.set(thing.id, { conn, thing, key: null });
      }, () => {});
      await settle();
      this.clock.tick(got.settled ? 1 : 6_000);
      await settle();
    }
    assertEquals(this.leases.size, pool.maxconn, "a slot is lost");
  }
}

const { MODEL_SEED, MODEL_PATH } = process.env;
const SIDES = 0x8000_0000;

test("AbstractConnectionPool keeps its rules in 500 random storms of 80 steps", async () => {
  const storms = fc.asyncProperty(fc.gen(), (draw) => {
    const dice = new Dice(() => draw(fc.nat, SIDES - 1) / SIDES);
    return withClock(async (clock) => {
      const storm = new Storm(dice, clock as unknown as Ticker);
      try {
        await storm.run(80);
      } catch (error) {
        const steps = storm.log.map((line, i) => `${i}: ${line}`).join("\n");
        throw new Error(`the pool broke a rule after\n${steps}`, { cause: error });
      }
    });
  });
  await fc.assert(storms, {
    numRuns: 500,
    interruptAfterTimeLimit: 40_000,
    ...MODEL_SEED === undefined ? {} : { seed: Number(MODEL_SEED) },
    ...MODEL_PATH === undefined ? {} : { path: MODEL_PATH },
  });
});
