/**
 * The wire watcher: knows a session's transaction state and backend key from the bytes that go by,
 * as libpq knows them, without a round trip.
 *
 * Formats: PostgreSQL documentation, "Message Formats". A backend frame is a type byte, a length of
 * four bytes that counts itself, and a body; frames may be split anywhere by the transport.
 */

import { Buffer } from "node:buffer";
import type { TransactionStatus } from "../pool/types.ts";
import { authenticationFault } from "./authentication.ts";

const READY_FOR_QUERY = 0x5a; // Z
const BACKEND_KEY_DATA = 0x4b; // K
const ERROR_RESPONSE = 0x45; // E
const AUTHENTICATION = 0x52; // R
const DATA_ROW = 0x44; // D
const COMMAND_COMPLETE = 0x43; // C
const PORTAL_SUSPENDED = 0x73; // s

const QUERY = 0x51; // Q
const SYNC = 0x53; // S
const PARSE = 0x50; // P
const BIND = 0x42; // B
const DESCRIBE = 0x44; // D
const EXECUTE = 0x45; // E
const FLUSH = 0x48; // H
const CLOSE = 0x43; // C

const HEADER = 5;
/** A frame that we read is held back until it is whole; longer ones of these types are not ours to read. */
const LONGEST_HELD = 16_384;

const SYNC_MESSAGE = Buffer.from([SYNC, 0, 0, 0, 4]);

/**
 * The text of a statement that stands for one that the driver has queued but could not write; a Sync
 * is put behind it, so that the server gives as many answers as the driver waits for.
 */
export const PLACEHOLDER = "/* a statement that could not be built */";
const PLACEHOLDER_BODY = Buffer.from(PLACEHOLDER + "\0");

/**
 * The driver counts a result's rows from where the last statement's count was left, and only the end
 * of a command sets it back: after a statement that failed amid its rows the next result would begin
 * with empty places. So an end of the command is put before the ReadyForQuery of such a statement.
 */
const END_OF_ROWS = Buffer.from("C\0\0\0\rSELECT 0\0", "latin1");

/** What {@linkcode Wire.received} gives on: the server's bytes, and those of {@linkcode END_OF_ROWS}. */
export interface Receiver {
  /** Whole frames of the server, or the middle of a long one. */
  deliver(bytes: Buffer): void;
  /** An end of a command that the server did not send. */
  endRows(bytes: Buffer): void;
}

/** Watches both directions of one session's wire. */
export class Wire {
  /** The backend's process id; 0 until the server has told it. */
  pid = 0;
  /** The key for cancel requests, as the server sent it. */
  secret: Buffer = Buffer.alloc(0);
  /** The transaction state at the last ReadyForQuery. */
  last: "idle" | "intrans" | "inerror" = "idle";
  /** Changes when a transaction ends, also when the same message begins another one. */
  endings = 0;
  /** True from the first ReadyForQuery on: the server has accepted the session. */
  ready = false;
  /** The server's last ErrorResponse, raw: the reason of a close, when it was a fatal one. */
  lastError: Buffer | null = null;
  /** True when nothing of what the driver writes shall be sent any more. */
  mute = false;
  /** Why the server cannot be talked to; from then on nothing is given on. */
  fault: string | null = null;

  /** ReadyForQuery messages that the server owes us. */
  #outstanding = 0;
  /** True while messages of the extended protocol wait for their Sync. */
  #batch = false;
  #started = false;
  #placeholders = 0;
  /** Bytes of the current frame's body that are still to come and of no interest. */
  #skip = 0;
  /** The beginning of a frame whose header, or whose body that we read, is not whole yet. */
  #held: Buffer | null = null;
  /** True when rows have come since the last end of a command. */
  #inRows = false;
  readonly #onready: () => void;

  /** `onready` is called at each ReadyForQuery, before the driver sees it. */
  constructor(onready: () => void = () => {}) {
    this.#onready = onready;
  }

  /** True when something was sent whose end has not been seen. */
  get busy(): boolean {
    return this.#outstanding > 0 || this.#batch;
  }

  /** libpq's word for what the wire shows. */
  get status(): TransactionStatus {
    return this.busy ? "active" : this.last;
  }

  /** One more {@linkcode PLACEHOLDER} will be written, and needs a Sync behind it. */
  expectPlaceholder(): void {
    this.#placeholders++;
  }

