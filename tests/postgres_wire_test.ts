import { Buffer } from "node:buffer";
import { assertEquals } from "@std/assert";
import { errorFields, PLACEHOLDER, type Receiver, Wire } from "../src/postgres/wire.ts";
import { test } from "./support/harness.ts";

function frame(type: string, body: Uint8Array | string = ""): Buffer {
  const bytes = Buffer.from(body as string);
  const header = Buffer.alloc(5);
  header.write(type, 0);
  header.writeInt32BE(bytes.length + 4, 1);
  return Buffer.concat([header, bytes]);
}

const KEY = Buffer.from([0, 0, 48, 57, 1, 2, 3, 4]);
const FATAL = "SFATAL\0VFATAL\0C57P01\0Mgone\0\0";
// A row whose value looks like a ReadyForQuery in a failed transaction.
const TRAP = Buffer.concat([Buffer.from([0, 1, 0, 0, 0, 6]), frame("Z", "E")]);
const STREAM = Buffer.concat([
  frame("R", Buffer.alloc(4)),
  frame("S", "server_version\x0018.0\0"),
  frame("K", KEY),
  frame("Z", "I"),
  frame("T", Buffer.alloc(40)),
  frame("D", TRAP),
  frame("C", "SELECT 1\0"),
  frame("Z", "T"),
  frame("E", FATAL),
  frame("Z", "E"),
]);

/** Keeps what is given on. */
class Sink implements Receiver {
  bytes: Buffer = Buffer.alloc(0);
  ended = 0;
  deliver(bytes: Buffer): void {
    this.bytes = Buffer.concat([this.bytes, bytes]);
  }
  endRows(bytes: Buffer): void {
    this.ended++;
    this.deliver(bytes);
  }
}

const sink = new Sink();

function watched(chunks: Uint8Array[]): unknown[] {
  const seen: unknown[] = [];
  const wire = new Wire(() => seen.push(wire.last));
  const to = new Sink();
  for (const chunk of chunks) wire.received(chunk, to);
  // All of it is given on, and nothing but it.
  assertEquals(to.bytes.toString("hex"), STREAM.toString("hex"));
  return [...seen, wire.pid, [...wire.secret], wire.lastError?.toString()];
}

const SEEN = ["idle", "intrans", "inerror", 12345, [1, 2, 3, 4], FATAL];

test("the wire watcher reads frames that are split anywhere", () => {
  assertEquals(watched([STREAM]), SEEN);
  for (let at = 0; at <= STREAM.length; at++) {
    assertEquals(watched([STREAM.subarray(0, at), STREAM.subarray(at)]), SEEN, `split at ${at}`);
  }
  for (let size = 1; size <= 20; size++) {
    const chunks = [];
    for (let at = 0; at < STREAM.length; at += size) chunks.push(STREAM.subarray(at, at + size));
    assertEquals(watched(chunks), SEEN, `pieces of ${size}`);
  }
});

test("the wire watcher skips bodies larger than a chunk", () => {
  const large = Buffer.concat([frame("D", Buffer.alloc(300_000, "Z")), frame("Z", "T")]);
  const chunks = [];
  for (let at = 0; at < large.length; at += 65_536) chunks.push(large.subarray(at, at + 65_536));
  const wire = new Wire();
  for (const chunk of chunks) wire.received(chunk, sink);
  assertEquals(wire.last, "intrans");
});

test("the wire watcher counts what the server owes", () => {
  const wire = new Wire();
  assertEquals(wire.status, "idle");
  wire.sending(Buffer.from([0, 0, 0, 8, 0, 3, 0, 0]));
  assertEquals(wire.status, "active");
  wire.sending(frame("p", "md5"));
  wire.received(frame("Z", "I"), sink);
  assertEquals(wire.status, "idle");
  wire.sending(Buffer.concat([frame("P", "x"), frame("D", "x"), frame("H")]));
  assertEquals(wire.status, "active");
  wire.sending(Buffer.concat([frame("B", "x"), frame("E", "x"), frame("S")]));
  wire.sending(frame("Q", "copy t from stdin\0"));
  wire.sending(frame("d", "1\n"));
  wire.sending(frame("c"));
  wire.received(frame("Z", "I"), sink);
  assertEquals(wire.status, "active");
  wire.received(frame("Z", "T"), sink);
  assertEquals(wire.status, "intrans");
});

test("the wire watcher puts a Sync behind a placeholder that it expects, and only then", () => {
  const wire = new Wire();
  wire.sending(Buffer.alloc(8));
  wire.received(frame("Z", "I"), sink);
  const placeholder = frame("Q", PLACEHOLDER + "\0");
  const [before, after] = [frame("Q", "select 1\0"), frame("Q", "select 2\0")];
  assertEquals(wire.sending(placeholder), placeholder);
  wire.received(frame("Z", "I"), sink);
  wire.expectPlaceholder();
  assertEquals(
    [...wire.sending(Buffer.concat([before, placeholder, after]))],
    [...Buffer.concat([before, placeholder, frame("S"), after])],
  );
  for (let i = 0; i < 4; i++) {
    assertEquals(wire.status, "active");
    wire.received(frame("Z", "I"), sink);
  }
  assertEquals(wire.status, "idle");
});

test("errorFields() reads an ErrorResponse", () => {
  assertEquals([...errorFields(Buffer.from(FATAL))], [
    ["S", "FATAL"],
    ["V", "FATAL"],
    ["C", "57P01"],
    ["M", "gone"],
  ]);
});

test("an end of rows is put before the end of a statement that failed amid its rows", () => {
  const failed = [frame("D", TRAP), frame("E", FATAL), frame("Z", "I")];
  const rest = [frame("D", TRAP), frame("C", "SELECT 1\0"), frame("Z", "I")];
  const all = Buffer.concat([...failed, ...rest]);
  const [row, error, ready] = failed;
  const wanted = Buffer.concat([row!, error!, frame("C", "SELECT 0\0"), ready!, ...rest]);
  for (let at = 0; at <= all.length; at++) {
    const wire = new Wire();
    const to = new Sink();
    for (const chunk of [all.subarray(0, at), all.subarray(at)]) wire.received(chunk, to);
    assertEquals(to.bytes.toString("hex"), wanted.toString("hex"), `split at ${at}`);
    assertEquals(to.ended, 1);
  }
});
