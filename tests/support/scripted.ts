/** A transport that a test plays the server on, and a session over it. */

import { Buffer } from "node:buffer";
import { Language, parseOptions } from "../../src/postgres/language.ts";
import type { Query } from "../../src/postgres/query.ts";
import { cancel, execute } from "../../src/postgres/execution.ts";
import { Session } from "../../src/postgres/wire/session.ts";
import type { Transport, TransportHandlers } from "../../src/postgres/wire/transport.ts";

/** One frame of the server. */
export function frame(type: string, ...parts: (string | number | number[])[]): Buffer {
  const body = Buffer.concat(
    parts.map((part) =>
      typeof part === "string"
        ? Buffer.from(part)
        : typeof part === "number"
        ? int32(part)
        : Buffer.from(part)
    ),
  );
  return Buffer.concat([Buffer.from(type), int32(body.length + 4), body]);
}

function int32(n: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(n);
  return bytes;
}

/** A value in a row. */
export function value(text: string | null): Buffer[] {
  return text === null ? [int32(-1)] : [int32(Buffer.byteLength(text)), Buffer.from(text)];
}

/** A DataRow. */
export function row(...values: (string | null)[]): Buffer {
  const body = Buffer.concat([Buffer.from([0, values.length]), ...values.flatMap(value)]);
  return Buffer.concat([Buffer.from("D"), int32(body.length + 4), body]);
}

/** A RowDescription of columns of the type text. */
export function description(...names: string[]): Buffer {
  const columns = names.map((name) =>
    Buffer.concat([
      Buffer.from(`${name}\0`),
      Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0]),
    ])
  );
  const body = Buffer.concat([Buffer.from([0, names.length]), ...columns]);
  return Buffer.concat([Buffer.from("T"), int32(body.length + 4), body]);
}

/** ReadyForQuery. */
export const READY: Buffer = frame("Z", "I");

/** The whole answer to `select ... as n`, by the simple protocol. */
export function answer(text: string): Buffer {
  return Buffer.concat([description("n"), row(text), frame("C", "SELECT 1\0"), READY]);
}

/** What the session has written, and what the test says as the server. */
export class ScriptedTransport implements Transport {
  closed = false;
  ended = false;
  written: Buffer[] = [];
  /** What `write` gives. */
  room = true;
  handlers: TransportHandlers | null = null;
  receive(handlers: TransportHandlers): void {
    this.handlers = handlers;
  }
  write(bytes: Uint8Array): boolean {
    this.written.push(Buffer.from(bytes));
    return this.room;
  }
  end(): void {
    this.ended = true;
  }
  destroy(): void {
    if (this.closed) return;
    this.closed = true;
    queueMicrotask(() => this.handlers?.close(null));
  }
  pause(): void {}
  resume(): void {}
  ref(): void {}
  unref(): void {}
  /** The server says this; the bytes are overwritten after. */
  say(...frames: Uint8Array[]): void {
    const bytes = Buffer.concat(frames);
    if (!this.closed) this.handlers!.data(bytes);
    bytes.fill(0xff);
  }
  /** The types of the frames that were written since the last call. */
  take(): string {
    const bytes = Buffer.concat(this.written);
    this.written = [];
    let types = "";
    for (let at = 0; at < bytes.length; at += 1 + bytes.readInt32BE(at + 1)) {
      types += String.fromCharCode(bytes[at]!);
    }
    return types;
  }
}

/** A session whose server is the test. */
export interface Scripted {
  readonly transport: ScriptedTransport;
  readonly session: Session;
  readonly language: Language;
  /** What was told beside answers. */
  readonly told: string[];
  /** Executes a text. */
  run(text: string, args?: unknown[], options?: Record<string, unknown>): Query;
}

/** Makes one; `cancel` is what a cancel request does. */
export function scripted(
  send: (due: () => boolean, signal: AbortSignal) => Promise<void> = () => Promise.resolve(),
  limit = 100,
): Scripted {
  const transport = new ScriptedTransport();
  const language = new Language(parseOptions({ prepare: true, debug: false, max_pipeline: 1_024 }));
  const told: string[] = [];
  const started = {
    transport,
    target: { host: "server", hostaddr: null, port: 5432, path: null },
    key: { pid: 7, secret: new Uint8Array([1, 2, 3, 4]) },
    parameters: new Map<string, string>(),
    rest: null,
    encrypted: false,
    protocol: "3.0",
    attrs: null,
  } as const;
  const session = new Session(
    started,
    {
      serverError: (fields) => language.serverError(fields),
      notice: (fields) => void told.push(`notice ${fields.message}`),
      notification: (channel, payload) => void told.push(`notify ${channel} ${payload}`),
      parameter: (_session, name, value) => {
        told.push(`parameter ${name}=${value}`);
        return null;
      },
      closed: () => void told.push("closed"),
    },
    (signal, due) => send(due, signal),
    limit,
  );
  const speaking = Object.assign(session, { language }) as unknown as Parameters<typeof execute>[0];
  // As a lease has it: who cancels is told by the statement alone.
  const owner = {
    execute: (query: Query) => execute(speaking, query),
    cancel: (query: Query) => cancel(query).catch(() => {}),
  };
  return {
    transport,
    session,
    language,
    told,
    run(text, args = [], options = {}) {
      const query = language.unsafe(text, [args, options], owner);
      query.catch(() => {});
      return query;
    },
  };
}

/** Lets all microtasks run. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 30; i++) await Promise.resolve();
}
