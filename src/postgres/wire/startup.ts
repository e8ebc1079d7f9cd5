/**
 * From an open transport to the first ReadyForQuery: TLS, who we are, whether we may, and what the server
 * says of itself. One {@linkcode Startup} is one attempt; which host, and what next, is src/postgres/wire/dial.ts's.
 *
 * Sources of the rules: PostgreSQL documentation, "Message Flow", "SASL Authentication"; libpq's fe-connect.c for what is
 * refused before a server is trusted.
 */

import { Buffer } from "node:buffer";
import type { After } from "../../clock.ts";
import { ignore } from "../../pool/safely.ts";
import { settled } from "../../pool/timeout.ts";
import { ConnectError, lateBy, markServerError, untrusted } from "./connect_error.ts";
import {
  endOfText,
  FrameReader,
  int32,
  nameOf,
  ProtocolError,
  readFields,
  type ServerFields,
  textOf,
  textsOf,
  uint16,
  Writer,
} from "./frames.ts";
import { endPoint, SCRAM, Scram, SCRAM_PLUS, type ScramKeys } from "./scram.ts";
import type { AuthMethod, ConnectSettings, Target, TargetSessionAttrs } from "./settings.ts";
import type { Transport, TransportTlsInfo } from "./transport.ts";

/** A session that has been opened. Its transport is paused, and has told everything but what is in `rest`. */
export interface Started {
  /** What it speaks through; `receive`, then `resume`. */
  readonly transport: Transport;
  /** The place at which it is. */
  readonly target: Target;
  /** What a cancel request must show: the secret has 4 to 256 bytes, or none where the server gave no key. */
  readonly key: { readonly pid: number; readonly secret: Uint8Array };
  /** What the server has told of its settings. */
  parameters: ReadonlyMap<string, string>;
  /** Bytes that have come behind it, or null. */
  readonly rest: Uint8Array | null;
  /** True when it is encrypted. */
  readonly encrypted: boolean;
  /** The protocol's version. */
  readonly protocol: "3.0" | "3.2";
  /**
   * The kind of server that it must stay, for {@linkcode misfit}; null where there is no such wish, and where
   * `prefer-standby` had to take what there was.
   */
  readonly attrs: TargetSessionAttrs | null;
}

/** A message from the server, with a body of its own. */
interface Frame {
  readonly type: number;
  readonly body: Buffer;
}

const R = 0x52, E = 0x45, V = 0x76, S = 0x53, K = 0x4b, N = 0x4e, Z = 0x5a, A = 0x41;
const T = 0x54, D = 0x44, C = 0x43;
const IDLE = 0x49;

/** SSLRequest, whole. To be copied, as what is written belongs to the transport. */
const SSL_REQUEST = Uint8Array.of(0, 0, 0, 8, 4, 210, 22, 47);
/** Terminate, whole. To be copied, too. */
const TERMINATE = Uint8Array.of(0x58, 0, 0, 0, 4);
const CANCEL_REQUEST = 80877102;
const PROTOCOLS = { "3.0": 3 << 16, "3.2": (3 << 16) | 2 } as const;
/** Longest request for authentication, as in libpq. */
const LONGEST_AUTH = 2_000;
/** What a server may send before its first ReadyForQuery. */
const MOST_BYTES = 4 << 20;
/** Keys of a session may be as long; as the protocol has it. */
const LONGEST_SECRET = 256;
/** How long an attempt that has a session already waits for the server to let go of it; milliseconds. */
const FAREWELL = 1_000;
/** How long an attempt that is given up waits for what it cannot call off (hashing, a name, a file); milliseconds. */
export const LINGER = 1_000;

/**
 * Why a server is not of the kind that is wanted, in libpq's words; null when it is, or does not tell
 * (before PostgreSQL 14). To be asked again when a living session hears of a changed parameter:
 * a server was promoted, or became read-only.
 */
export function misfit(
  attrs: TargetSessionAttrs | null,
  parameters: ReadonlyMap<string, string>,
): string | null {
  if (!misfitIsTold(parameters)) return null;
  const standby = parameters.get("in_hot_standby") === "on";
  const readOnly = standby || parameters.get("default_transaction_read_only") === "on";
  return misfitOf(attrs, standby, readOnly);
}

