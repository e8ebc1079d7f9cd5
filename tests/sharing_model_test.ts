/**
 * Jobs beside leases on one pool, in random programs that fast-check draws and shrinks.
 * `MODEL_SEED` and `MODEL_PATH`, which a failure prints as seed and path, replay one;
 * `GETCONN_SLOW` runs more.
 */

import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import process from "node:process";
import { withClock } from "./support/checks.ts";
import { settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import type { Leaves } from "./support/jobs.ts";
import type { Ticker } from "./support/model.ts";
import { type Mood, numbers, type Setup, SharingModel } from "./support/sharing_model.ts";

const KEYS = ["k", 0];
const TIMEOUTS = [undefined, 0, 150, Infinity];
const TIMES = [1, 10, 60, 100, 400, 1_000, 6_000, 40_000];
const LEAVES: readonly Leaves[] = ["idle", "intrans", "inerror", "active"];
const MOODS: readonly Mood[] = ["fine", "throws", "leaves a transaction"];
const KINDS = ["open", "close", "check", "rollback"] as const;

function of<T>(list: readonly T[], number: number): T {
  return list[number % list.length] as T;
}

/** Does one thing with what `a` and `b` choose; nothing when there is no such thing. */
type Deed = (model: SharingModel, a: number, b: number) => void;

/** Each with its weight. */
const DEEDS: Record<string, readonly [weight: number, deed: Deed]> = {
  submit: [16, (model, a) => model.submit(a % 8 === 7)],
  end: [10, (model, a, b) => {
    const running = model.jobsIn("running");
    if (running.length === 0) return;
    const job = of(running, a);
    const leaves = b % 2 === 0 ? "idle" : of(LEAVES, b >> 1);
    const spoilt = b % 7 === 6;
    model.log.push(`end #${job.number}${spoilt ? " spoilt" : ""}, leaves ${leaves}`);
    job.end(spoilt, leaves);
  }],
  endAll: [4, (model) => {
    model.log.push("end all jobs");
    for (const job of model.jobsIn("running")) job.end();
  }],
  hush: [3, (model, a, b) => {
    if (model.fake.unquiet.length === 0) return;
    const thing = of(model.fake.unquiet, a);
    model.log.push(`${thing.id} is quiet`);
    model.fake.hush(thing, of(LEAVES, b));
  }],
  withdraw: [5, (model, a) => {
    const waiting = model.jobsIn("waiting");
    if (waiting.length > 0) model.withdraw(of(waiting, a));
  }],
  get: [12, (model, a, b) => {
    model.get(a % 4 === 3 ? of(KEYS, b >> 2) : null, of(TIMEOUTS, b), a % 32 === 17);
  }],
  put: [12, (model, a, b) => {
    const leases = [...model.leases.values()];
    if (leases.length > 0) model.put(of(leases, a), b % 2 === 1, b % 8 === 7);
  }],
  abort: [4, (model, a) => {
    const { pendingCalls } = model;
    if (pendingCalls.length === 0) return;
    const call = of(pendingCalls, a);
    model.log.push(`abort #${call.number}`);
    call.abort.abort(new Error("aborted"));
  }],
  goOn: [14, (model, a, b) => {
    const { held } = model.fake;
    const [step] = held.splice(a % Math.max(held.length, 1), 1);
    if (step === undefined) return;
    const fails = b % 6 === 5;
    model.log.push(`${step.kind} ${step.thing?.id ?? ""} ${fails ? "fails" : "goes on"}`);
    if (fails) step.fail();
    else step.go();
  }],
  hold: [4, (model, a) => {
    const kind = of(KINDS, a);
    const { hold } = model.fake;
    if (!hold.delete(kind)) hold.add(kind);
    model.log.push(`${hold.has(kind) ? "hold" : "do not hold"} ${kind}`);
  }],
  pass: [10, (model, a) => model.pass(of(TIMES, a))],
  jump: [1, (model, a) => {
    const ms = of([500, -500, 3_600_000, -3_600_000], a);
    model.log.push(`the wall clock jumps by ${ms} ms`);
    model.clock.setSystemTime(Date.now() + ms);
  }],
  kill: [4, (model, a, b) => {
    const alive = model.fake.things.filter((one) => !one.closed);
    if (alive.length === 0) return;
    const thing = of(alive, a);
    model.log.push(`kill ${thing.id}`);
    const jobs = [...model.fake.jobsOn(thing)];
    // A driver may tell its statements first, or the pool, or the statements much later.
    if (b % 3 === 1) { for (const job of jobs) job.end(); }
    thing.die();
    model.fake.hush(thing);
    if (b % 3 === 0) { for (const job of jobs) if (job.state === "running") job.end(); }
  }],
  dirty: [2, (model, a, b) => {
    const lent = [...model.leases.values()].filter(({ thing }) => !thing.closed);
    if (lent.length === 0) return;
    const { thing } = of(lent, a);
    thing.status = of(LEAVES, b);
    model.log.push(`${thing.id} is ${thing.status}`);
  }],
  fail: [3, (model) => {
    model.fake.failure = model.fake.failure === null ? new Error("away") : null;
    model.log.push(`connects ${model.fake.failure === null ? "succeed" : "fail"}`);
  }],
  mood: [2, (model, a, b) => {
    const name = of(["configure", "reset"] as const, a);
    model.moods[name] = of(MOODS, b);
    model.log.push(`${name} ${model.moods[name]}`);
  }],
  resize: [2, (model, a, b) => {
    const maxconn = 1 + a % 4;
    const minconn = b % (maxconn + 1);
    model.log.push(`resize ${minconn} ${maxconn}`);
    model.fake.mostAllowed = Math.max(model.fake.mostAllowed, maxconn);
    model.watch(model.pool.resize(minconn, maxconn));
  }],
  renew: [2, (model) => {
    model.log.push("renew");
    model.watch(model.pool.renew());
  }],
  depth: [1, (model, a) => model.setDepth(of([Infinity, 1, 2, 3], a))],
  close: [0.8, (model, a) => model.close(of([30_000, 300, 0], a))],
  closeall: [0.1, (model) => model.closeall()],
};

type Step = readonly [name: string, a: number, b: number, together: boolean];

interface Program {
  readonly setup: Setup;
  readonly steps: readonly Step[];
  /** How it goes on after the steps. */
  readonly ending: {
    readonly calm: boolean;
    readonly crowd: boolean;
    readonly gently: boolean;
    readonly hang: boolean;
  };
}

const programs: fc.Arbitrary<Program> = fc.record({
  setup: fc.record({
    minconn: fc.integer({ min: 0, max: 1 }),
    maxconn: fc.integer({ min: 1, max: 4 }),
    depth: fc.constantFrom(Infinity, Infinity, 1, 2, 3),
    timeout: fc.constantFrom(0, 100, Infinity),
    maxWaiting: fc.constantFrom(0, 0, 2),
    maxIdle: fc.constantFrom(60_000, 0, 300),
    maxLifetime: fc.constantFrom(0, 500, 3_600_000),
    checkAfter: fc.constantFrom(Infinity, 1_000, 50, 0),
    reconnectTimeout: fc.constantFrom(300_000, 1_000, 0),
    configure: fc.boolean(),
    reset: fc.boolean(),
    meddlers: fc.oneof(
      { weight: 2, arbitrary: fc.constant([]) },
      {
        weight: 1,
        arbitrary: fc.subarray(["lost", "remove", "acquire", "release", "timeout"] as const),
      },
    ),
  }),
  steps: fc.array(
    fc.tuple(
      fc.oneof(
        ...Object.entries(DEEDS).map(([name, [weight]]) => ({
          weight: weight * 10,
          arbitrary: fc.constant(name),
        })),
      ),
      fc.nat(63),
      fc.nat(63),
      // Now and then several things happen in one turn.
      fc.integer({ min: 0, max: 3 }).map((n) => n === 3),
    ),
    { maxLength: 80, size: "max" },
  ),
  ending: fc.record({
    calm: fc.boolean(),
    crowd: fc.boolean(),
    gently: fc.boolean(),
    hang: fc.boolean(),
  }),
});

async function run({ steps, ending }: Program, model: SharingModel): Promise<void> {
  for (const [name, a, b, together] of steps) {
    DEEDS[name]![1](model, a, b);
    if (together) {
      model.log.push("and in the same turn");
      continue;
    }
    await settle();
    // What listeners begin takes its time.
    await settle();
    model.check();
  }
  await settle();
  await settle();
  model.check();
  if (ending.crowd && model.phase === "open") await crowd(model);
  if (ending.calm && model.phase === "open") {
    await model.calm();
    await lendAll(model);
  }
  await end(model, ending);
}

/** Who was served comes again, so that there is always a crowd: nobody waits for ever. */
async function crowd(model: SharingModel): Promise<void> {
  await model.calm();
  model.log.push("a crowd comes");
  const since = new Map<object, number>();
  const { pool } = model;
  for (let round = 0; round < 150; round++) {
    const age = (what: object): number => {
      if (!since.has(what)) since.set(what, round);
      return round - since.get(what)!;
    };
    const users = model.jobsIn("running").length + model.jobsIn("waiting").length;
    for (let i = users; i < 6; i++) model.submit();
    for (let i = model.leases.size + model.pendingCalls.length; i < 2; i++) {
      model.get(null, Infinity);
    }
    await settle();
    model.check();
    for (const waiter of [...model.jobsIn("waiting"), ...model.pendingCalls]) {
      const name = `#${waiter.number} waits while others are served`;
      assert(age(waiter) < 60, name);
    }
    for (const job of model.jobsIn("running")) if (age(job) >= 2 + job.number % 3) job.end();
    for (const lease of [...model.leases.values()]) {
      if (age(lease) >= 2 && model.leases.has(lease.thing.id)) model.put(lease, false, false);
    }
    model.pass(round % 2 === 0 ? 1 : 30);
    if (pool.closed) return;
  }
  await model.calm();
}

/** Every connection can be had. */
async function lendAll(model: SharingModel): Promise<void> {
  const { pool } = model;
  for (let tries = 0; tries < 200 && model.leases.size < pool.maxconn; tries++) {
    model.get(null, 5_000);
    await settle();
    model.pass(model.pendingCalls.length === 0 ? 1 : 6_000);
    await settle();
  }
  assertEquals(model.leases.size, pool.maxconn, "a permit is lost");
}

/** Closes, and nothing is left. */
async function end(model: SharingModel, { gently, hang }: Program["ending"]): Promise<void> {
  const { fake, clock } = model;
  if (!hang) model.soothe();
  if (gently) model.close(1_000);
  else model.closeall();
  for (let i = 0; i < 20; i++) {
    await settle();
    if (!hang) model.goOn();
    const [lease] = model.leases.values();
    if (i % 3 === 0 && lease !== undefined) model.put(lease, false, false);
    // Longer than any close() may take.
    model.pass(2_500);
  }
  model.goOn();
  await settle();
  model.assertNoFault();
  assertEquals(model.closings.map((one) => one.word), model.closings.map(() => "ok"));
  assertEquals(fake.standing, 0);
  assertEquals(numbers(model.pendingCalls), [], "a call never settled");
  for (const job of model.jobs) assert(job.state === "ended" || job.state === "refused", job.state);
  assert(model.returns.every((one) => one.settled), "a return never settled");
  assertEquals(clock.countTimers(), 0, "a timer is left");
  const closed = (thing: Thing): number => fake.closes.get(thing) ?? 0;
  for (const thing of fake.things) {
    assertEquals(closed(thing), 1, `${thing.id} was closed so often`);
  }
}

const { MODEL_SEED, MODEL_PATH, GETCONN_SLOW } = process.env;

test("jobs and leases keep their rules in random programs of 80 steps", async () => {
  const rules = fc.asyncProperty(programs, (program) =>
    withClock(async (clock) => {
      const model = new SharingModel(program.setup, clock as unknown as Ticker);
      try {
        await run(program, model);
      } catch (error) {
        const steps = [fc.stringify(program.setup), ...model.log].join("\n");
        await model.abandon();
        throw new Error(`a rule is broken by\n${steps}`, { cause: error });
      }
    }));
  await fc.assert(rules, {
    // Of 33 faults put into sharing.ts 14 are found, each in 90 runs; four of the others are not in 12,000 either.
    numRuns: GETCONN_SLOW ? 3_000 : 1_500,
    interruptAfterTimeLimit: GETCONN_SLOW ? 240_000 : 20_000,
    ...MODEL_SEED === undefined ? {} : { seed: Number(MODEL_SEED) },
    ...MODEL_PATH === undefined ? {} : { path: MODEL_PATH },
  });
}, { timeout: GETCONN_SLOW ? 900_000 : 180_000 });
