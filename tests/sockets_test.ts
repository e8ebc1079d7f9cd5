/** Transports over sockets: what is written arrives whole and in order, and what happens is told once and in order. */

import { assert, assertEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import net from "node:net";
import type { Transport, TransportHandlers } from "../src/postgres/wire/transport.ts";
import { openSocket } from "../src/sockets.ts";
import { Dice } from "./support/dice.ts";
import { TCP } from "./support/dial.ts";
import { runner, test } from "./support/harness.ts";
import { within } from "./support/postgres.ts";

interface Line {
  readonly transport: Transport;
  readonly peer: net.Socket;
  /** What the transport has told. */
  readonly told: string[];
  /** Resolves when it has closed. */
  readonly closed: Promise<void>;
  /** Resolves when something new is told. */
  next(): Promise<void>;
}

/** A transport as a session has it: somebody else has received by it before. */
async function line(work: (line: Line) => Promise<void>): Promise<void> {
  const server = net.createServer({ allowHalfOpen: true });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  const accepted = once(server, "connection") as Promise<[net.Socket]>;
  const target = { host: "127.0.0.1", port, path: null };
  const transport = await openSocket(target, new AbortController().signal, TCP, () => {});
  const [peer] = await accepted;
  peer.on("error", () => {});
  const told: string[] = [];
  const over = Promise.withResolvers<void>();
  let more = Promise.withResolvers<void>();
  const tell = (what: string): void => {
    told.push(what);
    more.resolve();
    more = Promise.withResolvers<void>();
  };
  const nobody: TransportHandlers = { data() {}, end() {}, close() {}, drain() {} };
  transport.receive(nobody);
  transport.pause();
  transport.receive({
    data: (bytes) => tell(new TextDecoder().decode(bytes)),
    end: () => tell("end"),
    close: (error) => {
      tell(`close ${(error as { code?: string } | null)?.code ?? error}`);
      over.resolve();
    },
    drain: () => tell("drain"),
  });
  transport.resume();
  try {
    await within(
      work({ transport, peer, told, closed: over.promise, next: () => more.promise }),
    );
  } finally {
    transport.destroy();
    await within(over.promise);
    peer.destroy();
    server.close();
    await once(server, "close");
  }
}

/** All that the peer gets until our end. */
async function received(peer: net.Socket): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  peer.on("data", (part) => parts.push(part));
  await once(peer.resume(), "end");
  return Buffer.concat(parts);
}

test("a transport sends all in order, however much the system takes at once, and tells when it can take more", async () => {
  await line(async ({ transport, peer, told, next, closed }) => {
    const dice = new Dice(7);
    const sent: Uint8Array[] = [];
    const write = (size: number): boolean => {
      const bytes = new Uint8Array(size).fill(sent.length + 1);
      bytes[size - 1] = 0;
      sent.push(bytes.slice());
      return transport.write(bytes);
    };
    peer.pause();
    // More than a system takes at once, and then some behind it.
    assertEquals([write(20_000_000), write(3), write(70_000)], [false, false, false]);
    const reading = received(peer);
    // Also in the turn in which the other side has made room.
    peer.on("data", () => sent.length < 300 && write(dice.of([1, 5, 1_000, 70_000])));
    while (!told.includes("drain")) await next();
    while (sent.length < 300) {
      if (write(dice.of([1, 5_000, 9_000_000]))) continue;
      told.length = 0;
      while (!told.includes("drain")) await next();
    }
    // What waits is sent before the end.
    assertEquals(write(20_000_000), false);
    transport.end();
    const got = await reading;
    assertEquals(Buffer.compare(got, Buffer.concat(sent)), 0);
    told.length = 0;
    peer.end("bye");
    await closed;
    assertEquals(told.filter((what) => what !== "drain" && what !== "end"), ["bye", "close null"]);
  });
});

test("a transport tells of no room when none was refused, and of nothing behind its end", async () => {
  await line(async ({ transport, peer, told, next, closed }) => {
    peer.once("data", () => peer.write("a"));
    assert(transport.write(Uint8Array.of(1)));
    await next();
    peer.end("b");
    while (!told.includes("end")) await next();
    assert(transport.write(Uint8Array.of(2)));
    transport.destroy();
    assertEquals(told.join(" "), "a b end");
    assert(transport.write(Uint8Array.of(3)));
    await closed;
    assertEquals(told.join(" "), "a b end close null");
  });
});

test("a transport that the peer resets says so, idle or in the middle of a write", async () => {
  for (const busy of [false, true]) {
    await line(async ({ transport, peer, told, closed }) => {
      peer.pause();
      transport.write(new Uint8Array(busy ? 20_000_000 : 3));
      if (!busy) await once(peer.resume(), "data");
      peer.resetAndDestroy();
      await closed;
      assertEquals(told.length, 1, told.join());
      assert(/^close (ECONNRESET|EPIPE)$/.test(told[0]!), told[0]);
    });
  }
});

if (runner === "bun") {
  test("Bun: a connected socket of node:net stands on one that is used beside it", async () => {
    const server = net.createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as net.AddressInfo;
    const socket = net.connect(port, "127.0.0.1");
    await once(socket, "connect");
    const { _handle: native } = socket as unknown as { _handle: Record<string, unknown> };
    // Without these sessions go by the stream again, which is slower.
    assertEquals([typeof native["reload"], typeof native["write"]], ["function", "function"]);
    socket.destroy();
    server.close();
    await once(server, "close");
  });
}
