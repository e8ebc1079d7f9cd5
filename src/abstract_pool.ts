/** The generic key-based pool: the public face over the parts. It knows no driver. */

import { LocalPermits, takeHandedPermits } from "./pool/permits.ts";
import { Closing, DRAIN_TIME, readDrainTime, Readiness } from "./pool/open_close.ts";
import { PoolState } from "./pool/state.ts";
import { type Part, RequestParts } from "./pool/request_parts.ts";
import { requestsOwnTheirs } from "./runtime.ts";
import { describePool, inspectable } from "./pool/describe.ts";
import { PoolClosed } from "./pool/errors.ts";
import { PoolEvent, type PoolEventDetails, PoolEvents, type PoolEventType } from "./pool/events.ts";
import { Hosting } from "./pool/host.ts";
import { leaseOf, type PoolLease, unlessLost } from "./pool/lease.ts";
import { PoolCore } from "./pool/pool_core.ts";
import { transact, type Transacting } from "./pool/transact.ts";
import { Observers, type StatementFacts, type StatementObserver } from "./pool/observe.ts";
import { SlowStatements, type TellSlow } from "./pool/slow.ts";
import { checkFn, checkSizes, resolveOptions, splitArgs } from "./pool/options.ts";
import type { Connection } from "./postgres/connection.ts";
import type {
  CloseOnOptions,
  CloseOptions,
  Connector,
  GetconnOptions,
  HostContext,
  PoolSettings,
  PoolStats,
  ReadyOptions,
  TransactionOptions,
} from "./pool/types.ts";

const NO_STATEMENTS =
  '"pool.slowStatementAfter" needs a connector with observe(), which tells of its statements';

/** Whose part has lent something, by the lender. */
const lentBy = new WeakMap<object, object>();

/** The parts of a pool's inside, wired up: of a whole pool, or of a request's part of one. */
class Inside<C extends object> implements Part {
  readonly state: PoolState<C>;
  readonly core: PoolCore<C>;
  readonly readiness: Readiness<C>;
  readonly closing: Closing<C>;
  readonly #whole: Inside<C> | null;

  /** `whole`: of what it is a part; null when of nothing. */
  constructor(
    init: ConstructorParameters<typeof PoolState<C>>[0],
    whole: Inside<C> | null,
    onended: () => void,
  ) {
    this.state = new PoolState<C>(init);
    this.core = new PoolCore(this.state);
    this.readiness = new Readiness(this.state, this.core);
    this.closing = new Closing(this.state, this.core, onended);
    this.#whole = whole;
    if (whole === null) return;
    lentBy.set(this.core, whole);
    this.core.sharing.depth = whole.core.sharing.depth;
    this.state.generation = whole.state.generation;
    this.follow();
  }

  get waits(): boolean {
    return this.state.waiting > 0;
  }

  get works(): boolean {
    return this.state.busy || this.state.counts.connecting > 0;
  }

  pump(): void {
    this.core.pump();
  }

  spare(): void {
    this.core.connections.spareIdle();
  }

  follow(): void {
    const { state: whole } = this.#whole as Inside<C>;
    const { state, core: { connections }, closing } = this;
    if (whole.phase === "closed" && state.phase !== "closed") void closing.now();
    else if (whole.phase === "draining" && state.phase === "open") void closing.gently(DRAIN_TIME);
    if (state.generation !== whole.generation) {
      state.generation = whole.generation;
      void connections.retireIdle("renewed");
    }
    void connections.retireIdle("resized", false);
  }
}

/** Who observes a pool's statements: not part of the public face. */
export let observersOf: <C extends object>(pool: AbstractConnectionPool<C>) => Observers;

/** What the other pools of this module see of one: not part of the public face. */
export let insideOf: <C extends object>(
  pool: AbstractConnectionPool<C>,
) => {
  readonly state: PoolState<C>;
  readonly core: PoolCore<C>;
  readonly closing: Closing<C>;
};

