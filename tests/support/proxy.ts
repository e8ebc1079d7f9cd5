/**
 * A TCP proxy before the server that misbehaves on demand, for tests of network faults.
 *
 * @module
 */
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { freePort } from "./embedded_postgres.ts";

/**
 * What happens to connections, new and old:
 * - `pass`: everything goes through;
 * - `refuse`: new ones are refused by the system, old ones go on;
 * - `reset`: new ones are reset (RST) at once, and so are the old ones;
 * - `stall`: new ones are accepted and never get to the server; old ones go on;
 * - `blackhole`: nothing goes through any more in either direction, and nobody is told;
 * - `slow`: each piece of data is held back by `delay`, and goes out at `bytesPerSecond`.
 */
export type ProxyMode = "pass" | "refuse" | "reset" | "stall" | "blackhole" | "slow";

/** Settings of {@linkcode FaultProxy.set}. */
export interface ProxySettings {
  /** For `slow`: milliseconds by which each piece is late. @default {0} */
  readonly delay?: number;
  /** For `slow`. @default {Infinity} */
  readonly bytesPerSecond?: number;
}

/** One client and its way to the server. */
interface Pair {
  readonly client: Socket;
  readonly server: Socket | undefined;
  readonly timers: Set<ReturnType<typeof setTimeout>>;
  /** The client's own port. */
  readonly port: number;
  /** Whether it has begun a session; a cancel request begins none. */
  session: boolean;
  /** Is about to be cut: nothing more goes through. */
  cut: boolean;
}

/** A running proxy; leaving it to `await using` closes it and all its connections. */
export class FaultProxy implements AsyncDisposable {
  readonly host = "127.0.0.1";
  /** Connections accepted so far. */
  accepted = 0;
  /** Bytes from the server that went through, over all connections. */
  received = 0;
  #listener: Server | undefined;
  #port = 0;
  #mode: ProxyMode = "pass";
  #settings: ProxySettings = {};
  #cutAfter = Infinity;
  readonly #pairs = new Set<Pair>();
  /** Not yet closed. */
  readonly #sockets = new Set<Socket>();
  readonly #target: { host: string; port: number };

  /** Use {@linkcode startProxy}. */
  constructor(target: { host: string; port: number }) {
    this.#target = target;
  }

  /** The port that clients connect to; stays the same for the proxy's life. */
  get port(): number {
    return this.#port;
  }

  /** Connections open now. */
  get open(): number {
    return this.#pairs.size;
  }

