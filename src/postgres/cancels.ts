/** Cancel requests of one session: each goes on a connection of its own, beside the session's. */

import { type DialOptions, sendCancel } from "./dial.ts";
import type { DriverQuery } from "./driver.ts";
import type { Target } from "./hosts.ts";
import type { Wire } from "./wire.ts";

/** How long a cancel request may take, in milliseconds. */
const CANCEL_LIMIT = 5_000;
/** The first pause before a request is repeated; each further one is twice as long. */
const FIRST_PAUSE = 50;
const LONGEST_PAUSE = 2_000;
/** The same limit on the way to a close. */
const CLOSE_LIMIT = 1_000;

function ignore(): void {}

/** Asks the server to cancel statements of one session. */
export class Cancels {
  readonly #target: Target;
  readonly #options: DialOptions;
  readonly #wire: Wire;
  readonly #over: () => boolean;
  readonly #ondone: () => void;
  /** Statements to be cancelled as soon as the server works on them. */
  readonly #due: Set<DriverQuery> = new Set();
  /** Those whose requests will be repeated. */
  readonly #again: Map<DriverQuery, ReturnType<typeof setTimeout>> = new Map();
  #onWay = 0;

  /** `over` tells whether the session has ended; `ondone` is called when no request is on its way any more. */
  constructor(
    target: Target,
    options: DialOptions,
    wire: Wire,
    over: () => boolean,
    ondone: () => void,
  ) {
    this.#target = target;
    this.#options = options;
    this.#wire = wire;
    this.#over = over;
    this.#ondone = ondone;
  }

  /** True while a request is on its way: nobody knows which statement it will hit. */
  get busy(): boolean {
    return this.#onWay > 0;
  }

  /** Cancels a statement: at once when it was not sent, else as soon as the server works on it. */
  async cancel(
    query: DriverQuery,
    driverCancel: (query: DriverQuery) => Promise<void>,
  ): Promise<void> {
    // Not sent yet: the driver takes it out of its queue and rejects it.
    if (query.state === null) return await driverCancel(query);
    if (query.active) return await this.#ask(query, FIRST_PAUSE);
    // The driver would mix up the answers of the statements behind it. So it is cancelled in its turn.
    this.#due.add(query);
  }

  /** Cancels what the server has come to. To be called after the driver has seen new data. */
  look(): void {
    for (const [query, timer] of this.#again) {
      if (query.active) continue;
      clearTimeout(timer);
      this.#again.delete(query);
    }
    if (this.#due.size === 0) return;
    // Nothing is on its way any more: what is left has had its answer.
    if (!this.#wire.busy) this.#due.clear();
    for (const query of this.#due) {
      if (!query.active) continue;
      this.#due.delete(query);
      this.#ask(query, FIRST_PAUSE).catch(ignore);
    }
  }

  /** Forgets what was to be cancelled. */
  clear(): void {
    this.#due.clear();
    for (const timer of this.#again.values()) clearTimeout(timer);
    this.#again.clear();
  }

  /**
   * The server drops a request that comes before it has begun with the statement, and it is busy with
   * other things, too; so it is asked again while the statement runs.
   */
  async #ask(query: DriverQuery, pause: number): Promise<void> {
    this.#again.delete(query);
    await this.#send(CANCEL_LIMIT, () => query.active);
    if (!query.active || this.#over() || pause > LONGEST_PAUSE) return;
    const timer = setTimeout(() => this.#ask(query, 2 * pause).catch(ignore), pause);
    this.#again.set(query, timer);
  }

  /** Cancels what runs, for a session that closes. */
  async now(): Promise<void> {
    await this.#send(CLOSE_LIMIT, () => true).catch(ignore);
  }

  /** Cancels what was sent behind that and runs now, one after the other, until nothing is left. */
  async rest(ended: Promise<void>): Promise<void> {
    while (!this.#over() && this.#wire.busy) {
      await this.now();
      // A request that comes between two statements is lost, so another one follows.
      let timer: ReturnType<typeof setTimeout> | undefined;
      const pause = new Promise<void>((resolve) => timer = setTimeout(resolve, 5));
      await Promise.race([ended, pause]);
      clearTimeout(timer);
    }
  }

  /** `due` is asked again when the request could be sent: meanwhile the next statement may have begun. */
  async #send(limit: number, due: () => boolean): Promise<void> {
    if (this.#over() || !this.#wire.busy) return;
    this.#onWay++;
    const giveUp = new AbortController();
    const timer = setTimeout(
      () => giveUp.abort(new Error("no answer to the cancel request")),
      limit,
    );
    try {
      await sendCancel(this.#target, this.#options, this.#wire, giveUp.signal, due);
    } finally {
      clearTimeout(timer);
      this.#onWay--;
      this.#ondone();
    }
  }
}
