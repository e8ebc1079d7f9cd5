/** What a caller is told when no connection can be opened; and what is not told to anybody. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { PoolError, PoolTimeout, SimpleConnectionPool } from "../mod.ts";
import { test } from "./support/harness.ts";
import { asAdmin, eventually, testServer } from "./support/server.ts";

const SECRET = "correct-horse-battery";

/** A URL of the test server with something changed. */
async function changed(change: (url: URL) => void): Promise<string> {
  const url = new URL((await testServer()).url);
  change(url);
  return url.href;
}

/** Everything that an error says, with its causes. */
function allOf(error: unknown): string {
  const parts: string[] = [];
  for (let one: unknown = error; one instanceof Error; one = one.cause) {
    parts.push(one.message, one.stack ?? "", JSON.stringify(one, Object.getOwnPropertyNames(one)));
  }
  return parts.join("\n");
}

/** The failure as getconn tells it at once, as it tells it at a deadline, and as ready() tells it. */
async function failures(
  url: string,
  heals: boolean,
): Promise<[PoolError, PoolError, Error]> {
  const eager = new SimpleConnectionPool(1, 2, url, { connect_timeout: 20 });
  const lazy = new SimpleConnectionPool(0, 2, url, { connect_timeout: 20 });
  try {
    const told = await assertRejects(() => eager.ready(), Error);
    const atOnce = await assertRejects(() => lazy.getconn(), PoolError);
    const timeout = heals ? 100 : 60_000;
    const late = await assertRejects(() => lazy.getconn(null, { timeout }), PoolError);
    assertEquals(atOnce.code, "CONNECT_FAILED");
    assertEquals(late.code, heals ? "POOL_TIMEOUT" : "CONNECT_FAILED");
    for (const error of [told, atOnce, late]) {
      assert(!allOf(error).includes(SECRET), "a password is shown");
    }
    // An attempt that was under way at the deadline may still be.
    await eventually(() => assertEquals(lazy.stats().poolSize, 0));
    return [atOnce, late, told];
  } finally {
    await eager.close();
    await lazy.close();
  }
}

for (
  const [name, change, words, heals] of [
    [
      "a wrong password",
      (url: URL) => url.password = SECRET,
      "password authentication failed",
      false,
    ],
    [
      "an unknown database",
      (url: URL) => url.pathname = "/nowhere",
      'database "nowhere" does not',
      false,
    ],
    ["a refused port", (url: URL) => url.port = "1", "ECONNREFUSED", true],
    [
      "a host that does not exist",
      (url: URL) => url.hostname = "nowhere.invalid",
      "nowhere.invalid",
      true,
    ],
  ] as const
) {
  test(`${name}: the reason reaches the caller, as message and as cause`, async () => {
    const [atOnce, late, told] = await failures(await changed(change), heals);
    for (const error of [atOnce, late, told]) {
      assert(error.message.includes(words), error.message);
    }
    if (heals) assert(late.message.startsWith("connection pool exhausted"), late.message);
    assert((atOnce.cause as Error).message.includes(words));
    assert((late.cause as Error).message.includes(words));
  });
}

test("too many connections at the server (53300): the waiter is served as soon as one is free", async () => {
  const role = `few_${crypto.randomUUID().slice(0, 8)}`;
  await asAdmin(async (sql) => {
    await sql.unsafe(`create role ${role} login password '${SECRET}' connection limit 1`);
  });
  const url = await changed((u) => {
    u.username = role;
    u.password = SECRET;
  });
  const pool = new SimpleConnectionPool(0, 2, url);
  try {
    const first = await pool.getconn();
    const error = await assertRejects(() => pool.getconn(), PoolError);
    assertEquals(error.code, "CONNECT_FAILED");
    assertEquals((error.cause as { code?: string }).code, "53300");
    const waiting = pool.getconn(null, { timeout: 60_000 });
    await pool.putconn(first);
    const second = await waiting;
    assertEquals((await second`select 1 as n`)[0]?.["n"], 1);
    await pool.putconn(second);
  } finally {
    await pool.close();
    await asAdmin((sql) => sql.unsafe(`drop role ${role}`));
  }
});

test("a URL that is no URL throws at once and is not shown", () => {
  for (
    const url of [
      `not a url ${SECRET}`,
      `http://user:${SECRET}@localhost/db`,
      `postgres://user:${SECRET}@local host/db`,
      `postgres://user:${SECRET}@localhost:port/db`,
    ]
  ) {
    const error = assertThrows(() => new SimpleConnectionPool(0, 1, url));
    assert(error instanceof TypeError || error instanceof RangeError, String(error));
    assert(!allOf(error).includes(SECRET), "a password is shown");
    assert(/url|port/i.test(error.message), error.message);
  }
});

test("options that the pool owns throw at once and name what to use instead", () => {
  for (const key of ["max", "idle_timeout", "max_lifetime", "backoff"]) {
    const options = { [key]: 5 } as Record<string, unknown>;
    const error = assertThrows(() => new SimpleConnectionPool(0, 1, options), TypeError);
    assert(error.message.includes(key), error.message);
  }
  assertThrows(() => new SimpleConnectionPool(0, 1, "postgres://localhost/x?max=3"), TypeError);
});

test("nothing that can be printed of a pool shows its password", async () => {
  const url = await changed((u) => u.password = SECRET);
  await using pool = new SimpleConnectionPool(0, 1, url, { password: SECRET });
  const { inspect } = await import("node:util");
  for (const text of [JSON.stringify(pool.options), inspect(pool, { depth: 9 }), String(pool)]) {
    assert(!text.includes(SECRET), text);
  }
});

test("a failure that does not heal is told at once to who would wait, and what heals is waited for", async () => {
  const wrong = [
    await changed((url) => url.password = SECRET),
    await changed((url) => url.pathname = "/nowhere"),
    await changed((url) => url.username = "nobody_here"),
  ].map((url) => new SimpleConnectionPool(0, 2, url));
  const { url } = await testServer();
  wrong.push(
    new SimpleConnectionPool(0, 2, url, { connection: { no_such_setting: "1" } as never }),
    new SimpleConnectionPool(0, 2, url, { connection: { work_mem: "much" } as never }),
    new SimpleConnectionPool(0, 2, url, { ssl: "require" }),
  );
  for (const pool of wrong) {
    const begun = performance.now();
    const calls = [1, 2, 3].map(() => pool.getconn(null, { timeout: 60_000 }));
    for (const call of calls) {
      const error = await assertRejects(() => call, PoolError);
      assertEquals(error.code, "CONNECT_FAILED", error.message);
      assert(!allOf(error).includes(SECRET), "a password is shown");
    }
    assert(performance.now() - begun < 30_000);
    await pool.close();
  }
  const away = new SimpleConnectionPool(0, 2, await changed((url) => url.port = "1"));
  await assertRejects(() => away.getconn(null, { timeout: 200 }), PoolTimeout);
  await away.close();
});
