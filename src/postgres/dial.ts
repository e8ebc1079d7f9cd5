/** Opens the transport of a session: TCP or a Unix socket, and TLS on it. */

import { Buffer } from "node:buffer";
import net from "node:net";
import type { Duplex } from "node:stream";
import tls from "node:tls";
import { nameOf, type Target } from "./hosts.ts";

/** How TLS is to be used. */
export interface TlsMode {
  /** What is given to tls.connect beside the socket. */
  readonly options: Readonly<Record<string, unknown>>;
  /** True when a server without TLS is good enough. */
  readonly optional: boolean;
  /** True to begin with TLS instead of asking for it. */
  readonly direct: boolean;
}

/** What dialling needs to know. */
export interface DialOptions {
  readonly tls: TlsMode | null;
  /** The user's own transport, in place of ours. */
  readonly transport: ((target: Target) => Promise<Duplex>) | null;
}

/** An open transport. */
export interface Line {
  /** What the session speaks through: `raw`, or the TLS on it. */
  readonly stream: Duplex;
  /** The transport itself. */
  readonly raw: Duplex;
  /** True when the session is encrypted by us. */
  readonly encrypted: boolean;
}

/** Connects to `target`. When `signal` aborts, or anything fails, nothing is left open. */
export async function dial(
  target: Target,
  options: DialOptions,
  signal: AbortSignal,
): Promise<Line> {
  signal.throwIfAborted();
  const raw = options.transport === null
    ? await connect(target, signal)
    : await borrow(options.transport(target), signal);
  try {
    signal.throwIfAborted();
    return await secure(raw, target, options.tls, signal);
  } catch (error) {
    raw.destroy();
    throw error;
  }
}

function ignore(): void {}

async function connect(target: Target, signal: AbortSignal): Promise<net.Socket> {
  const socket = new net.Socket();
  // Stays on: an error after we gave up must not be an uncaught one.
  socket.on("error", ignore);
  await until(socket, "connect", signal, () => {
    if (target.path !== null) socket.connect({ path: target.path });
    else socket.connect({ host: target.hostaddr ?? target.host, port: target.port });
  });
  // The driver collects its writes itself, so Nagle's algorithm could only add a delay.
  if (target.path === null) socket.setNoDelay(true);
  return socket;
}

/** Waits for a transport that others open; one that comes too late is closed. */
async function borrow(pending: Promise<Duplex>, signal: AbortSignal): Promise<Duplex> {
  let abort = ignore;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
  });
  try {
    const stream = await Promise.race([pending, aborted]);
    stream.on("error", ignore);
    return stream;
  } catch (error) {
    pending.then((stream) => stream.destroy(), ignore);
    throw error;
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

/** Resolves with the event's argument; rejects, and destroys the stream, when that cannot come any more. */
function until<T>(
  stream: Duplex,
  event: string,
  signal: AbortSignal,
  begin: () => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    function done(): void {
      stream.off(event, arrived);
      stream.off("error", fail);
      stream.off("close", closed);
      stream.off("end", closed);
      signal.removeEventListener("abort", abort);
    }
    function arrived(value: T): void {
      done();
      resolve(value);
    }
    function fail(error: unknown): void {
      done();
      stream.destroy();
      reject(error);
    }
    function closed(): void {
      fail(new Error("the server closed the connection before the session began"));
    }
    function abort(): void {
      fail(signal.reason);
    }
    stream.once(event, arrived);
    stream.once("error", fail);
    stream.once("close", closed);
    stream.once("end", closed);
    signal.addEventListener("abort", abort, { once: true });
    try {
      begin();
    } catch (error) {
      fail(error);
    }
  });
}

async function secure(
  raw: Duplex,
  target: Target,
  mode: TlsMode | null,
  signal: AbortSignal,
): Promise<Line> {
  if (mode === null) return { stream: raw, raw, encrypted: false };
  if (!mode.direct && !(await asksForTls(raw, target, signal))) {
    if (mode.optional) return { stream: raw, raw, encrypted: false };
    throw new Error(
      `the server at ${nameOf(target)} does not offer TLS, which the option ssl asks for`,
    );
  }
  let stream: tls.TLSSocket | undefined;
  try {
    stream = tls.connect({
      socket: raw,
      // With a socket given, all three runtimes check the certificate against `servername`, or, as
      // SNI must not be an address, against `host`.
      host: target.host,
      ...(net.isIP(target.host) === 0 && target.path === null ? { servername: target.host } : {}),
      ...(mode.direct ? { ALPNProtocols: ["postgresql"] } : {}),
      ...mode.options,
    } as tls.ConnectionOptions);
    stream.on("error", ignore);
    await until(stream, "secureConnect", signal, ignore);
    if (mode.direct && stream.alpnProtocol !== "postgresql") {
      throw new Error(`the server at ${nameOf(target)} does not speak PostgreSQL over direct TLS`);
    }
    return { stream, raw, encrypted: true };
  } catch (error) {
    stream?.destroy();
    throw error;
  }
}

/** Sends SSLRequest; true when the server answers S, false for N. */
async function asksForTls(raw: Duplex, target: Target, signal: AbortSignal): Promise<boolean> {
  const answer = await until<Buffer>(raw, "data", signal, () => {
    raw.write(Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]));
  });
  // What comes before TLS starts is not the server's word, but anybody's (CVE-2021-23222).
  if (answer.length !== 1) {
    throw new Error(`the server at ${nameOf(target)} sent data before TLS had started`);
  }
  if (answer[0] === 0x53) return true;
  if (answer[0] === 0x4e) return false;
  throw new Error(`the server at ${nameOf(target)} did not understand the request for TLS`);
}

/** Sends a CancelRequest, on a connection of its own, unless it is not `due` any more once that stands. */
export async function sendCancel(
  target: Target,
  options: DialOptions,
  key: { readonly pid: number; readonly secret: Buffer },
  signal: AbortSignal,
  due: () => boolean = () => true,
): Promise<void> {
  const line = await dial(target, options, signal);
  try {
    if (!due()) return;
    const message = Buffer.alloc(12 + key.secret.length);
    message.writeInt32BE(message.length, 0);
    message.writeInt32BE(80877102, 4);
    message.writeInt32BE(key.pid, 8);
    key.secret.copy(message, 12);
    // The server closes without an answer once it has signalled the backend.
    await new Promise<void>((resolve) => {
      line.stream.once("end", resolve);
      line.stream.once("close", resolve);
      signal.addEventListener("abort", () => resolve(), { once: true });
      line.stream.on("data", ignore);
      line.stream.write(message);
    });
  } finally {
    line.stream.destroy();
    line.raw.destroy();
  }
}