/** Whether the server tells what kind it is. */
function misfitIsTold(parameters: ReadonlyMap<string, string>): boolean {
  return parameters.has("in_hot_standby") && parameters.has("default_transaction_read_only");
}

/** The meanings of the kinds. A hot standby is read-only whatever the default is. */
function misfitOf(
  attrs: TargetSessionAttrs | null,
  standby: boolean,
  readOnly: boolean,
): string | null {
  switch (attrs) {
    case "read-write":
      return readOnly ? "session is read-only" : null;
    case "read-only":
      return readOnly ? null : "session is not read-only";
    case "primary":
      return standby ? "server is in hot standby mode" : null;
    case "standby":
    case "prefer-standby":
      return standby ? null : "server is not in hot standby mode";
    default:
      return null;
  }
}

/** What one attempt is told beside the settings. */
export interface Attempt {
  /** Where. */
  readonly target: Target;
  /** Whether to ask for TLS, and whether a server without it will do. */
  readonly encryption: "none" | "optional" | "required";
  /** Which version of the protocol to ask for. */
  readonly protocol: "3.0" | "3.2";
  /** Which kind of server will do. */
  readonly attrs: TargetSessionAttrs | null;
  /** True to ask the server by a statement, whatever it reports of its kind. */
  readonly asks: boolean;
}

/** What an attempt needs of the world around it. */
export interface StartupWorld {
  readonly keys: ScramKeys;
  /** The error of what a server refuses with. */
  readonly serverError: (fields: ServerFields) => Error;
  /** So many bytes that nobody can guess. */
  readonly randomBytes: (length: number) => Uint8Array;
}

/** One attempt to make a session of a transport. */
export class Startup {
  readonly #settings: ConnectSettings;
  readonly #attempt: Attempt;
  readonly #world: StartupWorld;
  readonly #line: Line;
  /** Set by the server's first message: what speaks there is PostgreSQL, and knows the protocol's version. */
  heard = false;
  #authenticated = false;
  /** What runs and cannot be called off. */
  #running: Promise<unknown> | null = null;
  #tls: TransportTlsInfo | null = null;
  #protocol: "3.0" | "3.2";
  #key: Started["key"] = { pid: 0, secret: new Uint8Array(0) };
  readonly #parameters: Map<string, string> = new Map();

  /** For a transport that nobody has spoken through. */
  constructor(
    transport: Transport,
    attempt: Attempt,
    settings: ConnectSettings,
    world: StartupWorld,
  ) {
    this.#settings = settings;
    this.#attempt = attempt;
    this.#world = world;
    this.#protocol = attempt.protocol;
    this.#line = new Line(transport, placeOf(attempt.target));
  }

  /** True when what is spoken is encrypted. */
  get encrypted(): boolean {
    return this.#tls !== null || this.#line.transport.encrypted === true;
  }

  /** True when the server had let us in, so that there may be a session to take leave of. */
  get authenticated(): boolean {
    return this.#authenticated;
  }

  /** Ends the attempt: what waits rejects with the reason. */
  abort(reason: unknown): void {
    this.#line.fail(reason);
    this.#line.transport.destroy();
  }

  /** The same, and resolves when nothing of it runs on: whoever closes a pool looks for what it has left behind. */
  async giveUp(reason: unknown, after: After): Promise<void> {
    this.abort(reason);
    if (this.#running !== null) await settled(after, LINGER, this.#running);
  }

  /** What cannot be called off, unless the attempt is given up meanwhile. */
  async #run<P>(work: Promise<P>): Promise<P> {
    this.#running = work;
    const result = await this.#line.race(work);
    this.#running = null;
    return result;
  }

