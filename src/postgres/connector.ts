/** How a pool opens, checks, cleans and closes connections of the driver `postgres`. */

import { reasonOf } from "../pool/errors.ts";
import type { ConnectAttempt, Connector, Loan, TransactionStatus } from "../pool/types.ts";
import { ARRAY_TYPES_QUERY, type ArrayTypeRow, ArrayTypes } from "./array_types.ts";
import type { Connection } from "./connection.ts";
import { dial } from "./dial.ts";
import { connectionError, type DriverOptions, inside } from "./driver.ts";
import { lendSession } from "./handle.ts";
import { nameOf, type Target } from "./hosts.ts";
import { parseSettings, type Plan, type Settings } from "./options.ts";
import { Session } from "./session.ts";
import { misfit } from "./target_session.ts";
import { hasEnded } from "./transaction.ts";

/** Makes the connector of one pool. */
export function postgresConnector(): PostgresConnector {
  return new PostgresConnector();
}

interface Parsed {
  readonly plan: Plan;
  readonly types: ArrayTypes;
}

/** Opens sessions of PostgreSQL by the driver `postgres`, one client of it for each session. */
export class PostgresConnector implements Connector<Connection, Session> {
  #parsed: Parsed | null = null;
  /** The transaction of the last `begin` of each session. */
  readonly #begun = new WeakMap<Session, number>();

  /** Parses and checks the pool's arguments. */
  accept(args: readonly unknown[]): void {
    const plan = parseSettings(args);
    this.#parsed = { plan, types: new ArrayTypes(plan.driver) };
  }

  get #plan(): Plan {
    if (this.#parsed === null) throw new Error("accept() comes first");
    return this.#parsed.plan;
  }

  /** The driver's options that all connections share: parsers, serializers, types. */
  get driver(): DriverOptions {
    return this.#plan.driver;
  }

  /** Where and how the next connect goes; null when a function will tell. */
  get settings(): Settings | null {
    return this.#plan.fixed;
  }

