/** Transports that are real: sockets of `node:net`, which all runtimes have, TLS on them, and streams that others opened. */

import { ignore } from "./pool/safely.ts";
import { lookup as resolve } from "node:dns";
import { Buffer } from "node:buffer";
import net from "node:net";
import { Duplex } from "node:stream";
import tls from "node:tls";
import { afterBy, currentClock, queueMicrotask } from "./clock.ts";
import type { DialWorld } from "./postgres/wire/dial.ts";
import type { TcpSettings } from "./postgres/wire/settings.ts";
import type {
  Transport,
  TransportHandlers,
  TransportTarget,
  TransportTls,
  TransportTlsInfo,
} from "./postgres/wire/transport.ts";
import {
  BARES_SOCKETS,
  mayConnect,
  READS_AT_ONCE,
  requestsOwnTheirs,
  STREAMS_FOR_TLS,
} from "./runtime.ts";

/** The world as it is, for who dials in it; `secures`: every session is to have TLS. */
export function realWorld(tcp: TcpSettings, secures = false): Omit<DialWorld, "serverError"> {
  const clock = currentClock();
  /** Where TLS was started. */
  const secured = new Set<string>();
  return {
    open(target, signal) {
      const place = `${target.host}:${target.port}`;
      const streams = !STREAMS_FOR_TLS && (secures || secured.has(place));
      return openSocket(target, signal, tcp, streams ? null : () => secured.add(place));
    },
    lookup,
    after: afterBy(clock),
    random: clock.random,
    randomBytes: (length) => crypto.getRandomValues(new Uint8Array(length)),
  };
}

/**
 * Opens a TCP connection or a Unix socket. When `signal` aborts, nothing is left open. `onsecure` is called when TLS is
 * started on it; null where that is to be expected.
 */
export function openSocket(
  target: TransportTarget,
  signal: AbortSignal,
  tcp: TcpSettings,
  onsecure: (() => void) | null = null,
): Promise<Transport> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const { host, port, path } = target;
    // Workers of Cloudflare have a net.Socket of their own, which reads into no buffer.
    const reads = onsecure === null || requestsOwnTheirs() ? null : new Reads(onsecure);
    const settings = { allowHalfOpen: true, ...(reads === null ? {} : { onread: reads }) };
    const socket = new net.Socket(settings as net.SocketConstructorOpts);
    // What comes waits until somebody receives it, as a stream that nobody reads does by itself.
    if (reads !== null) socket.pause();
    function settle(): void {
      signal.removeEventListener("abort", abort);
      socket.off("error", fail);
    }
    function fail(error: unknown): void {
      settle();
      // It may tell more of the same.
      socket.on("error", ignore);
      socket.destroy();
      reject(error);
    }
    function abort(): void {
      fail(signal.reason);
    }
    signal.addEventListener("abort", abort, { once: true });
    socket.on("error", fail);
    socket.once("connect", () => {
      settle();
      if (path === null) {
        // A session collects its writes itself: Nagle's algorithm could only add a delay.
        socket.setNoDelay(true);
        if (tcp.keepalives) keepAlive(socket, tcp);
      }
      resolve(new StreamTransport(socket, reads));
    });
    try {
      if (path !== null) socket.connect({ path });
      else socket.connect({ host, port });
    } catch (error) {
      fail(error);
    }
  });
}

/** How much of a plain socket is read at once. */
const CHUNK = 64 << 10;

/** Where Bun's sockets read into, one after the other. */
let common: Buffer | null = null;

/** What a socket of `node:net` reads into, instead of giving it on as a stream, which is half of what a socket costs. */
class Reads {
  readonly buffer: Buffer;
  /** Gets what was read; it is good until it returns. */
  ondata: ((bytes: Uint8Array) => void) | null = null;
  readonly #onsecure: () => void;

  constructor(onsecure: () => void) {
    this.buffer = (READS_AT_ONCE ? common : null) ?? Buffer.allocUnsafeSlow(CHUNK);
    if (READS_AT_ONCE) common = this.buffer;
    this.#onsecure = onsecure;
  }

