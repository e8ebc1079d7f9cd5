/**
 * PostgreSQL's frames, both ways: a type byte, a length of four bytes that counts itself, and a body.
 *
 * Formats: PostgreSQL documentation, "Message Formats".
 */

import { Buffer } from "node:buffer";
import { SHORT_TEXT } from "../../runtime.ts";

/** What is written at once without a new buffer. */
const CHUNK = 64 << 10;
/** With less room than this left, the next writer begins a new chunk. */
const LEAST_ROOM = 4 << 10;
/** Writers that wait for their next use. */
const MOST_SPARE = 8;

/** The methods of Node's buffers that its types do not tell of; Deno, Bun and Node have them. */
interface RawBuffer extends Buffer {
  /** With its length: without one workerd takes all bytes of the buffer, which do not fit behind `at`. */
  utf8Write(text: string, at: number, length: number): number;
  utf8Slice(from: number, to: number): string;
}

/** A text that the protocol cannot carry. */
function refuseZero(text: string): void {
  if (text.includes("\0")) {
    throw new TypeError("a text for the server must not contain the character U+0000");
  }
}

/**
 * Outgoing frames, one after the other in one buffer. What {@linkcode take} gives is not touched
 * again: the next frames follow behind it, until the buffer is full.
 */
export class Writer {
  #bytes = Buffer.allocUnsafeSlow(CHUNK) as RawBuffer;
  /** Where the bytes begin that were not taken. */
  #start = 0;
  #at = 0;

  /** How many bytes wait to be taken. */
  get length(): number {
    return this.#at - this.#start;
  }

  /** Takes all that was written. */
  take(): Uint8Array {
    const taken = this.#bytes.subarray(this.#start, this.#at);
    if (this.#bytes.length - this.#at < LEAST_ROOM) {
      this.#bytes = Buffer.allocUnsafeSlow(CHUNK) as RawBuffer;
      this.#at = 0;
    }
    this.#start = this.#at;
    return taken;
  }

  /** Forgets what was written behind the first `length` bytes: a frame that could not be built. */
  cut(length: number): void {
    this.#at = this.#start + length;
  }

  #room(n: number): void {
    if (this.#at + n > this.#bytes.length) this.#grow(n);
  }

