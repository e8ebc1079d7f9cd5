/** A connector of things that are no database, every step of which the test decides. */

import {
  AbstractConnectionPool,
  type ConnectAttempt,
  type Connector,
  type PoolOptions,
  type StatementFacts,
  type StatementObserver,
  type TransactionStatus,
} from "../../mod.ts";

/** What the fake opens. It keeps a diary of what the pool did to it. */
export class Thing {
  status: TransactionStatus = "idle";
  closed = false;
  checks = 0;
  rollbacks = 0;
  readonly #attempt: ConnectAttempt;
  readonly id: number;

  constructor(id: number, attempt: ConnectAttempt) {
    this.id = id;
    this.#attempt = attempt;
  }

  /** Something that a borrower may call. */
  hello(): number {
    return this.id;
  }

  /** Dies as a killed backend does. */
  die(reason: unknown = new Error("killed")): void {
    this.status = "unknown";
    this.closed = true;
    this.#attempt.onlost(reason);
  }
}

/** One step that waits until the test lets it go on. */
export interface Held {
  readonly kind: "open" | "close" | "check" | "rollback";
  readonly thing: Thing | null;
  go(): void;
  fail(error?: unknown): void;
}

/**
 * Steps go on at once, unless their kind is in `hold`: then they queue in `held`. `standing` counts
 * the things that are open or being closed: what a server would see.
 */
export class FakeConnector implements Connector<Thing> {
  readonly things: Thing[] = [];
  readonly hold: Set<Held["kind"]> = new Set();
  readonly held: Held[] = [];
  /** When set, every `open` rejects with it. */
  failure: unknown = null;
  standing = 0;
  most = 0;
  opening = 0;
  mostOpening = 0;
  /** Who wants to know of statements, which a test makes up. */
  observer: StatementObserver | null = null;
  /** One past the last id. */
  made = 0;
  /** The greatest maxconn that was in force: `standing` may be above a smaller one for a while. */
  mostAllowed = 0;

  async open(attempt: ConnectAttempt): Promise<Thing> {
    this.opening++;
    this.mostOpening = Math.max(this.mostOpening, this.opening);
    try {
      await this.#step("open", null, attempt.signal);
      if (this.failure !== null) throw this.failure;
    } finally {
      this.opening--;
    }
    const thing = new Thing(++this.made, attempt);
    this.things.push(thing);
    this.standing++;
    this.most = Math.max(this.most, this.standing);
    return thing;
  }

  async close(thing: Thing): Promise<void> {
    thing.status = "unknown";
    try {
      await this.#step("close", thing);
    } finally {
      thing.closed = true;
      this.standing--;
    }
  }

  observe(observer: StatementObserver | null): void {
    this.observer = observer;
  }

  status(thing: Thing): TransactionStatus {
    return thing.status;
  }

  async check(thing: Thing): Promise<void> {
    thing.checks++;
    await this.#step("check", thing);
    if (thing.closed) throw new Error("dead");
  }

  begin(thing: Thing): Promise<void> {
    if (thing.closed) return Promise.reject(new Error("dead"));
    thing.status = "intrans";
    return Promise.resolve();
  }

  commit(thing: Thing): Promise<void> {
    if (thing.closed) return Promise.reject(new Error("dead"));
    thing.status = "idle";
    return Promise.resolve();
  }

  async rollback(thing: Thing): Promise<void> {
    thing.rollbacks++;
    await this.#step("rollback", thing);
    if (!thing.closed) thing.status = "idle";
  }

  /** What was opened under this id. */
  byId(id: number): Thing {
    return this.things.find((thing) => thing.id === id) as Thing;
  }

  /** The first step of this kind that waits. */
  next(kind: Held["kind"]): Held {
    const at = this.held.findIndex((one) => one.kind === kind);
    if (at < 0) throw new Error(`no ${kind} is held`);
    return this.held.splice(at, 1)[0] as Held;
  }

  #step(kind: Held["kind"], thing: Thing | null, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (!this.hold.has(kind)) return Promise.resolve();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const step: Held = {
      kind,
      thing,
      go: () => resolve(),
      fail: (error = new Error(`${kind} failed`)) => reject(error),
    };
    this.held.push(step);
    signal?.addEventListener("abort", () => {
      const at = this.held.indexOf(step);
      if (at >= 0) this.held.splice(at, 1);
      reject(signal.reason);
    }, { once: true });
    return promise;
  }
}

/** A pool of things, made as somebody outside would make it. */
export class FakePool extends AbstractConnectionPool<Thing> {
  readonly fake: FakeConnector;

  constructor(
    minconn: number,
    maxconn: number,
    options: PoolOptions<Thing> = {},
    fake: FakeConnector = new FakeConnector(),
  ) {
    super(minconn, maxconn, { pool: { connector: fake, ...options } });
    this.fake = fake;
    fake.mostAllowed = maxconn;
  }
}

/** Lets everything happen that needs no time. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 50; i++) await Promise.resolve();
}

/** What is told of a made-up statement. */
export const FACTS: StatementFacts = {
  text: "select $1 from orders",
  summary: "select orders",
  operation: "select",
  collection: "orders",
  statements: 1,
  shared: false,
  waited: 0,
  host: "localhost",
  port: 5432,
  pid: 7,
};