/**
 * Generic key-based pooling: psycopg2's AbstractConnectionPool. A subclass brings the way to open
 * connections, as a {@linkcode Connector}; lending, waiting, keys, limits, lifetimes and closing are here.
 *
 * `minconn` connections are opened at once, in the background; at most `maxconn` stand at any
 * moment. With `minconn` 0 nothing is opened before the first getconn. Everything after maxconn
 * goes to the connector, but for the key `pool` of a last object, which holds {@linkcode PoolOptions}.
 *
 * @typeParam C What borrowers get.
 *
 * @example A pool of something that is no database
 * ```ts
 * import { AbstractConnectionPool, type Connector } from "@getconn/pool";
 * import { assertEquals } from "@std/assert";
 *
 * class Channel {
 *   send(text: string): string {
 *     return text.toUpperCase();
 *   }
 * }
 *
 * const channels: Connector<Channel> = {
 *   open: () => Promise.resolve(new Channel()),
 *   close: () => Promise.resolve(),
 * };
 *
 * class ChannelPool extends AbstractConnectionPool<Channel> {
 *   constructor(minconn: number, maxconn: number) {
 *     super(minconn, maxconn, { pool: { connector: channels } });
 *   }
 * }
 *
 * await using pool = new ChannelPool(0, 2);
 * assertEquals(await pool.use((channel) => channel.send("hello")), "HELLO");
 * ```
 */
export abstract class AbstractConnectionPool<C extends object = Connection> extends PoolEvents {
  static {
    insideOf = (pool) => pool.#inside();
    observersOf = (pool) => pool.#observers;
  }

