/**
 * The array types of the server, fetched once for all connections of a pool.
 *
 * The driver would fetch them on each connection, and a failure there is an unhandled rejection that
 * ends the process (porsager/postgres#1192). So the catalog is read by a statement of ours, and what
 * the driver would enter into its tables is entered into those that all connections share.
 */

import { currentClock } from "../clock.ts";
import { NoAnswer, within } from "../pool/timeout.ts";
import type { Language } from "./language.ts";
import type { Session } from "./session.ts";

/** For how long a connection leaves the question to another one, in milliseconds. */
const PATIENCE = 100;

/**
 * Reads the element types, and their array types in the same order. Those are the types in the
 * category of arrays that have no array type themselves. One scan, where the driver's query has a
 * join and a sort, and one row instead of hundreds: the first connection of a process waits for it. The pid is what every
 * session is asked for.
 */
export const ARRAY_TYPES_QUERY: string =
  "select pg_catalog.array_agg(typelem), pg_catalog.array_agg(oid), pg_catalog.pg_backend_pid() from pg_catalog.pg_type " +
  "where typcategory = 'A' and typarray = 0 and typelem <> 0 and typtype = 'b'";

/** One connection's question. */
interface Claim {
  readonly session: Asked;
  readonly done: Promise<unknown>;
}

/** Who can be asked. */
type Asked = Pick<Session, "run" | "reason">;

/** Sees to it that one connection of a pool fetches, and the others wait for it. */
export class ArrayTypes {
  readonly #language: Language;
  #known: boolean;
  #claim: Claim | null = null;

  constructor(language: Language) {
    this.#language = language;
    this.#known = !language.options.fetch_types;
  }

  /** Makes sure that the types are known; gives the server's pid where this session was asked, else undefined. */
  async ensure(session: Asked): Promise<string | null | undefined> {
    while (!this.#known) {
      const claim = this.#claim;
      if (claim === null || claim.session.reason !== null) {
        return await this.#ask(session);
      }
      try {
        await within(currentClock(), PATIENCE, claim.done);
      } catch (error) {
        // A failure is its own connection's, and one that hangs holds nobody else up: this one tries for itself.
        if (error instanceof NoAnswer && this.#claim === claim) this.#claim = null;
      }
    }
    return undefined;
  }

  async #ask(session: Asked): Promise<string | null> {
    const claim = { session, done: this.#fetch(session) };
    this.#claim = claim;
    try {
      const pid = await claim.done;
      this.#known = true;
      return pid;
    } finally {
      if (this.#claim === claim) this.#claim = null;
    }
  }

  async #fetch(session: Asked): Promise<string | null> {
    const { row: [oids = null, typarrays = null, pid = null] } = await session.run(
      ARRAY_TYPES_QUERY,
    );
    const elements = numbersOf(oids);
    for (const [i, typarray] of numbersOf(typarrays).entries()) {
      this.#language.addArrayType(elements[i]!, typarray);
    }
    return pid;
  }
}

function numbersOf(array: string | null): number[] {
  return array === null ? [] : array.slice(1, -1).split(",").map(Number);
}
