import { assertEquals, assertThrows } from "@std/assert";
import { Buffer } from "node:buffer";
import fc from "fast-check";
import { test } from "./support/harness.ts";
import {
  FrameReader,
  ProtocolError,
  readFields,
  textOf,
  Writer,
} from "../src/postgres/wire/frames.ts";

interface Frame {
  readonly type: string;
  readonly body: string;
}

const frame = fc.oneof(
  fc.record({
    type: fc.constantFrom(..."RKSENtTDCAGHWdvV"),
    body: fc.string({ unit: "grapheme", maxLength: 300 }),
  }),
  fc.record({ type: fc.constantFrom(..."123nIsc"), body: fc.constant("") }),
  fc.record({ type: fc.constant("Z"), body: fc.constantFrom(..."ITE") }),
);

function written(frames: readonly Frame[]): Uint8Array {
  const out = new Writer();
  for (const { type, body } of frames) {
    const mark = out.begin(type.charCodeAt(0));
    out.text(body);
    out.end(mark);
  }
  return out.take();
}

/** Pushes the bytes cut at these places; each piece is overwritten after it was seen. */
function readIn(bytes: Uint8Array, cuts: readonly number[], reader: FrameReader): void {
  let from = 0;
  for (const cut of [...cuts].sort((a, b) => a - b).concat(bytes.length)) {
    if (cut <= from) continue;
    const piece = new Uint8Array(bytes.subarray(from, cut));
    reader.push(piece);
    piece.fill(0xff);
    from = cut;
  }
}

function collect(short = false): { reader: FrameReader; seen: Frame[] } {
  const seen: Frame[] = [];
  const reader = new FrameReader((type, body, at, end) => {
    seen.push({ type: String.fromCharCode(type), body: textOf(body, at, end) });
    return true;
  }, short);
  return { reader, seen };
}

test("frames are the same however the transport cuts them", () => {
  fc.assert(
    fc.property(fc.array(frame), fc.array(fc.nat(5000)), (frames, cuts) => {
      const bytes = written(frames);
      const { reader, seen } = collect();
      readIn(bytes, cuts.filter((cut) => cut < bytes.length), reader);
      assertEquals(seen, frames);
      assertEquals(reader.rest().length, 0);
    }),
    { numRuns: 300 },
  );
});

test("frames cut into single bytes are whole again, and long ones too", () => {
  const long = "é".repeat(70_000);
  const bytes = written([{ type: "D", body: long }, { type: "Z", body: "I" }]);
  for (const step of [1, 7, 65_536]) {
    const { reader, seen } = collect();
    readIn(bytes, Array.from({ length: bytes.length / step | 0 }, (_, i) => i * step), reader);
    assertEquals(seen.map(({ body }) => body.length), [long.length, 1]);
  }
});

test("what comes behind the frame that stops a reader is kept", () => {
  fc.assert(
    fc.property(fc.array(frame, { minLength: 1 }), fc.array(fc.nat(3000)), (frames, cuts) => {
      const bytes = written(frames);
      let seen = 0;
      const reader = new FrameReader(() => ++seen < 1);
      readIn(bytes, cuts.filter((cut) => cut < bytes.length), reader);
      assertEquals(seen, 1);
      assertEquals([...reader.rest()], [...bytes.subarray(written(frames.slice(0, 1)).length)]);
    }),
    { numRuns: 300 },
  );
});

test("a header that cannot be one is refused as soon as it is there", () => {
  const cases: [number[], string][] = [
    [[0x44, 0, 0, 0, 3], "length 3"],
    [[0x44, 0, 0, 0, 0], "length 0"],
    [[0x44, 0x7f, 0xff, 0xff, 0xff], "length 2147483647"],
    [[0x44, 0xff, 0xff, 0xff, 0xff], "length 4294967295"],
    [[0x5a, 0, 1, 0, 0], '"Z" with the length 65536'],
    [[0x00, 0, 0, 0, 4], "unknown type 0x0"],
    // Each of these would swallow the frames behind it, an answer's end among them.
    ...[..."123nIsc"].map((type): [number[], string] => [
      [type.charCodeAt(0), 0, 0, 0, 152],
      `"${type}" with the length 152; allowed is 4`,
    ]),
    [[0x5a, 0, 0, 0, 4], '"Z" with the length 4; allowed is 5'],
    [[0x5a, 0, 0, 0, 40], '"Z" with the length 40; allowed is 5'],
    [[0x78, 0, 0, 0, 4], 'unknown type "x"'],
  ];
  for (const [bytes, words] of cases) {
    for (const cuts of [[], [1], [1, 2, 3, 4]]) {
      const { reader, seen } = collect();
      assertThrows(() => readIn(new Uint8Array(bytes), cuts, reader), ProtocolError, words);
      assertEquals(seen, []);
    }
  }
});

test("before a session stands no frame is longer than libpq allows", () => {
  const body = "x".repeat(30_000);
  const { reader } = collect(true);
  assertThrows(() => reader.push(written([{ type: "E", body }])), ProtocolError, "4 to 30000");
  const later = collect();
  later.reader.push(written([{ type: "E", body }]));
  assertEquals(later.seen.length, 1);
});

test("a frame that only claims to be long takes no memory", () => {
  const { reader } = collect();
  const claim = Buffer.alloc(64);
  claim[0] = 0x44;
  claim.writeUInt32BE(0x3fffffff, 1);
  reader.push(claim);
  assertEquals(reader.rest().length, 64);
});

test("a writer gives what was written, and touches it no more", () => {
  const out = new Writer();
  const taken: [Uint8Array, string][] = [];
  for (let i = 0; i < 3000; i++) {
    const text = `${i} ${"aé€😀".repeat(i % 50)}`;
    out.value(text);
    const size = Buffer.byteLength(text);
    taken.push([
      out.take(),
      String.fromCharCode(size >> 24, size >> 16, size >> 8 & 255, size & 255) + text,
    ]);
  }
  for (const [bytes, text] of taken) {
    const buffer = Buffer.from(bytes);
    assertEquals(buffer.toString("latin1", 0, 4) + buffer.toString("utf8", 4), text);
  }
});

test("a frame that cannot be built leaves nothing in the writer", () => {
  const out = new Writer();
  out.cstring("kept");
  const before = out.length;
  out.begin(0x51);
  assertThrows(() => out.cstring("a\0b"), TypeError, "U+0000");
  out.cut(before);
  assertEquals(Buffer.from(out.take()).toString(), "kept\0");
});

test("fields of an error have their names, unknown ones are passed over", () => {
  const body = Buffer.from("SFATAL\0VFATAL\0C57P01\0Mgone\0?what\0Rhere\0\0");
  assertEquals({ ...readFields(body, 0, body.length) }, {
    severity_local: "FATAL",
    severity: "FATAL",
    code: "57P01",
    message: "gone",
    routine: "here",
  });
  for (const bad of ["SERROR", "SERROR\0", "SERROR\0\0x"]) {
    assertThrows(() => readFields(Buffer.from(bad), 0, bad.length), ProtocolError);
  }
});
