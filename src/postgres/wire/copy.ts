/** COPY as streams. They end, whatever fails on either side. */

import { Buffer } from "node:buffer";
import { Readable, Writable } from "node:stream";
import type { CopyEnd, Request } from "./request.ts";
import type { Session } from "./session.ts";

/** A COPY's stream, and how it hears of the statement's end. */
export interface CopyStream extends CopyEnd {
  /** What the borrower gets. */
  readonly stream: Readable | Writable;
  /** The statement is over, by this failure or none. */
  ended(failure: unknown): void;
}

function ignore(): void {}

function errorOf(failure: unknown): Error {
  return failure instanceof Error ? failure : new Error("the COPY was ended", { cause: failure });
}

/** The stream for the data of a COPY from stdin. */
export function copyInStream(session: Session, request: Request): CopyStream {
  /** Set while `end()` waits for the server's word. */
  let final: ((error: Error | null) => void) | null = null;
  let outcome: { readonly failure: unknown } | null = null;
  const stream = new Writable({
    write(chunk: Uint8Array, _encoding, callback) {
      if (outcome !== null) return callback(errorOf(outcome.failure));
      session.copyData(request, chunk, callback);
    },
    final(callback) {
      if (outcome !== null) {
        return callback(outcome.failure === null ? null : errorOf(outcome.failure));
      }
      final = callback;
      session.copyEnd(request, null);
    },
    destroy(error, callback) {
      // Else the server would wait for more for ever.
      if (outcome === null && final === null) {
        session.copyEnd(request, error?.message ?? "the stream was destroyed");
      }
      callback(error);
    },
  });
  // A failure that nobody listens to must not end the process; `end`, `pipeline` and `finished` tell of it.
  stream.on("error", ignore);
  return {
    stream,
    data: ignore,
    done: ignore,
    ended(failure) {
      outcome = { failure };
      if (final !== null) {
        const callback = final;
        final = null;
        callback(failure === null ? null : errorOf(failure));
      } else if (failure !== null) stream.destroy(errorOf(failure));
      else stream.destroy();
    },
  };
}

/** The stream of the data of a COPY to stdout. */
export function copyOutStream(session: Session, request: Request): CopyStream {
  let over = false;
  let paused = false;
  const resume = (): void => {
    if (!paused) return;
    paused = false;
    session.resume();
  };
  const stream = new Readable({
    read: resume,
    destroy(error, callback) {
      const left = !over;
      over = true;
      resume();
      // Nobody reads the rest: the server need not send it.
      if (left) session.cancelRequest(request).catch(ignore);
      callback(error);
    },
  });
  stream.on("error", ignore);
  return {
    stream,
    data(body, at, end) {
      if (over) return;
      // A copy: the bytes are the transport's again when this returns.
      if (stream.push(Buffer.from(body.subarray(at, end))) || paused) return;
      paused = true;
      session.pause();
    },
    done: ignore,
    ended(failure) {
      if (over) return;
      over = true;
      resume();
      if (failure === null) stream.push(null);
      else stream.destroy(errorOf(failure));
    },
  };
}
