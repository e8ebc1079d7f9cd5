/**
 * What a session speaks through: bytes in, bytes out. Whoever has no TCP, or simulates it, brings another.
 */

/**
 * What a {@linkcode Transport} tells. Each is called in a turn of its own or in a microtask, never
 * within a call of one of the transport's methods; what it throws is a fault of who listens.
 */
export interface TransportHandlers {
  /**
   * Bytes have come, at least one. They are good until this returns: the transport may use the memory
   * again, so what is needed for longer is copied.
   */
  data(bytes: Uint8Array): void;
  /** The other side sends no more; ours may still be written. No `data` follows. */
  end(): void;
  /**
   * It is over, both ways, and nothing follows. The error is why; null when both sides had ended, or
   * {@linkcode Transport.destroy} was called.
   */
  close(error: Error | null): void;
  /** After a {@linkcode Transport.write} that gave false: there is room again. */
  drain(): void;
}

/** What TLS on a transport shall be like. */
export interface TransportTls {
  /**
   * Whom to ask for, by SNI, and whom the certificate is checked against, where it is: a name or an address.
   */
  readonly host: string;
  /** False for an address or a socket in the file system: SNI knows names only. */
  readonly sni: boolean;
  /** Protocols to choose from (ALPN), or none. */
  readonly alpn: readonly string[];
  /**
   * How far the server's certificate is checked:
   *
   * - `none`: not at all.
   * - `ca`: who signed it, and until when it is valid.
   * - `full`: that, and that it is the host's.
   */
  readonly verify: "none" | "ca" | "full";
  /** Whom to trust, in PEM; without it the runtime's list. */
  readonly ca?: string | undefined;
  /** Our own certificate, in PEM. */
  readonly cert?: string | undefined;
  /** Its private key, in PEM. */
  readonly key?: string | undefined;
  /** What the key is encrypted with. */
  readonly passphrase?: string | undefined;
  /** Lists of certificates that were revoked, in PEM. */
  readonly crl?: readonly string[] | undefined;
  /** The oldest version of TLS that will do. */
  readonly minVersion?: "TLSv1" | "TLSv1.1" | "TLSv1.2" | "TLSv1.3" | undefined;
  /** The newest one. */
  readonly maxVersion?: "TLSv1" | "TLSv1.1" | "TLSv1.2" | "TLSv1.3" | undefined;
  /** What else the user gave for `connect` of `node:tls`, which wins over all of this; a transport refuses what it cannot obey. */
  readonly more: Readonly<Record<string, unknown>>;
}

/** What came of the handshake. */
export interface TransportTlsInfo {
  /** The protocol that both chose, or null. */
  readonly alpn: string | null;
  /** The server's certificate in DER, or null where the runtime does not give it: without it there is no channel binding. */
  readonly certificate: Uint8Array | null;
  /** The protocol's version, such as `TLSv1.3`, or null where it is not known. */
  readonly version: string | null;
}

/**
 * An open, reliable, ordered way for bytes to one server and back, such as a TCP connection.
 *
 * Whoever runs where there is no TCP brings one, opened by an {@linkcode OpenTransport}.
 *
 * @example What a transport over another one may look like
 * ```ts
 * import type { Transport, TransportHandlers } from "@getconn/pool";
 *
 * class Counted implements Transport {
 *   written = 0;
 *   constructor(readonly inner: Transport) {}
 *   get closed(): boolean {
 *     return this.inner.closed;
 *   }
 *   receive(handlers: TransportHandlers): void {
 *     this.inner.receive(handlers);
 *   }
 *   write(bytes: Uint8Array): boolean {
 *     this.written += bytes.length;
 *     return this.inner.write(bytes);
 *   }
 *   end = () => this.inner.end();
 *   destroy = () => this.inner.destroy();
 *   pause = () => this.inner.pause();
 *   resume = () => this.inner.resume();
 *   ref = () => this.inner.ref();
 *   unref = () => this.inner.unref();
 * }
 * void Counted;
 * ```
 */
export interface Transport {
  /** True when it is over, both ways; `close` has been told or is about to be. */
  readonly closed: boolean;
  /**
   * From now on these hear what happens; who heard before does not any more. Until the first call
   * nothing is told and nothing is lost. Where `end` or `close` has been told already, the new ones are
   * told as well, in a microtask.
   */
  receive(handlers: TransportHandlers): void;
  /**
   * Sends these bytes after all before. They belong to the transport from now on: nobody may change
   * them. False says: wait for `drain` before the next one; they are sent all the same. Does nothing
   * after `end()`, `destroy()` or `close`.
   */
  write(bytes: Uint8Array): boolean;
  /** No more writes: the other side is told once all is sent, and may still send. Further calls do nothing. */
  end(): void;
  /** Closes at once, both ways; what is not sent yet is dropped. `close(null)` follows, unless it has come. */
  destroy(): void;
  /** Tells no `data` and no `end` until `resume()`; does nothing when it is paused. Data waits where the other side feels it, as far as there is such a place. */
  pause(): void;
  /** Goes on after `pause()`; what waited is told in a turn or a microtask of its own. */
  resume(): void;
  /** It keeps the process alive, as a new one does. Does nothing where there is no such thing. */
  ref(): void;
  /** It does not keep the process alive. */
  unref(): void;
  /**
   * Starts TLS on it as the client. From the call until the promise settles nobody writes, and
   * nothing is told but `close`; then all goes on encrypted, on the same object and to the same handlers.
   * Rejects, and is closed, when the handshake fails or the certificate is not good. What is missing
   * cannot be had: a transport without this serves sessions without TLS, or encrypts by itself.
   */
  startTls?(options: TransportTls): Promise<TransportTlsInfo>;
  /** True when it is encrypted by itself, such as a tunnel over https: then TLS is not asked for within it. */
  readonly encrypted?: boolean;
}

/** One place to connect to. */
export interface TransportTarget {
  /** A name, an address, or the folder of a Unix socket. */
  readonly host: string;
  /** The TCP port, or the number in the socket's name. */
  readonly port: number;
  /** The Unix socket, or null for TCP. */
  readonly path: string | null;
}

/**
 * Opens a transport to one place. When `signal` aborts it gives up and rejects; one that comes all the
 * same is destroyed. What it throws is the failure to connect.
 */
export type OpenTransport = (
  target: TransportTarget,
  signal: AbortSignal,
) => Transport | Promise<Transport>;
