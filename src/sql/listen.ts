/** LISTEN for a whole pool: one session for all channels, replaced when it is lost. */

import { callSafely, ignore } from "../pool/safely.ts";
import { checkListen, type Listening, quoted } from "../postgres/listen.ts";
import { bindContext, type Timer } from "../runtime.ts";
import type { SqlAccess, SqlLease } from "./access.ts";

/** After so many milliseconds another attempt to listen again is made, where one has failed. */
const AGAIN_AFTER = 1_000;

interface Listener {
  readonly fn: (payload: string) => unknown;
  readonly onlisten: (() => void) | undefined;
}

interface Channel {
  readonly listeners: Set<Listener>;
  /** What the session calls. */
  readonly notify: (payload: string) => void;
  /** The session's, when the server listened last. */
  state: unknown;
  /** Whether the last attempt to listen again has failed. */
  failed: boolean;
  /** Settles with the session's state once the server listens. */
  result: Promise<{ readonly state: unknown }>;
}

/** The channels of one `pool.sql`. The session is borrowed for the first and given back after the last. */
export class Channels {
  readonly #access: SqlAccess;
  readonly #channels: Map<string, Channel> = new Map();
  #lease: Promise<SqlLease> | null = null;
  #forget: () => void = ignore;
  /** The next attempt to listen again where one has failed. */
  #again: Timer | undefined;

  constructor(access: SqlAccess) {
    this.#access = access;
    access.state.watchers.add(() => {
      // A pool that drains waits for its leases.
      if (access.closed) this.#stop();
    });
  }

  /** As the driver's `listen`. */
  async listen(
    name: string,
    fn: (payload: string) => void,
    onlisten?: () => void,
  ): Promise<Listening> {
    if (this.#access.state.permits.limit < 2) {
      throw this.#access.error(
        "listen takes a connection of its own, so that maxconn 1 is not enough",
        "UNSUPPORTED",
      );
    }
    checkListen(name, fn);
    const listener = {
      fn: bindContext(fn),
      onlisten: onlisten === undefined ? undefined : bindContext(onlisten),
    };
    let channel = this.#channels.get(name);
    if (channel !== undefined) channel.listeners.add(listener);
    else {
      channel = newChannel(listener);
      this.#channels.set(name, channel);
      channel.result = this.#subscribe(name, channel);
    }
    const listened = channel;
    try {
      await channel.result;
    } catch (error) {
      channel.listeners.delete(listener);
      if (channel.listeners.size === 0 && this.#channels.get(name) === channel) {
        this.#channels.delete(name);
        this.#freeWhenUnused();
      }
      throw error;
    }
    tellListening(listener);
    return {
      // As in the driver: of the session that listens now.
      get state() {
        return listened.state;
      },
      unlisten: () => this.#unlisten(name, listener),
    };
  }

  async #unlisten(name: string, listener: Listener): Promise<unknown> {
    const channel = this.#channels.get(name);
    if (channel === undefined || !channel.listeners.delete(listener)) return undefined;
    if (channel.listeners.size > 0) return undefined;
    this.#channels.delete(name);
    try {
      const lease = await this.#lease;
      lease?.session.listeners.remove(name, channel.notify);
      if (lease === null || this.#channels.has(name)) return undefined;
      return await lease.session.run(`unlisten ${quoted(name)}`);
    } catch (error) {
      // A session that is lost listens no more.
      if ((error as { code?: string }).code?.startsWith("CONNECTION_") !== true) throw error;
      return undefined;
    } finally {
      this.#freeWhenUnused();
    }
  }

  async #subscribe(
    name: string,
    channel: Channel,
    patient = false,
  ): Promise<{ readonly state: unknown }> {
    const statement = `listen ${quoted(name)}`;
    const { session } = await this.#session(patient);
    session.listeners.add(name, channel.notify);
    try {
      const result = await session.run(statement) as { state: unknown };
      channel.state = result.state;
      return result;
    } catch (error) {
      session.listeners.remove(name, channel.notify);
      throw error;
    }
  }

  #session(patient = false): Promise<SqlLease> {
    if (this.#lease !== null) return this.#lease;
    const lease = this.#access.borrow({ patient });
    this.#lease = lease;
    lease.then(
      (lent) => {
        lent.lease.own = true;
        // The pool's own word, which comes when it has noted the loss itself.
        this.#forget = lent.lease.whenOver((lost) => {
          if (lost !== null) this.#lost(lease, lent);
        });
        // In the turn in which it was lent.
        if (lent.session.reason !== null) this.#lost(lease, lent);
      },
      () => {
        if (this.#lease === lease) this.#lease = null;
      },
    );
    return lease;
  }

  #lost(lease: Promise<SqlLease>, lent: SqlLease): void {
    lent.giveBack();
    if (this.#lease !== lease) return;
    this.#lease = null;
    if (this.#access.closed) return this.#channels.clear();
    for (const [name, channel] of this.#channels) this.#resume(name, channel);
  }

  /** Listens anew, for as long as it takes; `onlisten` tells that something may have been missed. */
  #resume(name: string, channel: Channel): void {
    channel.failed = false;
    const result = channel.result = this.#subscribe(name, channel, true).then((result) => {
      for (const listener of channel.listeners) tellListening(listener);
      return result;
    });
    // Nobody else would: too many wait, the server lets nobody in for now, or it is a standby, which takes no LISTEN.
    result.catch(() => {
      // When this session is lost too, the next one resumes.
      if (channel.result !== result || this.#access.closed) return;
      channel.failed = true;
      this.#again ??= this.#access.state.clock.setTimeout(() => {
        this.#again = undefined;
        for (const [name, channel] of this.#channels) {
          if (channel.failed) this.#resume(name, channel);
        }
      }, AGAIN_AFTER);
    });
  }

  #freeWhenUnused(): void {
    if (this.#channels.size > 0) return;
    this.#stopTrying();
    if (this.#lease === null) return;
    const lease = this.#lease;
    this.#lease = null;
    this.#forget();
    lease.then((lent) => {
      // Nothing listens any more, but the server's word for the last channel may be on its way.
      return lent.session.quiet().then(() => lent.giveBack());
    }).catch(ignore);
  }

  #stopTrying(): void {
    this.#access.state.clock.clearTimeout(this.#again);
    this.#again = undefined;
  }

  #stop(): void {
    const asked = [...this.#channels.values()].map(({ result }) => result);
    this.#channels.clear();
    this.#stopTrying();
    const lease = this.#lease;
    this.#lease = null;
    // What was asked for before has its answer first.
    lease?.then(async (lent) => {
      await Promise.allSettled(asked);
      lent.giveBack(true);
    }).catch(ignore);
  }
}

function tellListening({ onlisten }: Listener): void {
  if (onlisten !== undefined) callSafely("onlisten", onlisten);
}

function newChannel(first: Listener): Channel {
  const listeners = new Set([first]);
  return {
    listeners,
    notify: (payload) => {
      for (const { fn } of listeners) callSafely("a listener of pool.sql", () => fn(payload));
    },
    state: null,
    failed: false,
    result: Promise.resolve({ state: null }),
  };
}