  /** Says goodbye, and waits until the server has let go; at most `FAREWELL`, by `after`. */
  async leave(after: After): Promise<void> {
    const { transport } = this.#line;
    const cancel = after(FAREWELL, () => this.#line.fail(null));
    const closed = this.#line.sendAndClose(TERMINATE.slice());
    transport.end();
    await closed.catch(ignore);
    cancel();
    transport.destroy();
  }

  /** Encrypts it, when that is wanted; to be called first. False when it goes on as it was. */
  async secure(): Promise<boolean> {
    const { encryption, target } = this.#attempt;
    const { transport, where } = this.#line;
    if (encryption === "none" || transport.encrypted === true) return false;
    const { tls } = this.#settings;
    if (transport.startTls === undefined) {
      if (encryption === "optional") return false;
      throw new ConnectError(
        "TLS_REFUSED",
        `the transport to ${where} has no TLS, which sslmode=${tls.mode} asks for`,
      );
    }
    const direct = tls.negotiation === "direct";
    if (!direct) {
      this.#line.send(SSL_REQUEST.slice());
      const answer = await this.#line.byte();
      if (answer === 0x4e) {
        if (encryption === "optional") return false;
        throw new ConnectError(
          "TLS_REFUSED",
          `the server at ${where} does not offer TLS, which sslmode=${tls.mode} asks for`,
        );
      }
      // Its text is not shown: whoever sits in between could have written it (CVE-2024-10977).
      if (answer !== S) {
        throw new ConnectError(
          "TLS_REFUSED",
          `the server at ${where} did not understand the request for TLS`,
        );
      }
    }
    const { cert, key, passphrase, ...files } = await this.#run(tls.files());
    const own = tls.certmode === "disable" ? {} : { cert, key, passphrase };
    const info = await this.#line.race(transport.startTls({
      host: target.host,
      sni: tls.sni && !isAddress(target.host),
      // Also without `direct`: a server that does not know it passes over it.
      alpn: ["postgresql"],
      // As in libpq: where there is a root certificate it is looked at, with every mode.
      verify: tls.mode === "verify-full"
        ? "full"
        : tls.mode === "verify-ca" || files.ca !== undefined
        ? "ca"
        : "none",
      minVersion: tls.minVersion,
      ...(tls.maxVersion === null ? {} : { maxVersion: tls.maxVersion }),
      ...files,
      ...own,
      more: tls.options,
    }));
    if (direct && info.alpn !== "postgresql") {
      throw new ConnectError(
        "TLS_REFUSED",
        `the server at ${where} does not speak PostgreSQL over direct TLS`,
      );
    }
    this.#tls = info;
    return true;
  }

  /** Opens the session; to be called second, and once. */
  async open(): Promise<Started> {
    const { attrs, target } = this.#attempt;
    this.#line.listen();
    this.#sendStartup();
    await this.#login(await this.#request(true));
    this.#authenticated = true;
    await this.#settle();
    await this.#mendFormats();
    const reason = await this.#misfit(attrs);
    if (reason !== null) throw new ConnectError("UNFIT_SERVER", reason);
    const rest = this.#line.hand();
    return {
      transport: this.#line.transport,
      target,
      key: this.#key,
      parameters: this.#parameters,
      rest,
      encrypted: this.encrypted,
      protocol: this.#protocol,
      attrs,
    };
  }

  /** Asks the server to cancel what the session with this key runs; it answers by closing. */
  async requestCancel(key: Started["key"]): Promise<void> {
    const writer = new Writer();
    const mark = writer.beginUntyped();
    writer.int32(CANCEL_REQUEST);
    writer.int32(key.pid);
    writer.raw(key.secret);
    writer.end(mark);
    await this.#line.sendAndClose(writer.take());
  }

  #sendStartup(): void {
    const { user, database, parameters } = this.#settings;
    const writer = new Writer();
    const mark = writer.beginUntyped();
    writer.int32(PROTOCOLS[this.#protocol]);
    const all = { user, database, client_encoding: "UTF8", ...parameters };
    for (const [name, value] of Object.entries(all)) {
      // An empty name would end the list.
      if (name === "") throw new TypeError("a parameter for the server must have a name");
      writer.cstring(name);
      writer.cstring(value);
    }
    writer.byte(0);
    writer.end(mark);
    this.#line.send(writer.take());
  }

  #send(type: number, write: (writer: Writer) => void): void {
    const writer = new Writer();
    const mark = writer.begin(type);
    write(writer);
    writer.end(mark);
    this.#line.send(writer.take());
  }

  // Authentication: at most one exchange, by a method that is allowed, and its end.

  /** NegotiateProtocolVersion: the server has an older one. */
  #negotiate(body: Buffer): void {
    const told = int32(body, 0, body.length);
    const count = int32(body, 4, body.length);
    // Servers send the whole version, the documentation speaks of its second half.
    const version = told >= 0 && told < 1 << 16 ? (3 << 16) | told : told;
    if (count !== 0) {
      throw new ProtocolError("it does not know options of the protocol that were not asked for");
    }
    if (body.length !== 8) throw new ProtocolError("a NegotiateProtocolVersion that is too long");
    const name = version === PROTOCOLS["3.0"] ? "3.0" : version === PROTOCOLS["3.2"] ? "3.2" : null;
    if (name === null || version >= PROTOCOLS[this.#protocol]) {
      throw new ProtocolError(
        `it wants version ${version >> 16}.${version & 0xffff} of the protocol, ` +
          `and was asked for ${this.#protocol}`,
      );
    }
    const { minProtocol } = this.#settings;
    if (version < PROTOCOLS[minProtocol]) {
      throw new ConnectError(
        "UNSUPPORTED",
        `the server has protocol ${name}, and min_protocol_version is ${minProtocol}`,
      );
    }
    this.#protocol = name;
  }

  async #login(first: Buffer): Promise<void> {
    const code = int32(first, 0, first.length);
    const { channelBinding } = this.#settings.auth;
    switch (code) {
      case 0:
        this.#allow("none", first, 4);
        if (channelBinding === "require") throw this.#notBound();
        return;
      case 3: {
        this.#allow("password", first, 4);
        if (channelBinding === "require") throw this.#notBound();
        const password = await this.#password();
        this.#answer(password);
        break;
      }
      case 5: {
        this.#allow("md5", first, 8);
        if (channelBinding === "require") throw this.#notBound();
        const password = await this.#password();
        this.#answer(
          await this.#run(md5Answer(password, this.#settings.user, first.subarray(4))),
        );
        break;
      }
      case 10:
        await this.#scram(first);
        break;
      default: {
        const method = { 2: "Kerberos 5", 6: "SCM credentials", 7: "GSSAPI", 9: "SSPI" }[code];
        throw new ConnectError(
          "AUTH_REFUSED",
          `the server asks for an authentication method that is not supported (${method ?? code})`,
        );
      }
    }
    const last = await this.#request();
    if (int32(last, 0, last.length) !== 0 || last.length !== 4) {
      throw new ProtocolError("it asks for authentication again");
    }
  }

  /** The next request for authentication; before the first one the server may say that its protocol is an older one. */
  async #request(first = false): Promise<Buffer> {
    const frame = await this.#line.next();
    const { type, body } = frame;
    if (type === E) throw this.#refusal(frame);
    if ((type === R || type === V) && body.length > LONGEST_AUTH - 4) {
      throw new ProtocolError("a request for authentication that is too long");
    }
    this.heard = true;
    if (type === R) return body;
    if (type !== V || !first) throw unexpected(frame, "before the login was over");
    this.#negotiate(body);
    return await this.#request();
  }

  /** Throws when the method is not allowed, or its request is not as long as it must be. */
  #allow(method: AuthMethod, body: Buffer, length: number | null): void {
    const { methods } = this.#settings.auth;
    if (length !== null && body.length !== length) {
      throw new ProtocolError("a request for authentication of the wrong length");
    }
    if (methods === null || methods.has(method)) return;
    const asks = method === "none"
      ? "did not ask for authentication"
      : `asks for the authentication method ${method}`;
    throw new ConnectError(
      "AUTH_REFUSED",
      `the server ${asks}, and require_auth does not allow that`,
    );
  }

  #notBound(): ConnectError {
    return new ConnectError(
      "AUTH_REFUSED",
      "channel_binding=require, but the server's login is not bound to the TLS session",
    );
  }

  async #password(): Promise<string> {
    const password = await this.#line.race(this.#settings.auth.password(this.#attempt.target))
      .catch((error) => {
        throw lateBy(
          error,
          "the password was not told in time",
          "does the function that was given as password answer?",
        );
      });
    if (password === null || password === "") {
      throw new ConnectError("AUTH_REFUSED", "the server asks for a password, and none was given");
    }
    if (password.includes("\0")) {
      throw new TypeError("the password must not contain the character U+0000");
    }
    return password;
  }

  #answer(text: string): void {
    this.#send(0x70, (writer) => writer.cstring(text));
  }

  async #scram(request: Buffer): Promise<void> {
    const mechanisms: string[] = [];
    let at = 4;
    for (;;) {
      const stop = endOfText(request, at, request.length);
      if (stop === at) break;
      mechanisms.push(textOf(request, at, stop));
      at = stop + 1;
    }
    if (at !== request.length - 1) {
      throw new ProtocolError("a list of mechanisms that goes on behind its end");
    }
    const { channelBinding, maxScramIterations } = this.#settings.auth;
    const certificate = channelBinding === "disable" ? null : this.#tls?.certificate ?? null;
    const hash = certificate === null ? null : await this.#run(endPoint(certificate));
    const plus = hash !== null && mechanisms.includes(SCRAM_PLUS);
    if (!plus && channelBinding === "require") throw this.#notBound();
    if (!plus && !mechanisms.includes(SCRAM)) {
      const names = mechanisms.map((name) => name.replace(/[^\x21-\x7e]/g, "?")).join(", ");
      throw new ConnectError(
        "AUTH_REFUSED",
        `the server asks for an authentication method that is not supported (${names || "none"})`,
      );
    }
    this.#allow("scram-sha-256", request, null);
    const password = await this.#password();
    const scram = new Scram({
      maxIterations: maxScramIterations,
      nonce: this.#world.randomBytes(18),
      binding: plus ? { kind: "p", data: hash } : { kind: hash === null ? "n" : "y", data: null },
    });
    this.#send(0x70, (writer) => {
      writer.cstring(plus ? SCRAM_PLUS : SCRAM);
      writer.value(scram.first());
    });
    try {
      const challenge = saslText(await this.#request(), 11, "the challenge");
      const response = await this.#run(scram.respond(challenge, password, this.#world.keys));
      this.#send(0x70, (writer) => writer.text(response));
      // Without it anybody who does not know the password could pass for the server.
      scram.finish(saslText(await this.#request(), 12, "the last message"));
    } catch (error) {
      throw error instanceof ProtocolError ? untrusted(error) : error;
    }
  }

  // From AuthenticationOk to ReadyForQuery.

  /** Takes what the server tells of itself. */
  async #settle(): Promise<void> {
    let keyed = false;
    for (;;) {
      const frame = await this.#line.next();
      const { type, body } = frame;
      if (type === S) this.#parameter(body);
      else if (type === K && !keyed) {
        this.#readKey(body);
        keyed = true;
      } else if (type === E) throw this.#refusal(frame);
      else if (type === Z) return readReady(body);
      // Whoever listens to notices has no session yet; libpq prints them, we drop them.
      else if (type === N) readFields(body, 0, body.length);
      else throw unexpected(frame, "before the session stood");
    }
  }

  #parameter(body: Buffer): void {
    const stop = endOfText(body, 0, body.length);
    const end = endOfText(body, stop + 1, body.length);
    if (end !== body.length - 1) {
      throw new ProtocolError("a ParameterStatus that goes on behind its end");
    }
    this.#parameters.set(textOf(body, 0, stop), textOf(body, stop + 1, end));
  }

  #readKey(body: Buffer): void {
    const length = body.length - 4;
    if (length < 4 || length > LONGEST_SECRET || (this.#protocol === "3.0" && length !== 4)) {
      throw new ProtocolError(
        `a cancel key of ${length} bytes; protocol ${this.#protocol} has ` +
          (this.#protocol === "3.0" ? "4" : `4 to ${LONGEST_SECRET}`),
      );
    }
    this.#key = { pid: int32(body, 0, body.length), secret: Uint8Array.from(body.subarray(4)) };
  }

  #refusal(frame: Frame): Error {
    return markServerError(this.#world.serverError(readFields(frame.body, 0, frame.body.length)));
  }

  /**
   * A role or a database may have other formats of dates and intervals, which would mean other values. They
   * are not in the startup message: that would set the order of day and month, too, which only says how input
   * is read; and poolers refuse what they do not know.
   */
  async #mendFormats(): Promise<void> {
    const { parameters } = this.#settings;
    const own = new Set(Object.keys(parameters).map((name) => name.toLowerCase()));
    const wrong: string[] = [];
    const date = this.#parameters.get("DateStyle");
    if (date !== undefined && !date.startsWith("ISO") && !own.has("datestyle")) {
      wrong.push("set datestyle = 'ISO'");
    }
    const interval = this.#parameters.get("IntervalStyle");
    if (interval !== undefined && interval !== "postgres" && !own.has("intervalstyle")) {
      wrong.push("set intervalstyle = 'postgres'");
    }
    if (wrong.length > 0) await this.#query(wrong.join("; "));
    const encoding = this.#parameters.get("client_encoding");
    if (encoding !== undefined && encoding !== "UTF8") {
      throw new ConnectError(
        "UNSUPPORTED",
        `the server's client_encoding is ${encoding}, and only UTF8 will do`,
      );
    }
  }

  async #misfit(attrs: TargetSessionAttrs | null): Promise<string | null> {
    if (attrs === null || attrs === "any") return null;
    if (!this.#attempt.asks && misfitIsTold(this.#parameters)) {
      return misfit(attrs, this.#parameters);
    }
    // Before PostgreSQL 14, and behind poolers.
    const [standby, readOnly] = await this.#query(
      "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')",
    );
    return misfitOf(attrs, standby === "t", readOnly === "on");
  }

  /** Runs statements by the simple protocol; gives the values of the last row. */
  async #query(text: string): Promise<(string | null)[]> {
    this.#line.listen();
    this.#send(0x51, (writer) => writer.cstring(text));
    let row: (string | null)[] = [];
    let failure: Error | null = null;
    for (;;) {
      const frame = await this.#line.next();
      const { type, body } = frame;
      if (type === Z) {
        readReady(body);
        if (failure !== null) throw failure;
        return row;
      }
      if (type === E) failure ??= this.#refusal(frame);
      else if (type === S) this.#parameter(body);
      else if (type === D) row = textsOf(body, 2, body.length, uint16(body, 0, body.length));
      else if (type !== T && type !== C && type !== N && type !== A) {
        throw unexpected(frame, "as an answer to our own statement");
      }
    }
  }
}

