/** What connections tell of statements to whoever observes them; nothing while nobody does. */

import { Ambient } from "../runtime.ts";
import { callSafely } from "./safely.ts";

/** A statement that is about to be sent. No value of a parameter is in it. Times in milliseconds. */
export interface StatementFacts {
  /** Its text with its placeholders; where it has none, each literal is a `?`. */
  readonly text: string;
  /** Its operations and their tables, such as `select orders customers`, as they are written in it. */
  readonly summary: string;
  /** Its one operation; null when there are several. */
  readonly operation: string | null;
  /** The one table of its one operation; null where there are none or several. */
  readonly collection: string | null;
  /** How many statements are in the text. */
  readonly statements: number;
  /** True for one that shares a connection with others, through `pool.sql`. */
  readonly shared: boolean;
  /** For how long it waited for a connection. */
  readonly waited: number;
  /** The host, or the path of the Unix socket. */
  readonly host: string;
  /** The port; null for a Unix socket. */
  readonly port: number | null;
  /** The server's process. */
  readonly pid: number;
}

/** How a statement ended. */
export interface StatementEnd {
  /** From the sending to the server's last word, in milliseconds. */
  readonly duration: number;
  /** How many rows it gave or changed; null when it tells none. */
  readonly rows: number | null;
  /** Why it failed; null for one that did not. */
  readonly failure: { readonly error: unknown } | null;
}

/** What an observer has of one statement. */
export interface StatementObservation {
  /** Appended to the text, as a comment; with it the statement is not kept prepared. */
  readonly comment?: string | null;
  /** It is over. Called in the caller's async context. */
  ended(end: StatementEnd): void;
}

/** Who observes statements. What it throws harms nobody. */
export interface StatementObserver {
  /** It is about to be sent, on what the connector opened. Called in the caller's async context. */
  sent(facts: StatementFacts, resource: object): StatementObservation | null;
  /** It waited for a connection in vain. */
  refused?(facts: Omit<StatementFacts, "host" | "port" | "pid">, error: unknown): void;
}

const OBSERVER = "An observer of statements";

/** Set while observers are told: what they ask of a pool meanwhile is not told of in its turn. */
const telling: Ambient<true> = new Ambient<true>();

/** True where an observer is told of something. */
export function isTelling(): boolean {
  return telling.current !== undefined;
}

function tell(fn: () => unknown): void {
  callSafely(OBSERVER, () => telling.run(true, fn));
}

/** Everybody who observes the statements of one pool. */
export class Observers implements StatementObserver {
  #all: readonly StatementObserver[] = [];
  readonly #observe: (observer: StatementObserver | null) => void;

  /** `observe` makes connections tell of statements, or with null no more. */
  constructor(observe: (observer: StatementObserver | null) => void) {
    this.#observe = observe;
  }

  /** Tells this one, too. Returns how to end that. */
  add(observer: StatementObserver): () => void {
    this.#all = [...this.#all, observer];
    if (this.#all.length === 1) this.#observe(this);
    return () => {
      const rest = this.#all.filter((one) => one !== observer);
      if (rest.length === this.#all.length) return;
      this.#all = rest;
      if (rest.length === 0) this.#observe(null);
    };
  }

  sent(facts: StatementFacts, resource: object): StatementObservation {
    const observations: StatementObservation[] = [];
    for (const observer of this.#all) {
      tell(() => {
        const observation = observer.sent(facts, resource);
        if (observation !== null) observations.push(observation);
      });
    }
    return {
      comment: observations.find(({ comment }) => comment)?.comment ?? null,
      ended: (end) => {
        for (const observation of observations) tell(() => observation.ended(end));
      },
    };
  }

  refused(facts: Omit<StatementFacts, "host" | "port" | "pid">, error: unknown): void {
    for (const observer of this.#all) tell(() => observer.refused?.(facts, error));
  }
}