  /** TLS is started on the socket. */
  secure(): void {
    this.#onsecure();
    this.ondata = null;
  }

  readonly callback = (length: number): boolean => {
    this.ondata?.(this.buffer.subarray(0, length));
    return true;
  };
}

/**
 * What TLS is on in Deno: it starts none on a socket that reads into a buffer, and on any other it reads on, however
 * full its reader is and though it was told to pause.
 */
class Between extends Duplex {
  readonly #socket: Duplex;
  #held = false;

  constructor(socket: Duplex, reads: Reads) {
    super();
    this.#socket = socket;
    reads.ondata = (bytes) => {
      // A copy: what it reads into is used again.
      if (!this.push(Buffer.from(bytes))) socket.pause();
    };
    socket.on("end", () => this.push(null));
    socket.on("close", () => this.destroy());
  }

  /** Reads nothing more of the socket, whoever asks, until it is told the opposite. */
  hold(held: boolean): void {
    this.#held = held;
    if (held) this.#socket.pause();
    else this.#socket.resume();
  }

  override _read(): void {
    if (!this.#held) this.#socket.resume();
  }

  override _write(bytes: Uint8Array, _: string, done: (error?: Error | null) => void): void {
    this.#socket.write(bytes, done);
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#socket.end(done);
  }
}

/** What a socket of Bun's own tells. */
interface NativeHandlers {
  data(socket: unknown, bytes: Uint8Array): void;
  drain(): void;
  end(): void;
  close(socket: unknown, error?: Error): void;
  error(socket: unknown, error: Error): void;
}

/** What a socket of `node:net` stands on in Bun, as far as it is used here. */
interface NativeSocket {
  /** From now on it tells these. */
  reload(options: { readonly socket: NativeHandlers }): void;
  /** Sends as much as the system takes now, and gives how much that was. */
  write(bytes: Uint8Array): number;
}

/**
 * Bun's own socket below one of `node:net` that is connected: a twentieth of what a statement takes is the way through
 * that one. What is not sent and received by it goes on there; so connecting can be given up, as it cannot be with one of Bun's own.
 */
class NativeWriter {
  readonly #native: NativeSocket;
  /** What the system has not taken yet. */
  readonly #waiting: Uint8Array[] = [];
  /** Called when all that had to wait is sent. */
  #ondrain: () => void;

  /** Null where it is not as it is known, or there is none. */
  static of(socket: Duplex, handlers: NativeHandlers): NativeWriter | null {
    if (!BARES_SOCKETS) return null;
    const { _handle: native } = socket as { _handle?: Partial<NativeSocket> | null };
    if (typeof native?.reload !== "function" || typeof native.write !== "function") return null;
    // It would be sent by nobody.
    if (socket.writableLength > 0) return null;
    return new NativeWriter(native as NativeSocket, handlers);
  }

