/** A session that speaks the language of its pool: what the pool holds, lends and closes. */

import type { ServerFields } from "./wire/frames.ts";
import type { Dialer } from "./wire/dial.ts";
import { Session as WireSession, type SessionOwner } from "./wire/session.ts";
import { misfit, type Started } from "./wire/startup.ts";
import { callSafely } from "../pool/safely.ts";
import { bindContext, requestBond } from "../runtime.ts";
import type { Hold, Holds } from "./holds.ts";
import type { Language } from "./language.ts";
import { Observed, summaryOfCommand } from "./observed.ts";
import { Begin, Command, type CommandResult } from "./wire/request.ts";

/** Executes the queries of one language. */
export class Session extends WireSession {
  readonly language: Language;
  /** Whether it keeps the process alive. */
  readonly hold: Hold;
  /** How many transactions had ended when the pool began its last one; null when that is over. */
  begun: number | null = null;
  /** True while a transaction scope of a borrower's is open, or opening. */
  inScope = false;
  readonly #dialer: Dialer;

  constructor(
    started: Started,
    dialer: Dialer,
    language: Language,
    holds: Holds,
    owner: SessionOwner,
  ) {
    super(
      started,
      owner,
      (signal, due) => dialer.cancel(started, signal, due),
      language.options.max_pipeline,
      requestBond(),
      holds.clock,
    );
    this.language = language;
    this.#dialer = dialer;
    const path = started.parameters.get("search_path");
    if (path !== undefined) this.elsewhere = language.descriptionsUnder(path);
    this.hold = holds.of(started.transport);
  }

  /** The statement at which the server is, without values. */
  get running(): { readonly text: string; readonly since: number | null } | null {
    const { current } = this;
    if (current === null) return null;
    const text = current instanceof Command ? summaryOfCommand(current.text).text : current.shown;
    return { text, since: current.since };
  }

  /** Executes a command for its borrower: who observes statements hears of it. */
  command(text: string): Promise<CommandResult> {
    return this.#command(new Command(text));
  }

  /** Opens a transaction that begins before it is known to be open: see {@linkcode Begin}. */
  begin(): Promise<CommandResult> {
    return this.#command(new Begin());
  }

  #command(command: Command): Promise<CommandResult> {
    const { observer } = this.language;
    const observed = observer === null ? null : Observed.of(observer, this.clock);
    observed?.sends(this, command.text);
    this.send(command);
    const { done } = command;
    if (observed !== null) {
      done.then(() => observed.ended(null, null), (error) => observed.ended(null, { error }));
    }
    return done;
  }

  /** The server is not of the kind any more that was asked for; its place reported another one. */
  refusedToWrite(): void {
    this.unfit ??= "the server refused to write";
    this.#dialer.disbelieve(this.started.target);
  }
}

/** What all sessions of a pool tell its user, and how the server's errors become those of the driver. */
export class Callbacks implements SessionOwner {
  readonly #language: Language;
  readonly #onnotice: ((fields: unknown) => void) | null;
  readonly #onnotify: ((channel: string, payload: string) => void) | null;
  readonly #onparameter: ((name: string, value: string) => void) | null;
  readonly #onclose: ((id: number) => void) | null;
  /** What the last session was told. */
  #told: ReadonlyMap<string, string> | null = null;

  /** The callbacks run in the async context of this call, that of the pool; what they throw harms nobody. */
  constructor(language: Language) {
    const { onnotice, onnotify, onparameter, onclose } = language.options;
    this.#language = language;
    this.#onnotice = guard("onnotice", onnotice as ((fields: unknown) => void) | undefined);
    this.#onnotify = guard("onnotify", onnotify);
    this.#onparameter = guard("onparameter", onparameter);
    this.#onclose = guard("onclose", onclose);
  }

  /** A new session was told this; what comes is the same object for sessions that agree. */
  told(parameters: ReadonlyMap<string, string>): ReadonlyMap<string, string> {
    for (const [name, value] of parameters) this.tell(name, value);
    const last = this.#told;
    if (last !== null && last.size === parameters.size) {
      let same = true;
      for (const [name, value] of parameters) same &&= last.get(name) === value;
      if (same) return last;
    }
    return this.#told = parameters;
  }

  serverError(fields: ServerFields, session: WireSession): Error {
    // A pooler does not pass on that the server behind it has become another kind.
    if (fields.code === "25006" && session.started.attrs === "read-write") {
      (session as Session).refusedToWrite();
    }
    return this.#language.serverError(fields);
  }

  notice(fields: ServerFields): void {
    // As the driver does.
    if (this.#onnotice === null) console.log(fields);
    else this.#onnotice(fields);
  }

  notification(channel: string, payload: string): void {
    this.#onnotify?.(channel, payload);
  }

  parameter(session: WireSession, name: string, value: string): string | null {
    this.tell(name, value);
    if (name === "search_path") session.elsewhere = this.#language.descriptionsUnder(value);
    if (name === "client_encoding" && !/^utf-?8$/i.test(value)) {
      return `client_encoding was changed to ${value}: texts can be read in UTF8 only`;
    }
    if (name !== "in_hot_standby" && name !== "default_transaction_read_only") return null;
    const { attrs, parameters } = session.started;
    session.unfit = misfit(attrs, parameters);
    // What a borrower has set himself must not cost him his session. In its constructor it has no hold yet.
    const lent = (session as Session).hold?.taken;
    return name === "default_transaction_read_only" && lent ? null : session.unfit;
  }

  /** As with the driver's own pool: once for all connections, as long as they agree. */
  tell(name: string, value: string): void {
    const { parameters } = this.#language.options;
    if (parameters[name] === value) return;
    parameters[name] = value;
    this.#onparameter?.(name, value);
  }

  closed(session: WireSession): void {
    (session as Session).hold.end();
    this.#onclose?.(session.pid);
  }
}

function guard<A extends unknown[]>(
  what: string,
  callback: ((...args: A) => void) | undefined,
): ((...args: A) => void) | null {
  if (typeof callback !== "function") return null;
  const bound = bindContext(callback);
  return (...args) => callSafely(what, () => bound(...args));
}
