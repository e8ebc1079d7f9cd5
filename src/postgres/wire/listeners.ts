/** Who listens to which channel on one session. */

import { callSafely } from "../../pool/safely.ts";

/** A listener's callback. */
export type OnNotify = (payload: string) => unknown;

/** The listeners of one session. */
export class Listeners {
  /** Null before the first: most sessions never listen. */
  #channels: Map<string, Set<OnNotify>> | null = null;
  #doubtful = false;

  /** True while the session listens, or may. */
  get used(): boolean {
    return this.#doubtful || this.#channels !== null && this.#channels.size > 0;
  }

  /** The server may listen though nobody does here: an UNLISTEN failed, or can be rolled back. */
  doubt(): void {
    this.#doubtful = true;
  }

  /** Adds a listener. */
  add(channel: string, callback: OnNotify): void {
    const channels = this.#channels ??= new Map();
    const known = channels.get(channel);
    if (known === undefined) channels.set(channel, new Set([callback]));
    else known.add(callback);
  }

  /** Removes a listener; true when it was the channel's last. */
  remove(channel: string, callback: OnNotify): boolean {
    const known = this.#channels?.get(channel);
    if (known === undefined || !known.delete(callback) || known.size > 0) return false;
    this.#channels!.delete(channel);
    return true;
  }

  /** Removes all, without a word to the server. */
  clear(): void {
    this.#channels?.clear();
  }

  /** Tells a channel's listeners. */
  notify(channel: string, payload: string): void {
    for (const callback of this.#channels?.get(channel) ?? []) {
      // A statement is in flight somewhere; its fate is not the listener's.
      callSafely(`the listener of channel "${channel}"`, () => callback(payload));
    }
  }
}