  /** All of it; where requests own their sockets, what holds for all requests, without a connection. */
  readonly #whole: Inside<C>;
  /** Where requests own their sockets: a part for each; null elsewhere. */
  readonly #parts: RequestParts<Inside<C>> | null = null;
  readonly #hosting = new Hosting(this);
  readonly #transacting: Transacting<C> = {
    state: () => this.#state,
    lender: this,
    discard: (lease) => void this.#inside().core.takeBack(lease, true),
  };
  /** Who observes statements. */
  readonly #observers: Observers;
  /** Ends the observing for who listens to `statement`; null while nobody does. */
  #unobserve: (() => void) | null = null;

  /**
   * Throws a TypeError or RangeError that names option, rule and value when anything is wrong with
   * the sizes (integers, 0 <= minconn <= maxconn, maxconn >= 1) or the options. A failure to connect is not thrown here:
   * {@linkcode AbstractConnectionPool.ready} tells of it.
   */
  constructor(minconn: number, maxconn: number, ...args: unknown[]) {
    super();
    const shared = takeHandedPermits();
    checkSizes(minconn, maxconn);
    const { pool, rest } = splitArgs(args);
    const options = resolveOptions<C>(pool);
    const connector = (options.connector ?? this.defaultConnector()) as Connector<C, object>;
    connector.accept?.(rest);
    this.#observers = new Observers((observer) => connector.observe?.(observer));
    const init = {
      options,
      connector,
      args: rest,
      permits: shared ?? new LocalPermits(maxconn),
      minconn,
      heard: (type: PoolEventType) => this.heard(type),
      tell: <T extends PoolEventType>(type: T, detail: PoolEventDetails[T]) =>
        this.#tell(type, detail),
    };
    let slow: SlowStatements | null = null;
    const whole = this.#whole = new Inside<C>(init, null, () => {
      slow?.stop();
      this.#hosting.end();
    });
    if (options.slowStatementAfter > 0) {
      if (connector.observe === undefined) throw new TypeError(NO_STATEMENTS);
      const tell: TellSlow = (...args) => this.#tellSlow(...args);
      slow = new SlowStatements(whole.state.clock, options.slowStatementAfter, tell);
      this.#observers.add(slow);
    }
    if (shared !== null || !requestsOwnTheirs()) {
      whole.pump();
      return;
    }
    const { clock, counters } = whole.state;
    this.#parts = new RequestParts(maxconn, clock, (permits) => {
      // Nothing is kept open for requests that are to come: it could not be theirs.
      const part = { ...init, permits, minconn: 0, counters, isHere: permits.isHere };
      return new Inside<C>(part, whole, () => {});
    });
  }

  #tellSlow(facts: StatementFacts, resource: object, duration: number, over: boolean): void {
    if (!this.heard("slowstatement")) return;
    const { text, summary, shared, pid } = facts;
    let lease: PoolLease | null = null;
    for (const entry of this.#state.entries) if (entry.resource === resource) ({ lease } = entry);
    const { key = null, stack = null } = lease ?? {};
    const holder = { key, stack: stack ?? "" };
    this.#tell("slowstatement", { text, summary, duration, over, shared, pid, ...holder });
  }

  /** Only while somebody listens are statements observed. */
  protected override heardChanges(type: string, on: boolean): void {
    if (type !== "statement") return;
    this.#unobserve?.();
    this.#unobserve = on ? this.#observers.add(this.#teller()) : null;
  }

  /** Tells of statements those who listen to it. */
  #teller(): StatementObserver {
    return {
      sent: ({ text, summary, waited, shared }) => ({
        ended: ({ duration, rows, failure }) =>
          this.#tell("statement", {
            text,
            summary,
            rows,
            duration,
            waited,
            shared,
            error: failure?.error,
          }),
      }),
      refused: ({ text, summary, waited, shared }, error) =>
        this.#tell("statement", {
          text,
          summary,
          rows: null,
          duration: 0,
          waited,
          shared,
          error,
        }),
    };
  }

  /** What does the work; of the request at hand, where requests own their sockets. */
  #inside(): Inside<C> {
    return this.#parts === null ? this.#whole : this.#parts.here();
  }

  get #state(): PoolState<C> {
    return this.#inside().state;
  }

  /** True once the pool refuses new callers. */
  get closed(): boolean {
    return this.#whole.state.phase !== "open";
  }

  /** How many connections the pool keeps open. */
  get minconn(): number {
    return this.#whole.state.minconn;
  }

  /** How many connections the pool never exceeds. */
  get maxconn(): number {
    return this.#whole.state.permits.limit;
  }

  /** The options in force, with no secret in them. `idleTimeoutMillis` is `maxIdle`, for hosts that look for it. */
  get options(): PoolSettings {
    const { connector, configure, reset, validate, ...options } = this.#whole.state.options;
    return Object.freeze({
      ...options,
      configure: configure !== undefined,
      reset: reset !== undefined,
      validate: validate !== undefined,
      idleTimeoutMillis: options.maxIdle,
      connection: Object.freeze({ ...(connector ?? this.#whole.state.connector).describe?.() }),
    });
  }

  /**
   * Borrows a connection. An idle one is lent at once, the last returned first; else a new one is
   * opened if fewer than maxconn stand; else the call waits, first come first served, for `timeout`.
   *
   * With a `key` the connection is lent under that key: as long as it is, every getconn of the key
   * gives the same lease, and only `requestsNum` counts it. A lost connection is replaced.
   *
   * Giving up (by `timeout` or `signal`) loses nothing: a connection being opened for this call becomes idle.
   *
   * @param key Any value but null and undefined, compared as in a Map.
   * @throws {PoolClosed} when the pool is closed
   * @throws {PoolExhausted} when all are lent and `timeout` is 0
   * @throws {PoolTimeout} when `timeout` ran out
   * @throws {TooManyWaiting} when `maxWaiting` callers wait already
   * @throws the reason of `signal` when it aborts
   * @throws {TypeError | RangeError} for an option that there is not, or a value that it does not take
   * @throws {PoolError} with code CONNECT_FAILED when none could be opened and `timeout` is 0, or waiting
   * does not help, as with a wrong password; `cause` is why
   */
  getconn(key?: unknown, options?: GetconnOptions): Promise<C> {
    return this.#inside().core.getconn(key ?? null, options);
  }

  /**
   * Puts a connection back. From this call on the lease is dead. An open transaction is rolled back and the
   * `reset` hook runs; a connection that is lost, in the middle of a statement, or not to be cleaned, is closed.
   *
   * @param key Where given, it must be the one under which the connection was lent.
   * @param close Closes the connection in any case.
   * @returns when the connection is fit for the next borrower, or gone at the server
   * @throws {PoolClosed} when the pool is closed
   * @throws {PoolError} UNKEYED_CONNECTION for anything that this pool has not lent, or not any more; WRONG_KEY when it
   * was not lent under `key`
   */
  putconn(conn: C, key?: unknown, close = false): Promise<void> {
    // What another request has borrowed is its part's.
    const lender = this.#parts === null ? undefined : leaseOf(conn)?.lender;
    const core = lender !== undefined && lentBy.get(lender) === this.#whole
      ? lender as PoolCore<C>
      : this.#inside().core;
    return core.putconn(conn, key ?? null, close);
  }

  /**
   * Closes the pool now: waiters get PoolClosed, idle connections and those in use are closed.
   *
   * @returns when the server has let go of every connection
   * @throws {PoolClosed} when it is closed already, as in psycopg2
   */
  closeall(): Promise<void> {
    const whole = this.#whole;
    if (whole.state.phase === "closed") {
      return Promise.reject(new PoolClosed(whole.state.errorContext()));
    }
    // The other requests' parts follow in their own time.
    const { closing } = this.#inside();
    return Promise.all([whole.closing.now(), closing.now()]).then(() => {});
  }

  /**
   * Closes the pool gently: no new callers, waiters get PoolClosed, leases may come back for
   * `timeout` milliseconds (default 30 000), then as closeall. Calling it again changes nothing.
   *
   * @returns when the server has let go of every connection
   * @throws {TypeError | RangeError} for a `timeout` that is no time, and for an option that there is not
   */
  close(options: CloseOptions = {}): Promise<void> {
    try {
      const timeout = readDrainTime("close", options);
      const { closing } = this.#inside();
      this.#whole.core.drain();
      return closing.gently(timeout).then(() => this.#whole.closing.now());
    } catch (error) {
      return Promise.reject(error);
    }
  }

  /** The same as `close()`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /**
   * Resolves when minconn connections stand; minconn as it is then, after a `resize`.
   *
   * @param options How long to wait, in milliseconds (default: without limit), and a signal to give up by.
   * @throws the first failure to connect, as the connector gave it; a later call tries again at once
   * @throws {PoolTimeout} when `timeout` ran out; connecting goes on
   * @throws {PoolClosed} when the pool is closed
   */
  ready(options: ReadyOptions = {}): Promise<void> {
    return this.#inside().readiness.ready(options);
  }

  /**
   * Checks every connection that is idle now by a round trip, as after a fail-over, or before traffic is let in. Those
   * that are dead, or give no answer within `checkTimeout`, are closed, and replaced up to minconn. Who asks for
   * a connection meanwhile waits for those that are being checked. Their idle time begins anew.
   *
   * @returns when it is known of all of them
   * @throws {PoolClosed} when the pool is closed
   */
  async check(): Promise<void> {
    if (this.closed) throw new PoolClosed(this.#state.errorContext());
    await this.#inside().core.connections.checkIdle();
  }

  /**
   * getconn, `fn`, putconn, whatever `fn` does.
   *
   * When the connection is lost, or the pool closed by closeall, while `fn` is at work, `use` does not wait for it any
   * longer than for the rest of the turn: the caller is told and the slot is free, though `fn` may never return.
   *
   * @returns what `fn` returned
   * @throws what getconn or `fn` throws
   * @throws {PoolError} CONNECTION_LOST when the connection was lost and `fn` did not end by itself; `cause` is why
   */
  async use<T>(fn: (conn: C) => T | Promise<T>, options?: GetconnOptions): Promise<T> {
    checkFn("use", fn);
    const conn = await this.#inside().core.getconn(null, options);
    const lease = leaseOf(conn) as PoolLease;
    try {
      return await unlessLost(this.#state.clock, lease, () => fn(conn));
    } finally {
      await lease.putconn();
    }
  }

  /**
   * As `use`, within a transaction: committed when `fn` succeeds, rolled back when it throws.
   *
   * A connection has one transaction at a time: a second one on the same connection, by `conn.begin` in `fn` or by
   * another caller who shares it, is refused at once; with `nested: "savepoint"` what `fn` calls is a savepoint.
   *
   * @example As strict as it gets, and tried again when others got into its way
   * ```ts
   * import { SimpleConnectionPool } from "@getconn/pool";
   * import { assertEquals } from "@std/assert";
   *
   * await using pool = new SimpleConnectionPool(0, 1, Deno.env.get("DATABASE_URL"));
   * const [row] = await pool.transaction((conn) => conn`show transaction_isolation`, {
   *   isolation: "serializable",
   *   retry: { attempts: 5 },
   * });
   * assertEquals(row!.transaction_isolation, "serializable");
   * ```
   *
   * @throws what `fn` throws, after the rollback
   * @throws {TypeError} or RangeError when an option is no good
   * @throws {PoolError} IN_TRANSACTION when the connection is in a transaction already
   * @throws {PoolError} OUTCOME_UNKNOWN when the connection was lost after the commit was sent; `cause` is why
   * @throws {PoolError} TRANSACTION_FAILED when a statement had failed although `fn` succeeded: the server has rolled
   * back; `cause` is that statement's error
   * @throws {PoolError} TRANSACTION_ENDED when `fn` has ended the transaction by hand, with `commit` or `rollback`, and
   * succeeds, or fails in a way that would be tried again: that might do its work twice
   */
  transaction<T>(fn: (conn: C) => T | Promise<T>, options?: TransactionOptions): Promise<T> {
    return transact(this.#transacting, fn, options);
  }

  /**
   * Keeps an edge function's instance alive by `host.waitUntil`, from a lease or a statement of `pool.sql` on until the connections above minconn
   * are closed. Give the host at module scope (`pool.attach(EdgeRuntime)`), or each request's context.
   *
   * @throws {TypeError} for anything without `waitUntil`
   */
  attach(host: HostContext): this {
    this.#hosting.attach(host);
    return this;
  }

  /**
   * Closes the pool at SIGINT, SIGTERM or `beforeunload`; after a signal the process ends, as it would have anyway.
   * A server is ended first, by `before`: it and the leases have `timeout` milliseconds (default 4000). A
   * second signal ends the process at once, and a `close()` that is under way for longer is cut short.
   *
   * Each part of a program may call it for what it has to end: at an event all that was given as `before` is begun
   * together, the longest `timeout` counts, and the process ends unless somebody has set `exit` to false.
   *
   * @throws {TypeError | RangeError} for an option that there is not, or a value that it does not take
   *
   * @example A server that answers what it has accepted
   * ```ts ignore
   * const pool = new SimpleConnectionPool(0, 10, Deno.env.get("DATABASE_URL"));
   * const server = Deno.serve(async () => Response.json(await pool.sql`select now()`));
   * pool.closeOn({ before: () => server.shutdown(), timeout: 25_000 });
   * ```
   */
  closeOn(options?: CloseOnOptions): this {
    this.#hosting.closeOn(options);
    return this;
  }

  /** The pool's numbers now, frozen. */
  stats(): PoolStats {
    return this.#state.stats(this.#inside().core.longestWait);
  }

  /**
   * What the pool does now, in a few lines for a log or a person: sizes, counts, and for how long each
   * lease is held; with `leakAfter` also where it was taken. No secret is in it. console.log prints it.
   */
  inspect(): string {
    return describePool(this, this.#state, this.#inside().core.waiters());
  }

  /**
   * Changes the sizes. Idle connections above maxconn are closed now, leased ones when they come back.
   *
   * @returns when the idle ones are gone
   * @throws {RangeError} for sizes that the constructor would not take; nothing has changed then
   * @throws {PoolClosed} when the pool is closed
   */
  async resize(minconn: number, maxconn: number): Promise<void> {
    checkSizes(minconn, maxconn);
    this.#assertOpen();
    const { state, core } = this.#inside();
    this.#whole.state.minconn = minconn;
    this.#whole.state.permits.resize(maxconn);
    state.permits.resize(maxconn);
    const gone = core.connections.retireIdle("resized", false);
    core.tidy();
    // Who waits for minconn may have it now.
    core.changed();
    await gone;
  }

  /**
   * Replaces every connection: idle ones now, leased ones when they come back.
   *
   * @returns when the idle ones are gone
   * @throws {PoolClosed} when the pool is closed
   */
  async renew(): Promise<void> {
    this.#assertOpen();
    const { state, core } = this.#inside();
    const generation = ++this.#whole.state.generation;
    state.generation = generation;
    const gone = core.connections.retireIdle("renewed");
    core.pump();
    await gone;
  }

  /**
   * The connector for pools that were not given one in `pool.connector`. It is called by the
   * constructor, when fields of a subclass are not there yet.
   */
  protected defaultConnector(): Connector<C> {
    throw new TypeError('Option "pool.connector" is required by this pool');
  }

  #assertOpen(): void {
    const { state } = this.#whole;
    if (state.phase !== "open") throw new PoolClosed(state.errorContext());
  }

  #tell<T extends PoolEventType>(type: T, detail: PoolEventDetails[T]): void {
    this.send(new PoolEvent(type, this.#whole.state.options.name, detail));
  }
}

inspectable(AbstractConnectionPool.prototype, (pool) => pool.inspect());
