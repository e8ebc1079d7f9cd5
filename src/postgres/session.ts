/** One session at the server: one client of the driver, on a transport of ours. */

import type { Duplex } from "node:stream";
import { requestBond } from "../runtime.ts";
import type { TransactionStatus } from "../pool/types.ts";
import { Cancels } from "./cancels.ts";
import type { Line } from "./dial.ts";
import {
  connectionError,
  type DriverOptions,
  type DriverQuery,
  fatalError,
  FOREIGN,
  inside,
  makeClient,
  type Sql,
} from "./driver.ts";
import { Hold } from "./holds.ts";
import type { Target } from "./hosts.ts";
import { clientOptions } from "./client_options.ts";
import { supervise } from "./cursor.ts";
import { catchStream, Cursors } from "./cursors.ts";
import { Listeners } from "./listeners.ts";
import type { Settings } from "./options.ts";
import { Pipeline } from "./pipeline.ts";
import { tap } from "./tap.ts";
import { Wire } from "./wire.ts";

/** How long the server may take to let go, in milliseconds, before the transport is cut. */
const CLOSE_LIMIT = 5_000;
/** The same for a session that never came up. */
const ABANDON_LIMIT = 1_000;

function ignore(): void {}

/** One session at the server. It ends with its transport and never reconnects. */
export class Session {
  /** Where it is connected to. */
  readonly target: Target;
  /** The driver's client; statements must go through {@linkcode hand}. */
  readonly sql: Sql;
  /** Who listens on this session. */
  readonly listeners: Listeners = new Listeners();
  /** True while a transaction scope of ours is open, or opening. */
  inScope = false;

  readonly #settings: Settings;
  /** Null until {@linkcode attach}. */
  #line: Line | null = null;
  readonly #stream = Promise.withResolvers<Duplex>();
  #hold: Hold | null = null;
  readonly #wire: Wire = new Wire();
  readonly #pipeline: Pipeline;
  readonly #ended: Promise<void>;
  #end: () => void = ignore;
  /** Why the session is over; null while it lives. */
  #reason: Error | null = null;
  #closing: Promise<void> | null = null;
  #hungUp = false;
  #onlost: ((reason: unknown) => void) | null = null;
  readonly #bond = requestBond();
  readonly #cancels: Cancels;
  readonly #cursors: Cursors;
  readonly #onquiet: (() => void)[] = [];
  readonly #onend: Set<(reason: Error) => void> = new Set();
  #failure: { readonly error: unknown } | null = null;

