/** Programs of jobs and leases on one pool, and what must hold after each of their steps. */

import { assert, assertEquals, assertLessOrEqual } from "@std/assert";
import { PoolClosed, type PoolError } from "../../mod.ts";
import { insideOf } from "../../src/abstract_pool.ts";
import type { PoolEntry } from "../../src/pool/entry.ts";
import { outcome } from "./checks.ts";
import { FakePool, settle, type Thing } from "./fake.ts";
import { FakeJob, SharedThings } from "./jobs.ts";
import { type Call, Reference, type Ticker } from "./model.ts";

/** How a pool for a program is made. */
export interface Setup {
  readonly minconn: number;
  readonly maxconn: number;
  readonly depth: number;
  readonly timeout: number;
  readonly maxWaiting: number;
  readonly maxIdle: number;
  readonly maxLifetime: number;
  readonly checkAfter: number;
  readonly reconnectTimeout: number;
  readonly configure: boolean;
  readonly reset: boolean;
  /** Events whose listeners call back into the pool. */
  readonly meddlers: readonly ("lost" | "remove" | "acquire" | "release" | "timeout")[];
}

/** Whether a hook fails, and how. */
export type Mood = "fine" | "throws" | "leaves a transaction";

/** A connection that has not answered for longer may count as one that has no room. Milliseconds. */
const SILENT = 5;
const WITHDRAWN = new Error("withdrawn");

/** What a message can show of calls and jobs. */
export function numbers(list: readonly { readonly number: number }[]): number[] {
  return list.map(({ number }) => number);
}

/** The pool under test with its jobs. */
export class SharingModel extends Reference {
  readonly jobs: FakeJob[] = [];
  #live: FakeJob[] = [];
  readonly fake: SharedThings;
  readonly moods: { configure: Mood; reset: Mood };
  readonly timeout: number;
  /** Calls of close and closeall. */
  readonly closings: ReturnType<typeof outcome<void>>[] = [];
  readonly #inside: ReturnType<typeof insideOf<Thing>>;
  #submitting = false;
  #meddled = 0;
  #over = false;

