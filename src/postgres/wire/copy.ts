/** COPY as streams. They end, whatever fails on either side. */

import { ignore } from "../../pool/safely.ts";
import { Buffer } from "node:buffer";
import { Readable, Writable } from "node:stream";
import type { CopyEnd, Request } from "./request.ts";
import type { Session } from "./session.ts";

/** A COPY whose stream was handed out. */
export interface Copy extends CopyEnd {
  /** The statement is over, by this failure or none. */
  ended(failure: unknown): void;
  /** It is being cancelled: no more is sent, and what is still to come is read for its end alone, however slow whoever reads is. */
  cancelled(): void;
  /** True when some of its data went nowhere for that. */
  readonly dropped: boolean;
}

/** What the borrower gets, and what the session keeps. */
export interface CopyStream<S> {
  /** Kept by whoever reads or writes it, and by the session only while that has to do something for it. */
  readonly stream: S;
  /** The session's side. */
  readonly copy: Copy;
}

function errorOf(failure: unknown): Error {
  return failure instanceof Error ? failure : new Error("the COPY was ended", { cause: failure });
}

/**
 * Ends what was handed out. Not in this turn: the session may end in the one in which it was given, and whoever awaited
 * the stream could not listen to it yet.
 */
function destroy(session: Session, stream: Readable | Writable, failure: unknown): void {
  session.clock.setTimeout(
    () => stream.destroy(failure === null ? undefined : errorOf(failure)),
    0,
  );
}

/** Streams that nobody has any more: their COPYs are ended. */
const forgotten = new FinalizationRegistry<{ forgotten(): void }>((copy) => copy.forgotten());

/** The stream for the data of a COPY from stdin. */
export function copyInStream(session: Session, request: Request): CopyStream<Writable> {
  const copy = new CopyIn(session, request);
  const stream = new Writable({
    write: (chunk, _encoding, callback) => copy.write(chunk, callback),
    final: (callback) => copy.final(callback),
    destroy: (error, callback) => {
      copy.left(error?.message ?? "the stream was destroyed");
      callback(error);
    },
  });
  copy.handOut(stream);
  return { stream, copy };
}

class CopyIn implements Copy {
  readonly dropped = false;
  readonly #session: Session;
  readonly #request: Request;
  #stream: WeakRef<Writable> | null = null;
  /** Set while `end()` waits for the server's word. */
  #final: ((error: Error | null) => void) | null = null;
  #outcome: { readonly failure: unknown } | null = null;

  constructor(session: Session, request: Request) {
    this.#session = session;
    this.#request = request;
  }

  handOut(stream: Writable): void {
    // A failure that nobody listens to must not end the process; `end`, `pipeline` and `finished` tell of it.
    stream.on("error", ignore);
    // What the session has to call back, it keeps, and the stream with it.
    this.#stream = new WeakRef(stream);
    forgotten.register(stream, this, this);
  }

  write(chunk: Uint8Array, callback: (error: Error | null) => void): void {
    if (this.#outcome !== null) return callback(errorOf(this.#outcome.failure));
    this.#session.copyData(this.#request, chunk, callback);
  }

  final(callback: (error: Error | null) => void): void {
    if (this.#outcome !== null) {
      return callback(this.#outcome.failure === null ? null : errorOf(this.#outcome.failure));
    }
    this.#final = callback;
    this.#session.copyEnd(this.#request, null);
  }

  /** There will be no more: else the server would wait for it for ever. */
  left(why: string): void {
    if (this.#outcome === null && this.#final === null) this.#session.copyEnd(this.#request, why);
  }

  forgotten(): void {
    this.left("nobody has its stream any more");
  }

  data(): void {}

  arrived(): void {}

  done(): void {}

  /** A server that waits for data looks for no cancel request before there is some. */
  cancelled(): void {
    this.#session.copyEnd(this.#request, "canceling statement due to user request");
  }

  ended(failure: unknown): void {
    this.#outcome = { failure };
    forgotten.unregister(this);
    if (this.#final !== null) {
      const callback = this.#final;
      this.#final = null;
      return callback(failure === null ? null : errorOf(failure));
    }
    const stream = this.#stream?.deref();
    if (stream !== undefined) destroy(this.#session, stream, failure);
  }
}

/** The stream of the data of a COPY to stdout. */
export function copyOutStream(session: Session, request: Request): CopyStream<Readable> {
  const copy = new CopyOut(session, request);
  const stream = new Readable({
    read(): void {
      copy.read(this);
    },
    destroy: (error, callback) => {
      copy.left();
      callback(error);
    },
  });
  copy.handOut(stream);
  return { stream, copy };
}

class CopyOut implements Copy {
  readonly #session: Session;
  readonly #request: Request;
  #stream: WeakRef<Readable> | null = null;
  /** While data is to come whoever reads may be known to the stream alone; while it is full he has it, or nobody. */
  #kept: Readable | null = null;
  #over = false;
  #cancelled = false;
  dropped = false;
  #paused = false;
  /** What came with the bytes that are being read; the server sends each row by itself. */
  #piece: Buffer | null = null;
  #filled = 0;

  constructor(session: Session, request: Request) {
    this.#session = session;
    this.#request = request;
  }

  handOut(stream: Readable): void {
    stream.on("error", ignore);
    this.#stream = new WeakRef(stream);
    this.#kept = stream;
    forgotten.register(stream, this, this);
  }

  read(stream: Readable): void {
    if (!this.#over) this.#kept = stream;
    this.#resume();
  }

  /** Nobody reads the rest: the server need not send it. */
  left(): void {
    if (this.#end()) this.#session.cancelRequest(this.#request).catch(ignore);
  }

  forgotten(): void {
    this.left();
  }

  data(body: Buffer, at: number, end: number): void {
    if (this.#over) return;
    if (this.#cancelled) {
      this.dropped = true;
      return;
    }
    if (this.#piece !== null && this.#filled + end - at > this.#piece.length) this.arrived();
    // A copy: the bytes are the transport's again when this returns.
    this.#piece ??= Buffer.allocUnsafeSlow(body.length);
    this.#piece.set(body.subarray(at, end), this.#filled);
    this.#filled += end - at;
  }

  arrived(): void {
    const piece = this.#piece;
    if (piece === null) return;
    this.#piece = null;
    const bytes = piece.subarray(0, this.#filled);
    this.#filled = 0;
    const stream = this.#stream?.deref();
    if (this.#over || stream === undefined || stream.push(bytes) || this.#paused) return;
    this.#paused = true;
    this.#kept = null;
    this.#session.started.transport.pause();
  }

  done(): void {
    this.arrived();
  }

  cancelled(): void {
    this.#cancelled = true;
    this.#resume();
  }

  ended(failure: unknown): void {
    const stream = this.#stream?.deref();
    if (!this.#end() || stream === undefined) return;
    if (failure === null) stream.push(null);
    else destroy(this.#session, stream, failure);
  }

  #end(): boolean {
    if (this.#over) return false;
    this.#over = true;
    this.#kept = null;
    forgotten.unregister(this);
    this.#resume();
    return true;
  }

  #resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#session.started.transport.resume();
  }
}
