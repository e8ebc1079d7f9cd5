/** One statement that somebody observes, from its call to its end. */

import { type Clock, queueMicrotask } from "../clock.ts";
import {
  isTelling,
  type StatementFacts,
  type StatementObservation,
  type StatementObserver,
} from "../pool/observe.ts";
import { snapshotContext } from "../runtime.ts";
import { type Summary, summaryOf } from "./summary.ts";
import type { Session } from "./wire/session.ts";
import type { Description } from "./wire/statements.ts";

/** What was read of texts that have no description of their own: `begin` and the like. */
const commands = new Map<string, Summary>();
const MOST_COMMANDS = 64;

/** What is told of a command. */
export function summaryOfCommand(text: string): Summary {
  let found = commands.get(text);
  if (found === undefined) {
    if (commands.size >= MOST_COMMANDS) commands.clear();
    commands.set(text, found = summaryOf(text, 0));
  }
  return found;
}

/** What is told of a statement; read once for each text. */
export function summaryFor(description: Description): Summary {
  const { text, declared } = description;
  return (description.summary ??= summaryOf(text, declared.length)) as Summary;
}

/** Tells an observer of one statement. What happens in its caller's async context is told there. */
export class Observed {
  /** How many rows a cursor has given, in all its rounds. */
  rows = 0;
  readonly #observer: StatementObserver;
  readonly #clock: Clock;
  readonly #shared: boolean;
  /** Since when it waits for a connection; null for one that has it. */
  readonly #asked: number | null;
  readonly #inContext: <T>(fn: () => T) => T = snapshotContext();
  #observation: StatementObservation | null = null;
  #sent = 0;
  #over = false;

  private constructor(observer: StatementObserver, clock: Clock, how: "shared" | "alone" | null) {
    this.#observer = observer;
    this.#clock = clock;
    this.#shared = how === "shared";
    this.#asked = how === null ? null : clock.now();
  }

  /**
   * Of a statement that is called now; null when it is an observer who calls. `how`: it is one of `pool.sql`, and yet to
   * get a connection.
   */
  static of(
    observer: StatementObserver,
    clock: Clock,
    how: "shared" | "alone" | null = null,
  ): Observed | null {
    return isTelling() ? null : new Observed(observer, clock, how);
  }

  /** It is about to be sent, or one more time. Returns what to append to its text. */
  sends(session: Session, of: Description | string): string | null {
    const summary = typeof of === "string" ? summaryOfCommand(of) : summaryFor(of);
    const { target } = session.started;
    const { path } = target;
    this.#sent = this.#clock.now();
    const facts = {
      ...this.#facts(summary, this.#sent),
      host: path ?? target.host,
      port: path === null ? target.port : null,
      pid: session.pid,
    };
    this.#observation = this.#inContext(() => this.#observer.sent(facts, session));
    return this.#observation?.comment ?? null;
  }

  /** It is over. Observers hear of it before its caller does, and not in the middle of the server's answers. */
  ended(rows: number | null, failure: { readonly error: unknown } | null): void {
    const observation = this.#observation;
    if (observation === null) return;
    this.#observation = null;
    this.#over = true;
    const end = { duration: this.#clock.now() - this.#sent, rows, failure };
    queueMicrotask(() => this.#inContext(() => observation.ended(end)));
  }

  /** It waited in vain; nothing happens when it was sent. */
  refused(of: Description, error: unknown): void {
    if (this.#over || this.#observation !== null) return;
    this.#over = true;
    const facts = this.#facts(summaryFor(of), this.#clock.now());
    queueMicrotask(() => this.#inContext(() => this.#observer.refused?.(facts, error)));
  }

  #facts(summary: Summary, now: number): Omit<StatementFacts, "host" | "port" | "pid"> {
    const waited = this.#asked === null ? 0 : now - this.#asked;
    return { ...summary, shared: this.#shared, waited };
  }
}