  constructor(setup: Setup, clock: Ticker) {
    const { minconn, maxconn, depth, configure, reset, meddlers, ...options } = setup;
    const moods = { configure: "fine", reset: "fine" } as SharingModel["moods"];
    const hook = (name: keyof typeof moods) => (conn: Thing): Promise<void> => {
      if (moods[name] === "leaves a transaction") conn.status = "intrans";
      return moods[name] === "throws" ? Promise.reject(new Error(name)) : Promise.resolve();
    };
    const fake = new SharedThings();
    const pool = new FakePool(
      minconn,
      maxconn,
      {
        name: "model",
        ...options,
        configure: configure ? hook("configure") : undefined,
        reset: reset ? hook("reset") : undefined,
      },
      fake,
    );
    super(pool, clock);
    this.moods = moods;
    this.fake = fake;
    this.timeout = options.timeout;
    this.#inside = insideOf<Thing>(pool);
    this.sharing.depth = depth;
    fake.guarded = (check) => this.guarded(check);
    fake.onstart = (job, thing) => this.#started(job, thing);
    fake.onrefuse = (job, reason) => this.#refused(job, reason);
    fake.ongive = (thing) => this.#given(thing);
    for (const type of meddlers) pool.on(type, () => this.guarded(() => this.#meddle(type)));
  }

  get sharing(): ReturnType<typeof insideOf<Thing>>["core"]["sharing"] {
    return this.#inside.core.sharing;
  }

  get phase(): "open" | "draining" | "closed" {
    return this.#inside.state.phase;
  }

  jobsIn(state: "waiting" | "running"): FakeJob[] {
    // What has ended comes back to no state.
    this.#live = this.#live.filter((job) => job.state !== "ended" && job.state !== "refused");
    return this.#live.filter((job) => job.state === state);
  }

  get pendingCalls(): Call[] {
    return this.calls.filter((one) => !one.done);
  }

  submit(instant = false): void {
    const job = new FakeJob(this.nextNumber(), this.fake, instant);
    // Every fifth is of a kind that may be slow.
    job.proven = job.number % 5 !== 0;
    job.since = this.elapsed;
    this.jobs.push(job);
    this.#live.push(job);
    this.#submitting = true;
    const at = this.log.push("") - 1;
    const { phase } = this;
    job.submit(this.pool);
    assert(phase === "open" || job.state === "refused", "a pool that closes took a job");
    this.#submitting = false;
    const where = job.thing === null ? "" : ` on ${job.thing.id}`;
    this.log[at] = `submit #${job.number}: ${job.state}${where}${this.log[at]}`;
  }

  withdraw(job: FakeJob): void {
    this.log.push(`withdraw #${job.number}`);
    assertEquals(job.withdraw?.(WITHDRAWN), true);
    assertEquals(job.state, "refused");
    assertEquals(job.withdraw?.(new Error("withdrawn twice")), false);
  }

  close(timeout: number): void {
    this.log.push(`close timeout ${timeout}`);
    this.closings.push(outcome(this.pool.close({ timeout })));
  }

  closeall(): void {
    this.log.push("closeall");
    if (this.phase === "closed") return;
    this.closings.push(outcome(this.pool.closeall()));
    this.leases.clear();
  }

  /** It settles, in whichever way. */
  watch(promise: Promise<void>): void {
    this.returns.push(outcome(promise));
  }

  setDepth(depth: number): void {
    this.log.push(`depth ${depth}`);
    this.sharing.depth = depth;
    this.sharing.fill();
  }

  /** A connection came to a caller. */
  override got(call: Call, conn: Thing): void {
    // A lease that ended with the pool before its caller had a turn.
    if (this.phase === "closed") {
      call.done = true;
      return;
    }
    if (call.key === null) {
      const passed = this.jobsIn("waiting").find((job) => job.number < call.number);
      assertEquals(passed?.number, undefined, `#${call.number} was served before`);
    }
    super.got(call, conn);
  }

  protected override get othersWaiting(): number {
    return this.jobsIn("waiting").length;
  }

  protected override get othersLimits(): readonly number[] {
    return this.othersWaiting > 0 && this.timeout > 0 ? [this.timeout] : [];
  }

  protected override get closeTimers(): number {
    return this.closings.some((one) => !one.settled) ? 1 : 0;
  }

  override check(): void {
    if (this.phase === "closed") this.leases.clear();
    super.check();
    const { state } = this.#inside;
    const { counts, permits, entries } = state;
    assertEquals(entries.size, permits.held);
    assertLessOrEqual(permits.held, this.fake.mostAllowed);
    for (const entry of entries) this.#checkEntry(entry);
    for (const [thing, times] of this.fake.closes) assertEquals(times, 1, `closed: ${thing.id}`);
    const waiting = this.jobsIn("waiting");
    assertEquals(this.sharing.waiting, waiting.length);
    for (const job of waiting) {
      const deadline = this.timeout === 0 ? Infinity : job.since + this.timeout;
      assert(deadline > this.elapsed, `#${job.number} waits beyond its deadline`);
    }
    const pending = this.pendingCalls;
    if (this.phase !== "open") assertEquals(pending.length, 0, "a caller waits for a closed pool");
    if (this.phase === "closed") return assertEquals(waiting.length, 0, "a job waits for nothing");
    if (this.phase === "draining") {
      const busy = state.leased + counts.shared + counts.closing + waiting.length;
      assert(busy > 0, "close() waits for nothing");
    }
    if (pending.length + waiting.length === 0) return;
    const coming = counts.connecting + counts.checking + counts.returning;
    if (coming > 0) return;
    if (state.failure === null) {
      assert(permits.held >= permits.limit, "who waits does not get a permit that is free");
    }
    if (waiting.length === 0) return;
    // The connections that callers need take no more jobs; all others do.
    const open = [...entries].filter((entry) => this.#hasRoom(entry));
    const { generation } = state;
    const shared = open.filter((entry) => entry.generation === generation).length;
    assertLessOrEqual(shared, this.#places(pending), "a job waits beside a connection with room");
  }

  /** How many connections the callers want: those with one key want one. */
  #places(pending: readonly Call[]): number {
    return pending.filter(({ key }) => key === null).length +
      new Set(pending.map(({ key }) => key).filter((key) => key !== null)).size;
  }

  #hasRoom(entry: PoolEntry): boolean {
    const { state } = this.#inside;
    const thing = entry.resource as Thing;
    const running = this.fake.jobsOn(thing).size;
    // In flight on it is what may be slow, or nothing came from it just now.
    const silent = running > 0 &&
      (entry.unproven > 0 || state.clock.now() - entry.answeredAt > SILENT);
    return entry.state === "shared" && running < Math.min(this.sharing.depth, entry.window) &&
      !silent &&
      !this.fake.spoilt.has(thing) && thing.status !== "unknown" && Date.now() < entry.expiresAt &&
      // After resize() to fewer it may be the end of a close that lets them take jobs again.
      state.permits.held <= state.permits.limit;
  }

  #checkEntry(entry: PoolEntry): void {
    const thing = entry.resource as Thing | null;
    if (thing === null) return assertEquals(entry.state, "connecting");
    const running = this.fake.jobsOn(thing).size;
    assertEquals(entry.inFlight, running, `jobs on ${thing.id}`);
    if (entry.state !== "closing") {
      assertEquals(entry.state === "shared", running > 0 || this.fake.unquiet.includes(thing));
      assertEquals(entry.state === "leased", this.leases.has(thing.id), `lease of ${thing.id}`);
    }
  }

  #entryOf(thing: Thing): PoolEntry {
    const entry = [...this.#inside.state.entries].find(({ resource }) => resource === thing);
    assert(entry !== undefined, `${thing.id} is not in the pool`);
    return entry;
  }

  #started(job: FakeJob, thing: Thing): void {
    const entry = this.#entryOf(thing);
    const { state } = this.#inside;
    const jobs = this.fake.jobsOn(thing).size;
    this.log[this.log.length - 1] += `, #${job.number} begins on ${thing.id}`;
    assertEquals(entry.state, "shared");
    assertEquals(entry.lease, null);
    assert(!this.fake.spoilt.has(thing), `job #${job.number} was started on a spoilt thing`);
    assertEquals(entry.generation, state.generation);
    assert(
      jobs === 0 || jobs < Math.min(this.sharing.depth, entry.window),
      `job #${job.number} is one too many`,
    );
    for (const other of this.fake.jobsOn(thing)) {
      assert(
        other.proven,
        `job #${job.number} was sent behind #${other.number}, which may be slow`,
      );
    }
    const usable = thing.status === "idle" || thing.status === "active";
    assert(usable, `job #${job.number} was started in ${thing.status}`);
    const pending = this.pendingCalls;
    const keyed = pending.filter(({ key }) => key !== null).length;
    if (!this.#submitting || jobs === 0 || this.#places(pending) < pending.length || keyed > 1) {
      return;
    }
    // It did not come out of the queue: connections are left for the callers in it.
    const { connecting, checking, returning, shared } = state.counts;
    const callers = state.waiting - this.sharing.waiting;
    assert(
      shared > callers - connecting - checking - returning,
      `job #${job.number} took a connection that callers wait for`,
    );
  }

