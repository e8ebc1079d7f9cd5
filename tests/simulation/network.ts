/** The simulated network between a pool and a server: it delays, splits, joins, stalls and breaks. */

import { Buffer } from "node:buffer";
import type { Dice } from "../support/dice.ts";
import type {
  OpenTransport,
  Transport,
  TransportHandlers,
  TransportTarget,
} from "../../src/postgres/wire/transport.ts";
import { SERVERS, type VirtualClock } from "./clock.ts";
import type { Isolate } from "./isolate.ts";
import type { Line, Peer, Server } from "./server.ts";

/** How the network is at the moment; the world's dice change it. */
export interface Weather {
  /** The time that bytes take, in milliseconds: from, to. */
  latency: readonly [number, number];
  /** How often a chunk is cut in pieces. */
  split: number;
  /** How often a connect is refused. */
  refuse: number;
  /** How often a connect gets no answer. */
  silent: number;
  /** How often a chunk breaks its connection instead. */
  reset: number;
  /** How often nothing more goes through a connection, without a word. */
  stall: number;
}

export const FAIR: Weather = {
  latency: [0.1, 0.5],
  split: 0,
  refuse: 0,
  silent: 0,
  reset: 0,
  stall: 0,
};

/** What keeps nobody from connecting. */
const HARMLESS: ReadonlySet<string> = new Set([
  "wall clock set",
  "passwords refused",
  "worker interrupted",
]);
/** After how long a connection on which nothing comes through is given up. Milliseconds. */
export const KEEPALIVE = 120_000;
/** How much may be under way before `write` says that it is enough. */
const FULL = 16_384;
/** In how many pieces a chunk is cut, at most. */
const MOST_PARTS = 5;

/** All connections of one world. */
export class Network {
  weather: Weather = { ...FAIR };
  /** Connections that are open on the client's side. */
  readonly open: Set<SimTransport> = new Set();
  /** What was done, by kind. */
  readonly faults: Record<string, number> = {};
  /** When something was done last that makes a connect take its time, or fail. */
  troubledAt: number = -Infinity;
  /** Where a name leads: a fail-over changes it. */
  readonly servers: Map<string, Server> = new Map();
  readonly #clock: VirtualClock;
  readonly #dice: Dice;

  constructor(clock: VirtualClock, dice: Dice) {
    this.#clock = clock;
    this.#dice = dice;
  }

