/** Prepared statements: what one session has prepared, and what all sessions of a pool know of a text. */

/** How many statements one session keeps prepared. */
export const MOST_PREPARED = 256;

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

/** The descriptions of a pool, the least recently used go. */
export class Descriptions {
  readonly #known = new Map<string, Description>();
  readonly #most: number;

  constructor(most = 1024) {
    this.#most = most;
  }

  /** The one for this text and these types. */
  of(text: string, declared: readonly number[]): Description {
    const key = declared.length === 0 ? text : `${declared}:${text}`;
    let found = this.#known.get(key);
    if (found === undefined) {
      found = new Description(text, declared);
      if (this.#known.size >= this.#most) {
        this.#known.delete(this.#known.keys().next().value!);
      }
    } else this.#known.delete(key);
    this.#known.set(key, found);
    return found;
  }
}

/** A statement that a session has prepared, or is about to. */
export interface Prepared<S = unknown> {
  readonly description: Description;
  /** Its name at the server. */
  readonly name: string;
  /** What whoever reads the rows has made of the columns; null until the server has told. */
  shape: S | null;
  /** What is shown of it with each result; null until it was shown. */
  shown: object | null;
  /** When it was used last, in uses. */
  used: number;
}

/** The statements of one session. */
export class PreparedStatements<S = unknown> {
  readonly #known = new Map<Description, Prepared<S>>();
  readonly #prefix: string;
  #made = 0;
  #uses = 0;

  /** Names begin with `prefix`, so that a pooler that mixes up sessions does not mix up statements. */
  constructor(prefix: string) {
    this.#prefix = prefix;
  }

  /** The one for this description, or null. */
  find(description: Description): Prepared<S> | null {
    const found = this.#known.get(description);
    if (found === undefined) return null;
    found.used = ++this.#uses;
    return found;
  }

  /** A new one. When there are too many, the one that was not used for longest is `dropped`, to be closed. */
  add(description: Description): { prepared: Prepared<S>; dropped: Prepared<S> | null } {
    let dropped: Prepared<S> | null = null;
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
      shown: null,
      used: ++this.#uses,
    };
    this.#known.set(description, prepared);
    return { prepared, dropped };
  }

  /** Forgets one that the server does not have, or not as it was. */
  forget(prepared: Prepared<S>): void {
    if (this.#known.get(prepared.description) === prepared) {
      this.#known.delete(prepared.description);
    }
  }

  /** Forgets all: the server has. */
  clear(): void {
    this.#known.clear();
  }
}
