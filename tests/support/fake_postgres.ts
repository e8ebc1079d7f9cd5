/**
 * A server that speaks PostgreSQL's protocol as a test tells it to, also wrongly. Each connection runs
 * the script; what a script does not read waits.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import { createHmac, pbkdf2Sync, randomBytes } from "node:crypto";
import { type AddressInfo, createServer, type Socket } from "node:net";

/** Four bytes. */
export function int32(n: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(n >>> 0);
  return bytes;
}

/** Two bytes. */
export function int16(n: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(n & 0xffff);
  return bytes;
}

/** A message; `length` is what it claims to be. */
export function message(type: string, body: Uint8Array | string = "", length?: number): Buffer {
  const bytes = Buffer.from(body as string);
  return Buffer.concat([Buffer.from(type), int32(length ?? bytes.length + 4), bytes]);
}

/** A request for authentication. */
export function auth(code: number, more: Uint8Array | string = ""): Buffer {
  return message("R", Buffer.concat([int32(code), Buffer.from(more as string)]));
}

/** ParameterStatus. */
export function parameter(name: string, value: string): Buffer {
  return message("S", `${name}\0${value}\0`);
}

/** BackendKeyData. */
export function key(pid = 4242, secret: Uint8Array = Uint8Array.of(1, 2, 3, 4)): Buffer {
  return message("K", Buffer.concat([int32(pid), secret]));
}

/** ReadyForQuery. */
export function ready(status = "I"): Buffer {
  return message("Z", status);
}

/** ErrorResponse. */
export function refusal(code: string, text: string, severity = "FATAL"): Buffer {
  return message("E", `S${severity}\0V${severity}\0C${code}\0M${text}\0\0`);
}

/** The answer to a query of one row of texts. */
export function rowOf(...values: string[]): Buffer {
  const columns = values.map((_, i) =>
    Buffer.concat([
      Buffer.from(`c${i}\0`),
      int32(0),
      int16(0),
      int32(25),
      int16(-1),
      int32(-1),
      int16(0),
    ])
  );
  const fields = values.map((v) => Buffer.concat([int32(Buffer.byteLength(v)), Buffer.from(v)]));
  return Buffer.concat([
    message("T", Buffer.concat([int16(values.length), ...columns])),
    message("D", Buffer.concat([int16(values.length), ...fields])),
    message("C", "SELECT 1\0"),
  ]);
}

/** What a server says that lets everybody in. */
export function welcome(...more: Buffer[]): Buffer {
  return Buffer.concat([
    auth(0),
    parameter("server_version", "18.0"),
    parameter("client_encoding", "UTF8"),
    parameter("in_hot_standby", "off"),
    parameter("default_transaction_read_only", "off"),
    ...more,
    key(),
    ready(),
  ]);
}

/** The startup message, taken apart. */
export interface StartupMessage {
  /** Such as `3.2`; `ssl` and `cancel` for those requests. */
  readonly version: string;
  /** Names and values in the order in which they came. */
  readonly parameters: readonly [string, string][];
  /** All behind the version. */
  readonly body: Buffer;
}

/** One connection, from the server's side. */
export class Peer {
  readonly socket: Socket;
  /** The how many-th connection it is, from 0. */
  readonly index: number;
  #bytes = Buffer.alloc(0);
  #ended = false;
  #wake: (() => void) | null = null;