  /** What the pools of an isolate are given to connect with. */
  connect(isolate: Isolate): OpenTransport {
    return (target, signal) =>
      new Promise<Transport>((resolve, reject) => {
        const { weather } = this;
        const server = this.servers.get(target.host);
        const cancelled = (): void => {
          stop();
          reject(signal.reason);
        };
        if (signal.aborted) return reject(signal.reason);
        const silent = server === undefined || this.#dice.chance(weather.silent);
        if (silent) this.count("connect without an answer");
        const refused = !silent && (server.mode === "down" || this.#dice.chance(weather.refuse));
        const stop = silent ? () => {} : isolate.after(this.delay() * 2, () => {
          signal.removeEventListener("abort", cancelled);
          if (refused || server.mode === "down") {
            this.count("connect refused");
            return reject(fault("ECONNREFUSED", target));
          }
          resolve(new SimTransport(this, this.#clock, this.#dice, server, target, isolate));
        });
        signal.addEventListener("abort", cancelled, { once: true });
      });
  }

  /** How many sessions there are on connections that are open on both sides. */
  get sessions(): number {
    let count = 0;
    for (const { session } of this.open) if (session !== null) count++;
    return count;
  }

  /** The connection that is open on both sides and leads to a session; null when there is none. */
  leadingTo(session: number): SimTransport | null {
    for (const one of this.open) if (one.session === session) return one;
    return null;
  }

  /** How long the next bytes take. */
  delay(): number {
    const [from, to] = this.weather.latency;
    return from + (to - from) * this.#dice.next();
  }

  /** Notes a fault. */
  count(kind: string): void {
    this.faults[kind] = (this.faults[kind] ?? 0) + 1;
    if (!HARMLESS.has(kind)) this.troubledAt = this.#clock.now();
  }

  /** Breaks a connection. */
  reset(transport: SimTransport): void {
    this.count("connection reset");
    transport.break();
  }
}

function fault(code: string, target: TransportTarget): Error {
  const message = `connect ${code} ${target.host}:${target.port}`;
  return Object.assign(new Error(message), { code });
}

/** One way of a connection: in order, each thing after the one before it. */
class Way {
  /** Nothing more comes through, and nobody is told. */
  stalled = false;
  #last = 0;
  readonly #network: Network;
  readonly #clock: VirtualClock;
  /** Who gets it; null for a server. */
  readonly #to: Isolate | null;

  constructor(network: Network, clock: VirtualClock, to: Isolate | null) {
    this.#network = network;
    this.#clock = clock;
    this.#to = to;
  }

  carry(fn: () => void): void {
    if (this.stalled) return;
    const at = Math.max(this.#last, this.#clock.now() + this.#network.delay());
    this.#last = at;
    this.#clock.after(at - this.#clock.now(), () => {
      if (!this.stalled) fn();
    }, this.#to ?? SERVERS);
  }
}

/** The client's end of a connection. */
export class SimTransport implements Transport {
  closed = false;
  /** When anything came through, in either direction. */
  usedAt = 0;
  readonly target: TransportTarget;
  readonly #network: Network;
  readonly #clock: VirtualClock;
  readonly #dice: Dice;
  readonly #out: Way;
  readonly #in: Way;
  readonly #peer: Peer;
  #handlers: TransportHandlers | null = null;
  /** What was told while nobody listened, or while it is paused. */
  readonly #held: ((handlers: TransportHandlers) => void)[] = [];
  #paused = false;
  #ended = false;
  #theirsEnded = false;
  #underWay = 0;
  #wantsDrain = false;
  /** Whose it is: what is told comes in its turns, and once it is dead nothing more goes out. */
  readonly #isolate: Isolate;

  constructor(
    network: Network,
    clock: VirtualClock,
    dice: Dice,
    server: Server,
    target: TransportTarget,
    isolate: Isolate,
  ) {
    this.target = target;
    this.#isolate = isolate;
    this.#network = network;
    this.#clock = clock;
    this.#dice = dice;
    this.#out = new Way(network, clock, null);
    this.#in = new Way(network, clock, isolate);
    network.open.add(this);
    isolate.transports.add(this);
    const line: Line = {
      send: (bytes) => {
        for (const part of this.#parts(bytes)) {
          this.#in.carry(() => {
            this.usedAt = clock.now();
            // As where all sockets read into one buffer.
            this.#tell((h) => {
              h.data(Buffer.from(part.buffer, part.byteOffset, part.length));
              part.fill(0xff);
            });
          });
        }
      },
      end: () =>
        this.#in.carry(() =>
          this.#tell((h) => {
            this.#theirsEnded = true;
            h.end();
            this.#maybeClose();
          })
        ),
      reset: () => this.#in.carry(() => this.break()),
    };
    this.#peer = server.accept(line);
  }

  receive(handlers: TransportHandlers): void {
    this.#handlers = handlers;
    this.#flush();
  }

  /** The number of the session to which it leads; null when it leads to none. */
  get session(): number | null {
    return this.#peer.session;
  }

  write(bytes: Uint8Array): boolean {
    if (this.closed || this.#ended || !this.#isolate.alive) return true;
    const { weather } = this.#network;
    if (this.#dice.chance(weather.reset)) {
      this.#isolate.soon(() => this.#network.reset(this));
      return true;
    }
    if (this.#dice.chance(weather.stall)) {
      this.#network.count("connection stalled");
      this.#out.stalled = this.#in.stalled = true;
      // TCP's keepalive finds out, as it would in the end.
      this.#clock.after(KEEPALIVE, () => this.break());
    }
    this.#underWay += bytes.length;
    for (const part of this.#parts(bytes)) {
      this.#out.carry(() => {
        this.#underWay -= part.length;
        this.usedAt = this.#clock.now();
        this.#peer.receive(part);
        if (this.#wantsDrain && this.#underWay < FULL && !this.closed) {
          this.#wantsDrain = false;
          this.#tell((h) => h.drain());
        }
      });
    }
    this.#wantsDrain = this.#underWay >= FULL;
    return !this.#wantsDrain;
  }

  end(): void {
    if (this.closed || this.#ended || !this.#isolate.alive) return;
    this.#ended = true;
    this.#out.carry(() => this.#peer.ended());
    this.#maybeClose();
  }

  destroy(): void {
    if (this.closed || !this.#isolate.alive) return;
    this.#close(null);
    // The other side learns of it, however the way between is.
    this.#out.stalled = false;
    this.#out.carry(() => this.#peer.ended());
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#isolate.soon(() => this.#flush());
  }

  ref(): void {}

  unref(): void {}

  /** The connection breaks, for both sides. */
  break(): void {
    if (this.closed) return;
    this.#close(Object.assign(new Error("read ECONNRESET"), { code: "ECONNRESET" }));
    this.#peer.ended();
  }

  #close(error: Error | null): void {
    this.closed = true;
    this.#held.length = 0;
    this.#network.open.delete(this);
    this.#isolate.transports.delete(this);
    this.#paused = false;
    this.#isolate.soon(() => {
      if (this.#handlers === null) this.#held.push((h) => h.close(error));
      else this.#handlers.close(error);
    });
  }

  #maybeClose(): void {
    if (this.#ended && this.#theirsEnded && !this.closed) this.#close(null);
  }

  #tell(what: (handlers: TransportHandlers) => void): void {
    if (this.closed) return;
    this.#held.push(what);
    this.#isolate.run(() => this.#flush());
  }

  #flush(): void {
    while (!this.#paused && this.#handlers !== null && this.#held.length > 0) {
      this.#held.shift()!(this.#handlers);
    }
  }

  /** No copies: nobody touches what was given out. */
  #parts(bytes: Uint8Array): Uint8Array[] {
    let rest = bytes;
    const { split } = this.#network.weather;
    if (split === 0) return [rest];
    const parts: Uint8Array[] = [];
    while (rest.length >= 2 && parts.length < MOST_PARTS && this.#dice.chance(split)) {
      const at = this.#dice.from(1, rest.length - 1);
      parts.push(rest.subarray(0, at));
      rest = rest.subarray(at);
    }
    parts.push(rest);
    return parts;
  }
}