  /** Tries the hosts in turn. */
  async open(attempt: ConnectAttempt): Promise<Session> {
    if (this.#parsed === null) this.accept(attempt.args);
    const { plan, types } = this.#parsed!;
    const settings = plan.fixed ?? await told(plan, attempt.signal);
    const failures: { target: Target; error: unknown }[] = [];
    // prefer-standby takes what there is when there is no standby.
    const rounds = settings.attrs === "prefer-standby"
      ? ["standby", null] as const
      : [settings.attrs];
    for (const attrs of rounds) {
      for (const target of settings.targets) {
        try {
          const session = await openAt(target, settings, types, attrs, attempt.signal);
          session.onlost = attempt.onlost;
          return session;
        } catch (error) {
          attempt.signal.throwIfAborted();
          failures.push({ target, error });
        }
      }
    }
    const [only] = failures;
    if (failures.length === 1) throw only!.error;
    throw new AggregateError(
      failures.map(({ error }) => error),
      "no host could be connected to: " +
        failures.map(({ target, error }) => `${nameOf(target)}: ${reasonOf(error)}`).join("; "),
    );
  }

  /** Closes the session, and waits until the server has let go. */
  close(session: Session): Promise<void> {
    return session.close();
  }

  /** The state without I/O; `active` also for what no other borrower may get, such as a listening one. */
  status(session: Session): TransactionStatus {
    const { status } = session;
    return status !== "unknown" && session.tainted ? "active" : status;
  }

  /** Resolves when nothing runs on it. */
  quiet(session: Session): Promise<void> {
    return session.quiet();
  }

  /** One round trip. */
  async check(session: Session): Promise<void> {
    await session.run("");
  }

  /** Opens a transaction; false when one is open already. */
  async begin(session: Session, mode = ""): Promise<boolean> {
    if (typeof mode !== "string") throw new TypeError('"mode" must be a string');
    // Statements on their way may open a transaction; after this round trip that is known.
    if (session.status === "active") await session.run("");
    if (session.lastState !== "idle") return false;
    // Only words, as in the driver's own begin: a mode is no place for another statement.
    await session.run(`begin ${mode.replace(/[^a-z ]/gi, "")}`);
    this.#begun.set(session, session.endings);
    return true;
  }

  /** Commits; false when the server rolled back instead, because a statement had failed. */
  async commit(session: Session): Promise<boolean | "ended"> {
    const begun = this.#begun.get(session);
    this.#begun.delete(session);
    if (begun !== undefined && await hasEnded(session, begun)) return "ended";
    const { command } = await session.run("commit") as { command?: string };
    return command === "COMMIT";
  }

  /** Ends the transaction. */
  async rollback(session: Session): Promise<void> {
    await session.run("rollback");
  }

  /** A revocable handle for one loan. */
  lend(session: Session, loan: Loan): Connection {
    return lendSession(session, loan);
  }

  /** Lets the session keep the process alive. */
  ref(session: Session): void {
    session.ref();
  }

  /** Lets the process end though the session is open. */
  unref(session: Session): void {
    session.unref();
  }

  /** Where connections go, without a secret. */
  describe(): Readonly<Record<string, unknown>> {
    const { settings } = this;
    if (settings === null) return Object.freeze({ conninfo: "function" });
    const { targets, driver, tls } = settings;
    return Object.freeze({
      hosts: Object.freeze(targets.map(nameOf)),
      database: driver.database,
      user: driver.user,
      ssl: tls !== null,
      applicationName: driver.connection["application_name"],
    });
  }
}

/** Asks the function for the settings; it may hang. */
async function told(plan: Plan, signal: AbortSignal): Promise<Settings> {
  const late = () => new Error("the function in place of a connection string gave none in time");
  const deadline = new Deadline(late, plan.patience, signal);
  try {
    return await deadline.race(plan.next());
  } finally {
    deadline.clear();
  }
}

async function openAt(
  target: Target,
  settings: Settings,
  types: ArrayTypes,
  attrs: Settings["attrs"],
  signal: AbortSignal,
): Promise<Session> {
  const late = () => connectionError("CONNECT_TIMEOUT", target, "connect");
  const deadline = new Deadline(late, settings.connectTimeout, signal);
  const dialling = dial(target, settings, deadline.signal);
  // While the socket connects: the driver takes a turn of the event loop until it asks for it.
  const session = new Session(settings, target);
  const started = start(session, types);
  started.catch(() => {});
  try {
    session.attach(await dialling);
    await deadline.race(started);
    const reason = attrs === null ? null : await deadline.race(misfit(session, attrs));
    if (reason !== null) throw new Error(reason);
    // It may have closed after its last answer.
    if (session.reason !== null) throw session.reason;
    return session;
  } catch (error) {
    const failure = session.failure ?? error;
    await session.abandon();
    // The driver has a timer until it hears of it.
    if (!session.attached) await started.catch(() => {});
    throw failure;
  } finally {
    deadline.clear();
  }
}

async function start(session: Session, types: ArrayTypes): Promise<void> {
  // The driver connects only for a statement. The first one to come up asks for the array types.
  if (!types.wanted) await session.run("");
  await types.ensure(() => fetchArrayTypes(session), () => session.attached);
}

async function fetchArrayTypes(session: Session): Promise<ArrayTypeRow> {
  const query = session.sql.unsafe(ARRAY_TYPES_QUERY).raw();
  inside(query).handler = (q) => session.hand(q);
  const [row] = await query;
  const [oids, typarrays] = row!.map((value) => value === null ? null : String(value));
  return [oids!, typarrays!];
}

/** The limit for one host, and the caller's signal, in one. */
class Deadline {
  readonly #controller = new AbortController();
  readonly #outer: AbortSignal;
  readonly #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #forward: () => void;

  constructor(late: () => Error, limit: number, outer: AbortSignal) {
    this.#outer = outer;
    this.#forward = () => this.#controller.abort(outer.reason);
    if (outer.aborted) this.#forward();
    else outer.addEventListener("abort", this.#forward, { once: true });
    if (limit > 0) this.#timer = setTimeout(() => this.#controller.abort(late()), limit);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  async race<T>(promise: Promise<T>): Promise<T> {
    const { signal } = this.#controller;
    let abort: () => void = () => {};
    const aborted = new Promise<never>((_, reject) => {
      abort = () => reject(signal.reason);
      if (signal.aborted) abort();
      else signal.addEventListener("abort", abort, { once: true });
    });
    try {
      return await Promise.race([promise, aborted]);
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#outer.removeEventListener("abort", this.#forward);
  }
}
