/** When a statement's message is sent. */

import { assertEquals, assertThrows } from "@std/assert";
import { Socket } from "node:net";
import type { DriverQuery } from "../src/postgres/driver.ts";
import { Prompt } from "../src/postgres/prompt.ts";
import { test } from "./support/harness.ts";
import { lent } from "./support/postgres.ts";

const query = {} as DriverQuery;
const scope = globalThis as unknown as { setImmediate: (fn: () => void) => unknown };
const turn = (): Promise<void> => new Promise((resolve) => void scope.setImmediate(resolve));

/** Lets a driver of its own take a statement, and counts how often it has written. */
function handedTo(prompt: Prompt): { writes: number } {
  const driver = { writes: 0 };
  prompt.run(() =>
    void scope.setImmediate(function nextWrite() {
      driver.writes++;
    }), query);
  return driver;
}

test("a statement on a quiet session is sent before the turn ends", async () => {
  const order: string[] = [];
  const { write } = Socket.prototype;
  Socket.prototype.write = function (this: Socket, ...args: unknown[]): boolean {
    order.push("write");
    return Reflect.apply(write, this, args);
  } as typeof write;
  try {
    await using it = await lent();
    const values = (n: number) => it.conn`select ${n}::int as n`;
    await values(0);
    order.length = 0;
    const later = turn().then(() => order.push("end of the turn"));
    const both = Promise.all([values(1), values(2)]);
    await later;
    assertEquals(order, ["write", "end of the turn"], "both in one message");
    assertEquals((await both).map(([row]) => row!["n"]), [1, 2]);
  } finally {
    Socket.prototype.write = write;
  }
});

test("Prompt calls the driver's write once, after the microtasks at hand", async () => {
  const driver = handedTo(new Prompt());
  assertEquals(driver.writes, 0);
  await null;
  assertEquals(driver.writes, 1);
  await turn();
  assertEquals(driver.writes, 1);
});

test("Prompt leaves other callbacks where they were meant to go, and setImmediate as it was", async () => {
  const { setImmediate } = scope;
  const prompt = new Prompt();
  const order: string[] = [];
  // As a serializer of the user might.
  prompt.run(() => void scope.setImmediate(() => order.push("theirs")), query);
  assertEquals(scope.setImmediate, setImmediate);
  await null;
  assertEquals(order, []);
  await turn();
  assertEquals(order, ["theirs"]);
  assertThrows(() =>
    prompt.run(() => {
      throw new RangeError("serializer");
    }, query), RangeError);
  assertEquals(scope.setImmediate, setImmediate);
});

test("Prompt sends nothing that was sent already, or that has lost its connection", async () => {
  const prompt = new Prompt();
  const driver = handedTo(prompt);
  prompt.drop();
  await turn();
  assertEquals(driver.writes, 0);
});

test("Prompt lets the driver have its way where setImmediate cannot be replaced", async () => {
  const before = Object.getOwnPropertyDescriptor(globalThis, "setImmediate")!;
  Object.defineProperty(globalThis, "setImmediate", {
    value: scope.setImmediate,
    writable: false,
    configurable: true,
  });
  try {
    const driver = handedTo(new Prompt());
    await null;
    assertEquals(driver.writes, 0);
    await turn();
    assertEquals(driver.writes, 1);
  } finally {
    Object.defineProperty(globalThis, "setImmediate", before);
  }
});
