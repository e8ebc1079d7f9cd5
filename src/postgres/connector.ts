/** How a pool opens, checks, cleans and closes sessions of PostgreSQL. */

import { afterBy, currentClock } from "../clock.ts";
import type { StatementObserver } from "../pool/observe.ts";
import { underLimit, untilAborted } from "../pool/timeout.ts";
import type { ConnectAttempt, Connector, Lease, TransactionStatus } from "../pool/types.ts";
import { realWorld } from "../sockets.ts";
import { ArrayTypes } from "./array_types.ts";
import type { Connection } from "./connection.ts";
import { genericError, withHint } from "./errors.ts";
import { lendSession } from "./lease_handle.ts";
import { Holds } from "./holds.ts";
import { Language, postgres } from "./language.ts";
import { parseSettings, type Plan } from "./options.ts";
import { isPooled } from "./pooler.ts";
import { Callbacks, Session } from "./session.ts";
import { beginWith, endOf, endUnlessEnded, nestInPool } from "./transaction.ts";
import { connectionError, isPermanent } from "./wire/connect_error.ts";
import { Dialer } from "./wire/dial.ts";
import type { ConnectSettings } from "./wire/settings.ts";
import { placeOf } from "./wire/startup.ts";

/** What a pool's arguments have come to. */
interface Parsed {
  readonly plan: Plan;
  readonly language: Language;
  readonly types: ArrayTypes;
  readonly callbacks: Callbacks;
  /** For all connects, where the settings are the same for all. */
  readonly dialer: Dialer | null;
}

/** Its sessions are on our own wire, and speak the language of postgres.js. */
export class PostgresConnector implements Connector<Connection, Session> {
  /** Set by {@linkcode PostgresConnector.accept}, which comes first. */
  #parsed!: Parsed;
  readonly #holds = new Holds();

