import {
  assert,
  assertEquals,
  assertNotStrictEquals,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { getPool, SimpleConnectionPool } from "../mod.ts";
import { test } from "./support/harness.ts";

/** A stand-in: getPool asks nothing but whether it is closed. */
class Standin {
  closed = false;
  readonly size: number;
  constructor(size = 1) {
    this.size = size;
  }
}

function warnings(fn: () => void): string[] {
  const { warn } = console;
  const said: string[] = [];
  console.warn = (...args: unknown[]) => void said.push(args.join(" "));
  try {
    fn();
  } finally {
    console.warn = warn;
  }
  return said;
}

const name = (): string => crypto.randomUUID();

test("getPool makes one pool per name, and calls the factory once", () => {
  const [one, two] = [name(), name()];
  let calls = 0;
  const make = () => (calls++, new Standin());
  const pool = getPool(one, make);
  assertStrictEquals(getPool(one, make), pool);
  assertNotStrictEquals(getPool(two, make), pool);
  assertEquals(calls, 2);
});

test("getPool replaces a closed pool", () => {
  const one = name();
  const pool = getPool(one, () => new Standin());
  pool.closed = true;
  const other = getPool(one, () => new Standin());
  assertNotStrictEquals(other, pool);
  assertStrictEquals(getPool(one, () => new Standin()), other);
});

test("getPool keeps nothing when the factory throws", () => {
  const one = name();
  assertThrows(
    () =>
      getPool(one, () => {
        throw new RangeError("no good");
      }),
    RangeError,
    "no good",
  );
  assertEquals(getPool(one, () => new Standin(7)).size, 7);
});

test("getPool says once that a factory has changed, and keeps the pool", () => {
  const one = name();
  const changed = () => getPool(one, () => new Standin(2));
  const said = warnings(() => {
    // A new function with the same text, as every request makes one, is the same factory.
    for (let i = 0; i < 3; i++) assertEquals(getPool(one, () => new Standin(1)).size, 1);
  });
  assertEquals(said, []);
  const second = warnings(() => {
    for (let i = 0; i < 3; i++) assertEquals(changed().size, 1);
  });
  assertEquals(second.length, 1);
  assert(second[0]!.includes(`getPool("${one}")`), second[0]);
});

test("getPool takes what bundlers and minifiers make of one factory for the same", () => {
  const texts = [
    `() => new Pool(0, 5_000, env["URL"], { pool: { timeout: 5_000, keep: true, name: "a b" } })`,
    // Other names, other quotes, other ways to write a number or a boolean.
    `()=>new r(0,5e3,t['URL'],{pool:{timeout:5000,keep:!0,name:'a b'}})`,
    "() => new _pool__1.Pool(0, 5000, env['URL'], {\n  // 7 and \"x\"\n  pool: {timeout: 0x1388,/* 8 */keep: true, name: `a b`}})",
    // A value more or less, and nobody can tell what that means.
    `()=>new r(0,5e3,t.URL,{pool:{timeout:5e3,keep:!0,name:"a b"}})`,
    `()=>new r(0,5e3,"postgres://inlined",void 0,{pool:{timeout:5e3,keep:!0,name:"a b"}})`,
  ];
  const factory = (text: string) => Object.assign(() => new Standin(), { toString: () => text });
  const one = name();
  const said = warnings(() => {
    for (let i = 0; i < 2; i++) for (const text of texts) getPool(one, factory(text));
  });
  assertEquals(said, []);
  const [first] = texts;
  for (
    const changed of [
      first!.replace("0, 5_000", "1, 5_000"),
      first!.replace("5_000,", "5_001,"),
      first!.replace("true", "false"),
      first!.replace("a b", "a c"),
      first!.replace("URL", "URI"),
    ]
  ) {
    assertEquals(warnings(() => void getPool(one, factory(changed))).length, 1, changed);
  }
});

test("getPool wants a name", () => {
  for (const bad of ["", undefined, 7]) {
    assertThrows(() => getPool(bad as string, () => new Standin()), TypeError, "name");
  }
});

test("getPool wants a factory that gives a pool, and keeps nothing else", async () => {
  const one = name();
  for (const bad of [undefined, null, 7, {}]) {
    assertThrows(() => getPool(one, bad as never), TypeError, "getPool takes a function");
  }
  const late = Promise.resolve(new Standin());
  for (const given of [undefined, null, 7, {}, late]) {
    assertThrows(() => getPool(one, (() => given) as never), TypeError, `getPool("${one}") needs`);
  }
  await late;
  assertEquals(getPool(one, () => new Standin(7)).size, 7);
});

test("getPool gives a real pool with its own type", async () => {
  const one = name();
  const pool: SimpleConnectionPool = getPool(
    one,
    () => new SimpleConnectionPool(0, 1, "postgres://u@localhost/d"),
  );
  await pool.close();
  const next = getPool(one, () => new SimpleConnectionPool(0, 2, "postgres://u@localhost/d"));
  assertEquals(next.maxconn, 2);
  await next.close();
});
