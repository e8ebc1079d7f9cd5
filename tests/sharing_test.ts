/** Jobs beside leases: what the model has found, and what it cannot draw. */

import { assert, assertEquals } from "@std/assert";
import { AsyncLocalStorage } from "node:async_hooks";
import { type PoolOptions, PoolTimeout, type WaitEnd } from "../mod.ts";
import { insideOf } from "../src/abstract_pool.ts";
import { type Clock, outcome, withClock, wordOf } from "./support/checks.ts";
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

  /** Its connections have shown to answer many jobs quickly. */
  widen(): void {
    for (const entry of insideOf(this.pool).state.entries) entry.window = 100;
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
    outcome(desk.pool.getconn(null, { timeout: 3 })),
  ];
  desk.widen();
  const job = desk.submit();
  abort.abort(new Error("aborted"));
  await settle();
  assertEquals(job.state, "waiting");
  await clock.tickAsync(3);
  assertEquals(calls.map(({ word }) => word), ["aborted", "POOL_TIMEOUT"]);
  assertEquals([first.state, job.state], ["running", "running"]);
  await desk.end();
});

onClock("close() leaves the connections of refused callers to the jobs behind them", async () => {
  const desk = new Desk(1);
  const first = await desk.shared();
  desk.widen();
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
  desk.widen();
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
  insideOf(desk.pool).core.sharing.depth = 1;
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
    assertEquals(call.word, "CONNECT_FAILED");
    job.end();
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

onClock(
  "a job does not wait for a connect that hangs beside a connection with room",
  async (clock) => {
    const desk = new Desk(3);
    const first = await desk.shared();
    desk.widen();
    const { open } = desk.fake;
    desk.fake.open = ({ signal }) =>
      new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    const second = desk.submit();
    const third = desk.submit();
    await clock.tickAsync(49);
    assertEquals([second.state, third.state], ["waiting", "waiting"]);
    // Connects take no time here: what is left of the patience are its 50 ms.
    await clock.tickAsync(2);
    // The one that stands gives no answer: it may be slow.
    assertEquals([second.state, third.state], ["waiting", "waiting"]);
    first.end();
    await settle();
    assertEquals([second.state, second.thing, third.state], ["running", first.thing, "waiting"]);
    second.end();
    await settle();
    assertEquals([third.state, third.thing], ["running", first.thing]);
    desk.fake.open = open;
    await desk.end();
    assertEquals(clock.countTimers(), 0);
  },
);

onClock(
  "a connection's window grows with quick answers and falls to one job when one is late",
  async (clock) => {
    const desk = new Desk(1, { timeout: Infinity });
    const jobs = [await desk.shared()];
    const running = (): number => jobs.filter(({ state }) => state === "running").length;
    const end = async (): Promise<void> => {
      for (const job of jobs) if (job.state === "running") job.end();
      await settle();
    };
    for (let i = 0; i < 40; i++) jobs.push(desk.submit());
    const seen = [running()];
    for (let i = 0; i < 4; i++) {
      await clock.tickAsync(1);
      await end();
      seen.push(running());
    }
    assertEquals(seen, [1, 2, 4, 8, 16]);
    await clock.tickAsync(100);
    await end();
    assertEquals(running(), 1);
    assertEquals(
      jobs.filter(({ quick }) => quick === false).length,
      1,
      "the first one is to blame",
    );
    await desk.end();
  },
);

onClock("nothing is sent behind a job that may be slow, or that gives no answer", async (clock) => {
  const desk = new Desk(2, { timeout: Infinity });
  const slow = await desk.shared();
  const other = await desk.shared();
  desk.widen();
  assert(slow.thing !== other.thing);
  slow.proven = false;
  slow.end();
  await settle();
  const unproven = new FakeJob(100, desk.fake);
  unproven.proven = false;
  unproven.submit(desk.pool);
  assertEquals(unproven.state, "running");
  desk.widen();
  const behind = [desk.submit(), desk.submit(), desk.submit()];
  assertEquals(behind.map(({ thing }) => thing), [other.thing, other.thing, other.thing]);
  await clock.tickAsync(50);
  // Both are silent now: whichever answers first gets it.
  const last = desk.submit();
  assertEquals(last.state, "waiting");
  unproven.end();
  await settle();
  assertEquals([last.state, last.thing], ["running", unproven.thing]);
  await desk.end();
});

onClock("a long way to the server is no slowness", async (clock) => {
  const desk = new Desk(1, { timeout: Infinity });
  desk.fake.hold.add("open");
  const first = desk.submit();
  await clock.tickAsync(200);
  desk.fake.next("open").go();
  desk.fake.hold.clear();
  await settle();
  const jobs = [first];
  for (let i = 0; i < 7; i++) jobs.push(desk.submit());
  for (let i = 0; i < 3; i++) {
    await clock.tickAsync(80);
    for (const job of jobs) if (job.state === "running") job.end();
    await settle();
  }
  assertEquals(
    jobs.map(({ state }) => state === "ended" || state === "running"),
    jobs.map(() => true),
  );
  assertEquals(jobs.some(({ quick }) => quick === false), false);
  await desk.end();
});

onClock("what the process itself takes to start jobs is nobody's slowness", async (clock) => {
  const desk = new Desk(2, { timeout: Infinity });
  const jobs = [await desk.shared(), await desk.shared()];
  for (let i = 0; i < 400; i++) jobs.push(desk.submit());
  desk.fake.onstart = () => clock.tick(0.02);
  // Both connections answer in one turn, in which the first one's answers start jobs on both.
  while (jobs.some(({ state }) => state === "waiting")) {
    clock.tick(0.2);
    for (const job of jobs) if (job.state === "running") job.end();
    await settle();
  }
  assertEquals(jobs.filter(({ quick }) => quick === false).length, 0);
  const widths = [...insideOf(desk.pool).state.entries].map(({ window }) => window);
  assert(widths.every((width) => width >= 32), widths.join());
  await desk.end();
});

onClock("the work with all connections' answers makes none of them late", async (clock) => {
  const desk = new Desk(4, { timeout: Infinity });
  const jobs = [await desk.shared(), await desk.shared(), await desk.shared(), await desk.shared()];
  clock.tick(0.2);
  for (const job of jobs) job.end();
  await settle();
  for (let i = 0; i < 4; i++) jobs.push(desk.submit());
  desk.widen();
  for (let i = 0; i < 396; i++) jobs.push(desk.submit());
  for (let round = 0; round < 5; round++) {
    const running = jobs.filter(({ state }) => state === "running");
    assertEquals(running.length, 400);
    // One connection's answers after the other's; each takes the process 100 µs.
    for (const thing of desk.fake.things) {
      for (const job of running) if (job.thing === thing) job.end();
      clock.tick(10);
      await settle();
      for (let i = 0; i < 100; i++) jobs.push(desk.submit());
    }
  }
  assertEquals(jobs.filter(({ quick }) => quick === false).length, 0);
  await desk.end();
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

onClock(
  "wait: told for a job that waits, in the context of whoever gave it; not for one that is begun at once",
  async (clock) => {
    const desk = new Desk(1, { timeout: 100 });
    const held = await desk.pool.getconn();
    const context = new AsyncLocalStorage<string>();
    const seen: unknown[] = [];
    const ends: Promise<WaitEnd>[] = [];
    desk.pool.on("wait", ({ detail: { key, shared, waiting, ended } }) => {
      seen.push([key, shared, waiting, context.getStore()]);
      ends.push(ended);
    });
    const [served, late] = ["one", "two"].map((name) => context.run(name, () => desk.submit()));
    assertEquals(seen, [[null, true, 1, "one"], [null, true, 2, "two"]]);
    await clock.tickAsync(40);
    await desk.pool.putconn(held);
    assertEquals(served!.state, "running");
    await clock.tickAsync(60);
    const [first, second] = await Promise.all(ends);
    assertEquals([first!.served, first!.waited], [true, 40]);
    assertEquals([second!.served, second!.waited, late!.state], [false, 100, "refused"]);
    assert(second!.error instanceof PoolTimeout);
    served!.end();
    await settle();
    desk.submit().end();
    assertEquals(seen.length, 2);
    await desk.end();
  },
);

onClock(
  "close() waits for a call that was let in and has yet to ask for its connection, and serves it",
  async () => {
    const desk = new Desk(1);
    const { core } = insideOf(desk.pool);
    const leave = core.admit()!;
    const end = outcome(desk.pool.close());
    await settle();
    assertEquals([end.word, core.admit()], ["pending", null]);
    assertEquals(await wordOf(desk.pool.getconn()), "POOL_CLOSED");
    const wait = { timeout: Infinity, signal: undefined };
    assertEquals(await wordOf(core.borrow(wait, false)), "POOL_CLOSED");
    const first = await core.borrow(wait, true);
    const second = outcome(core.borrow(wait, true));
    leave();
    await desk.pool.putconn(first);
    await settle();
    assertEquals([second.word, end.word], ["ok", "pending"]);
    await desk.pool.putconn(second.value!);
    await settle();
    assertEquals(end.word, "ok");
  },
);

onClock(
  "close() serves the calls that were queued before it, and refuses the callers of getconn among them",
  async () => {
    const desk = new Desk(1);
    const { core } = insideOf(desk.pool);
    const wait = { timeout: 1_000, signal: undefined };
    const held = await desk.pool.getconn();
    const calls = [1, 2, 3].map(() => outcome(core.borrow(wait, false)));
    const caller = outcome(desk.pool.getconn(null, wait as { timeout: number }));
    const job = desk.submit();
    const end = outcome(desk.pool.close());
    await settle();
    assertEquals([caller.word, end.word], ["POOL_CLOSED", "pending"]);
    await desk.pool.putconn(held);
    for (const call of calls) {
      await settle();
      assertEquals(call.word, "ok");
      await desk.pool.putconn(call.value!);
    }
    await settle();
    assertEquals(job.state, "running");
    job.end();
    await settle();
    assertEquals(end.word, "ok");
    assertEquals(desk.fake.mostAllowed, 1);
  },
);

onClock(
  "a caller with timeout 0 counts on a shared connection as long as that gives signs, not longer",
  async (clock) => {
    const desk = new Desk(1);
    const slow = await desk.shared();
    const call = outcome(desk.pool.getconn(null, { timeout: 0 }));
    await clock.tickAsync(30);
    assertEquals(call.word, "pending");
    await clock.tickAsync(410);
    assertEquals(call.word, "POOL_EXHAUSTED");
    // Nobody counts on it any more: the next one hears it at once.
    const next = outcome(desk.pool.getconn(null, { timeout: 0 }));
    await settle();
    assertEquals(next.word, "POOL_EXHAUSTED");
    // Its answer is a sign.
    slow.end();
    await settle();
    const lease = await desk.pool.getconn(null, { timeout: 0 });
    await desk.pool.putconn(lease);
    const quick = await desk.shared();
    const served = outcome(desk.pool.getconn(null, { timeout: 0 }));
    await clock.tickAsync(30);
    quick.end();
    await settle();
    assertEquals(served.word, "ok");
    await desk.end();
  },
);

onClock(
  "a caller with timeout 0 counts on no shared connection that is lost",
  async () => {
    const desk = new Desk(1);
    const job = await desk.shared();
    // At the end of a job that the driver has yet to tell of.
    job.end(false, "active");
    const call = outcome(desk.pool.getconn(null, { timeout: 0 }));
    await settle();
    assertEquals(call.word, "pending");
    desk.fake.failure = new Error("away");
    job.thing!.die();
    await settle();
    assertEquals(call.word, "CONNECT_FAILED");
    await desk.end();
  },
);

onClock(
  "no job goes to a connection that is not done with the last one, or may be hit by its cancel request",
  async () => {
    const desk = new Desk(2);
    const { fake } = desk;
    Object.assign(fake, { shares: (thing: Thing) => !fake.unquiet.includes(thing) });
    const ended = await desk.shared();
    const other = await desk.shared();
    const busy = ended.entry!.resource as Thing;
    desk.widen();
    ended.end(false, "active");
    await settle();
    assertEquals(fake.unquiet, [busy]);
    const beside = await desk.shared();
    assertEquals(beside.entry, other.entry);
    for (const entry of insideOf(desk.pool).state.entries) entry.window = 1;
    const waits = desk.submit();
    await settle();
    assertEquals(waits.state, "waiting");
    fake.hush(busy);
    await settle();
    assertEquals([waits.state, waits.entry!.resource], ["running", busy]);
    await desk.end();
  },
);
