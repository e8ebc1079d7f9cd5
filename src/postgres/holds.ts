/**
 * Which transports keep the process alive. Those of leased sessions do, at once; those of idle
 * sessions let go of it a moment later, so that a session that is lent over and over pays nothing:
 * `ref` and `unref` of a socket cost 100 ns together in Deno, a quarter of a lease.
 */

import { type Clock, currentClock } from "../clock.ts";
import { Alarm } from "../pool/alarm.ts";
import type { Transport } from "./wire/transport.ts";

/** How long a process with nothing but idle sessions lives on, in milliseconds. */
const MOMENT = 10;

/** The transports of one pool. */
export class Holds {
  /** Those that are to let go. */
  readonly #due = new Set<Hold>();
  /** The time for all of them. */
  readonly clock: Clock = currentClock();
  readonly #alarm = new Alarm(this.clock, () => this.#letGo(), true);

  /** A transport's hold; it has it. */
  of(transport: Transport): Hold {
    return new Hold(transport, this);
  }

  /** A moment later it lets go. */
  add(hold: Hold): void {
    this.#due.add(hold);
    const now = this.clock.now();
    this.#alarm.set(now + MOMENT, now);
  }

  /** The transport is gone: leaves no timer behind. */
  remove(hold: Hold): void {
    if (!this.#due.delete(hold) || this.#due.size > 0) return;
    this.#alarm.clear();
  }

  #letGo(): void {
    for (const hold of this.#due) hold.settle();
    this.#due.clear();
  }
}

/** One transport's hold on the process. */
export class Hold {
  readonly #transport: Transport;
  readonly #holds: Holds;
  /** True from the first {@linkcode Hold.take} on, while it is in somebody's hands. */
  taken = false;
  #has = true;
  #due = false;

  constructor(transport: Transport, holds: Holds) {
    this.#transport = transport;
    this.#holds = holds;
  }

  /** From now on it keeps the process alive. */
  take(): void {
    this.taken = true;
    if (this.#has) return;
    this.#has = true;
    this.#transport.ref();
  }

  /** From now on, or a moment later, it does not. */
  drop(): void {
    this.taken = false;
    if (!this.#has || this.#due) return;
    this.#due = true;
    this.#holds.add(this);
  }

  /** Makes it so. */
  settle(): void {
    this.#due = false;
    if (this.taken || !this.#has) return;
    this.#has = false;
    this.#transport.unref();
  }

  /** The transport is gone. */
  end(): void {
    this.#due = true;
    this.#holds.remove(this);
  }
}
