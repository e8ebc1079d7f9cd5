/**
 * Hands statements to the driver so that its faults cannot mix up answers.
 *
 * The driver puts a statement into its queue before it builds the message. When building throws (an
 * undefined value, a serializer that fails) while another statement is in flight, it rejects that
 * other one, never sends the guilty one, and from then on every answer goes to the wrong statement.
 * So statements are handed over one by one, at most one of them waiting inside the driver: then a
 * rejection during the hand-over can only mean the statement handed over, and a placeholder gives it
 * the answer that the driver waits for.
 *
 * The driver repeats a prepared statement that went stale by a change of the schema, at once and amid
 * those in flight: two of them hang, and values that it had turned into text it turns again, so that
 * JSON is stored as a string. So here the statement takes its turn anew, as it was first given.
 */

import { type DriverQuery, type Handler, inside, type Sql } from "./driver.ts";
import { Prompt } from "./prompt.ts";
import { release } from "./scope.ts";
import { PLACEHOLDER, type Wire } from "./wire.ts";

const REJECT = Symbol("reject");
const PREPARED = Symbol("prepared");
const STALE = Symbol("stale");

type Guarded = DriverQuery & {
  /** The statement's own `reject`. */
  [REJECT]?: (reason: unknown) => void;
  /** True when it was sent as one that the server had prepared before. */
  [PREPARED]?: boolean;
  /** Why it is executed a second time. */
  [STALE]?: unknown;
};

/** Where the server complains of a prepared statement that does not fit any more; the driver's own list. */
const STALE_ROUTINES: ReadonlySet<unknown> = new Set([
  "FetchPreparedStatement",
  "RevalidateCachedQuery",
  "transformAssignedExpr",
]);

/** One session's way into the driver. */
export class Pipeline {
  readonly #sql: Sql;
  readonly #wire: Wire;
  /** The driver's own way to execute a statement. */
  readonly #inner: Handler;
  readonly #guardedReject: (this: Guarded, reason: unknown) => void;

  readonly #prompt = new Prompt();
  #handing: DriverQuery | null = null;
  #fault: { readonly reason: unknown } | null = null;
  /** True when the driver refused the statement at hand without queueing it. */
  #refused = false;
  /** Handed over, but kept back by the driver, whose pipeline is full. */
  #waiting: Guarded | null = null;
  #queue: DriverQuery[] = [];
  /** The last statement handed over, until its bytes are known to be written. */
  #last: DriverQuery | null = null;

  /** `onreject` sees every error before its statement does. */
  constructor(sql: Sql, wire: Wire, onreject: (reason: unknown) => void) {
    this.#sql = sql;
    this.#wire = wire;
    this.#inner = inside(sql.unsafe("")).handler;
    // deno-lint-ignore no-this-alias
    const pipeline = this;
    this.#guardedReject = function (reason): void {
      onreject(reason);
      pipeline.#onreject(this, reason);
    };
  }

  #onreject(query: Guarded, reason: unknown): void {
    const atHand = this.#handing;
    if (atHand !== null && atHand !== query) {
      this.#fault = { reason };
    } else if (query.state !== null && (atHand === query || this.#waiting === query)) {
      // It could not be built, and the driver has sent a Sync for it. Rejecting it at that Sync's
      // answer lets the borrower find the session idle.
      query.resolve = () => query[REJECT]!(reason);
    } else if (this.#repeatable(query, reason)) {
      query[STALE] = reason;
      // With this the driver forgets what it had prepared; the values are taken anew.
      query.onlyDescribe = true;
      query.parameters = query.state = null;
      query.active = false;
      this.#queue.push(query);
    } else {
      this.#refused = true;
      release(query, reason);
      query[REJECT]!(query[STALE] ?? reason);
    }
  }

  /** True when the statement was stale, may be executed again, and was not yet. */
  #repeatable(query: Guarded, reason: unknown): boolean {
    // Also in a transaction, which has failed: else the driver would not forget, and the next one fail too.
    return query[PREPARED] === true && query[STALE] === undefined &&
      STALE_ROUTINES.has((reason as { routine?: unknown } | null)?.routine);
  }

  /** The driver has built and written it: from now on its answer may come. */
  #sent(query: Guarded): void {
    if (query[STALE] !== undefined) query.onlyDescribe = false;
    else if (query.prepared) {
      query[PREPARED] = true;
      // Else the driver would repeat it by itself.
      query.prepared = false;
    }
  }

  /** True while a statement that was taken is not known to be written. */
  get busy(): boolean {
    return this.#queue.length > 0 || (this.#waiting !== null && !isOut(this.#waiting)) ||
      (this.#last !== null && !this.#last.cancelled);
  }

  /** Takes a statement. */
  hand(query: DriverQuery): void {
    // The driver would wait for ever for the answer to a statement that was cancelled before it got it.
    if (query.cancelled) return;
    if (this.#waiting !== null || this.#queue.length > 0) {
      this.#queue.push(query);
      this.drain();
    } else this.#give(query);
  }

  /** To be called before the driver sees new data: what it rejects from then on has been sent. */
  refresh(): void {
    if (this.#waiting === null || !isOut(this.#waiting)) return;
    this.#sent(this.#waiting);
    this.#waiting = null;
  }

  /** Hands over what waits, as far as the driver has room. To be called after it has seen new data. */
  drain(): void {
    this.refresh();
    if (this.#waiting !== null) return;
    if (this.#queue.length === 0) return;
    const queue = this.#queue;
    this.#queue = [];
    let taken = 0;
    while (taken < queue.length && this.#waiting === null) {
      const query = queue[taken++]!;
      if (!query.cancelled) this.#give(query);
    }
    // What was queued meanwhile, by a rejection's handlers, stands behind the rest.
    this.#queue = taken === queue.length ? this.#queue : queue.slice(taken).concat(this.#queue);
  }

  /** Takes note of a write: the driver has put out everything that it had built. */
  written(): void {
    this.#prompt.drop();
    if (this.#last !== null && this.#last.state !== null) this.#last = null;
  }

  /** Rejects what was not handed over, because the session is gone. */
  fail(reason: unknown): void {
    const queue = this.#queue;
    this.#queue = [];
    this.#last = this.#waiting = null;
    this.#prompt.drop();
    for (const query of queue) query.reject(reason);
  }

  #give(query: Guarded): void {
    query[REJECT] ??= query.reject;
    query.reject = this.#guardedReject;
    this.#handing = query;
    this.#refused = false;
    try {
      // While the server has work, the driver's own way collects more for one message.
      if (this.#wire.busy) this.#inner(query);
      else this.#prompt.run(this.#inner, query);
    } finally {
      this.#handing = null;
    }
    if (this.#fault !== null) {
      const { reason } = this.#fault;
      this.#fault = null;
      // The first answer to the placeholder is taken for its own; with the second all is idle.
      const reject = (): void => query[REJECT]!(reason);
      query.resolve = () => {};
      this.#standIn().then(reject, reject);
      return;
    }
    // Such as during a COPY: the statement never gets a state.
    if (this.#refused && query.state === null) return;
    this.#last = query;
    if (isOut(query)) this.#sent(query);
    else this.#waiting = query;
  }

  #standIn(): DriverQuery {
    const placeholder = inside(this.#sql.unsafe(PLACEHOLDER));
    // Handed over here and now, before anything else gets a place behind the unbuilt statement.
    placeholder.executed = true;
    this.#wire.expectPlaceholder();
    this.#give(placeholder);
    return placeholder;
  }
}

/** True when the driver holds a statement back no more. */
function isOut(query: DriverQuery): boolean {
  return query.state !== null || Boolean(query.cancelled);
}