  #grow(n: number): void {
    const used = this.#at - this.#start;
    // What was taken from the old one is in others' hands.
    const grown = Buffer.allocUnsafeSlow(Math.max(CHUNK, 2 * (used + n))) as RawBuffer;
    this.#bytes.copy(grown, 0, this.#start, this.#at);
    this.#bytes = grown;
    this.#start = 0;
    this.#at = used;
  }

  /** Begins a frame; gives what {@linkcode end} wants back. */
  begin(type: number): number {
    this.#room(5);
    this.#bytes[this.#at] = type;
    this.#at += 5;
    return this.length - 4;
  }

  /** Begins a frame without a type, as the first one of a session is. */
  beginUntyped(): number {
    this.#room(4);
    this.#at += 4;
    return this.length - 4;
  }

  /** Ends the frame, or the value, that `mark` was given for, and writes its length. */
  end(mark: number): void {
    this.#setInt32(this.#start + mark, this.length - mark);
  }

  #setInt32(at: number, n: number): void {
    const bytes = this.#bytes;
    bytes[at] = n >> 24;
    bytes[at + 1] = n >> 16;
    bytes[at + 2] = n >> 8;
    bytes[at + 3] = n;
  }

  byte(n: number): void {
    this.#room(1);
    this.#bytes[this.#at++] = n;
  }

  int16(n: number): void {
    this.#room(2);
    const bytes = this.#bytes;
    bytes[this.#at] = n >> 8;
    bytes[this.#at + 1] = n;
    this.#at += 2;
  }

  int32(n: number): void {
    this.#room(4);
    this.#setInt32(this.#at, n);
    this.#at += 4;
  }

  raw(bytes: Uint8Array): void {
    this.#room(bytes.length);
    this.#bytes.set(bytes, this.#at);
    this.#at += bytes.length;
  }

  /** A text without an end, as UTF-8. */
  text(text: string): void {
    const n = text.length;
    // A unit of UTF-16 is at most three bytes.
    this.#room(3 * n);
    const bytes = this.#bytes;
    if (n < 32) {
      // Up to here a call into the runtime costs more than the loop.
      let at = this.#at;
      for (let i = 0; i < n; i++) {
        const c = text.charCodeAt(i);
        if (c > 127) {
          this.#at += bytes.utf8Write(text, this.#at, 3 * n);
          return;
        }
        bytes[at++] = c;
      }
      this.#at = at;
    } else this.#at += bytes.utf8Write(text, this.#at, 3 * n);
  }

  /** A text and the zero that ends it. Throws a TypeError when the text has one of its own. */
  cstring(text: string): void {
    refuseZero(text);
    this.text(text);
    this.byte(0);
  }

  /** A name that we have made, and the zero that ends it: ASCII, and no zero in it. */
  name(name: string): void {
    const n = name.length;
    this.#room(n + 1);
    const bytes = this.#bytes;
    let at = this.#at;
    for (let i = 0; i < n; i++) bytes[at++] = name.charCodeAt(i);
    bytes[at++] = 0;
    this.#at = at;
  }

  /** A value: its length and the text. */
  value(text: string): void {
    this.#room(4);
    this.#at += 4;
    const mark = this.length;
    this.text(text);
    this.#setInt32(this.#start + mark - 4, this.length - mark);
  }

  /** A frame that is its type alone. */
  empty(type: number): void {
    this.#room(5);
    const bytes = this.#bytes;
    bytes[this.#at] = type;
    bytes[this.#at + 1] = bytes[this.#at + 2] = bytes[this.#at + 3] = 0;
    bytes[this.#at + 4] = 4;
    this.#at += 5;
  }
}

/** Writers that nobody uses: a session has one only from its first frame to the end of the turn. */
const spare: Writer[] = [];

/** A writer, empty. */
export function borrowWriter(): Writer {
  return spare.pop() ?? new Writer();
}

/** Gives a writer back from which all was taken. */
export function returnWriter(writer: Writer): void {
  if (spare.length < MOST_SPARE) spare.push(writer);
}

/** The server, or whoever sits there, did not keep to the protocol. It ends the session. */
export class ProtocolError extends Error {
  /** Always the same, so that programs need not read the message. */
  readonly code = "PROTOCOL_VIOLATION";

  /** `what` was wrong. */
  constructor(what: string) {
    super(`the server broke the protocol: ${what}`);
    this.name = "ProtocolError";
  }
}

/** Gets frames: `body` from `at` to `end`, good until it returns. False stops the reader. */
export type OnFrame = (type: number, body: Buffer, at: number, end: number) => boolean;

/** The longest frame that the server can mean: its own limit for what it allocates. */
const LONGEST = 0x3fffffff;
/** The longest frame of a type that has no reason to be long, and of any before the session stands; as in libpq. */
const LONGEST_SHORT = 30_000;
/** Types that may be long: rows and their descriptions, COPY, errors and notices, notifications, parameter types. */
const MAY_BE_LONG = new Set([..."DTdENAtS"].map((char) => char.charCodeAt(0)));
/** By type the least length; for a type that the server never sends one that none has. */
const LEAST = new Uint32Array(256).fill(0xffffffff);
/** By type the greatest length that needs no second look. */
const MOST = new Uint32Array(256);
for (const char of "RKSENtTDCAGHWdvV") {
  LEAST[char.charCodeAt(0)] = 4;
  MOST[char.charCodeAt(0)] = LONGEST_SHORT;
}
// Nothing is in these, and one byte in ReadyForQuery: a wrong length would swallow the frames behind it.
for (const char of "123nIsc") LEAST[char.charCodeAt(0)] = MOST[char.charCodeAt(0)] = 4;
LEAST[0x5a] = MOST[0x5a] = 5;

/** Takes what the server sends apart into frames, however the transport has cut it. */
export class FrameReader {
  readonly #onframe: OnFrame;
  /** The beginning of a frame that is not whole; null when there is none. */
  #rest: Buffer | null = null;
  /** How much of {@linkcode FrameReader.#rest} is filled. */
  #filled = 0;
  #stopped = false;
  readonly #strict: boolean;

  /** With `short` no frame may be long: before the session stands. */
  constructor(onframe: OnFrame, short = false) {
    this.#onframe = onframe;
    this.#strict = short;
  }

  /**
   * Takes bytes, which are good until it returns; after `onframe` gave false they only wait in
   * {@linkcode FrameReader.rest}. Throws a {@linkcode ProtocolError} for a frame that cannot be one, and
   * what `onframe` throws; then it must not be called again.
   */
  push(bytes: Uint8Array): void {
    let from = 0;
    while (from < bytes.length && !this.#stopped && this.#rest !== null) {
      // Completes the one frame that is begun; what is behind it needs no copy.
      const want = this.#wanted();
      const n = Math.min(want, bytes.length - from);
      this.#append(bytes, from, from + n);
      from += n;
      if (n < want || this.#filled === 5 && this.#wanted() > 0) continue;
      const frame = this.#rest;
      const size = this.#filled;
      this.#rest = null;
      this.#filled = 0;
      this.#frames(frame, size);
    }
    if (from === bytes.length) return;
    const left = from === 0 ? bytes : bytes.subarray(from);
    if (this.#stopped) return this.#append(left, 0, left.length);
    const chunk = bufferOf(left);
    const at = this.#frames(chunk, chunk.length);
    if (at < chunk.length) this.#append(chunk, at, chunk.length);
  }

  /** What came after the frame that `onframe` gave false for; copied. Empty when nothing did. */
  rest(): Uint8Array {
    return this.#rest === null ? new Uint8Array(0) : this.#rest.subarray(0, this.#filled);
  }

  /** Gives whole frames on; returns where the first one begins that is not whole or not wanted. */
  #frames(chunk: Buffer, end: number): number {
    const onframe = this.#onframe;
    let at = 0;
    while (at + 5 <= end) {
      const type = chunk[at]!;
      // Unsigned, so that a length with the first bit set is too long and not negative.
      const length = ((chunk[at + 1]! << 24) | (chunk[at + 2]! << 16) | (chunk[at + 3]! << 8) |
        chunk[at + 4]!) >>> 0;
      if (length < LEAST[type]! || length > MOST[type]!) this.#checkHeader(type, length);
      const next = at + 1 + length;
      if (next > end) break;
      const on = onframe(type, chunk, at + 5, next);
      at = next;
      if (!on) {
        this.#stopped = true;
        break;
      }
    }
    return at;
  }

  #checkHeader(type: number, length: number): void {
    const least = LEAST[type]!;
    if (least === 0xffffffff) {
      throw new ProtocolError(`a message of the unknown type ${nameOf(type)}`);
    }
    const most = MAY_BE_LONG.has(type) && !this.#strict ? LONGEST : MOST[type]!;
    if (length >= least && length <= most) return;
    const allowed = least === most ? `allowed is ${least}` : `allowed are ${least} to ${most}`;
    throw new ProtocolError(
      `a message of type ${nameOf(type)} with the length ${length}; ${allowed}`,
    );
  }

  /** How many bytes are missing: of the header, or of the whole frame. */
  #wanted(): number {
    const rest = this.#rest!;
    if (this.#filled < 5) return 5 - this.#filled;
    const length = rest.readUInt32BE(1);
    this.#checkHeader(rest[0]!, length);
    return 1 + length - this.#filled;
  }

  /** Grows by doubling: what a frame claims to be is not believed before it comes. */
  #append(bytes: Uint8Array, from: number, to: number): void {
    const n = to - from;
    const filled = this.#filled + n;
    if (this.#rest === null || this.#rest.length < filled) {
      const grown = Buffer.allocUnsafeSlow(Math.max(64, this.#rest === null ? n : 2 * filled));
      this.#rest?.copy(grown, 0, 0, this.#filled);
      this.#rest = grown;
    }
    this.#rest.set(
      from === 0 && to === bytes.length ? bytes : bytes.subarray(from, to),
      this.#filled,
    );
    this.#filled = filled;
  }
}

/** A view of the same bytes as one of Node's buffers, whose methods are the fastest way to texts. */
function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes)
    ? bytes
    : Buffer.from(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength);
}

/** A frame's type for people's eyes. */
export function nameOf(type: number): string {
  return type > 32 && type < 127 ? `"${String.fromCharCode(type)}"` : `0x${type.toString(16)}`;
}

/** The text from `at` to `end`. */
export function textOf(body: Buffer, at: number, end: number): string {
  if (end - at <= SHORT_TEXT) {
    let text = "";
    for (let i = at; i < end; i++) {
      const c = body[i]!;
      if (c > 127) return (body as RawBuffer).utf8Slice(at, end);
      text += String.fromCharCode(c);
    }
    return text;
  }
  return (body as RawBuffer).utf8Slice(at, end);
}

/** The values of a row of `n` as texts; null stands for NULL. Throws when they do not fill it. */
export function textsOf(body: Buffer, at: number, end: number, n: number): (string | null)[] {
  const row: (string | null)[] = [];
  for (; n > 0; n--) {
    const length = int32(body, at, end);
    at += 4;
    const stop = at + Math.max(0, length);
    if (length < -1 || stop > end) throw new ProtocolError("a row that is too short");
    row.push(length < 0 ? null : textOf(body, at, stop));
    at = stop;
  }
  if (at !== end) throw new ProtocolError("a row with more in it than its values");
  return row;
}

/** Where the text that begins at `at` ends: its zero. Throws when there is none before `end`. */
export function endOfText(body: Buffer, at: number, end: number): number {
  for (let i = at; i < end; i++) {
    if (body[i] === 0) return i;
  }
  throw new ProtocolError("a text without its end");
}

/** Two bytes, unsigned. Throws when they are not there. */
export function uint16(body: Buffer, at: number, end: number): number {
  if (at + 2 > end) throw new ProtocolError("a message that is too short");
  return (body[at]! << 8) | body[at + 1]!;
}

/** Four bytes, with their sign. Throws when they are not there. */
export function int32(body: Buffer, at: number, end: number): number {
  if (at + 4 > end) throw new ProtocolError("a message that is too short");
  return (body[at]! << 24) | (body[at + 1]! << 16) | (body[at + 2]! << 8) | body[at + 3]!;
}

/** By the letter of a field of ErrorResponse and NoticeResponse, what programs know it as. */
const FIELD_NAMES: Readonly<Record<string, string>> = {
  S: "severity_local",
  V: "severity",
  C: "code",
  M: "message",
  D: "detail",
  H: "hint",
  P: "position",
  p: "internal_position",
  q: "internal_query",
  W: "where",
  s: "schema_name",
  t: "table_name",
  c: "column_name",
  d: "data type_name",
  n: "constraint_name",
  F: "file",
  L: "line",
  R: "routine",
};

/** What the server says in an error or a notice. */
export interface ServerFields {
  /** In English, whatever the server's language. Servers before 9.6 and poolers send only the local one. */
  severity?: string;
  /** SQLSTATE. */
  code?: string;
  message?: string;
  /** Where in the server's source. */
  routine?: string;
  [name: string]: string | undefined;
}

/** The fields of an ErrorResponse or NoticeResponse. Throws when they have no end. */
export function readFields(body: Buffer, at: number, end: number): ServerFields {
  const fields: ServerFields = {};
  while (at < end && body[at] !== 0) {
    const name = FIELD_NAMES[String.fromCharCode(body[at]!)];
    const stop = endOfText(body, at + 1, end);
    // A field of a later version of the protocol is passed over, as the protocol demands.
    if (name !== undefined) fields[name] = textOf(body, at + 1, stop);
    at = stop + 1;
  }
  if (at !== end - 1) throw new ProtocolError("an error or a notice without its end");
  return fields;
}

/** True for an error that ends the session. */
export function isFatal({ severity, severity_local: local }: ServerFields): boolean {
  const word = severity ?? local;
  return word === "FATAL" || word === "PANIC";
}