  constructor(native: NativeSocket, handlers: NativeHandlers) {
    this.#native = native;
    this.#ondrain = () => handlers.drain();
    native.reload({ socket: { ...handlers, drain: () => this.#drain() } });
  }

  /** False when the rest has to wait. */
  write(bytes: Uint8Array): boolean {
    if (this.#waiting.length === 0) {
      const sent = Math.max(0, this.#native.write(bytes));
      if (sent === bytes.length) return true;
      bytes = bytes.subarray(sent);
    }
    this.#waiting.push(bytes);
    return false;
  }

  /** Calls `fn` when all is sent; nothing is written behind it. */
  whenEmpty(fn: () => void): void {
    if (this.#waiting.length === 0) fn();
    else this.#ondrain = fn;
  }

  /** Also called when nothing waits. */
  #drain(): void {
    if (this.#waiting.length === 0) return;
    let done = 0;
    for (const bytes of this.#waiting) {
      const sent = Math.max(0, this.#native.write(bytes));
      if (sent < bytes.length) {
        this.#waiting[done] = bytes.subarray(sent);
        break;
      }
      done++;
    }
    this.#waiting.splice(0, done);
    if (this.#waiting.length === 0) this.#ondrain();
  }
}

/** What a borrower's listener throws, as of a stream, is uncaught as everywhere: Bun's own sockets take it for an error of theirs. */
function loudly(fn: () => void): void {
  try {
    fn();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

/** Only Node, since 24.21, takes more than the delay; others pass over it. */
function keepAlive(socket: net.Socket, tcp: TcpSettings): void {
  const { keepalivesIdle, keepalivesInterval, keepalivesCount } = tcp;
  (socket.setKeepAlive as (on: boolean, ...more: (number | undefined)[]) => void).call(
    socket,
    true,
    1000 * keepalivesIdle,
    keepalivesInterval === 0 ? undefined : 1000 * keepalivesInterval,
    keepalivesCount === 0 ? undefined : keepalivesCount,
  );
}

/**
 * All addresses of a name, in the order of the system's resolver; none where this program may connect to the name
 * only, so that the runtime has to look for itself.
 */
export function lookup(host: string, port: number): Promise<string[]> {
  if (!mayConnect(host)) return Promise.resolve([]);
  return new Promise((done, reject) => {
    resolve(host, { all: true, verbatim: true }, (error, addresses) => {
      if (error) reject(error);
      else {
        const found = addresses.map(({ address }) => address);
        done(found.every((address) => mayConnect(address, port)) ? found : []);
      }
    });
  });
}

/** A stream that is open already as a transport. */
export function fromDuplex(stream: Duplex): Transport {
  return new StreamTransport(stream);
}

class StreamTransport implements Transport {
  /** What is read and written: the socket, or the TLS on it. */
  #stream: Duplex;
  /** The socket. */
  readonly #raw: Duplex;
  /** Where its data comes instead of in events; null once there is TLS on it. */
  #reads: Reads | null;
  /** What is between it and its TLS, once that stands, where something is. */
  #between: Between | null = null;
  #handlers: TransportHandlers | null = null;
  /** What its data comes and goes by instead, once there will be no TLS on it; null where there is none. */
  #native: NativeWriter | null = null;
  #error: Error | null = null;
  #state: "open" | "securing" | "closed" = "open";
  #ended = false;
  #finished = false;
  #paused = false;

  constructor(stream: Duplex, reads: Reads | null = null) {
    this.#stream = this.#raw = stream;
    this.#reads = reads;
    this.#listen(stream);
    if (stream.destroyed) queueMicrotask(() => this.#closed());
  }

  get closed(): boolean {
    return this.#state === "closed";
  }

  /** All but `data`, which would make it flow. */
  #listen(stream: Duplex): void {
    stream.on("error", (error: Error) => this.#error ??= error);
    stream.on("close", () => {
      // The socket below TLS closes as well; what is above it tells.
      if (stream === this.#stream) this.#closed();
    });
    stream.on("end", () => {
      if (stream === this.#stream) this.#end();
    });
    stream.on("drain", () => {
      if (stream === this.#stream) this.#drain();
    });
  }

  #end(): void {
    if (this.#state !== "open" || this.#ended) return;
    this.#ended = true;
    this.#handlers?.end();
  }

  #drain(): void {
    if (this.#state === "open") this.#handlers?.drain();
  }

  readonly #data = (bytes: Uint8Array): void => {
    if (this.#state === "open") this.#handlers!.data(bytes);
  };

  #closed(): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.#handlers?.close(this.#error);
  }

  receive(handlers: TransportHandlers): void {
    const first = this.#handlers === null;
    this.#handlers = handlers;
    if (first) {
      // Where a runtime does not know of `onread`, it comes so.
      this.#stream.on("data", this.#data);
      if (this.#reads !== null) this.#reads.ondata = this.#data;
    } else if (this.#reads !== null && this.#state === "open") this.#goNative();
    if (this.#paused) this.#stream.pause();
    else this.#stream.resume();
    if (!this.#ended && this.#state !== "closed") return;
    queueMicrotask(() => {
      if (this.#handlers !== handlers) return;
      if (this.#state === "closed") handlers.close(this.#error);
      else handlers.end();
    });
  }

  /** Who receives for the second time has no more to say of TLS. */
  #goNative(): void {
    const raw = this.#raw;
    this.#native ??= NativeWriter.of(raw, {
      data: (_, bytes) => loudly(() => this.#data(bytes)),
      drain: () => loudly(() => this.#drain()),
      end: () => loudly(() => this.#end()),
      close: (_, error) => {
        this.#error ??= error ?? null;
        // It tells of its end, in a turn of its own.
        raw.destroy();
      },
      error: (_, error) => this.#error ??= error,
    });
  }

  write(bytes: Uint8Array): boolean {
    if (this.#state !== "open" || this.#finished) return true;
    if (this.#native !== null) return this.#native.write(bytes);
    return this.#stream.write(bytes);
  }

  end(): void {
    if (this.#state === "closed" || this.#finished) return;
    this.#finished = true;
    if (this.#native === null) this.#stream.end();
    else this.#native.whenEmpty(() => this.#stream.end());
  }

  destroy(): void {
    if (this.#state === "closed") return;
    this.#error = null;
    this.#finished = true;
    this.#stream.destroy();
    this.#raw.destroy();
  }

  pause(): void {
    this.#paused = true;
    this.#stream.pause();
    this.#between?.hold(true);
  }

  resume(): void {
    this.#paused = false;
    this.#between?.hold(false);
    if (this.#handlers !== null) this.#stream.resume();
  }

  ref(): void {
    (this.#raw as Partial<net.Socket>).ref?.();
  }

  unref(): void {
    (this.#raw as Partial<net.Socket>).unref?.();
  }

  startTls(options: TransportTls): Promise<TransportTlsInfo> {
    return new Promise((resolve, reject) => {
      const raw = this.#raw;
      raw.off("data", this.#data);
      this.#state = "securing";
      let between: Between | null = null;
      let secure: tls.TLSSocket;
      const fail = (error: Error): void => {
        this.#error ??= error;
        this.#finished = true;
        secure?.destroy();
        raw.destroy();
        reject(error);
      };
      const early = (): void =>
        fail(new Error("the server closed the connection during the TLS handshake"));
      try {
        if (this.#reads !== null) {
          this.#reads.secure();
          if (STREAMS_FOR_TLS) between = new Between(raw, this.#reads);
          this.#reads = null;
        }
        const settings = { socket: between ?? raw, ...tlsOptions(options) };
        secure = tls.connect(settings as tls.ConnectionOptions);
      } catch (error) {
        return fail(error as Error);
      }
      this.#stream = secure;
      this.#listen(secure);
      secure.once("error", fail);
      secure.once("close", early);
      secure.once("end", early);
      secure.once("secureConnect", () => {
        secure.off("error", fail);
        secure.off("close", early);
        secure.off("end", early);
        if (this.#state !== "securing") return;
        this.#state = "open";
        this.#between = between;
        if (this.#handlers !== null) secure.on("data", this.#data);
        if (this.#paused) this.pause();
        resolve({
          alpn: secure.alpnProtocol || null,
          certificate: secure.getPeerCertificate()?.raw ?? null,
          version: secure.getProtocol(),
        });
      });
    });
  }
}

function tlsOptions(options: TransportTls): tls.ConnectionOptions {
  const { host, sni, alpn, verify, more, ...rest } = options;
  return {
    // With a socket given, all three runtimes check the certificate against `servername`, or, as
    // SNI must not be an address, against `host`.
    host,
    ...(sni ? { servername: host } : {}),
    ...(alpn.length > 0 ? { ALPNProtocols: [...alpn] } : {}),
    ...(verify === "none" ? { rejectUnauthorized: false } : {}),
    ...(verify === "ca" ? { checkServerIdentity: () => undefined } : {}),
    ...rest,
    ...more,
  } as tls.ConnectionOptions;
}
