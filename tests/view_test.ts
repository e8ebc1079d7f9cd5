/** What a borrower sees of things whose connector has no `lend`. */

import { assert, assertEquals, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import {
  AbstractConnectionPool,
  type Connector,
  PoolError,
  type TransactionStatus,
} from "../mod.ts";
import { outcome } from "./support/checks.ts";
import { settle } from "./support/fake.ts";
import { test } from "./support/harness.ts";

class Socket {
  readonly id: number;
  note = "";
  readonly self: Socket = this;
  #secret = "private";
  constructor(id: number) {
    this.id = id;
  }
  get secret(): string {
    return this.#secret;
  }
  chain(): this {
    return this;
  }
  later(): Promise<this> {
    return Promise.resolve(this);
  }
  fails(): Promise<never> {
    return Promise.reject(new Error("its own"));
  }
  lazy(): PromiseLike<string> {
    return new Lazy();
  }
}

/** Begins its work when it is asked for. */
class Lazy extends Promise<string> {
  static asked = 0;
  static override get [Symbol.species](): PromiseConstructor {
    return Promise;
  }
  constructor() {
    super((resolve) => resolve("done"));
  }
  // deno-lint-ignore no-explicit-any -- as Promise has it
  override then(...args: any[]): Promise<any> {
    Lazy.asked++;
    return super.then(...args);
  }
}

class Pool<T extends object> extends AbstractConnectionPool<T> {
  constructor(maxconn: number, connector: Connector<T>) {
    super(0, maxconn, { pool: { connector } });
  }
}

function sockets(): { pool: Pool<Socket>; opened: Socket[] } {
  const opened: Socket[] = [];
  const pool = new Pool<Socket>(1, {
    open: () => {
      const one = new Socket(opened.length + 1);
      opened.push(one);
      return Promise.resolve(one);
    },
    close: () => Promise.resolve(),
  });
  return { pool, opened };
}

test("a view: what is done to it is done to the thing", async () => {
  const { pool, opened } = sockets();
  const view = await pool.getconn();
  const [thing] = opened as [Socket];
  assertEquals([view.id, view.secret, view instanceof Socket], [1, "private", true]);
  view.note = "written";
  assertEquals(thing.note, "written");
  assertEquals(Object.keys(view), Object.keys(thing));
  assertEquals("note" in view, true);
  assertEquals(Object.hasOwn(view, "note"), true);
  assertEquals({ ...view }.note, "written");
  assertEquals(JSON.parse(JSON.stringify({ ...view, self: null })).id, 1);
  Object.defineProperty(view, "extra", { value: 5, writable: true });
  assertEquals((thing as unknown as { extra: number }).extra, 5);
  assertEquals(Object.getOwnPropertyDescriptor(view, "extra")?.value, 5);
  assertEquals(delete (view as { extra?: number }).extra, true);
  assertEquals("extra" in thing, false);
  assertThrows(() => Object.freeze(view), TypeError);
  assertThrows(() => Object.setPrototypeOf(view, null), TypeError);
  assertThrows(
    () => Object.defineProperty(view, "fixed", { value: 1, configurable: false }),
    TypeError,
  );
  assertEquals(Object.isFrozen(thing), false);
  await pool.putconn(view);
  await pool.closeall();
});

test("a view: the thing itself comes out of no property, no method and no promise", async () => {
  const { pool, opened } = sockets();
  const view = await pool.getconn();
  for (const one of [view.self, view.chain(), await view.later(), view.chain().self.chain()]) {
    assertStrictEquals(one, view);
    assert(one !== opened[0]);
  }
  const { value } = Object.getOwnPropertyDescriptor(view, "self")!;
  assertStrictEquals(value, view);
  await assertRejects(() => view.fails(), Error, "its own");
  const lazy = view.lazy();
  assertEquals(Lazy.asked, 0, "it was begun by the view");
  assertEquals(await lazy, "done");
  const later = view.later();
  await pool.putconn(view);
  assertThrows(() => view.id, PoolError, "was put back");
  assertStrictEquals(await later, view, "what comes after the end is dead as well");
  await pool.closeall();
});

test("a view is dead after its lease, whatever is done to it", async () => {
  const { pool, opened } = sockets();
  const view = await pool.getconn();
  const { chain } = view;
  await pool.putconn(view);
  const uses: (() => unknown)[] = [
    () => view.id,
    () => view.note = "x",
    () => chain(),
    () => "id" in view,
    () => Object.keys(view),
    () => Object.getOwnPropertyDescriptor(view, "id"),
    () => Object.defineProperty(view, "x", { value: 1, configurable: true }),
    () => delete (view as { note?: string }).note,
  ];
  for (const use of uses) assertThrows(use, PoolError, "was put back");
  assertEquals(opened[0]?.note, "");
  assertStrictEquals(await view, view);
  await pool.closeall();
});

test("a view of a function is called as the function", async () => {
  const thing = Object.assign((a: number) => a + 1, { label: "plus" });
  const pool = new Pool<typeof thing>(1, {
    open: () => Promise.resolve(thing),
    close: () => Promise.resolve(),
  });
  const view = await pool.getconn();
  assertEquals([view(1), view.label, Object.keys(view)], [2, "plus", ["label"]]);
  await pool.putconn(view);
  assertThrows(() => view(1), PoolError, "was put back");
  // The same object again, after it was closed, is another opening.
  await pool.renew();
  await pool.use((again) => assertEquals(again(2), 3));
  await pool.closeall();
});

test("open() that gives what is open already is refused, and the one at work is left alone", async () => {
  const thing = new Socket(1);
  let closed = 0;
  const pool = new Pool<Socket>(2, {
    open: () => Promise.resolve(thing),
    close: () => Promise.resolve(void closed++),
  });
  const view = await pool.getconn();
  const second = outcome(pool.getconn());
  await settle();
  assertEquals(second.word, "CONNECT_FAILED");
  assertEquals([view.id, closed, pool.stats().leased, pool.stats().poolSize], [1, 0, 1, 1]);
  await pool.putconn(view);
  await pool.closeall();
  assertEquals(closed, 1);
});

test("open() that gives what is lost already is a failure to connect, and it is closed", async () => {
  const closed: number[] = [];
  let status: TransactionStatus = "unknown";
  let made = 0;
  const pool = new Pool<Socket>(1, {
    open: () => Promise.resolve(new Socket(++made)),
    close: ({ id }) => Promise.resolve(void closed.push(id)),
    status: () => status,
  });
  const first = outcome(pool.getconn());
  await settle();
  assertEquals([first.word, closed, pool.stats().poolSize], ["CONNECT_FAILED", [1], 0]);
  status = "idle";
  await pool.use(({ id }) => assertEquals(id, 2));
  await pool.closeall();
});
