/** What fails on a lease, or dies under it, harms nothing else. */

import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";

import { test } from "./support/harness.ts";
import {
  FakeLease,
  lent,
  promptly,
  rejection,
  timeOf,
  uniqueName,
  within,
} from "./support/postgres.ts";
import { eventually, killBackend, sessions, testServer } from "./support/server.ts";
import { startProxy } from "./support/proxy.ts";

test("a statement that cannot be built rejects alone, wherever it stands in the pipeline", async () => {
  await using it = await lent({
    types: { bad: { to: 25, from: [25], serialize: fail, parse: String } },
  });
  const { conn } = it;
  function fail(value: unknown): string {
    if (value === "boom") throw new RangeError("serializer");
    return String(value);
  }
  const one = (n: number) => conn`select ${n}::int as n`;
  const text = (s: string) => conn`select ${s}::text as n`;
  await one(0);
  await text("known by now, so that it is built with its values at once");
  for (let round = 0; round < 20; round++) {
    const results = await within(Promise.allSettled([
      one(1),
      conn`select ${undefined as never} as n`,
      one(2),
      text("boom"),
      text("boom"),
      conn`select 3 as n`,
      conn`select ${undefined as never} as n`,
    ]));
    const shown = results.map((r) =>
      r.status === "fulfilled" ? r.value[0]!["n"] : r.reason.message
    );
    const nothing = "UNDEFINED_VALUE: Undefined values are not allowed";
    assertEquals(shown, [1, nothing, 2, "serializer", "serializer", 3, nothing]);
    assertEquals(conn.transactionStatus, "idle");
  }
  assertEquals((await one(9))[0]!["n"], 9);
});

test("more statements than the driver's pipeline holds, with some that cannot be built", async () => {
  await using it = await lent({ max_pipeline: 5 });
  const results = await within(Promise.allSettled(
    Array.from(
      { length: 500 },
      (_, i) =>
        i % 7 === 3 ? it.conn`select ${undefined as never} as n` : it.conn`select ${i}::int as n`,
    ),
  ));
  results.forEach((result, i) => {
    if (i % 7 === 3) assertEquals(result.status, "rejected");
    else assertEquals(result.status === "fulfilled" && result.value[0]!["n"], i);
  });
  assertEquals(it.connector.status(it.session), "idle");
});

test("a statement that fails amid its rows does not spoil the next result", async () => {
  await using it = await lent();
  const { conn } = it;
  const failing = () => conn`select 1 / (5 - n) as n from generate_series(1, 10) n`;
  const cursor = async () => {
    const seen = [];
    for await (const rows of conn`select 1 / (15 - n) from generate_series(1, 20) n`.cursor(10)) {
      seen.push(rows.length);
    }
    return seen;
  };
  for (const fail of [failing, cursor, () => failing().simple(), () => failing().values()]) {
    const results = await Promise.allSettled([fail(), conn`select 1 as n`, conn`select 2 as n`]);
    assertEquals(results[0].status === "rejected" && results[0].reason.code, "22012");
    const shown = results.slice(1).map((r) => r.status === "fulfilled" && [...r.value]);
    assertEquals(shown, [[{ n: 1 }], [{ n: 2 }]]);
  }
});

test("cancelling a statement in the pipeline does not shift the answers behind it", async () => {
  await using it = await lent();
  const { conn } = it;
  const first = conn`select pg_sleep(0.1), 1 as n`.execute();
  const slow = conn`select pg_sleep(60), 2 as n`.execute();
  const third = conn`select 3 as n`.execute();
  const never = conn`select 4 as n`;
  never.cancel();
  await conn`select 5`.simple().execute().cancel;
  slow.cancel();
  assertEquals((await within(first))[0]!["n"], 1);
  assertEquals((await rejection(slow)).code, "57014");
  assertEquals((await within(third))[0]!["n"], 3);
  assertEquals((await rejection(never)).code, "57014");
  assertEquals((await within(conn`select 6 as n`))[0]!["n"], 6);
});

test("cancel() stops what runs; failing to reach the server with it harms nobody", async () => {
  const { url } = await testServer();
  await using proxy = await startProxy(url);
  await using it = await lent({}, proxy.url(url));
  const slow = it.conn`select pg_sleep(60)`;
  setTimeout(() => slow.cancel(), 50);
  assertEquals((await rejection(slow)).code, "57014");
  await proxy.set("refuse");
  const short = it.conn`select pg_sleep(0.2), 1 as n`;
  setTimeout(() => short.cancel(), 20);
  assertEquals((await short)[0]!["n"], 1);
  await proxy.set("pass");
});

