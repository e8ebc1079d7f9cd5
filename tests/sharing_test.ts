/** Jobs beside leases: what the model has found, and what it cannot draw. */

import { assert, assertEquals } from "@std/assert";
import type { PoolOptions } from "../mod.ts";
import { insideOf } from "../src/pool/abstract_pool.ts";
import { type Clock, outcome, withClock } from "./support/checks.ts";
import { FakePool, settle, type Thing } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { FakeJob, SharedThings } from "./support/jobs.ts";

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

onClock("a caller that gives up leaves its connection to the jobs behind it", async (clock) => {
  const desk = new Desk(1);
  const first = await desk.shared();
  const abort = new AbortController();
  const calls = [
    outcome(desk.pool.getconn(null, { timeout: Infinity, signal: abort.signal })),
    outcome(desk.pool.getconn(null, { timeout: 100 })),
  ];
  const job = desk.submit();
  abort.abort(new Error("aborted"));
  await settle();
  assertEquals(job.state, "waiting");
  await clock.tickAsync(100);
  assertEquals(calls.map(({ word }) => word), ["aborted", "POOL_TIMEOUT"]);
  assertEquals([first.state, job.state], ["running", "running"]);
  await desk.end();
});

onClock("close() leaves the connections of refused callers to the jobs behind them", async () => {
  const desk = new Desk(1);
  const first = await desk.shared();
  const call = outcome(desk.pool.getconn(null, { timeout: Infinity }));
  const job = desk.submit();
  assertEquals(job.state, "waiting");
  const closing = outcome(desk.pool.close());
  await settle();
  assertEquals([call.word, job.state], ["POOL_CLOSED", "running"]);
  first.end();
  await settle();
  assertEquals(closing.word, "pending");
  job.end();
  await settle();
  assertEquals(closing.word, "ok");
});

onClock(
  "close() ends when the last job that waits is withdrawn or its time is up",
  async (clock) => {
    for (const withdrawn of [true, false]) {
      const desk = new Desk(1, { timeout: 100 });
      desk.fake.hold.add("open");
      const job = desk.submit();
      const closing = outcome(desk.pool.close());
      await settle();
      assertEquals([job.state, closing.word], ["waiting", "pending"]);
      if (withdrawn) job.withdraw?.(new Error("withdrawn"));
      else await clock.tickAsync(100);
      await settle();
      assertEquals([job.state, closing.word], ["refused", "ok"]);
    }
  },
);

onClock("a job behind a caller goes to what is shared once the caller is served", async () => {
  const desk = new Desk(2);
  const lease = await desk.pool.getconn();
  await desk.shared();
  const call = outcome(desk.pool.getconn(null, { timeout: Infinity }));
  const job = desk.submit();
  assertEquals(job.state, "waiting");
  await desk.pool.putconn(lease);
  await settle();
  assertEquals([call.word, job.state], ["ok", "running"]);
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

onClock(
  "a connection that is too old after its rollback leaves its waiter a permit that is free",
  async () => {
    const desk = new Desk(2);
    const { pool, fake } = desk;
    const leases = [await pool.getconn(), await pool.getconn()];
    fake.byId(1).status = "intrans";
    fake.hold.add("close").add("rollback");
    const job = desk.submit();
    await pool.renew();
    const returns = leases.map((lease) => outcome(pool.putconn(lease)));
    fake.next("close").go();
    await settle();
    assertEquals(job.state, "waiting");
    fake.next("rollback").go();
    await settle();
    assertEquals([job.state, job.thing?.id, returns[0]?.word], ["running", 3, "pending"]);
    await desk.end();
  },
);

onClock("a job does not wait for a connect that hangs", async (clock) => {
  const desk = new Desk(3);
  const first = await desk.shared();
  const { open } = desk.fake;
  desk.fake.open = ({ signal }) =>
    new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  const second = desk.submit();
  const third = desk.submit();
  await clock.tickAsync(49);
  assertEquals([second.state, third.state], ["waiting", "waiting"]);
  // Connects take no time here: what is left of the patience are its 50 ms.
  await clock.tickAsync(2);
  assertEquals([second.state, third.state], ["running", "running"]);
  assertEquals([second.thing, third.thing], [first.thing, first.thing]);
  // All that may stand is on its way: who comes later shares at once.
  assertEquals(desk.submit().state, "running");
  desk.fake.open = open;
  await desk.end();
  assertEquals(clock.countTimers(), 0);
});

test("requestsErrors counts jobs that are refused by a failed connect, and those taken back while they wait", async () => {
  const desk = new Desk(1);
  desk.fake.failure = new Error("no server");
  const refused = [desk.submit(), desk.submit()];
  await settle();
  assertEquals(refused.map((job) => job.state), ["refused", "refused"]);
  assertEquals(desk.pool.stats().requestsErrors, 2);
  desk.fake.failure = null;
  await settle();
  const lease = await desk.pool.getconn(null, { timeout: 1_000 });
  const job = desk.submit();
  assert(job.withdraw?.(new Error("cancelled")));
  assert(!job.withdraw?.(new Error("again")));
  const { requestsErrors, requestsNum } = desk.pool.stats();
  assertEquals([requestsErrors, requestsNum], [3, 4]);
  await desk.pool.putconn(lease);
  await desk.end();
});
