import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import type { CloseOnOptions, HostContext } from "../mod.ts";
import { FakePool, settle } from "./support/fake.ts";
import { test } from "./support/harness.ts";

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

test("attach() asks the host to wait from the first loan until idle connections are closed", async () => {
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
