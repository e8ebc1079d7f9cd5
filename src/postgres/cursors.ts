/** Cursors and COPY streams that outlive their session without harm. */

import type { Duplex } from "node:stream";
import type { OnRows, Supervisor } from "./cursor.ts";
import type { DriverQuery } from "./driver.ts";
import { release } from "./scope.ts";

function ignore(): void {}

/**
 * The cursors of one session. The driver asks for a cursor's next rows when the borrower is done with
 * the last ones, without a look at whether the session still lives, and then writes where nobody can
 * catch the failure. It drops the failure of a callback that got the last rows. And an iterator over a
 * cursor whose session ended between two rounds would end as if all rows had been seen.
 */
export class Cursors implements Supervisor {
  /** While true no statement shows itself as a cursor: the driver would answer an end of rows. */
  paused = false;
  /** What a callback returns to have no more rows. */
  readonly #close: unknown;
  #over = false;
  /** The cursor that got rows last; weakly, as it may be at its end and hold a lease that nobody has any more. */
  #last: WeakRef<DriverQuery> | null = null;

  /** `close` is the driver's constant. */
  constructor(close: unknown) {
    this.#close = close;
  }

  /** Gets a cursor's rows instead of its callback. */
  async supervised(query: DriverQuery, callback: OnRows, rows: unknown): Promise<unknown> {
    if (this.#last?.deref() !== query) this.#last = new WeakRef(query);
    try {
      return await callback(rows);
    } catch (error) {
      query.reject(error);
      // A rejection would leave the driver's count of rows behind, for the next result to start at.
      return this.#close;
    } finally {
      if (this.#over) await new Promise<never>(ignore);
    }
  }

  /** The session is over. */
  over(reason: unknown): void {
    this.#over = true;
    const last = this.#last?.deref();
    if (!last?.active) return;
    // So that the iterator's next round executes it again, and is refused.
    last.executed = false;
    release(last, reason);
  }
}

/** A COPY whose session ends destroys its stream, which without a listener ends the process. */
export function catchStream(query: DriverQuery): void {
  const { resolve } = query;
  query.resolve = (stream) => {
    if (stream instanceof Object && "on" in stream) {
      (stream as Duplex).on("error", ignore).on(
        "close",
        () => release(query, new Error("COPY ended")),
      );
    }
    resolve(stream);
  };
}