  #refused(job: FakeJob, reason: unknown): void {
    this.log[this.log.length - 1] += `, #${job.number} refused: ${(reason as Error).message}`;
    assert(job.state === "new" || this.phase !== "draining" || !(reason instanceof PoolClosed));
    assert(this.phase !== "open" || !(reason instanceof PoolClosed));
    const own: readonly unknown[] = ["TOO_MANY_WAITING", "POOL_TIMEOUT", "POOL_CLOSED"];
    if (own.includes((reason as Partial<PoolError>).code)) return;
    // A failure to connect is its end only when it set no limit and nothing stands.
    const { state } = this.#inside;
    assert(reason === WITHDRAWN || (this.timeout === 0 && state.size === 0), "refused too soon");
  }

  #given(thing: Thing): void {
    const entry = this.#entryOf(thing);
    assert(!this.fake.spoilt.has(thing), `${thing.id} is spoilt and was used again`);
    assertEquals(this.fake.jobsOn(thing).size, 0, `${thing.id} runs jobs and was given away`);
    assertEquals(thing.status, "idle", `${thing.id} was given away in ${thing.status}`);
    assert(entry.state === "shared" || entry.state === "leased");
  }

  /** A listener that calls back into the pool. */
  #meddle(type: string): void {
    if (this.#over || this.#meddled++ > 8) return;
    this.log.push(`a listener of ${type} does this:`);
    const [lease] = this.leases.values();
    const [waiting] = this.jobsIn("waiting");
    const submitting = this.#submitting;
    if (this.#meddled % 3 === 0) this.submit();
    else if (this.#meddled % 3 === 1 && lease !== undefined) this.put(lease, false, false);
    else if (waiting !== undefined) this.withdraw(waiting);
    this.#submitting = submitting;
  }

  /** Lets time pass. */
  pass(ms: number, silent = false): void {
    if (!silent) this.log.push(`${ms} ms pass`);
    this.elapsed += ms;
    this.clock.tick(ms);
  }

  /** Everything that can go on goes on well, and what was lent is put back. */
  async calm(): Promise<void> {
    const { fake } = this;
    this.log.push("all becomes calm");
    this.soothe();
    for (let i = 0; i < 60; i++) {
      this.goOn();
      for (const lease of [...this.leases.values()]) {
        if (this.leases.has(lease.thing.id)) this.put(lease, false, false);
      }
      await settle();
      this.check();
      this.pass(1_000, true);
    }
    await settle();
    this.check();
    assertEquals(numbers(this.pendingCalls), [], "a call never settled");
    assertEquals(numbers(this.jobsIn("waiting")), [], "a job waits for ever");
    assertEquals(numbers(this.jobsIn("running")), []);
    assertEquals(fake.unquiet.length, 0);
  }

  /** Nothing fails any more, and no listener meddles. */
  soothe(): void {
    this.#over = true;
    this.fake.failure = null;
    this.fake.hold.clear();
    this.moods.configure = this.moods.reset = "fine";
  }

  /** After a failure: nothing shall go on that would meddle with the next program. */
  async abandon(): Promise<void> {
    this.soothe();
    if (this.phase !== "closed") outcome(this.pool.closeall());
    for (let i = 0; i < 5; i++) {
      await settle();
      for (const step of this.fake.held.splice(0)) step.go();
      this.clock.tick(20_000);
    }
  }

  /** What is held goes on, and what runs ends. */
  goOn(): void {
    for (const step of this.fake.held.splice(0)) step.go();
    for (const job of this.jobsIn("running")) job.end();
    for (const thing of this.fake.unquiet) this.fake.hush(thing);
  }
}
