/**
 * Cancel requests of one session. Each goes on a connection of its own, and hits whatever the server
 * works on when it comes: so none is sent but for the request at work, and nothing new is sent to the
 * session until it is over.
 */

import { ignore } from "../../pool/safely.ts";
import { underLimit } from "../../pool/timeout.ts";
import { afterBy, type Clock } from "../../clock.ts";
import type { Timer } from "../../runtime.ts";
import type { Request } from "./request.ts";

/** How long a cancel request may take, in milliseconds. */
const CANCEL_LIMIT = 5_000;
/** How long a request gets to end by itself where its cancel request could do harm; milliseconds. */
const GRACE = 50;
/** The first pause before a request is repeated, in milliseconds; each further one is twice as long. */
const FIRST_PAUSE = 50;
const LONGEST_PAUSE = 2_000;

/** Sends one cancel request; `due` is asked last whether it is still wanted. */
export type SendCancel = (signal: AbortSignal, due: () => boolean) => Promise<void>;

/** What is asked of the session, and told to it. */
export interface CancelSide {
  /** True when the session is over. */
  over(): boolean;
  /** What the server works on. */
  current(): Request | null;
  /** True when what was sent behind it could be hit in its place, and could not run again. */
  exposes(request: Request): boolean;
  /** A cancel request begins … */
  begin(): void;
  /** … and is over. */
  end(): void;
  /** Nothing is under way, and a cancel request may still come: it would hit whatever is sent next. */
  haunted(): void;
}

/** Sends one, and gives up after a limit, or when `outer` aborts. */
export function cancelOnce(
  clock: Clock,
  send: SendCancel,
  limit: number,
  due: () => boolean,
  outer: AbortSignal | null = null,
): Promise<void> {
  const late = (): Error => new Error("no answer to the cancel request");
  return underLimit(afterBy(clock), limit, late, outer, (signal) => send(signal, due));
}

/** A cancel request that has begun and is not over. */
interface Ask {
  /** Whether the server may know of it. */
  sent: boolean;
  /** Aborts what leads to the server. */
  readonly way: AbortController;
}

/** Asks the server to cancel requests of one session. */
export class Cancels {
  readonly #clock: Clock;
  readonly #send: SendCancel;
  readonly #side: CancelSide;
  /** To be cancelled as soon as the server works on them. */
  readonly #due: Set<Request> = new Set();
  /** Those that are asked for now. */
  readonly #asked: Map<Request, Ask> = new Map();
  /** Those that are asked for again. */
  readonly #again: Map<Request, Timer> = new Map();
  /** Those that may end by themselves, and what ends the wait for it. */
  readonly #graced: Map<Request, () => void> = new Map();
  /** True when one was sent and nobody knows whether it has come: it is on its way for good. */
  #stray = false;

  constructor(clock: Clock, send: SendCancel, side: CancelSide) {
    this.#clock = clock;
    this.#send = send;
    this.#side = side;
  }

  /** True while a cancel request is on its way. */
  get busy(): boolean {
    return this.#stray || this.#asked.size > 0;
  }

  /** Cancels a request that was sent: in its turn, as those before it must not be hit. */
  async cancel(request: Request): Promise<void> {
    if (this.#side.current() === request) await this.#ask(request, FIRST_PAUSE);
    else this.#due.add(request);
  }

  /** The server has come to another request. */
  look(current: Request | null): void {
    this.#callOff(current);
    if (current !== null && this.#due.delete(current)) {
      this.#ask(current, FIRST_PAUSE).catch(ignore);
    }
    if (current === null && this.#stray) this.#side.haunted();
  }

  /** Forgets all. */
  clear(): void {
    this.#due.clear();
    this.#callOff(null);
  }

  /** Whatever has begun for others than the one at work, as far as the server does not know of it. */
  #callOff(current: Request | null): void {
    for (const [request, timer] of this.#again) {
      if (request === current) continue;
      this.#clock.clearTimeout(timer);
      this.#again.delete(request);
    }
    for (const [request, go] of this.#graced) if (request !== current) go();
    // Nobody waits for a server that does not answer, when what it was to cancel has ended.
    for (const [request, { sent, way }] of this.#asked) {
      if (request !== current && !sent) way.abort();
    }
  }

  /** Resolves when the request has ended, or has had its time to. */
  #grace(request: Request): Promise<void> {
    return new Promise((resolve) => {
      const go = (): void => {
        this.#clock.clearTimeout(timer);
        this.#graced.delete(request);
        resolve();
      };
      const timer = this.#clock.setTimeout(go, GRACE);
      this.#graced.set(request, go);
    });
  }

  /**
   * The server drops a request that comes before it has begun with the statement, and while it is busy
   * with other things, too; so it is asked again while the statement runs.
   */
  async #ask(request: Request, pause: number): Promise<void> {
    this.#clock.clearTimeout(this.#again.get(request));
    this.#again.delete(request);
    const side = this.#side;
    const due = (): boolean => side.current() === request && !side.over();
    // By its caller and by its limit: a second one could only hit what comes behind it.
    if (!due() || this.#asked.has(request)) return;
    const ask: Ask = { sent: false, way: new AbortController() };
    const { signal } = ask.way;
    this.#asked.set(request, ask);
    side.begin();
    try {
      // Of two that end at the same time the server may cancel the wrong one: not where the right one is quick anyway.
      if (side.exposes(request)) await this.#grace(request);
      if (due()) {
        const last = (): boolean => ask.sent = due();
        await cancelOnce(this.#clock, this.#send, CANCEL_LIMIT, last, signal);
      }
    } catch (error) {
      this.#stray ||= ask.sent;
      // Not when it was called off.
      if (!signal.aborted) throw error;
    } finally {
      this.#asked.delete(request);
      if (!this.#stray) side.end();
      else if (side.current() === null && !side.over()) side.haunted();
    }
    if (!due() || pause > LONGEST_PAUSE) return;
    const timer = this.#clock.setTimeout(() => this.#ask(request, 2 * pause).catch(ignore), pause);
    this.#again.set(request, timer);
  }
}