  constructor(socket: Socket, index: number) {
    this.socket = socket;
    this.index = index;
    socket.on("error", () => {});
    socket.on("data", (bytes: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, bytes]);
      this.#wake?.();
    });
    for (const event of ["end", "close"]) {
      socket.on(event, () => {
        this.#ended = true;
        this.#wake?.();
      });
    }
  }

  /** Sends bytes. */
  send(...bytes: Uint8Array[]): void {
    if (!this.socket.destroyed) this.socket.write(Buffer.concat(bytes));
  }

  async #take(length: number): Promise<Buffer> {
    while (this.#bytes.length < length) {
      if (this.#ended) throw new Error("the client has gone");
      await new Promise<void>((resolve) => this.#wake = resolve);
      this.#wake = null;
    }
    const taken = this.#bytes.subarray(0, length);
    this.#bytes = this.#bytes.subarray(length);
    return taken;
  }

  /** The next message without a type. */
  async startup(): Promise<StartupMessage> {
    const length = (await this.#take(4)).readUInt32BE();
    const all = await this.#take(length - 4);
    const code = all.readUInt32BE();
    const body = all.subarray(4);
    if (code === 80877103 || code === 80877102) {
      return { version: code === 80877103 ? "ssl" : "cancel", parameters: [], body };
    }
    const texts = body.toString().split("\0");
    const parameters: [string, string][] = [];
    for (let i = 0; i + 1 < texts.length && texts[i] !== ""; i += 2) {
      parameters.push([texts[i]!, texts[i + 1]!]);
    }
    return { version: `${code >> 16}.${code & 0xffff}`, parameters, body };
  }

  /** The next message. */
  async next(): Promise<{ type: string; body: Buffer }> {
    const head = await this.#take(5);
    const body = await this.#take(head.readUInt32BE(1) - 4);
    return { type: String.fromCharCode(head[0]!), body };
  }

  /** Resolves when the client has ended its side. */
  async gone(): Promise<void> {
    while (!this.#ended) {
      await new Promise<void>((resolve) => this.#wake = resolve);
      this.#wake = null;
    }
  }
}

/** A fake server that runs. */
export interface FakePostgres extends AsyncDisposable {
  readonly port: number;
  /** How many connections there have been. */
  readonly count: number;
  /** What scripts have thrown, but for clients that had gone. */
  readonly failures: unknown[];
}

/** Starts one on 127.0.0.1; every connection runs the script, and ends with it only when that says so. */
export async function fakePostgres(
  script: (peer: Peer) => unknown,
): Promise<FakePostgres> {
  const sockets = new Set<Socket>();
  const failures: unknown[] = [];
  let count = 0;
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    const peer = new Peer(socket, count++);
    Promise.resolve(peer).then(script).catch((error) => {
      if (error.message !== "the client has gone") failures.push(error);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    port: (server.address() as AddressInfo).port,
    get count() {
      return count;
    },
    failures,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

/** How a server's SCRAM may go wrong. */
export interface ScramFaults {
  readonly mechanisms?: string;
  readonly challenge?: (good: { nonce: string; salt: string; iterations: number }) => Buffer;
  readonly final?: (signature: string) => Buffer;
  readonly iterations?: number;
}

/** The server's side of SCRAM-SHA-256 for one password; true when the client knew it. */
export async function scram(
  peer: Peer,
  password: string,
  faults: ScramFaults = {},
): Promise<boolean> {
  const { iterations = 4096 } = faults;
  peer.send(auth(10, faults.mechanisms ?? "SCRAM-SHA-256\0\0"));
  const first = (await peer.next()).body;
  const text = first.subarray(first.indexOf(0) + 5).toString();
  const [, header, bare] = /^([^,]*,[^,]*,)(.*)$/.exec(text)!;
  const salt = randomBytes(16);
  const good = {
    nonce: /r=(.*)$/.exec(bare!)![1] + "server",
    salt: salt.toString("base64"),
    iterations,
  };
  const challenge = `r=${good.nonce},s=${good.salt},i=${iterations}`;
  peer.send(faults.challenge?.(good) ?? auth(11, challenge));
  const response = (await peer.next()).body.toString();
  const [, without, proof] = /^(.*),p=([^,]*)$/.exec(response)!;
  const hmac = (key: Uint8Array, data: string | Uint8Array) =>
    createHmac("sha256", key).update(data).digest();
  const salted = pbkdf2Sync(password, salt, iterations, 32, "sha256");
  const clientKey = hmac(salted, "Client Key");
  const { createHash } = await import("node:crypto");
  const stored = createHash("sha256").update(clientKey).digest();
  const whole = `${bare},${challenge},${without}`;
  const expected = hmac(stored, whole).map((byte, i) => byte ^ clientKey[i]!);
  const bound = Buffer.from(/^c=([^,]*)/.exec(without!)![1]!, "base64").toString();
  const ok = Buffer.from(expected).toString("base64") === proof && bound === header;
  const signature = hmac(hmac(salted, "Server Key"), whole).toString("base64");
  peer.send(faults.final?.(signature) ?? auth(12, `v=${signature}`));
  return ok;
}