  /** Takes note of bytes from the server, and gives them on. */
  received(bytes: Uint8Array, to: Receiver): void {
    let chunk = bytes as Buffer;
    let at = 0;
    if (this.#held !== null) {
      chunk = Buffer.concat([this.#held, bytes]);
      this.#held = null;
    } else if (this.#skip > 0) {
      if (this.#skip >= bytes.length) {
        this.#skip -= bytes.length;
        return to.deliver(chunk);
      }
      at = this.#skip;
      this.#skip = 0;
    }
    const end = chunk.length;
    let delivered = 0;
    let inRows = this.#inRows;
    while (at < end) {
      if (end - at < HEADER) break;
      const type = chunk[at]!;
      // Shifts instead of readUInt32BE: this runs for every row.
      const size = 1 +
        (((chunk[at + 1]! << 24) | (chunk[at + 2]! << 16) | (chunk[at + 3]! << 8) |
          chunk[at + 4]!) >>> 0);
      if (type === DATA_ROW) inRows = true;
      else if (type === COMMAND_COMPLETE) {
        inRows = false;
        if (isCommit(chunk, at)) this.endings++;
      } else if (type === PORTAL_SUSPENDED) inRows = false;
      else if (
        type === READY_FOR_QUERY || type === BACKEND_KEY_DATA || type === ERROR_RESPONSE ||
        type === AUTHENTICATION
      ) {
        if (end - at < size && size <= LONGEST_HELD) break;
        if (inRows && type === READY_FOR_QUERY) {
          inRows = false;
          if (at > delivered) to.deliver(chunk.subarray(delivered, at));
          to.endRows(END_OF_ROWS);
          delivered = at;
        }
        if (end - at >= size) this.#read(type, chunk, at, size);
      }
      at += size;
    }
    if (this.fault !== null) return;
    this.#inRows = inRows;
    if (at < end) this.#hold(chunk, at);
    else this.#skip = at - end;
    const until = Math.min(at, end);
    if (until > delivered) {
      to.deliver(delivered === 0 && until === end ? chunk : chunk.subarray(delivered, until));
    }
  }

  #hold(chunk: Buffer, at: number): void {
    // A copy, so that a few bytes do not keep a large chunk in memory.
    this.#held = Buffer.from(chunk.subarray(at));
  }

  #read(type: number, chunk: Buffer, at: number, size: number): void {
    if (type === READY_FOR_QUERY) {
      const byte = chunk[at + HEADER];
      if (byte === 0x49 && this.last !== "idle") this.endings++;
      this.last = byte === 0x54 ? "intrans" : byte === 0x45 ? "inerror" : "idle"; // T, E, I
      if (this.#outstanding > 0) this.#outstanding--;
      this.ready = true;
      this.#onready();
    } else if (type === BACKEND_KEY_DATA) {
      this.pid = chunk.readInt32BE(at + HEADER);
      this.secret = Buffer.from(chunk.subarray(at + HEADER + 4, at + size));
    } else if (type === AUTHENTICATION) {
      this.fault ??= authenticationFault(chunk.subarray(at + HEADER, at + size));
    } else {
      this.lastError = Buffer.from(chunk.subarray(at + HEADER, at + size));
    }
  }

  /**
   * Takes note of bytes to the server, and gives back what shall be written in their place. The
   * driver writes whole messages only, so no message is split between two calls.
   */
  sending(bytes: Uint8Array): Uint8Array {
    if (!this.#started) {
      // The startup message has no type byte, and is answered by the first ReadyForQuery.
      this.#started = true;
      this.#outstanding++;
      return bytes;
    }
    const end = bytes.length;
    let at = 0;
    while (end - at >= HEADER) {
      const size = 1 +
        (((bytes[at + 1]! << 24) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 8) |
          bytes[at + 4]!) >>> 0);
      const type = bytes[at];
      if (type === SYNC) {
        this.#outstanding++;
        this.#batch = false;
      } else if (type === QUERY) {
        this.#outstanding++;
        if (this.#placeholders > 0 && isPlaceholder(bytes, at, size)) {
          return this.#syncAfter(bytes, at + size);
        }
      } else if (
        type === PARSE || type === BIND || type === DESCRIBE || type === EXECUTE ||
        type === FLUSH || type === CLOSE
      ) {
        this.#batch = true;
      }
      at += size;
    }
    return bytes;
  }

  #syncAfter(bytes: Uint8Array, at: number): Uint8Array {
    this.#placeholders--;
    this.#outstanding++;
    const rest = bytes.subarray(at);
    return Buffer.concat([bytes.subarray(0, at), SYNC_MESSAGE, this.sending(rest)]);
  }
}

/** Whether a CommandComplete says COMMIT; COPY has another third letter. */
function isCommit(chunk: Buffer, at: number): boolean {
  return chunk[at + HEADER] === 0x43 && chunk[at + HEADER + 2] === 0x4d;
}

function isPlaceholder(bytes: Uint8Array, at: number, size: number): boolean {
  return size - HEADER === PLACEHOLDER_BODY.length &&
    PLACEHOLDER_BODY.equals(bytes.subarray(at + HEADER, at + size));
}

/** The fields of an ErrorResponse's body, by their one-letter codes. */
export function errorFields(body: Uint8Array): Map<string, string> {
  const fields = new Map<string, string>();
  const text = Buffer.from(body).toString("utf8");
  for (const field of text.split("\0")) {
    if (field !== "") fields.set(field.charAt(0), field.slice(1));
  }
  return fields;
}