  /** A session whose transport does not stand yet: it takes statements, and sends them when it does. */
  constructor(settings: Settings, target: Target) {
    this.#settings = settings;
    this.target = target;
    this.#ended = new Promise((resolve) => this.#end = resolve);
    this.#cancels = new Cancels(
      target,
      settings,
      this.#wire,
      () => this.#reason !== null,
      () => this.#tellQuiet(),
    );
    this.#stream.promise.catch(ignore);
    const { driver } = settings;
    this.sql = makeClient(
      clientOptions(driver, target, this.#password(() => settings.connect.auth.password(target)), {
        stream: this.#stream.promise,
        reason: () => this.reason,
        onclose: () => {
          this.#over(null);
          this.sql.end({ timeout: 0 }).catch(ignore);
        },
        onnotify: (channel, payload) => this.listeners.notify(channel, payload),
      }),
    );
    this.#pipeline = new Pipeline(this.sql, this.#wire, (error) => this.#explain(error));
    this.#cursors = new Cursors(this.sql.CLOSE);
  }

  /** True when there is, or was, a transport. */
  get attached(): boolean {
    return this.#line !== null;
  }

  /** The transport stands: the session begins. */
  attach(line: Line): void {
    this.#line = line;
    this.#hold = new Hold(line.raw);
    this.#watch(line.stream);
    if (line.raw !== line.stream) line.raw.on("close", () => this.#over(null));
    this.#stream.resolve(line.stream);
  }

  /** The driver leaves the rejection of a password function unhandled; here it ends the session. */
  #password(pass: () => Promise<string | null>): DriverOptions["pass"] {
    return async () => {
      try {
        const password = await pass() ?? "";
        // An answer to a server that has closed meanwhile would fail where nobody can catch it.
        if (this.#reason !== null) return await new Promise<never>(ignore);
        return password;
      } catch (error) {
        this.#fail(error);
        return await new Promise<never>(ignore);
      }
    };
  }

  /** Ends a session that cannot come up. */
  #fail(error: unknown): void {
    this.#failure ??= { error };
    this.#line?.raw.destroy();
  }

  #watch(stream: Duplex): void {
    for (const event of ["end", "close"]) stream.on(event, () => this.#over(null));
    stream.on("error", (error: Error) => this.#over(error));
    tap(stream, this.#wire, {
      written: () => this.#pipeline.written(),
      delivering: () => this.#pipeline.refresh(),
      delivered: () => {
        if (this.#wire.fault !== null) this.#fail(new Error(this.#wire.fault));
        this.#pipeline.drain();
        this.#cancels.look();
        if (this.#onquiet.length > 0) this.#tellQuiet();
      },
      endingRows: (now) => this.#cursors.paused = now,
    });
  }

  /** The transport is at its end, whoever ended it. */
  #over(error: Error | null): void {
    this.#end();
    this.#hold?.end();
    if (this.#reason !== null) return;
    this.#reason = connectionError(
      "CONNECTION_CLOSED",
      this.target,
      "read",
      fatalError(this.#wire.lastError) ?? error ?? undefined,
    );
    // Never leaves a half-open transport behind, and lets the driver see its close.
    this.#line?.stream.destroy();
    this.#settle(this.#reason);
    if (this.#closing === null || this.#hungUp) this.#onlost?.(this.#reason);
  }

  #settle(reason: Error): void {
    this.#pipeline.fail(reason);
    this.#cursors.over(reason);
    this.listeners.clear();
    for (const callback of this.#onend) callback(reason);
    this.#onend.clear();
    this.#cancels.clear();
    this.#tellQuiet();
  }

  /** The driver knows that the session broke, but not what the server had said of it. */
  #explain(error: unknown): void {
    const cause = this.#reason?.cause;
    if (cause === undefined || cause === error) return;
    // Only errors of the transport have an errno; what a borrower's own code threw stays as it is.
    if (error instanceof Error && "errno" in error) error.cause ??= cause;
  }

  /** Why the session cannot be used any more; null while it can. */
  get reason(): Error | null {
    return this.#reason ??
      (this.#closing === null
        ? this.#bond?.() === false ? new Error(FOREIGN) : null
        : connectionError("CONNECTION_DESTROYED", this.target, "write"));
  }

  /** What an attempt to open failed with, when that is not what the driver says. */
  get failure(): unknown {
    return this.#failure?.error;
  }

  /** The backend's process id. */
  get pid(): number {
    return this.#wire.pid;
  }

  /** True when the session is encrypted. */
  get encrypted(): boolean {
    return this.#line?.encrypted ?? false;
  }

  /** libpq's word for the session's state. */
  get status(): TransactionStatus {
    if (this.reason !== null) return "unknown";
    return this.#pipeline.busy ? "active" : this.#wire.status;
  }

  /** True when the session could not be given to another borrower, though no statement runs. */
  get tainted(): boolean {
    return this.inScope || this.#cancels.busy || this.listeners.used;
  }

  /** The transaction state at the server's last word, also while a statement runs. */
  get lastState(): "idle" | "intrans" | "inerror" {
    return this.#wire.last;
  }

  /** Changes when a transaction ends: by it two of one session are told apart. */
  get endings(): number {
    return this.#wire.endings;
  }

  /** Executes a statement; rejects it when the session is over. */
  hand(query: DriverQuery): void {
    const { reason } = this;
    if (reason !== null) return query.reject(reason);
    if (query.cursorFn !== undefined) supervise(query, this.#cursors);
    if (query.streaming === true) catchStream(query);
    this.#pipeline.hand(query);
  }

  /** Executes one of our own statements. */
  async run(text: string): Promise<unknown> {
    const query = this.sql.unsafe(text);
    inside(query).handler = (q) => this.hand(q);
    return await query;
  }

  /** Resolves when no statement and no cancel request is on its way, or the session is over. */
  quiet(): Promise<void> {
    return new Promise((resolve) => {
      this.#onquiet.push(resolve);
      this.#tellQuiet();
    });
  }

  #tellQuiet(): void {
    if (this.status === "active" || this.#cancels.busy) return;
    for (const tell of this.#onquiet.splice(0)) tell();
  }

  /** Calls back when the session ends, at once or later. Returns how to take that back. */
  whenOver(callback: (reason: Error) => void): () => void {
    const { reason } = this;
    if (reason !== null) callback(reason);
    else this.#onend.add(callback);
    return () => this.#onend.delete(callback);
  }

  /** From now on `callback` hears of the end, when it is not asked for by {@linkcode close}. */
  set onlost(callback: (reason: unknown) => void) {
    this.#onlost = callback;
  }

  /** Cancels a statement: at once when it was not sent, else as soon as the server works on it. */
  cancel(query: DriverQuery, drivers: (query: DriverQuery) => Promise<void>): Promise<void> {
    return this.#cancels.cancel(query, drivers);
  }

  /** Closes at the borrower's wish, which for the pool is a loss. */
  async hangUp(): Promise<void> {
    if (this.#closing === null) this.#hungUp = true;
    await this.close();
  }

  /** Resolves when the server has closed its end, or when it took too long. */
  close(): Promise<void> {
    return this.#closing ??= this.#close(CLOSE_LIMIT);
  }

  /** Ends a session whose opening failed; whoever waits for the failure does not wait long. */
  abandon(): Promise<void> {
    return this.#closing ??= this.#close(ABANDON_LIMIT);
  }

  async #close(patience: number): Promise<void> {
    if (this.#bond?.() === false) return; // The socket has ended with its request.
    const line = this.#line;
    if (line === null) {
      // The driver hears of it when it asks for the transport.
      return this.#stream.reject(connectionError("CONNECTION_DESTROYED", this.target, "connect"));
    }
    if (this.#reason === null) {
      const running = this.#wire.ready && this.#wire.busy;
      // What the driver has built and not yet written would run although it is rejected.
      this.#wire.mute = true;
      const limit = setTimeout(() => line.raw.destroy(), patience);
      const closed = connectionError("CONNECTION_DESTROYED", this.target, "write");
      this.#settle(closed);
      // Else the server would go on with the statement and hold the slot until its end.
      if (running) await this.#cancels.now();
      await this.sql.end({ timeout: 0 }).catch(ignore);
      // The driver says goodbye only on a transport that it takes for open; twice does no harm.
      if (!line.stream.writableEnded) line.stream.end();
      // A COPY whose reader is slow has paused it, and would never show its end.
      line.stream.resume();
      if (running) await this.#cancels.rest(this.#ended);
      await this.#ended;
      clearTimeout(limit);
    }
    line.stream.destroy();
    line.raw.destroy();
  }

  /** Lets the session keep the process alive. */
  ref(): void {
    this.#hold?.take();
  }

  /** Lets the process end though the session is open. */
  unref(): void {
    this.#hold?.drop();
  }
}
