/** Jobs beside leases: what the model has found, and what it cannot draw. */

import { assert, assertEquals } from "@std/assert";
import type { PoolOptions } from "../mod.ts";
import { insideOf } from "../src/abstract_pool.ts";
import { type Clock, outcome, withClock } from "./_checks.ts";
import { FakePool, settle, type Thing } from "./_fake.ts";
import { test } from "./_harness.ts";
import { FakeJob, SharedThings } from "./_jobs.ts";

/** A pool, and how to give it jobs. */
class Desk {
  readonly fake = new SharedThings();
  readonly pool: FakePool;
  #number = 0;

  constructor(maxconn: number, options: PoolOptions<Thing> = {}) {
    this.pool = new FakePool(0, maxconn, options, this.fake);
  }

  submit(): FakeJob {
    return new FakeJob(this.#number++, this.fake).submit(this.pool);
  }

  /** A connection that runs a job. */
  async shared(): Promise<FakeJob> {
    const job = this.submit();
    await settle();
    assertEquals(job.state, "running");
    return job;
  }

  /** Ends what runs, and the pool. */
  async end(): Promise<void> {
    this.fake.hold.clear();
    for (const step of this.fake.held.splice(0)) step.go();
    for (const thing of this.fake.things) for (const job of this.fake.jobsOn(thing)) job.end();
    await this.pool.closeall();
  }
}

function onClock(
  name: string,
  fn: (clock: Clock) => Promise<void>,
): void {
  test(name, () => withClock(fn));
}

onClock("jobs that wait share one timer for their deadlines", async (clock) => {
  const desk = new Desk(1, { timeout: 100 });
  const lease = await desk.pool.getconn();
  const timers = clock.countTimers();
  const first = desk.submit();
  await clock.tickAsync(30);
  const second = desk.submit();
  assertEquals(clock.countTimers(), timers + 1);
  await clock.tickAsync(70);
  assertEquals([first.state, second.state], ["refused", "waiting"]);
  await clock.tickAsync(30);
  assertEquals(second.state, "refused");
  await desk.pool.putconn(lease);
  await desk.end();
});

onClock("a job that waits is started before one that comes in the turn of an answer", async () => {
  const desk = new Desk(1, { timeout: Infinity });
  insideOf(desk.pool).lending.sharing.depth = 1;
  const first = await desk.shared();
  const second = desk.submit();
  first.end();
  const third = desk.submit();
  assertEquals([second.state, third.state], ["running", "waiting"]);
  await settle();
  await desk.end();
});

onClock("no job is started in a transaction that another has left behind", async () => {
  for (const leaves of ["intrans", "inerror"] as const) {
    const desk = new Desk(1);
    const first = await desk.shared();
    first.end(false, leaves);
    const second = desk.submit();
    assertEquals(second.state, "waiting");
    await settle();
    assertEquals([second.state, second.thing, second.thing?.rollbacks], [
      "running",
      first.thing,
      1,
    ]);
    await desk.end();
  }
});

onClock(
  "a caller with timeout 0 beside a job connects once, not again and again",
  async (clock) => {
    const desk = new Desk(2);
    const job = await desk.shared();
    desk.fake.failure = new Error("away");
    const failures: unknown[] = [];
    desk.pool.on("connectfailed", ({ detail }) => failures.push(detail));
    const call = outcome(desk.pool.getconn(null, { timeout: 0 }));
    await settle();
    assertEquals([call.word, failures.length], ["pending", 1]);
    await clock.tickAsync(60_000);
    assert(failures.length < 30, `${failures.length} attempts within a minute`);
    job.end();
    await settle();
    assertEquals(call.word, "ok");
    await desk.end();
  },
);