test("a stale handle is refused, also for a statement made before and awaited after", async () => {
  await using it = await lent();
  const { conn, lease } = it;
  const made = conn`select 1`;
  const { unsafe, begin } = conn;
  lease.open = false;
  for (
    const use of [made, conn`select 1`, unsafe("select 1"), conn.file("/none"), begin(() => {})]
  ) {
    assertEquals((await rejection(use)).code, "CONNECTION_RETURNED");
  }
  assertEquals((await rejection(conn.notify("a", "b"))).code, "CONNECTION_RETURNED");
  assertEquals((await rejection(conn.rollback())).code, "CONNECTION_RETURNED");
  assertEquals((await rejection(conn.close())).code, "CONNECTION_RETURNED");
  assertEquals((await rejection(conn.listen("a", () => {}))).code, "CONNECTION_RETURNED");
  assertEquals([conn.closed, conn.transactionStatus], [true, "unknown"]);
  const next = it.connector.lend(it.session, new FakeLease());
  assertEquals((await next`select 2 as n`)[0]!["n"], 2);
});

test("a dead backend under a lease: what runs and what follows rejects, nothing reconnects", async () => {
  const name = uniqueName();
  await using it = await lent({ connection: { application_name: name } });
  const { conn } = it;
  const running = [conn`select pg_sleep(60)`.execute(), conn`select 1`.execute()];
  const failures = Promise.all(running.map(rejection));
  await eventually(() => assertEquals(conn.transactionStatus, "active"));
  await killBackend(conn.pid);
  for (const error of await failures) assertTerminated(error);
  await eventually(() => assertEquals(it.lost.length, 1));
  assertTerminated(it.lost[0]);
  assertEquals([conn.closed, conn.transactionStatus], [true, "unknown"]);
  const later = await rejection(conn`select 1`);
  assertEquals(later.code, "CONNECTION_LOST");
  assertTerminated(later.cause);
  await assertRejects(() => it.connector.check(it.session));
  assertEquals(await sessions(name), 0);
  assertEquals(it.lost.length, 1);
});

/** A broken connection, in the driver's words, and under it what the server had said. */
function assertTerminated(error: unknown): void {
  const { code, cause } = error as { code: string; cause?: Error & { code: string } };
  assertStringIncludes("CONNECTION_CLOSED ECONNRESET EPIPE", code);
  assertEquals(cause?.name, "PostgresError");
  assertEquals(cause?.code, "57P01");
  assertStringIncludes(cause?.message ?? "", "terminating connection due to administrator command");
}

test("an idle backend that dies is noticed at once", async () => {
  await using it = await lent();
  await killBackend(it.conn.pid);
  await eventually(() => assertEquals(it.lost.length, 1));
  assertEquals(it.connector.status(it.session), "unknown");
});

test("a backend that dies under begin rejects it at once, and nobody hears an unhandled rejection", async () => {
  await using it = await lent();
  const { conn } = it;
  let inner: unknown;
  const waiting = conn.begin(async (sql) => {
    await sql`select 1`;
    inner = sql;
    await new Promise(() => {});
  });
  const failed = rejection(waiting);
  await eventually(() =>
    assertEquals(conn.transactionStatus === "intrans" && inner !== undefined, true)
  );
  await killBackend(conn.pid);
  assertEquals((await failed).code, "CONNECTION_CLOSED");
  const running = await lent();
  const slow = rejection(running.conn.begin((sql) => sql`select pg_sleep(60)`));
  await eventually(() => assertEquals(running.session.lastState, "intrans"));
  await killBackend(running.conn.pid);
  assertTerminated(await slow);
});