  /** Parses and checks the pool's arguments. */
  accept(args: readonly unknown[]): void {
    const plan = parseSettings(args);
    const language = new Language(plan.driver);
    this.#parsed = {
      plan,
      language,
      types: new ArrayTypes(language),
      callbacks: new Callbacks(language),
      dialer: plan.fixed === null ? null : dialerOf(plan.fixed, language),
    };
  }

  get language(): Language {
    return this.#parsed.language;
  }

  /** Where and how the next connect goes; null when a function will tell. */
  get settings(): ConnectSettings | null {
    return this.#parsed.plan.fixed;
  }

  async open(attempt: ConnectAttempt): Promise<Session> {
    const { plan, types, language, callbacks } = this.#parsed;
    const settings = plan.fixed ?? await told(plan, attempt.signal);
    const dialer = this.#parsed.dialer ?? dialerOf(settings, language);
    const started = await dialer.connect(attempt.signal).catch((error) => {
      throw withHint(error);
    });
    started.parameters = callbacks.told(started.parameters);
    const session = new Session(started, dialer, language, this.#holds, callbacks);
    const late = (): Error => connectionError("CONNECT_TIMEOUT", started.target, "write");
    await inTime(settings.connectTimeout, late, attempt.signal, async (limit) => {
      try {
        const pooled = await untilAborted(limit, introduce(session, types));
        if (pooled && !plan.pipelines) session.limit = 1;
        // It may have closed meanwhile.
        if (session.reason !== null) throw session.reason;
      } catch (error) {
        // Whoever waits for the failure does not wait for a server that hangs.
        if (limit.aborted) session.destroy(error as Error);
        await session.close();
        throw refusalOf(error);
      }
    });
    session.onlost = attempt.onlost;
    session.oncancelled = attempt.onshares;
    return session;
  }

  /** A wrong password, an unknown database, a certificate that is not trusted, and the like. */
  permanent(error: unknown): boolean {
    return isPermanent(error);
  }

  /** Closes the session, and waits until the server has let go. */
  close(session: Session, why?: Error): Promise<void> {
    return session.close(why);
  }

  /** The state without I/O; `active` also for what no other borrower may get, such as a listening one. */
  status(session: Session): TransactionStatus {
    const { status } = session;
    const left = session.inScope || session.unfit !== null || session.listeners.used ||
      session.cancelling;
    return status !== "unknown" && left ? "active" : status;
  }

  /**
   * Not in a transaction that somebody's statement has left open, not while a cancel request may hit what comes, not
   * at a server that is not of the kind any more that was asked for, and not where it would wait for what runs.
   */
  shares(session: Session): boolean {
    return session.lastState === "idle" && !session.cancelling && session.unfit === null &&
      session.inFlight < session.limit;
  }

  quiet(session: Session): Promise<void> {
    return session.quiet();
  }

  async check(session: Session): Promise<void> {
    await session.run("");
  }

  /** Opens a transaction; false when one is open already. */
  async begin(session: Session, mode = ""): Promise<boolean> {
    if (typeof mode !== "string") throw new TypeError('"mode" must be a string');
    // Statements on their way may open a transaction; after this round trip that is known.
    if (session.status === "active") await session.run("");
    if (session.lastState !== "idle") return false;
    await session.command(beginWith(mode));
    this.#hasBegun(session);
    return true;
  }

  /** Opens a transaction and goes on; null where it is not known that none is open. */
  beginAhead(session: Session): Promise<unknown> | null {
    if (session.status !== "idle") return null;
    this.#hasBegun(session);
    return session.begin();
  }

  /** From now on `commit`, `ended` and `failedBy` are about this transaction. */
  #hasBegun(session: Session): void {
    session.begun = session.endings;
    session.fault = undefined;
  }

  /** Commits; false when the server rolled back instead, because a statement had failed. */
  async commit(session: Session): Promise<boolean | "ended"> {
    const { begun } = session;
    session.begun = null;
    const done = begun === null
      ? await session.command("commit")
      : await endUnlessEnded(session, begun, "commit");
    return done === "ended" ? done : done.command === "COMMIT";
  }

  /** Whether the borrower has ended the transaction of the last `begin`, which the pool has not. */
  ended(session: Session): "ended" | "unknown" | null {
    return session.begun === null ? null : endOf(session, session.begun);
  }

  /** What a statement of the last transaction failed with. */
  failedBy(session: Session): unknown {
    return session.fault;
  }

  async rollback(session: Session): Promise<void> {
    session.dropParked(genericError("CURSOR_CLOSED", "its transaction was rolled back"));
    await session.command("rollback");
  }

  /** A savepoint of the transaction that `begin` has opened. */
  savepoint<T>(conn: Connection, fn: () => T | Promise<T>): Promise<T> {
    return nestInPool(conn, fn);
  }

  /** Tells of every statement, until it is called with null. */
  observe(observer: StatementObserver | null): void {
    this.language.observer = observer;
  }

  /** What runs on it, for `inspect`. */
  running(session: Session): { readonly text: string; readonly since: number | null } | null {
    return session.running;
  }

  /** A revocable handle for one lease. */
  lend(session: Session, lease: Lease): Connection {
    return lendSession(session, lease);
  }

  /** Lets the session keep the process alive. */
  ref(session: Session): void {
    session.hold.take();
  }

  /** Lets the process end though the session is open. */
  unref(session: Session): void {
    session.hold.drop();
  }

  /** Where connections go, without a secret. */
  describe(): Readonly<Record<string, unknown>> {
    const { settings } = this;
    if (settings === null) return Object.freeze({ conninfo: "function" });
    const { targets, tls, user, database, parameters } = settings;
    return Object.freeze({
      hosts: Object.freeze(targets.map(placeOf)),
      database,
      user,
      ssl: tls.mode !== "disable",
      applicationName: parameters["application_name"],
    });
  }
}

/**
 * A pooler refuses after the login what a server refuses at it (`server login has been failing`, `query_wait_timeout`),
 * and then it is its word that tells why, not that the session is lost.
 */
function refusalOf(error: unknown): unknown {
  const { code, cause } = error as { code?: unknown; cause?: unknown };
  return code === "CONNECTION_CLOSED" && cause instanceof postgres.PostgresError ? cause : error;
}

/** Asks the function for the settings; it may hang. */
function told(plan: Plan, signal: AbortSignal): Promise<ConnectSettings> {
  const late = () => new Error("the function in place of a connection string gave none in time");
  return inTime(plan.patience, late, signal, (limit) => untilAborted(limit, plan.next()));
}

function inTime<T>(
  ms: number,
  late: () => Error,
  signal: AbortSignal,
  fn: (limit: AbortSignal) => Promise<T>,
): Promise<T> {
  return underLimit(afterBy(currentClock()), ms, late, signal, fn);
}

function dialerOf(settings: ConnectSettings, language: Language): Dialer {
  return new Dialer(settings, {
    ...realWorld(settings.tcp, /^(require|verify)/.test(settings.tls.mode)),
    serverError: (fields) => language.serverError(fields),
  });
}

/**
 * One round trip: a pooler takes a login when it has no server for it yet, and who waits for a connection waits for
 * that. The first session to come up asks for the array types. True where a pooler is in between.
 */
async function introduce(session: Session, types: ArrayTypes): Promise<boolean> {
  return await isPooled(session, await types.ensure(session));
}
