/**
 * A transport for hosts that have WebSockets and no TCP: each session is one WebSocket to a proxy that
 * passes its binary messages on to the server, and the server's bytes back, as Neon's wsproxy does.
 *
 * ```ts ignore
 * import { SimpleConnectionPool } from "@getconn/pool";
 * import { webSocketTunnel } from "./websocket_tunnel.ts";
 *
 * const pool = new SimpleConnectionPool(0, 5, "postgres://user:password@db.example/app", {
 *   transport: webSocketTunnel(({ host, port }) => `wss://proxy.example/v1?address=${host}:${port}`),
 * });
 * ```
 *
 * @module
 */
import type { OpenTransport, Transport, TransportHandlers, TransportTarget } from "@getconn/pool";

/** More than this unsent, and a session is asked to wait. */
const HIGH_WATER = 1 << 20;
/** A WebSocket does not tell when it has room again; so it is asked, this often (milliseconds). */
const LOOK = 20;

/** Opens transports through the proxy whose address `url` tells for each place. */
export function webSocketTunnel(url: (target: TransportTarget) => string): OpenTransport {
  return (target, signal) =>
    new Promise((resolve, reject) => {
      const socket = new WebSocket(url(target));
      socket.binaryType = "arraybuffer";
      const fail = (reason: unknown): void => {
        signal.removeEventListener("abort", abort);
        socket.onopen = socket.onerror = socket.onclose = null;
        socket.close();
        reject(reason);
      };
      const abort = (): void => fail(signal.reason);
      signal.addEventListener("abort", abort, { once: true });
      socket.onerror = socket.onclose = () => fail(new Error("the tunnel's proxy did not answer"));
      socket.onopen = () => {
        signal.removeEventListener("abort", abort);
        resolve(new WebSocketTransport(socket));
      };
    });
}

class WebSocketTransport implements Transport {
  readonly #socket: WebSocket;
  #handlers: TransportHandlers | null = null;
  /** What has come while nobody listened, or during a pause: a WebSocket cannot be held back. */
  #waiting: Uint8Array[] = [];
  #paused = false;
  #finished = false;
  #error: Error | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  closed = false;

  constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.onmessage = ({ data }) => {
      // A message without bytes says nothing, and a text is not the server's.
      if (typeof data === "string") return this.#fail(new Error("the tunnel sent a text"));
      if (data.byteLength === 0) return;
      this.#waiting.push(new Uint8Array(data));
      this.#tell();
    };
    socket.onerror = () => this.#error ??= new Error("the tunnel broke");
    socket.onclose = ({ wasClean, code }) => {
      if (!wasClean) this.#error ??= new Error(`the tunnel broke (${code})`);
      this.#end();
    };
  }

  /** True for wss: TLS within it would encrypt twice; set it to false to get that, where the proxy is not trusted. */
  get encrypted(): boolean {
    return this.#socket.url.startsWith("wss:");
  }

  #tell(): void {
    while (this.#handlers !== null && !this.#paused && !this.closed && this.#waiting.length > 0) {
      this.#handlers.data(this.#waiting.shift()!);
    }
  }

  #fail(error: Error): void {
    this.#error ??= error;
    this.#socket.close();
  }

  /** A WebSocket closes both ways at once, so `end` and `close` come together. */
  #end(): void {
    if (this.closed) return;
    this.#paused = false;
    this.#tell();
    if (this.#error === null) this.#handlers?.end();
    this.closed = true;
    clearTimeout(this.#timer);
    this.#handlers?.close(this.#error);
  }

  receive(handlers: TransportHandlers): void {
    this.#handlers = handlers;
    queueMicrotask(() => {
      if (this.#handlers !== handlers) return;
      if (this.closed) handlers.close(this.#error);
      else this.#tell();
    });
  }

  write(bytes: Uint8Array): boolean {
    if (this.closed || this.#finished) return true;
    this.#socket.send(bytes as Uint8Array<ArrayBuffer>);
    if (this.#socket.bufferedAmount < HIGH_WATER) return true;
    this.#timer ??= setTimeout(() => this.#look(), LOOK);
    return false;
  }

  #look(): void {
    this.#timer = undefined;
    if (this.closed) return;
    if (this.#socket.bufferedAmount < HIGH_WATER) this.#handlers?.drain();
    else this.#timer = setTimeout(() => this.#look(), LOOK);
  }

  /** Nothing can tell the proxy that one direction has ended; Terminate, which comes before, makes the server close. */
  end(): void {
    this.#finished = true;
  }

  destroy(): void {
    this.#error = null;
    this.#finished = true;
    this.#waiting = [];
    this.#socket.close();
    queueMicrotask(() => this.#end());
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    queueMicrotask(() => this.#tell());
  }

  // Hosts without TCP have no process to keep alive.
  ref(): void {}
  unref(): void {}
}