  /** The clients' own ports of the connections that have begun a session, whoever has closed them since. */
  get sessions(): number[] {
    return [...this.#pairs].filter((pair) => pair.session).map((pair) => pair.port);
  }

  /** The given URL with the proxy's address in place of the server's. */
  url(url: string): string {
    const changed = new URL(url);
    changed.host = `${this.host}:${this.port}`;
    return changed.href;
  }

  /** Changes what happens to connections from now on. */
  async set(mode: ProxyMode, settings: ProxySettings = {}): Promise<void> {
    this.#mode = mode;
    this.#settings = settings;
    if (mode === "refuse") await this.#unlisten();
    else if (this.#listener === undefined) await this.listen();
    if (mode === "reset") this.#drop("reset");
    for (const { client, server } of this.#pairs) {
      for (const socket of [client, server]) {
        if (mode === "blackhole") socket?.pause();
        else socket?.resume();
      }
    }
  }

  /** Cuts each connection after so many further bytes from the server, maybe within a message. */
  cutAfter(bytes: number): void {
    this.#cutAfter = this.received + bytes;
  }

  /** Ends the open connections: politely (FIN), or with a reset (RST). New ones are not touched. */
  cut(how: "end" | "reset" = "end"): void {
    this.#drop(how);
  }

  /** Opens the port; {@linkcode startProxy} does it. */
  async listen(): Promise<void> {
    for (let attempt = 1;; attempt++) {
      // Half-open, so that an end in one direction goes on as that and no more.
      const listener = createServer({ allowHalfOpen: true }, (client) => this.#accept(client));
      // None that the system might give to an outgoing connection while this one does not listen.
      const port = this.#port === 0 ? await freePort() : this.#port;
      try {
        listener.listen(port, this.host);
        await once(listener, "listening");
      } catch (error) {
        if (attempt === 5) throw error;
        continue;
      }
      this.#listener = listener;
      this.#port = port;
      return;
    }
  }

  /** Closes everything. */
  async close(): Promise<void> {
    // Also of those whose pair is forgotten; an error of one is no matter.
    const closed = [...this.#sockets].map((socket) =>
      new Promise<void>((resolve) => socket.once("close", () => resolve()))
    );
    this.#drop("end");
    await Promise.all([...closed, this.#unlisten()]);
  }

  /** = {@linkcode FaultProxy.close} */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #watch(socket: Socket): void {
    this.#sockets.add(socket);
    socket.once("close", () => this.#sockets.delete(socket));
  }

  #accept(client: Socket): void {
    this.accepted++;
    this.#watch(client);
    client.on("error", () => {});
    if (this.#mode === "reset") {
      client.resetAndDestroy();
      return;
    }
    const stalled = this.#mode === "stall" || this.#mode === "blackhole";
    const server = stalled ? undefined : connect({ ...this.#target, allowHalfOpen: true });
    const port = client.remotePort ?? 0;
    const pair: Pair = { client, server, timers: new Set(), port, session: false, cut: false };
    this.#pairs.add(pair);
    client.on("close", () => this.#forget(pair));
    client.once("data", (data: Uint8Array) => {
      pair.session = !isCancel(data);
      if (server === undefined) client.pause();
    });
    if (server === undefined) return;
    this.#watch(server);
    server.on("error", () => client.resetAndDestroy());
    server.on("close", () => client.destroy());
    this.#forward(pair, client, server);
    this.#forward(pair, server, client);
  }

  #forward(pair: Pair, from: Socket, to: Socket): void {
    // When the last piece held back will have gone, so that pieces keep their order.
    let free = 0;
    const send = (size: number, deliver: () => void) => {
      if (this.#mode !== "slow" && free <= performance.now()) return deliver();
      const { delay = 0, bytesPerSecond = Infinity } = this.#mode === "slow" ? this.#settings : {};
      free = Math.max(free, performance.now() + delay) + (size / bytesPerSecond) * 1000;
      const timer = setTimeout(() => {
        pair.timers.delete(timer);
        deliver();
      }, Math.max(0, free - performance.now()));
      pair.timers.add(timer);
    };
    from.on("data", (data: Uint8Array) => {
      if (this.#mode === "blackhole" || pair.cut) return;
      send(data.length, () => {
        const rest = from === pair.server ? this.#cutAfter - this.received : Infinity;
        if (from === pair.server) this.received += Math.min(data.length, rest);
        if (data.length < rest) {
          if (!to.destroyed) to.write(data);
          return;
        }
        this.#cutAfter = Infinity;
        for (const other of this.#pairs) other.cut = true;
        to.write(data.subarray(0, rest), () => this.#drop("end"));
      });
    });
    from.on("end", () => {
      if (this.#mode !== "blackhole") send(0, () => to.end());
    });
  }

  #drop(how: "end" | "reset"): void {
    for (const { client, server } of this.#pairs) {
      if (how === "reset") client.resetAndDestroy();
      else client.destroy();
      server?.destroy();
    }
  }

  #forget(pair: Pair): void {
    this.#pairs.delete(pair);
    for (const timer of pair.timers) clearTimeout(timer);
    pair.server?.destroy();
  }

  async #unlisten(): Promise<void> {
    const listener = this.#listener;
    if (listener === undefined) return;
    this.#listener = undefined;
    // Its "close" comes only after the last connection's; that it no longer listens is at once.
    const closed = once(listener, "close");
    listener.close();
    if (this.#pairs.size === 0) await closed;
  }
}

/** Whether a client begins with a CancelRequest: a length, then 80877102. */
function isCancel(data: Uint8Array): boolean {
  return data.length >= 8 && new DataView(data.buffer, data.byteOffset).getUint32(4) === 80877102;
}

/** Starts a proxy to the server of the given URL. */
export async function startProxy(url: string): Promise<FaultProxy> {
  const { hostname, port } = new URL(url);
  const proxy = new FaultProxy({ host: hostname, port: Number(port || 5432) });
  await proxy.listen();
  return proxy;
}