/** A place for people's eyes. */
export function placeOf(
  { host, port, path }: { host: string; port: number; path: string | null },
): string {
  return path ?? (host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`);
}

/** True for an address of IPv4 or IPv6, which SNI must not carry. */
export function isAddress(host: string): boolean {
  return /^[\da-f:]*:[\da-f:.]*(%[\w.-]+)?$/i.test(host) || /^\d{1,3}(\.\d{1,3}){3}$/.test(host);
}

/**
 * What answers may be no PostgreSQL at all; or a server that has no memory left for a proper message, and
 * says so in the form of the protocol before 2003.
 */
function refuseStranger(bytes: Uint8Array, where: string): void {
  const [type = 0, high = 0] = bytes;
  if ((type === R || type === V || type === E) && high === 0) return;
  const text = String.fromCharCode(...bytes.subarray(0, 200)).replace(/[^\x20-\x7e]+/g, " ").trim();
  if (type === E) {
    throw new ConnectError("CONNECTION_CLOSED", `the server at ${where} says: ${text.slice(1)}`);
  }
  throw new ProtocolError(`what answers at ${where} is no PostgreSQL server; it says: ${text}`);
}

function closedEarly(where: string): ConnectError {
  return new ConnectError(
    "CONNECTION_CLOSED",
    `CONNECTION_CLOSED ${where}: the server closed the connection before the session began`,
  );
}

function unexpected({ type }: Frame, when: string): ProtocolError {
  return new ProtocolError(`a message of type ${nameOf(type)} ${when}`);
}

function readReady(body: Buffer): void {
  if (body.length !== 1 || body[0] !== IDLE) {
    throw new ProtocolError("a session that does not begin outside of a transaction");
  }
}

function saslText(body: Buffer, code: number, what: string): string {
  if (int32(body, 0, body.length) !== code) throw new ProtocolError(`${what} of SCRAM is missing`);
  return textOf(body, 4, body.length);
}

/** WebCrypto has no MD5; so this is the one place for `node:crypto`, loaded when a server still asks for it. */
async function md5Answer(password: string, user: string, salt: Uint8Array): Promise<string> {
  const { createHash } = await import("node:crypto");
  const inner = createHash("md5").update(password).update(user).digest("hex");
  return `md5${createHash("md5").update(inner).update(salt).digest("hex")}`;
}

/** The transport while nobody but the startup has it: what comes is kept in order until it is asked for. */
class Line {
  readonly transport: Transport;
  /** The server's place, for people's eyes. */
  readonly where: string;
  #frames: Frame[] = [];
  #reader: FrameReader | null = null;
  #bytes = 0;
  /** Why nothing more comes. It is told when all frames before it have been taken. */
  #over: { readonly reason: unknown } | null = null;
  /** The same from our own side, which counts at once. */
  #failed: { readonly reason: unknown } | null = null;
  #wake: (() => void) | null = null;

  constructor(transport: Transport, where: string) {
    this.transport = transport;
    this.where = where;
  }

  send(bytes: Uint8Array): void {
    this.transport.write(bytes);
  }

  /** Nothing counts any more but this. */
  fail(reason: unknown): void {
    this.#failed ??= { reason };
    this.#wake?.();
  }

  #end(reason: unknown): void {
    this.#over ??= { reason };
    this.#wake?.();
  }

  #receive(data: (bytes: Uint8Array) => void): void {
    const closed = (error: Error | null): void => this.#end(error ?? closedEarly(this.where));
    this.transport.receive({ data, end: () => closed(null), close: closed, drain() {} });
  }

  /** The promise, unless the attempt is given up meanwhile. */
  race<P>(promise: Promise<P>): Promise<P> {
    return new Promise((resolve, reject) => {
      const wake = (): void => {
        if (this.#failed !== null) reject(this.#failed.reason);
      };
      this.#wake = wake;
      wake();
      promise.then(resolve, reject).finally(() => {
        if (this.#wake === wake) this.#wake = null;
      });
    });
  }

  /** Waits until `ready` gives something, or nothing can come any more. */
  #wait<V>(ready: () => V | undefined): Promise<V> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        let value: V | undefined;
        if (this.#failed === null) value = ready();
        const end = this.#failed ?? (value === undefined ? this.#over : null);
        if (value === undefined && end === null) {
          this.#wake = look;
          return;
        }
        this.#wake = null;
        if (end !== null) reject(end.reason);
        else resolve(value!);
      };
      look();
    });
  }

  /** The one byte that answers SSLRequest. More of them would be anybody's, not the server's (CVE-2021-23222). */
  byte(): Promise<number> {
    let answer: number | undefined;
    this.#receive((bytes) => {
      if (answer !== undefined || bytes.length !== 1) {
        return this.fail(
          new ConnectError(
            "TLS_REFUSED",
            `the server at ${this.where} sent data before TLS had started`,
          ),
        );
      }
      answer = bytes[0]!;
      this.#wake?.();
    });
    return this.#wait(() => answer);
  }

  /** From now on frames come, until a ReadyForQuery. */
  listen(): void {
    const rest = this.#reader?.rest();
    const reader = this.#reader = new FrameReader((type, body, at, end) => {
      this.#frames.push({ type, body: body.subarray(at, end) });
      return type !== Z;
    }, true);
    // The memory is the transport's; frames are taken later.
    const push = (bytes: Uint8Array): void => {
      if (this.#failed !== null || this.#over !== null) return;
      const first = this.#bytes === 0;
      this.#bytes += bytes.length;
      try {
        if (first) refuseStranger(bytes, this.where);
        if (this.#bytes > MOST_BYTES) throw new ProtocolError("too much before the session stood");
        // Not by slice(), which in a Buffer copies nothing.
        reader.push(Buffer.from(bytes));
      } catch (error) {
        this.#end(error);
      }
      this.#wake?.();
    };
    this.#receive(push);
    this.transport.resume();
    if (rest !== undefined && rest.length > 0) push(rest);
  }

  /** The next message. */
  next(): Promise<Frame> {
    return this.#wait(() => this.#frames.shift());
  }

  /** The session takes over: stops, and gives what came behind the last ReadyForQuery. */
  hand(): Uint8Array | null {
    if (this.#failed !== null) throw this.#failed.reason;
    if (this.#over !== null) throw this.#over.reason;
    this.transport.pause();
    const rest = this.#reader!.rest();
    return rest.length === 0 ? null : rest;
  }

  /** Sends a last message and waits until the other side has closed. */
  sendAndClose(bytes: Uint8Array): Promise<void> {
    let closed: true | undefined;
    const close = (): void => {
      closed = true;
      this.#wake?.();
    };
    this.transport.receive({ data() {}, end: close, close, drain() {} });
    this.transport.resume();
    this.transport.write(bytes);
    return this.#wait(() => closed).then(() => {});
  }
}
