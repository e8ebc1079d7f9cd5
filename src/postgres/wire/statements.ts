/** Prepared statements: what one session has prepared, and what all sessions of a pool know of a text. */

import type { Field } from "./request.ts";

/** How many statements one session keeps prepared. */
const MOST_PREPARED = 256;

/** A text and the types that its parameters are declared as; one object for each, so that it can be compared. */
export class Description {
  readonly text: string;
  /** As declared; 0 leaves it to the server. */
  readonly declared: readonly number[];
  /**
   * What the server makes of them; null until it has told. It is what values are written by, and what
   * every further session declares.
   */
  types: readonly number[] | null;
  /** The same text with other types. */
  other: Description | null = null;
  /** What whoever reads rows made of its columns last: mostly the next session's are the same. */
  shape: unknown = null;
  /** What whoever schedules statements knows of this one. */
  notes: unknown = null;
  /** What whoever tells of statements knows of this one. */
  summary: unknown = null;

  constructor(text: string, declared: readonly number[]) {
    this.text = text;
    this.declared = declared;
    this.types = declared.length === 0 ? declared : null;
  }
}

/** With how many sets of types one text is known. */
const MOST_TYPES = 64;

/**
 * The descriptions of a pool. Those that were not used for longest go, in bulk: to keep an order of all would cost more
 * than the look.
 */
export class Descriptions {
  /** By their text, as it stands in the program, whose hash is known: those that were used of late … */
  #young = new Map<string, Description>();
  /** … and before. */
  #old = new Map<string, Description>();
  readonly #most: number;

  /** Knows at least the last `most` texts, and at most twice as many. */
  constructor(most = 512) {
    this.#most = most;
  }

  /** The one for this text and these types. */
  of(text: string, declared: readonly number[]): Description {
    let first = this.#young.get(text);
    if (first === undefined) {
      first = this.#old.get(text) ?? new Description(text, declared);
      if (this.#young.size >= this.#most) {
        this.#old = this.#young;
        this.#young = new Map();
      }
      this.#young.set(text, first);
    }
    let count = 0;
    for (let at: Description | null = first; at !== null; at = at.other) {
      if (isSame(at.declared, declared)) return at;
      count++;
    }
    const found = new Description(text, declared);
    if (count < MOST_TYPES) found.other = first;
    this.#young.set(text, found);
    return found;
  }
}

function isSame(a: readonly number[], b: readonly number[]): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** A statement that a session has prepared, or is about to. */
export interface Prepared {
  readonly description: Description;
  /** Its name at the server. */
  readonly name: string;
  /** What whoever reads the rows has made of the columns; null until the server has told. */
  shape: unknown;
  /** The columns, while whoever reads the rows has failed to make anything of them; else null. */
  fields: readonly Field[] | null;
  /** What is shown of it with each result; null until it was shown. */
  shown: object | null;
  /** When it was used last, in uses. */
  used: number;
}

/** The statements of one session. */
export class PreparedStatements {
  readonly #known = new Map<Description, Prepared>();
  readonly #prefix: string;
  #made = 0;
  #uses = 0;

  /** Names begin with `prefix`, so that a pooler that mixes up sessions does not mix up statements. */
  constructor(prefix: string) {
    this.#prefix = prefix;
  }

  /** The one for this description, or null. */
  find(description: Description): Prepared | null {
    const found = this.#known.get(description);
    if (found === undefined) return null;
    found.used = ++this.#uses;
    return found;
  }

  /** A new one. When there are too many, the one that was not used for longest is `dropped`, to be closed. */
  add(description: Description): { prepared: Prepared; dropped: Prepared | null } {
    let dropped: Prepared | null = null;
    if (this.#known.size >= MOST_PREPARED) {
      for (const one of this.#known.values()) {
        if (dropped === null || one.used < dropped.used) dropped = one;
      }
      this.#known.delete(dropped!.description);
    }
    const prepared = {
      description,
      name: this.#prefix + this.#made++,
      shape: null,
      fields: null,
      shown: null,
      used: ++this.#uses,
    };
    this.#known.set(description, prepared);
    return { prepared, dropped };
  }

  /** Takes an {@linkcode PreparedStatements.add} back: nothing of it was sent. */
  takeBack(prepared: Prepared, dropped: Prepared | null): void {
    this.forget(prepared);
    if (dropped !== null) this.#known.set(dropped.description, dropped);
  }

  /** Forgets one that the server does not have, or not as it was. */
  forget(prepared: Prepared): void {
    if (this.#known.get(prepared.description) === prepared) {
      this.#known.delete(prepared.description);
    }
  }

  /** Forgets all: the server has. */
  clear(): void {
    this.#known.clear();
  }
}