test("a backend that dies during COPY, a cursor, and a buffered write", async () => {
  for (const round of [0, 1, 2, 3]) {
    await using it = await lent();
    const { conn } = it;
    await conn`create temp table t (a text)`;
    if (round === 0) {
      const stream = await conn`copy t from stdin`.writable();
      stream.write("a\n");
      assertEquals(it.connector.status(it.session), "active");
      await killBackend(conn.pid);
      await eventually(() => assertEquals(stream.destroyed, true));
    } else if (round === 1) {
      const stream = await conn`copy (select * from generate_series(1, 10000000)) to stdout`
        .readable();
      await killBackend(conn.pid);
      stream.resume();
      await eventually(() => assertEquals(stream.destroyed || stream.readableEnded, true));
    } else if (round === 2) {
      const error = await rejection((async () => {
        for await (const _ of conn`select * from generate_series(1, 100)`.cursor(10)) {
          await killBackend(conn.pid);
        }
      })());
      assert(error.code !== undefined);
    } else {
      // The driver's "poisoned slot": a close while a small write is still buffered.
      const kill = killBackend(conn.pid);
      const many = Promise.all(
        Array.from({ length: 50 }, async () => {
          for (;;) await conn`select ${1}::int`;
        }).map(rejection),
      );
      await kill;
      await within(many);
    }
    await eventually(() => assertEquals(it.lost.length, 1));
    assertEquals((await rejection(conn`select 1`)).code, "CONNECTION_LOST");
  }
});

test("a cursor or COPY that the borrower leaves, or works on, while its session ends", async () => {
  for (const kill of [true, false]) {
    for (const way of ["break", "callback", "throw"]) {
      await using it = await lent();
      const { conn } = it;
      const end = () => kill ? killBackend(conn.pid) : conn.close();
      const over = async () => {
        await end();
        await eventually(() => assertEquals(conn.closed, true));
      };
      if (way === "break") {
        for await (const _ of conn`select * from generate_series(1, 100)`.cursor(10)) {
          await over();
          break;
        }
      } else {
        const all = conn`select * from generate_series(1, 100)`.cursor(10, async () => {
          await over();
          if (way === "throw") throw new Error("from the callback");
        });
        assert(await rejection(all));
      }
      await within(it.connector.close(it.session));
    }
  }
  await promptly(4_000, async () => {
    await using it = await lent();
    const stream = await it.conn`copy (select * from generate_series(1, 3000000)) to stdout`
      .readable();
    await new Promise((resolve) => setTimeout(resolve, 100));
    const took = await timeOf(() => it.connector.close(it.session));
    stream.destroy();
    return took;
  });
});

test("rounds of a cursor that are asked for at once come one after the other, and all who asked hear of the end", async () => {
  await using it = await lent();
  const iterator = (text: string) => it.conn.unsafe(text).cursor(2)[Symbol.asyncIterator]();
  const good = iterator("select * from generate_series(1, 5) n");
  const rounds = await Promise.all(Array.from({ length: 5 }, () => good.next()));
  assertEquals(
    rounds.map(({ done, value }) =>
      done ? null : value.map((row: Record<string, unknown>) => row["n"])
    ),
    [[1, 2], [3, 4], [5], null, null],
  );
  const bad = iterator("select 1 / (3 - n) from generate_series(1, 5) n");
  const settled = await Promise.allSettled(Array.from({ length: 4 }, () => bad.next()));
  assertEquals(settled.map(({ status }) => status), [
    "fulfilled",
    "rejected",
    "fulfilled",
    "fulfilled",
  ]);
  const left = iterator("select * from generate_series(1, 50) n");
  const pending = Promise.all([left.next(), left.next(), left.next()]);
  await left.return!();
  assertEquals((await pending).at(-1)!.done, true);
  assertEquals(it.conn.transactionStatus, "idle");
});

test("a cursor's callback that fails on the last rows fails the statement", async () => {
  await using it = await lent();
  const all = it.conn`select * from generate_series(1, 15)`.cursor(10, async (rows) => {
    await Promise.resolve();
    if (rows.length < 10) throw new Error("from the callback");
  });
  await Promise.allSettled([all]);
  const some = it.conn`select * from generate_series(1, 15)`.cursor(10, () => {
    throw new Error("from the callback");
  });
  assertEquals((await rejection(some)).message, "from the callback");
  assertEquals((await it.conn`select 1 as n`)[0]!["n"], 1);
});

test("a statement that cannot be built leaves the session idle when it rejects", async () => {
  await using it = await lent();
  const bad = () => it.conn`select ${undefined as never}`;
  for (let i = 0; i < 20; i++) {
    assertEquals((await rejection(bad())).code, "UNDEFINED_VALUE");
    assertEquals(it.connector.status(it.session), "idle");
    await Promise.allSettled([it.conn`select 1`, bad()]);
    assertEquals(it.connector.status(it.session), "idle");
    // The first one keeps the driver's pipeline to itself, so that the bad one waits inside it.
    await Promise.allSettled([it.conn`select ${i}::int, ${i} as x`.describe(), bad(), bad()]);
    assertEquals(it.connector.status(it.session), "idle");
  }
});
