/** Jobs whose end the test decides, and things on which they run. */

import { assert, assertEquals } from "@std/assert";
import type { Job, JobHost, RunningJob } from "../../src/pool/jobs.ts";
import type { PoolEntry } from "../../src/pool/entry.ts";
import { insideOf } from "../../src/abstract_pool.ts";
import { FakeConnector, type FakePool, type Thing } from "./fake.ts";
import type { TransactionStatus } from "../../mod.ts";

/** What a job leaves its thing in: `active` until the thing is quiet. */
export type Leaves = Exclude<TransactionStatus, "unknown">;

/** A job. It is started once, or refused once, and ends when the test says so. */
export class FakeJob implements Job, RunningJob {
  entry: PoolEntry | null = null;
  host: JobHost | null = null;
  scope: ((fn: () => void) => void) | null = null;
  unproven = false;
  state: "new" | "waiting" | "running" | "ended" | "refused" = "new";
  /** Where it runs or ran. */
  thing: Thing | null = null;
  /** Why it was refused. */
  reason: unknown = undefined;
  /** Takes it back while it waits. */
  withdraw: ((reason: unknown) => boolean) | null = null;
  /** Whether its kind counts as quick. */
  proven = true;
  /** Whether it was quick. */
  quick: boolean | null = null;
  /** Milliseconds since the start of the model. */
  since = 0;
  readonly number: number;
  readonly #fake: SharedThings;
  /** It ends while it starts, as on a session that is just gone. */
  readonly #instant: boolean;

  constructor(number: number, fake: SharedThings, instant = false) {
    this.number = number;
    this.#fake = fake;
    this.#instant = instant;
  }

  /** Gives it to the pool. */
  submit(pool: FakePool): this {
    const waiting = insideOf(pool).core.sharing.submit(this);
    this.withdraw = waiting && ((reason) => waiting.withdraw(reason));
    const waits = this.state === "new";
    if (waits) this.state = "waiting";
    assertEquals(this.withdraw !== null, waits, "who waits can be withdrawn, and nobody else");
    return this;
  }

  begin(): this {
    return this;
  }

  start(resource: object): void {
    const thing = resource as Thing;
    this.#fake.guarded(() => {
      assert(this.state === "new" || this.state === "waiting", `job #${this.number} ${this.state}`);
      this.#fake.onstart(this, thing);
    });
    this.state = "running";
    this.thing = thing;
    this.#fake.jobsOn(thing).add(this);
    if (!thing.closed) thing.status = "active";
    if (this.#instant) this.end();
  }

  measured(quick: boolean): void {
    this.quick = quick;
  }

  refuse(reason: unknown): void {
    this.#fake.guarded(() => {
      assert(this.state === "new" || this.state === "waiting", `job #${this.number} ${this.state}`);
      this.#fake.onrefuse(this, reason);
    });
    this.state = "refused";
    this.reason = reason;
  }

  /** Ends it. */
  end(spoilt = false, leaves: Leaves = "idle"): void {
    assertEquals(this.state, "running");
    const thing = this.thing as Thing;
    const jobs = this.#fake.jobsOn(thing);
    jobs.delete(this);
    if (thing.status !== "unknown") thing.status = jobs.size > 0 ? "active" : leaves;
    if (spoilt) this.#fake.spoilt.add(thing);
    this.state = "ended";
    this.host!.ended(this, spoilt);
    if (thing.status !== "active") this.#fake.hush(thing);
  }
}

/** Things that run jobs. */
export class SharedThings extends FakeConnector {
  readonly spoilt: Set<Thing> = new Set();
  /** How often each was closed. */
  readonly closes: Map<Thing, number> = new Map();
  /** Called before a job is started, refused, and a thing handed out: they throw when it is wrong. */
  onstart: (job: FakeJob, thing: Thing) => void = () => {};
  onrefuse: (job: FakeJob, reason: unknown) => void = () => {};
  ongive: (thing: Thing) => void = () => {};
  /** Runs what must not throw into the pool. */
  guarded: (check: () => void) => void = (check) => check();
  readonly #jobs = new Map<Thing, Set<FakeJob>>();
  readonly #quiet = new Map<Thing, (() => void)[]>();

  /** The jobs that run on a thing. */
  jobsOn(thing: Thing): Set<FakeJob> {
    let jobs = this.#jobs.get(thing);
    if (jobs === undefined) this.#jobs.set(thing, jobs = new Set());
    return jobs;
  }

  /** The pool calls this at the instant of lending or sharing. */
  ref(thing: Thing): void {
    this.guarded(() => this.ongive(thing));
  }

  quiet(thing: Thing): Promise<void> {
    if (thing.status !== "active") return Promise.resolve();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#quiet.set(thing, [...this.#quiet.get(thing) ?? [], resolve]);
    return promise;
  }

  /** The things that the pool waits for to be quiet. */
  get unquiet(): Thing[] {
    return [...this.#quiet.keys()];
  }

  /** Nothing runs on it any more. */
  hush(thing: Thing, leaves: Leaves = "idle"): void {
    if (thing.status === "active" && this.jobsOn(thing).size === 0) thing.status = leaves;
    const tellers = this.#quiet.get(thing) ?? [];
    this.#quiet.delete(thing);
    for (const tell of tellers) tell();
  }

  override async close(thing: Thing): Promise<void> {
    this.closes.set(thing, (this.closes.get(thing) ?? 0) + 1);
    try {
      await super.close(thing);
    } finally {
      this.hush(thing);
      for (const job of [...this.jobsOn(thing)]) job.end();
    }
  }
}
