import { assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { AsyncLocalStorage } from "node:async_hooks";
import { once } from "node:events";
import process from "node:process";
import { SimpleConnectionPool } from "../mod.ts";
import type { CloseOnOptions, HostContext } from "../mod.ts";
import { FakePool, settle } from "./support/fake.ts";
import { test } from "./support/harness.ts";
import { startProgram } from "./support/program.ts";
import { admin, eventually, testServer } from "./support/server.ts";

/** A host that keeps what it was asked to wait for. */
class FakeHost implements HostContext {
  readonly promises: Promise<unknown>[] = [];
  settled = 0;

  waitUntil(promise: Promise<unknown>): void {
    this.promises.push(promise);
    // What a host does: the pool's own timers let the process end.
    const alive = setInterval(() => {}, 1_000);
    void promise.then(() => {
      clearInterval(alive);
      this.settled++;
    });
  }
}

test("attach() asks the host to wait from the first lease until idle connections are closed", async () => {
  const host = new FakeHost();
  await using pool = new FakePool(0, 2, { maxIdle: 20 });
  assertEquals(pool.attach(host), pool);
  assertEquals(host.promises.length, 0);
  const conn = await pool.getconn();
  assertEquals([host.promises.length, host.settled], [1, 0]);
  await pool.putconn(conn);
  await settle();
  assertEquals(host.settled, 0);
  // A second request within that time needs no second promise.
  await pool.use(() => {});
  assertEquals(host.promises.length, 1);
  await host.promises[0];
  assertEquals(pool.stats().poolSize, 0);
  await pool.use(() => {});
  assertEquals(host.promises.length, 2);
  await host.promises[1];
});

test("attach() and listeners of release hear of shared work, from its first statement to its last", async () => {
  const { url } = await testServer();
  const requests = new AsyncLocalStorage<string>();
  await using pool = new SimpleConnectionPool(0, 1, url, { pool: { maxIdle: 0 } });
  const host = new FakeHost();
  pool.attach(host);
  // Vercel asks at this event which request it is in.
  const heard: unknown[] = [];
  pool.on("release", ({ detail }) => heard.push([requests.getStore(), detail.shared]));
  await requests.run("first", () => pool.use(() => {}));
  await host.promises[0];
  assertEquals(heard.splice(0), [["first", false]]);
  const lock = await admin();
  const table = `host_${crypto.randomUUID()}`;
  try {
    await lock`create table ${lock(table)} ()`;
    await lock`begin`;
    await lock`lock table ${lock(table)}`;
    const statement = requests.run(
      "second",
      () => pool.sql`select from ${pool.sql(table)}`.execute(),
    );
    await eventually(() => assertEquals(pool.stats().shared, 1));
    assertEquals([host.promises.length, host.settled], [2, 1]);
    // Another request's statement, which is not sent behind one that may be slow.
    const another = requests.run("third", () => pool.sql`select 1`.execute());
    await settle();
    assertEquals([host.promises.length, host.settled, heard.length], [2, 1, 0]);
    await lock`commit`;
    await Promise.all([statement, another]);
    await host.promises[1];
    assertEquals(heard.splice(0), [["second", true], ["third", true]]);
    assertEquals(pool.stats().poolSize, 0);
  } finally {
    await lock`drop table if exists ${lock(table)}`;
    await lock.end();
  }
});

test("attach() lets the host go when no more than minconn are left", async () => {
  const host = new FakeHost();
  await using pool = new FakePool(1, 2, { maxIdle: 20 });
  await pool.ready();
  pool.attach(host);
  const [one, two] = [await pool.getconn(), await pool.getconn()];
  await Promise.all([pool.putconn(one), pool.putconn(two)]);
  await host.promises[0];
  assertEquals(pool.stats().idle, 1);
});

test("attach() of a busy pool asks at once; the latest context counts", async () => {
  const [first, second] = [new FakeHost(), new FakeHost()];
  await using pool = new FakePool(0, 2, { maxIdle: 0 });
  const conn = await pool.getconn();
  pool.attach(first);
  assertEquals(first.promises.length, 1);
  pool.attach(second);
  assertEquals([first.promises.length, second.promises.length], [1, 1]);
  await pool.putconn(conn);
  await Promise.all([...first.promises, ...second.promises]);
  await pool.use(() => {});
  assertEquals([first.promises.length, second.promises.length], [1, 2]);
  await second.promises[1];
});

test("attach() survives a host whose request is over, and closing ends the wait", async () => {
  const { warn } = console;
  const said: unknown[] = [];
  console.warn = (...args: unknown[]) => void said.push(args[0]);
  try {
    await using pool = new FakePool(0, 1);
    pool.attach({
      waitUntil() {
        throw new Error("the request is over");
      },
    });
    await pool.use(() => {});
    assertEquals(said.length, 1);
    pool.attach({ waitUntil: () => Promise.reject(new Error("the request is over")) });
    await settle();
    assertEquals(said.length, 2);
    const host = new FakeHost();
    pool.attach(host);
    assertEquals(host.promises.length, 1);
    await pool.closeall();
    await host.promises[0];
  } finally {
    console.warn = warn;
  }
});

test("attach() and closeOn() refuse what they cannot use", async () => {
  await using pool = new FakePool(0, 1);
  assertThrows(() => pool.attach({} as HostContext), TypeError, "waitUntil");
  assertThrows(
    () => pool.closeOn({ events: ["SIGKILL"] } as unknown as CloseOnOptions),
    RangeError,
  );
  assertThrows(() => pool.closeOn({ timeout: -1 }), RangeError, "timeout");
});

test("closeOn() refuses options that there are not, and values that they do not take", async () => {
  await using pool = new FakePool(0, 1);
  const refused = (options: object, type: ErrorConstructor, text: string) =>
    assertThrows(() => pool.closeOn(options as CloseOnOptions), type, text);
  refused({ befor: () => {} }, TypeError, '"befor" of closeOn: it takes events, before, timeout');
  refused({ before: {} }, TypeError, '"before" must be a function, received object');
  for (const odd of [5, "SIGTERM", true, null, [], () => {}]) {
    refused(odd as object, TypeError, "The options of closeOn must be an object");
  }
  refused({ exit: 0 }, TypeError, '"exit" must be true or false');
  refused({ events: "SIGTERM" }, TypeError, '"events" must be an array');
});

test("closeOn({ before }): the pool lends until it has settled, whatever it does", async () => {
  const { error } = console;
  const said: string[] = [];
  console.error = (...args: unknown[]) => void said.push(args.join(" "));
  try {
    const ended = Promise.withResolvers<void>();
    const cases: [() => unknown, RegExp | null][] = [
      [() => ended.promise, null],
      [() => Promise.reject(new Error("no server")), /failed: Error: no server/],
      [() => {
        throw new Error("at once");
      }, /failed: Error: at once/],
      [() => "closed", /gave no promise/],
      [() => new Promise(() => {}), /has not ended within 30 ms/],
    ];
    for (const [before, words] of cases) {
      const pool = new FakePool(0, 1, { name: "hosted" });
      pool.closeOn({
        events: ["beforeunload"],
        before: before as () => PromiseLike<unknown>,
        timeout: words === null ? 5_000 : 30,
      });
      globalThis.dispatchEvent(new Event("beforeunload", { cancelable: true }));
      if (words === null) {
        await settle();
        await pool.use(() => {});
        assertEquals(pool.closed, false);
        ended.resolve();
      }
      while (!pool.closed) await new Promise((resolve) => setTimeout(resolve, 5));
      await pool.close();
      const [line, ...more] = said.splice(0);
      assertEquals(more, []);
      if (words === null) assertEquals(line, undefined);
      else assertMatch(line ?? "", words);
    }
  } finally {
    console.error = error;
  }
});

test("closeOn() of several parts of a program: the pool lends until all that is before has ended", async () => {
  const pool = new FakePool(0, 1);
  const ends = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  let called = 0;
  const before = (at: number) => () => (called++, ends[at]!.promise);
  // Who made the pool, and two servers.
  pool.closeOn({ events: ["beforeunload"] });
  for (const at of [0, 1]) pool.closeOn({ events: ["beforeunload"], before: before(at) });
  globalThis.dispatchEvent(new Event("beforeunload", { cancelable: true }));
  await settle();
  assertEquals([called, pool.closed], [2, false]);
  ends[0]!.resolve();
  await settle();
  await pool.use(() => {});
  ends[1]!.resolve();
  while (!pool.closed) await new Promise((resolve) => setTimeout(resolve, 5));
  await pool.close();
});

test("closeOn() of several parts of a program: a signal is one signal, and what is under way ends", async () => {
  await using program = startProgram("closing");
  assertEquals(await program.line(), "ready");
  const { child } = program;
  // By its number: Deno takes what `child.kill` has signalled for how it ended.
  process.kill(child.pid!, "SIGTERM");
  assertEquals(await program.line(), "put back");
  if (child.exitCode === null) await once(child, "exit");
  assertEquals(child.exitCode, 143);
});

test("closeOn({ timeout }) cuts a close() short that waits for longer", async () => {
  const pool = new FakePool(0, 1);
  await pool.getconn();
  const closed = pool.close({ timeout: Infinity });
  pool.closeOn({ events: ["beforeunload"], timeout: 20 });
  globalThis.dispatchEvent(new Event("beforeunload", { cancelable: true }));
  await closed;
  assertEquals(pool.fake.standing, 0);
});

test("closeOn() closes the pool at beforeunload, and listens no more", async () => {
  const pool = new FakePool(0, 1);
  pool.closeOn({ events: ["beforeunload"] });
  await pool.use(() => {});
  const event = new Event("beforeunload", { cancelable: true });
  globalThis.dispatchEvent(event);
  assertEquals(pool.closed, true);
  await pool.close();
  assertEquals(pool.fake.standing, 0);
  await settle();
  const second = new Event("beforeunload", { cancelable: true });
  globalThis.dispatchEvent(second);
  assertEquals(second.defaultPrevented, false);
  await assertRejects(() => pool.getconn());
});
