/** The simple reference that the pool is compared with. */

import { assert, assertEquals, assertLessOrEqual, assertStrictEquals } from "@std/assert";
import { type Outcome, outcome } from "./checks.ts";
import type { FakePool, Thing } from "./fake.ts";

/** One call of getconn. */
export interface Call {
  readonly number: number;
  readonly key: unknown;
  readonly abort: AbortController;
  readonly deadline: number;
  /** How long it may wait. */
  readonly limit: number;
  readonly impatient: boolean;
  readonly seen: Outcome<Thing>;
  done: boolean;
}

/** What the reference thinks is lent. */
export interface Lease {
  readonly conn: Thing;
  readonly thing: Thing;
  readonly key: unknown;
}

/** A clock that fires its timers without turns in between: harder than the real one. */
export interface Ticker {
  tick(ms: number): void;
  countTimers(): number;
  setSystemTime(now: number): void;
}

const NONE = Symbol("none");

/** What is asked, what is lent, and what must hold between the two. */
export class Reference {
  readonly log: string[] = [];
  readonly calls: Call[] = [];
  readonly leases: Map<number, Lease> = new Map();
  readonly stale: Thing[] = [];
  readonly returns: Outcome<void>[] = [];
  /** Milliseconds since the start. */
  elapsed = 0;
  readonly pool: FakePool;
  readonly clock: Ticker;
  #fault: unknown = NONE;
  #numbers = 0;

  constructor(pool: FakePool, clock: Ticker) {
    this.pool = pool;
    this.clock = clock;
  }

  /** Throws what a callback has found. */
  assertNoFault(): void {
    if (this.#fault !== NONE) throw this.#fault;
  }

  /** Calls getconn. */
  get(key: unknown, timeout: number | undefined, aborted = false): void {
    const abort = new AbortController();
    if (aborted) abort.abort(new Error("aborted before"));
    const limit = timeout ?? this.pool.options.timeout;
    const number = this.#numbers;
    this.log.push(
      `get #${number} key ${String(key)} timeout ${limit}${aborted ? ", aborted before" : ""}`,
    );
    // A lost connection under a key is taken from whoever has it.
    if (key !== null && !aborted && !this.pool.closed) {
      for (const lease of this.leases.values()) {
        if (Object.is(lease.key, key) && lease.thing.closed) this.endLease(lease);
      }
    }
    const promise = this.pool.getconn(key, { timeout, signal: abort.signal });
    // What a listener has asked for within this call came neither before nor after it.
    this.#numbers++;
    const call: Call = {
      number,
      key,
      abort,
      deadline: limit === 0 ? Infinity : this.elapsed + limit,
      limit,
      impatient: limit === 0,
      seen: outcome(promise),
      done: false,
    };
    this.calls.push(call);
    promise.then(
      (conn) => this.guarded(() => this.got(call, conn)),
      () => call.done = true,
    );
  }

  /** Calls putconn. */
  put(lease: Lease, named: boolean, close: boolean): void {
    this.log.push(`put ${lease.thing.id} ${lease.thing.status}${close ? " close" : ""}`);
    this.endLease(lease);
    const key = named ? lease.key : undefined;
    this.returns.push(outcome(this.pool.putconn(lease.conn, key, close)));
  }

  /** The number of what comes next. */
  protected nextNumber(): number {
    return this.#numbers++;
  }

  /** How many others than the callers wait. */
  protected get othersWaiting(): number {
    return 0;
  }

  /** For how long the others may wait: each duration in use once. */
  protected get othersLimits(): readonly number[] {
    return [];
  }

  /** Timers that closing the pool has. */
  protected get closeTimers(): number {
    return 0;
  }

  /** A call was served. */
  got(call: Call, conn: Thing): void {
    call.done = true;
    this.log.push(`got #${call.number}`);
    let thing: Thing;
    try {
      thing = this.pool.fake.byId(conn.hello());
    } catch {
      // Before this caller had its turn, a listener or another caller of the key has put it back, or
      // it was lost and the next getconn of the key has replaced it.
      const known = this.stale.includes(conn) || call.key !== null;
      assert(known, "a dead lease was given that had never been alive");
      return;
    }
    if (call.key === null) {
      const passed = this.calls.find((one) =>
        one.number < call.number && one.key === null && !one.done
      );
      assertEquals(passed?.number, undefined, `#${call.number} was served before`);
    }
    const other = this.leases.get(thing.id);
    if (other !== undefined) {
      assertStrictEquals(other.conn, conn, `thing ${thing.id} was lent twice`);
      assert(call.key !== null && Object.is(other.key, call.key));
      return;
    }
    for (const lease of this.leases.values()) {
      assert(call.key === null || !Object.is(lease.key, call.key), "one key has two leases");
    }
    this.leases.set(thing.id, { conn, thing, key: call.key });
  }

  /** The lease is over. */
  endLease(lease: Lease): void {
    this.leases.delete(lease.thing.id);
    this.stale.push(lease.conn);
  }

  /** Keeps what a check within a callback found for the next `check`. */
  guarded(check: () => void): void {
    try {
      check();
    } catch (error) {
      this.#fault = this.#fault === NONE ? error : this.#fault;
    }
  }

  /** What holds whenever nothing can go on by itself. */
  check(): void {
    this.assertNoFault();
    const { fake } = this.pool;
    const stats = this.pool.stats();
    const { poolSize, connecting, idle, leased, shared, closing, requestsWaiting, poolMax } = stats;
    assertEquals(poolSize, connecting + idle + leased + shared);
    assertEquals(fake.opening + fake.standing, poolSize + closing, "an entry without a permit");
    assertLessOrEqual(fake.most, fake.mostAllowed);
    // A step of what is being closed meanwhile is nothing that the pool still waits for.
    const steps = (kind: string) =>
      fake.held.filter((one) => one.kind === kind && one.thing?.status !== "unknown").length;
    const [checking, returning] = [steps("check"), steps("rollback")];
    assertLessOrEqual(this.leases.size + checking, leased);
    assertLessOrEqual(leased, this.leases.size + checking + returning);
    if (requestsWaiting > 0 && idle > 0) assert(checking > 0, "a waiter waits beside an idle one");
    const pending = this.calls.filter((one) => !one.done);
    assertEquals(pending.length + this.othersWaiting, requestsWaiting);
    for (const call of pending) {
      assert(!call.abort.signal.aborted, `#${call.number} was aborted and waits`);
      assert(call.deadline > this.elapsed, `#${call.number} waits beyond its deadline`);
      if (call.impatient) {
        assert(
          connecting + checking + returning + closing + shared > 0,
          `#${call.number} waits for nothing`,
        );
      }
    }
    // One timer for all that may wait for equally long.
    const limits = new Set([...pending.map(({ limit }) => limit), ...this.othersLimits]);
    limits.delete(0);
    limits.delete(Infinity);
    const own = this.clock.countTimers() - limits.size - this.closeTimers;
    const limited = fake.held.filter(({ kind }) => kind === "check" || kind === "rollback").length;
    assertLessOrEqual(own, 1 + limited, "the pool has more than one timer");
    const coming = connecting + checking + returning + closing;
    if (requestsWaiting > 0 && coming === 0 && poolSize < poolMax) {
      assert(own > 0, "nobody will try again for who waits");
    }
  }
}
