/** The session's state machine, with a server that says what the test wants. */

import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { Buffer } from "node:buffer";
import type { Duplex } from "node:stream";
import fc from "fast-check";
import type { Query } from "../src/postgres/query.ts";
import { withClock } from "./support/checks.ts";
import { Begin } from "../src/postgres/wire/request.ts";
import { test } from "./support/harness.ts";
import { rejection } from "./support/postgres.ts";
import {
  answer,
  description,
  frame,
  READY,
  row,
  type Scripted,
  scripted,
  settle,
} from "./support/scripted.ts";

const ERROR = frame("E", "SERROR\0VERROR\0C22012\0Mdivision by zero\0\0");
const FATAL = frame("E", "SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0");

test("what is asked in one turn goes out in one write, and each gets its own answer", async () => {
  const { transport, run, session } = scripted();
  const all = [1, 2, 3].map((i) => run(`select ${i} as n`));
  await settle();
  assertEquals(transport.written.length, 1);
  assertEquals(transport.take(), "QQQ");
  assertEquals(session.status, "active");
  transport.say(answer("1"), description("n"), row("2"), ERROR, READY, answer("3"));
  assertEquals([...(await all[0]!) as unknown[]], [{ n: "1" }]);
  assertEquals((await rejection(all[1]!)).code, "22012");
  assertEquals([...(await all[2]!) as unknown[]], [{ n: "3" }]);
  assertEquals(session.status, "idle");
});

test("messages that do not belong where they come end the session and name what was wrong", async () => {
  const cases: [Buffer[], string][] = [
    [[READY], 'a message of type "Z" in the wrong place'],
    [[row("1")], 'a message of type "D" in the wrong place'],
    [[frame("C", "SELECT 1\0"), row("1")], 'a message of type "D" in the wrong place'],
    [[description("n"), row("1", "2")], "more or fewer values"],
    [[description("n"), frame("D", [0, 1], 9, "abc")], "values do not fit"],
    [[description("n"), frame("D", [0, 1], -2)], "values do not fit"],
    [[description("n"), frame("D", [0, 1], 1, "abc")], "values do not fit"],
    [[description("n"), frame("D", [0])], "too short"],
    [[frame("T", [0, 1], "name without end")], "text without its end"],
    [[frame("T", [0, 1], "a\0", [0, 0])], "description of rows that is cut"],
    [[frame("C", "SELECT 1")], "text without its end"],
    [[frame("C", "SELECT 1\0"), frame("Z", "X")], "unknown state"],
    [[frame("C", "SELECT 1\0"), frame("Z", "II")], 'type "Z" with the length 6'],
    [[frame("1")], 'type "1" in the wrong place'],
    [[frame("2")], 'type "2" in the wrong place'],
    [[frame("s")], 'type "s" in the wrong place'],
    [[frame("n")], 'type "n" in the wrong place'],
    [[frame("t", [0, 0])], 'type "t" in the wrong place'],
    [[frame("3")], 'type "3" in the wrong place'],
    [[frame("d", "x")], 'type "d" in the wrong place'],
    [[frame("c")], 'type "c" in the wrong place'],
    [[frame("R", 0)], 'type "R" in the wrong place'],
    [[frame("R", 3)], 'type "R" in the wrong place'],
    [[frame("K", 1, 2)], 'type "K" in the wrong place'],
    [[frame("V", -1)], 'type "V" in the wrong place'],
    [[frame("W", [0, 0, 0])], 'type "W" in the wrong place'],
    [[frame("v", 0, 0)], 'type "v" in the wrong place'],
    [[frame("x")], "unknown type"],
    [[Buffer.from([0x44, 0, 0, 0, 2])], "length 2"],
    [[Buffer.from([0x44, 0x7f, 0xff, 0xff, 0xff])], "length 2147483647"],
    [[frame("E", "SERROR\0")], "error or a notice without its end"],
  ];
  for (const [frames, words] of cases) {
    const { transport, run, session, told } = scripted();
    const running = rejection(run("select 1 as n"));
    const behind = rejection(run("select 2 as n"));
    await settle();
    transport.say(...frames);
    const error = await running;
    assertEquals(error.code, "CONNECTION_CLOSED");
    assertStringIncludes((error.cause as Error).message, words);
    assertStringIncludes(((await behind).cause as Error).message, words);
    assertEquals(transport.closed, true);
    assertEquals(session.status, "unknown");
    await settle();
    assertEquals(told, ["closed"]);
    assertEquals((await rejection(run("select 3"))).code, "CONNECTION_CLOSED");
  }
});

test("an answer to nothing ends an idle session", async () => {
  for (const surplus of [READY, row("1"), ERROR, frame("C", "SELECT 1\0"), frame("1")]) {
    const { transport, session } = scripted();
    let lost: unknown;
    session.onlost = (reason) => lost = reason;
    transport.say(surplus);
    assertMatch(String((lost as Error).cause), /broke the protocol/);
    await settle();
  }
});

test("what the server says beside answers reaches who wants it, in the middle of an answer too", async () => {
  const { transport, run, session, told } = scripted();
  const heard: string[] = [];
  session.listeners.add("ch", (payload) => void heard.push(payload));
  const query = run("select 1 as n");
  await settle();
  transport.say(
    frame("N", "SNOTICE\0VNOTICE\0C00000\0Mhello\0\0"),
    description("n"),
    frame("S", "TimeZone\0UTC\0"),
    row("1"),
    frame("A", 7, "ch\0payload\0"),
    frame("C", "SELECT 1\0"),
    READY,
  );
  assertEquals([...(await query) as unknown[]], [{ n: "1" }]);
  assertEquals(told, ["notice hello", "parameter TimeZone=UTC", "notify ch payload"]);
  assertEquals(heard, ["payload"]);
  assertEquals(session.started.parameters.get("TimeZone"), "UTC");
});

test("a FATAL is the loss at once; the end is waited for", async () => {
  for (
    const words of [
      FATAL,
      frame("N", "SWARNING\0VWARNING\0C57P02\0Mterminating connection because of crash\0\0"),
      frame("N", "SWARNING\0VWARNING\0C57P01\0Mterminating connection, immediate\0\0"),
    ]
  ) {
    const { transport, run, session, told } = scripted();
    let lost: unknown = null;
    session.onlost = (reason) => lost = reason;
    const all = [run("select 1"), run("select 2")];
    await settle();
    transport.say(words);
    assert(lost !== null);
    for (const query of all) {
      const error = await rejection(query);
      assertEquals(error.code, "CONNECTION_CLOSED");
      assertStringIncludes((error.cause as Error).message, "terminating connection");
      assertMatch(String((error as { query?: string }).query), /select/);
    }
    assertEquals(session.status, "unknown");
    assertEquals(transport.ended, true);
    let closed = false;
    const closing = session.close().then(() => closed = true);
    await settle();
    assertEquals(closed, false);
    transport.handlers!.end();
    await closing;
    assertEquals(told, ["closed"]);
  }
});

test("parameters' types are asked for once for all sessions; what comes behind waits", async () => {
  const one = scripted();
  const options = { prepare: true };
  const first = one.run("select $1 as n", ["x"], options);
  const behind = one.run("select 2 as n");
  await settle();
  assertEquals(one.transport.take(), "PDS");
  one.transport.say(frame("1"), frame("t", [0, 1], 25), description("n"), READY);
  await settle();
  assertEquals(one.transport.take(), "BESQ");
  one.transport.say(frame("2"), row("x"), frame("C", "SELECT 1\0"), READY, answer("2"));
  assertEquals([...(await first) as unknown[]], [{ n: "x" }]);
  assertEquals([...(await behind) as unknown[]], [{ n: "2" }]);
  const again = one.run("select $1 as n", ["y"], options);
  await settle();
  assertEquals(one.transport.take(), "BES");
  one.transport.say(frame("2"), row("y"), frame("C", "SELECT 1\0"), READY);
  await again;
});

test("a statement that the server does not know any more is prepared anew, not within a transaction", async () => {
  const gone = (state: string): Buffer =>
    Buffer.concat([
      frame("E", "SERROR\0VERROR\0C26000\0Mdoes not exist\0RFetchPreparedStatement\0\0"),
      frame("Z", state),
    ]);
  const prepared = Buffer.concat([frame("1"), frame("t", [0, 0]), description("n"), frame("2")]);
  const end = Buffer.concat([row("1"), frame("C", "SELECT 1\0"), READY]);
  const { transport, run } = scripted();
  const ask = () => run("select 1 as n", [], { prepare: true, simple: false });
  const first = ask();
  await settle();
  assertEquals(transport.take(), "PDBES");
  transport.say(prepared, end);
  await first;
  const second = ask();
  await settle();
  assertEquals(transport.take(), "BES");
  transport.say(gone("I"));
  await settle();
  assertEquals(transport.take(), "PDBES");
  transport.say(prepared, end);
  assertEquals([...(await second) as unknown[]], [{ n: "1" }]);
  const third = ask();
  await settle();
  transport.take();
  transport.say(gone("E"));
  assertEquals((await rejection(third)).code, "26000");
  const fourth = ask();
  await settle();
  assertEquals(transport.take(), "PDBES");
  transport.say(prepared, frame("C", "SELECT 0\0"), READY);
  await fourth;
  const discard = run("discard all");
  await settle();
  transport.take();
  transport.say(frame("C", "DISCARD ALL\0"), READY);
  await discard;
  void ask();
  await settle();
  assertEquals(transport.take(), "PDBES");
});

test("a schema that changes again while a statement is prepared anew does not fail it; what a pooler mixes up does", async () => {
  const failed = (code: string, routine: string): Buffer =>
    Buffer.concat([frame("E", `SERROR\0VERROR\0C${code}\0Mstale\0R${routine}\0\0`), READY]);
  const described = Buffer.concat([frame("1"), frame("t", [0, 1], 25), description("n"), READY]);
  const end = Buffer.concat([frame("2"), row("x"), frame("C", "SELECT 1\0"), READY]);
  const begun = async () => {
    const it = scripted();
    const ask = () => it.run("select $1 as n", ["x"], { prepare: true });
    const first = ask();
    await settle();
    it.transport.say(described);
    await settle();
    it.transport.say(end);
    await first;
    const query = ask();
    await settle();
    it.transport.take();
    return { transport: it.transport, query };
  };
  const changed = await begun();
  for (let times = 0; times < 4; times++) {
    changed.transport.say(failed("0A000", "RevalidateCachedQuery"));
    await settle();
    assertEquals(changed.transport.take(), "PDS");
    changed.transport.say(described);
    await settle();
    assertEquals(changed.transport.take(), "BES");
  }
  changed.transport.say(end);
  assertEquals([...(await changed.query) as unknown[]], [{ n: "x" }]);
  const mixed = await begun();
  mixed.transport.say(failed("26000", "FetchPreparedStatement"));
  await settle();
  mixed.transport.say(described);
  await settle();
  mixed.transport.say(failed("26000", "FetchPreparedStatement"));
  assertEquals((await rejection(mixed.query)).code, "26000");
  const never = await begun();
  let over = false;
  never.query.catch(() => over = true);
  let anew = -1;
  for (; !over; anew++) {
    if (anew >= 0) never.transport.say(described);
    await settle();
    never.transport.say(failed("0A000", "RevalidateCachedQuery"));
    await settle();
  }
  assertEquals(anew, 10);
});

test("no more than 256 statements stay prepared, the least recently used is closed", async () => {
  const { transport, run, session } = scripted();
  const options = { prepare: true, simple: false };
  for (let i = 0; i < 257; i++) {
    const query = run(`select ${i} as n`, [], options);
    await settle();
    const sent = transport.take();
    assertEquals(sent, i < 256 ? "PDBES" : "CPDBES");
    transport.say(
      ...(i < 256 ? [] : [frame("3")]),
      frame("1"),
      frame("t", [0, 0]),
      description("n"),
      frame("2"),
      frame("C", "SELECT 0\0"),
      READY,
    );
    await query;
  }
  void run("select 1 as n", [], options);
  await settle();
  assertEquals(transport.take(), "BES");
  assertEquals(session.inFlight, 1);
});

/** What the server says to a Begin: by the extended protocol, without a ReadyForQuery. */
const BEGUN = [frame("1"), frame("2"), frame("C", "BEGIN\0")];

test("a begin goes out with the first statement of its transaction and shares its Sync", async () => {
  const { transport, run, session } = scripted();
  const begin = new Begin();
  session.send(begin);
  assertEquals([session.status, session.lastState], ["intrans", "intrans"]);
  // As late as behind a query builder.
  for (let i = 0; i < 8; i++) await Promise.resolve();
  const first = run("select $1 as n", ["x"], { prepare: true });
  await settle();
  assertEquals(transport.written.length, 1);
  assertEquals(transport.take(), "PBEPDS");
  assertEquals([session.status, session.inFlight], ["active", 1]);
  const described = [frame("1"), frame("t", [0, 1], 25), description("n"), frame("Z", "T")];
  transport.say(...BEGUN, ...described);
  assertEquals((await begin.done).command, "BEGIN");
  await settle();
  assertEquals(transport.take(), "BES");
  transport.say(frame("2"), row("x"), frame("C", "SELECT 1\0"), frame("Z", "T"));
  assertEquals([...(await first) as unknown[]], [{ n: "x" }]);
  assertEquals([session.status, session.inFlight, session.endings], ["intrans", 0, 0]);
});

test("what the server would not pass over, and what comes late, waits until a begin is answered", async () => {
  for (const late of [false, true]) {
    const { transport, run, session } = scripted();
    const begin = new Begin();
    session.send(begin);
    if (late) await settle();
    const simple = run("select 1 as n");
    const behind = run("select 2 as n", [], { simple: false, prepare: true });
    await settle();
    assertEquals(transport.take(), "PBES");
    transport.say(...BEGUN);
    await settle();
    assertEquals([transport.take(), session.status], ["", "active"]);
    transport.say(frame("Z", "T"));
    await begin.done;
    await settle();
    assertEquals(transport.take(), "QPDBES");
    transport.say(answer("1"));
    await simple;
    session.destroy(new Error("the end"));
    await rejection(behind);
  }
});

test("a begin that the server refuses ends the session: nothing is executed outside of its transaction", async () => {
  for (const late of [false, true]) {
    const { transport, run, session } = scripted();
    const begin = new Begin();
    const refused = rejection(begin.done);
    session.send(begin);
    if (late) await settle();
    const statement = rejection(run("select 1 as n", [], { simple: false, prepare: true }));
    await settle();
    assertEquals(transport.take(), late ? "PBES" : "PBEPDBES");
    transport.say(frame("1"), frame("2"), ERROR, READY);
    assertEquals((await refused).code, "22012");
    const error = await statement;
    assertEquals([error.code, (error.cause as { code?: string }).code], [
      "CONNECTION_CLOSED",
      "22012",
    ]);
    await settle();
    assertEquals([transport.take(), transport.closed, session.status], ["", true, "unknown"]);
  }
});

test("a statement that shares the Sync of a begin is cancelled while it runs, before the server has answered the begin", async () => {
  let cancels = 0;
  const { transport, run, session } = scripted(() => Promise.resolve(void cancels++));
  session.send(new Begin());
  const statement = run("select 1 as n", [], { simple: false, prepare: true });
  await settle();
  cancelled(statement);
  await settle();
  // The server keeps what it says to the begin until the Sync.
  assertEquals(cancels, 1);
  transport.say(
    ...BEGUN,
    frame("E", "SERROR\0VERROR\0C57014\0Mcanceling statement\0\0"),
    frame("Z", "E"),
  );
  assertEquals((await rejection(statement)).code, "57014");
  assertEquals(session.lastState, "inerror");
});

test("a transport without room, and a full pipeline, hold back what is not sent", async () => {
  const { transport, run, session } = scripted(undefined, 2);
  transport.room = false;
  const all = [1, 2, 3].map((i) => run(`select ${i} as n`));
  await settle();
  assertEquals(transport.take(), "QQ");
  transport.say(answer("1"));
  await settle();
  assertEquals(transport.take(), "");
  transport.room = true;
  transport.handlers!.drain();
  await settle();
  assertEquals(transport.take(), "Q");
  assertEquals(session.inFlight, 2);
  transport.say(answer("2"), answer("3"));
  await Promise.all(all);
});

test("while a cancel request is on its way nothing is sent; what was not sent is taken back", async () => {
  let over: () => void = () => {};
  let wanted: boolean | null = null;
  const { transport, run } = scripted((due) =>
    new Promise((resolve) => {
      wanted = due();
      over = resolve;
    }), 1);
  const running = run("select 1 as n");
  await settle();
  transport.take();
  const waiting = run("select 2 as n");
  await settle();
  cancelled(waiting);
  assertEquals((await rejection(waiting)).code, "57014");
  cancelled(running);
  await settle();
  assertEquals(wanted, true);
  transport.say(frame("E", "SERROR\0VERROR\0C57014\0Mcanceling\0\0"), READY);
  assertEquals((await rejection(running)).code, "57014");
  const next = run("select 3 as n");
  await settle();
  assertEquals(transport.take(), "");
  over();
  await settle();
  assertEquals(transport.take(), "Q");
  transport.say(answer("3"));
  await next;
});

/** A session whose cancel requests are on their way until the test says that they are over. */
function cancelling(): Scripted & { over(): void } {
  let over: () => void = () => {};
  const it = scripted((due) => {
    assertEquals(due(), true);
    return new Promise((resolve) => over = resolve);
  });
  return { ...it, over: () => over() };
}

const HIT = frame("E", "SERROR\0VERROR\0C57014\0Mcanceling statement due to user request\0\0");
const EXTENDED = { prepare: true, simple: false };

function cancelled(query: Query): void {
  void (query as unknown as { cancel(): void }).cancel();
}

test("a statement that a neighbour's cancel request has hit after its description runs again", async () => {
  const { transport, run, over } = cancelling();
  const slow = run("select 1 as n");
  const next = run("select $1 as n", ["x"], EXTENDED);
  await settle();
  assertEquals(transport.take(), "QPDS");
  cancelled(slow);
  await settle();
  // It ends by itself; the request is still on its way when the next one is executed.
  transport.say(answer("1"), frame("1"), frame("t", [0, 1], 25), description("n"), READY);
  await settle();
  assertEquals(transport.take(), "BES");
  transport.say(HIT, READY);
  over();
  await settle();
  assertEquals(transport.take(), "BES");
  transport.say(frame("2"), row("x"), frame("C", "SELECT 1\0"), READY);
  assertEquals([...(await next) as unknown[]], [{ n: "x" }]);
});

test("on a lease a statement that was hit runs again before those that wait", async () => {
  const { transport, run, over } = cancelling();
  const slow = run("select 1 as n");
  const first = run("update t set v = 1", [], EXTENDED);
  await settle();
  transport.take();
  cancelled(slow);
  await settle();
  // Nothing is sent meanwhile.
  const second = run("update t set v = 2", [], EXTENDED);
  await settle();
  transport.say(answer("1"), HIT, READY);
  await settle();
  assertEquals(transport.take(), "");
  over();
  await settle();
  const sent = Buffer.concat(transport.written).toString();
  assert(sent.indexOf("v = 1") < sent.indexOf("v = 2"), sent);
  const parsed = [frame("1"), frame("t", [0, 0]), frame("n"), frame("2")];
  for (const query of [first, second]) {
    transport.say(...parsed, frame("C", "UPDATE 1\0"), READY);
    assertEquals((await query as { command: string }).command, "UPDATE");
  }
});

test("a plain statement of the simple protocol that was hit runs again; what may commit by itself does not", async () => {
  for (const [text, again] of [["select 2 as n", true], ["call p()", false], ["a; b", false]]) {
    const { transport, run, over } = cancelling();
    const slow = run("select 1 as n");
    const next = run(text as string);
    await settle();
    transport.take();
    // Where it could not run again, the first one has its time to end by itself.
    cancelled(slow);
    await settle();
    transport.say(answer("1"));
    await settle();
    if (again) {
      transport.say(HIT, READY);
      over();
      await settle();
      assertEquals(transport.take(), "Q");
      transport.say(answer("2"));
      assertEquals([...(await next) as unknown[]], [{ n: "2" }]);
    } else {
      transport.say(ERROR, READY);
      assertEquals((await rejection(next)).code, "22012");
      assertEquals(transport.take(), "");
    }
  }
});

test("a statement of the simple protocol that a cancel request hits behind its end has its result", async () => {
  const IN_TRANSACTION = frame("Z", "E");
  for (const [ready, own] of [[READY, false], [READY, true], [IN_TRANSACTION, false]] as const) {
    const { transport, run, over } = cancelling();
    const slow = run("select 1 as n");
    const next = run("insert into t values (1) returning n");
    await settle();
    transport.take();
    if (!own) cancelled(slow);
    await settle();
    transport.say(answer("1"));
    await settle();
    if (own) cancelled(next);
    await settle();
    // It is committed; the server looks for cancel requests once more when it logs how long that took.
    transport.say(description("n"), row("1"), frame("C", "INSERT 0 1\0"), HIT, ready);
    over();
    if (ready === READY) {
      const result = (await next) as unknown[] & { count: number; command: string };
      assertEquals([[...result], result.count, result.command], [[{ n: "1" }], 1, "INSERT"]);
    } else assertEquals((await rejection(next)).code, "57014");
    await settle();
    assertEquals(transport.take(), "");
  }
});

test("a cancelled statement that the server does not know any more does not run again", async () => {
  const { transport, run, over } = cancelling();
  const known = run("select 1 as n", [], EXTENDED);
  await settle();
  transport.take();
  transport.say(frame("1"), frame("t", [0, 0]), description("n"), frame("2"), row("1"));
  transport.say(frame("C", "SELECT 1\0"), READY);
  await known;
  const slow = run("select 1 as n", [], EXTENDED);
  const next = run("select 2 as n");
  await settle();
  assertEquals(transport.take(), "BESQ");
  cancelled(slow);
  await settle();
  transport.say(
    frame("E", "SERROR\0VERROR\0C26000\0Mprepared statement does not exist\0\0"),
    READY,
  );
  await settle();
  over();
  transport.say(answer("2"));
  assertEquals((await rejection(slow)).code, "57014");
  assertEquals([...(await next) as unknown[]], [{ n: "2" }]);
  await settle();
  assertEquals(transport.take(), "");
});

test("a statement ends by itself for 50 ms when its cancel request could hit what cannot run again", async () => {
  await withClock(async (clock) => {
    for (const quick of [true, false]) {
      for (const behind of [["call p()"], ["select 2 as n", "select 3 as n"]]) {
        let cancels = 0;
        const { transport, run, session } = scripted((due) => {
          if (due()) cancels++;
          return Promise.resolve();
        });
        const slow = run("select 1 as n");
        const others = behind.map((text) => run(text));
        await settle();
        transport.take();
        cancelled(slow);
        await clock.tickAsync(49);
        const late = run("select 4 as n");
        await settle();
        assertEquals([cancels, transport.take()], [0, ""]);
        if (!quick) {
          await clock.tickAsync(1);
          assertEquals(cancels, 1);
        }
        transport.say(answer("1"));
        await settle();
        assertEquals([cancels, transport.take()], [quick ? 0 : 1, "Q"]);
        transport.say(...others.map(() => answer("2")), answer("4"));
        for (const query of [slow, ...others, late]) {
          assertEquals((await query as unknown[]).length, 1);
        }
        assertEquals([session.status, clock.countTimers()], ["idle", 0]);
      }
    }
  });
});

test("a statement that its caller and its limit cancel has one cancel request at a time", async () => {
  await withClock(async (clock) => {
    for (const behind of [[], ["call p()"]]) {
      let cancels = 0;
      const { transport, run, session } = scripted((due) => {
        if (due()) cancels++;
        return Promise.resolve();
      });
      const limit = new AbortController();
      const slow = run("select 1 as n", [], { signal: limit.signal });
      const others = behind.map((text) => run(text));
      await settle();
      cancelled(slow);
      await clock.tickAsync(10);
      limit.abort(new Error("over"));
      // What it waits for before it is sent, and the pause before it is repeated.
      await clock.tickAsync(50);
      assertEquals(cancels, behind.length === 0 ? 3 : 1);
      transport.take();
      transport.say(HIT, READY);
      await assertRejects(() => Promise.resolve(slow), Error, "over");
      const next = run("select 2 as n");
      await settle();
      assertEquals(transport.take(), "Q");
      transport.say(...others.map(() => answer("2")), answer("2"));
      for (const query of [...others, next]) assertEquals((await query as unknown[]).length, 1);
      assertEquals([session.status, clock.countTimers()], ["idle", 0]);
    }
  });
});

test("a cancel request that has not reached the server is called off when its statement has ended", async () => {
  await withClock(async (clock) => {
    for (const end of ["by itself", "with its session"]) {
      let calledOff = 0;
      // The server does not answer the connect.
      const { transport, run, session } = scripted((_due, signal) =>
        new Promise((_, reject) =>
          signal.addEventListener("abort", () => {
            calledOff++;
            reject(signal.reason);
          })
        )
      );
      const slow = run("select 1 as n");
      await settle();
      transport.take();
      cancelled(slow);
      await settle();
      const next = run("select 2 as n");
      await settle();
      assertEquals([calledOff, transport.take(), session.cancelling], [0, "", true]);
      if (end === "by itself") {
        transport.say(answer("1"));
        assertEquals((await slow as unknown[]).length, 1);
        await settle();
        assertEquals([transport.take(), session.cancelling], ["Q", false]);
        transport.say(answer("2"));
        assertEquals((await next as unknown[]).length, 1);
      } else {
        transport.destroy();
        for (const query of [slow, next]) {
          assertEquals((await rejection(query)).code, "CONNECTION_CLOSED");
        }
      }
      assertEquals([calledOff, clock.countTimers()], [1, 0]);
    }
  });
});

test("a statement whose limit is over before it is sent leaves no timer", async () => {
  await withClock(async (clock) => {
    const { transport, run, session, over } = cancelling();
    const slow = run("select 1 as n");
    await settle();
    cancelled(slow);
    await settle();
    transport.take();
    // While a cancel request is on its way nothing is sent.
    const timed = run("select 2 as n", [], { queryTimeout: 10 });
    await settle();
    await clock.tickAsync(10);
    assertEquals((await rejection(timed)).code, "QUERY_TIMEOUT");
    assertEquals(transport.take(), "");
    transport.say(HIT, READY);
    over();
    assertEquals((await rejection(slow)).code, "57014");
    await settle();
    assertEquals([session.status, clock.countTimers()], ["idle", 0]);
  });
});

/** Executes a text as a cursor whose callback is `fn`. */
function cursor({ run }: Scripted, fn: (rows: unknown) => unknown): Query {
  const query = run("select n from t", [], EXTENDED);
  (query as unknown as { cursor(rows: number, fn: unknown): void }).cursor(1, fn);
  query.catch(() => {});
  return query;
}

const OPENED = [frame("C", "BEGIN\0"), frame("Z", "T")];
const FIRST_ROW = [
  frame("1"),
  frame("t", [0, 0]),
  description("n"),
  frame("2"),
  row("1"),
  frame("s"),
  frame("Z", "T"),
];

test("a cursor that is cancelled before its transaction begins opens none", async () => {
  const it = scripted();
  const slow = it.run("select 1 as n");
  const query = cursor(it, () => {});
  await settle();
  assertEquals(it.transport.take(), "Q");
  cancelled(query);
  assertEquals((await rejection(query)).code, "57014");
  it.transport.say(answer("1"));
  await slow;
  await settle();
  assertEquals([it.transport.take(), it.session.status], ["", "idle"]);
});

test("a cursor ends with its transaction, whoever ends that, and asks for nothing more", async () => {
  for (const [text, tag] of [["commit", "COMMIT"], ["rollback", "ROLLBACK"]] as const) {
    const it = scripted();
    const { transport, session, run } = it;
    const gate = Promise.withResolvers<void>();
    const query = cursor(it, () => gate.promise);
    await settle();
    assertEquals(transport.take(), "QPDBES");
    transport.say(...OPENED, ...FIRST_ROW);
    const ending = run(text);
    await settle();
    assertEquals(transport.take(), "Q");
    transport.say(frame("C", `${tag}\0`), READY);
    await ending;
    assertEquals((await rejection(query)).code, "CURSOR_CLOSED");
    // The session may be in other hands by now.
    gate.resolve();
    await settle();
    assertEquals([transport.take(), session.status], ["", "idle"]);
    await session.quiet();
  }
});

test("a cursor does not end the transaction that its borrower has begun in place of its own", async () => {
  const it = scripted();
  const { transport, run } = it;
  const query = cursor(it, () => {});
  await settle();
  transport.take();
  transport.say(...OPENED);
  // The next fetch stands behind the borrower's words.
  const words = [run("commit"), run("begin")];
  await settle();
  assertEquals(transport.take(), "QQ");
  transport.say(...FIRST_ROW.slice(0, -3), row("1"), frame("C", "SELECT 1\0"), frame("Z", "T"));
  await settle();
  transport.say(frame("C", "COMMIT\0"), READY, frame("C", "BEGIN\0"), frame("Z", "T"));
  await Promise.all(words);
  await settle();
  // A Sync, and no commit.
  assertEquals(transport.take(), "S");
  transport.say(frame("Z", "T"));
  await query;
});

test("a value that cannot be written leaves nothing prepared, and nothing unprepared", async () => {
  const { transport, run } = scripted();
  const thrower = {
    toString: () => {
      throw new Error("no text");
    },
  };
  // Its types are known, so that all goes out at once.
  const ask = (value: unknown) => run("select $1 as n", [value], EXTENDED);
  const known = ask("x");
  await settle();
  transport.say(frame("1"), frame("t", [0, 1], 25), description("n"), READY);
  await settle();
  transport.say(frame("2"), row("x"), frame("C", "SELECT 1\0"), READY);
  await known;
  const gone = run("deallocate all");
  await settle();
  transport.say(frame("C", "DEALLOCATE ALL\0"), READY);
  await gone;
  transport.take();
  assertEquals((await rejection(ask(thrower))).message, "no text");
  void ask("y");
  await settle();
  assertEquals(transport.take(), "PDBES");
});

test("a COPY from stdin that nobody asked for as a stream fails, and the session is usable", async () => {
  const { transport, run, session } = scripted();
  const query = run("copy t from stdin");
  await settle();
  transport.take();
  transport.say(frame("G", [0, 0, 0]));
  await settle();
  assertEquals(transport.take(), "f");
  transport.say(frame("E", "SERROR\0VERROR\0C57014\0MCOPY failed\0\0"), READY);
  assertStringIncludes((await rejection(query)).message, "writable()");
  assertEquals(session.status, "idle");
  // With others behind it nobody knows what the server takes for data.
  const both = [run("copy t from stdin"), run("select 1 as n")];
  await settle();
  transport.say(frame("G", [0, 0, 0]));
  for (const one of both) {
    assertStringIncludes(((await rejection(one)).cause as Error).message, "writable()");
  }
});

const COPY_IN = frame("G", [0, 0, 0]);
const COPY_OUT = frame("H", [0, 0, 0]);
const COPY_FAILED = frame("E", "SERROR\0VERROR\0C57014\0MCOPY from stdin failed\0\0");

/** Executes a text as a COPY, up to its stream. */
async function copying(
  it: Scripted,
  options: Record<string, unknown> = {},
  says: Buffer = COPY_IN,
): Promise<Duplex> {
  const query = it.run("copy", [], { simple: true, ...options });
  const stream = (query as unknown as { writable(): Promise<Duplex> }).writable();
  await settle();
  it.transport.take();
  it.transport.say(says);
  return await stream;
}

function failureOf(stream: Duplex): Promise<unknown> {
  return new Promise((resolve) => stream.on("error", resolve));
}

test("a cancel request that was sent, and of which nobody knows whether it came, hits nobody else", async () => {
  for (const answered of ["before", "after"]) {
    for (const sent of [true, false]) {
      const { promise, reject } = Promise.withResolvers<void>();
      const { transport, run, session, told } = scripted((due) => {
        // Else it fails before it is connected.
        if (sent) due();
        return promise;
      });
      const query = run("select 1 as n");
      await settle();
      transport.take();
      cancelled(query);
      await settle();
      if (answered === "before") transport.say(answer("1"));
      reject(new Error("no answer to the cancel request"));
      await settle();
      const next = run("select 2 as n");
      await settle();
      if (answered === "after") {
        assertEquals(session.status, "active");
        transport.say(answer("1"));
      }
      assertEquals([...(await query) as unknown[]], [{ n: "1" }]);
      await settle();
      if (!sent) {
        assertEquals(transport.take(), "Q");
        transport.say(answer("2"));
        assertEquals([...(await next) as unknown[]], [{ n: "2" }]);
        assertEquals([session.status, told], ["idle", []]);
        continue;
      }
      // Nothing but the farewell is sent.
      assertEquals([transport.take(), transport.ended], ["X", true]);
      assertMatch(String((await rejection(next)).cause), /a cancel request was sent and may still/);
      assertEquals(session.status, "unknown");
      transport.destroy();
      await settle();
    }
  }
});

test("a COPY from stdin is cancelled by CopyFail, and its stream tells why", async () => {
  for (
    const reason of [new Error("mine"), Object.freeze(new Error("frozen")), Object.create(null)]
  ) {
    const it = scripted();
    const giveUp = new AbortController();
    const stream = await copying(it, { signal: giveUp.signal });
    const failure = failureOf(stream);
    stream.write("1\n");
    await settle();
    assertEquals(it.transport.take(), "d");
    giveUp.abort(reason);
    await settle();
    assertEquals(it.transport.take(), "f");
    // What comes too late goes nowhere.
    stream.write("2\n");
    await settle();
    assertEquals(it.transport.take(), "");
    it.transport.say(COPY_FAILED, READY);
    const told = await failure as Error;
    // A stream's error has to be one.
    assert((reason instanceof Error ? told : told.cause) === reason);
    assertEquals(it.session.status, "idle");
    const next = it.run("select 1 as n");
    await settle();
    it.transport.say(answer("1"));
    assertEquals([...(await next) as unknown[]], [{ n: "1" }]);
  }
});

test("a COPY to stdout tells the reason of its signal", async () => {
  const it = scripted();
  const giveUp = new AbortController();
  const stream = await copying(it, { signal: giveUp.signal }, COPY_OUT);
  const failure = failureOf(stream);
  const reason = new Error("mine");
  giveUp.abort(reason);
  await settle();
  it.transport.say(frame("d", "1\n"), ERROR, READY);
  assertEquals(await failure, reason);
  assertEquals(it.session.status, "idle");
});

test("a COPY to stdout that nobody reads is cancelled all the same, and never ends as if it were whole", async () => {
  for (const late of [false, true]) {
    const it = scripted();
    let paused = false;
    it.transport.pause = () => void (paused = true);
    it.transport.resume = () => void (paused = false);
    const giveUp = new AbortController();
    const stream = await copying(it, { signal: giveUp.signal }, COPY_OUT);
    const failure = failureOf(stream);
    it.transport.say(frame("d", "x".repeat(100_000)));
    assertEquals(paused, true);
    const reason = new Error("mine");
    giveUp.abort(reason);
    await settle();
    assertEquals(paused, false);
    it.transport.say(frame("d", "x".repeat(100_000)), frame("d", "y"));
    assertEquals(paused, false);
    it.transport.say(...late ? [frame("c"), frame("C", "COPY 3\0")] : [ERROR], READY);
    assertEquals(await failure, reason);
    assertEquals(it.session.status, "idle");
  }
});

test("a limit that is over behind another statement tells its own caller alone", async () => {
  await withClock(async (clock) => {
    let cancels = 0;
    const send = (due: () => boolean) => {
      if (due()) cancels++;
      return Promise.resolve();
    };
    const { transport, run, session } = scripted(send);
    const slow = run("select 1 as n");
    const limited = run("select 2 as n", [], { queryTimeout: 100 });
    const next = run("select 3 as n");
    const outcomes = Promise.allSettled([slow, limited, next]);
    let told: unknown = null;
    limited.catch((error) => told = error.code);
    await clock.tickAsync(5_099);
    assertEquals([told, transport.closed], [null, false]);
    await clock.tickAsync(1);
    assertEquals([told, transport.closed, cancels], ["QUERY_TIMEOUT", false, 0]);
    // However long that takes.
    await clock.tickAsync(60_000);
    assertEquals(session.status, "active");
    transport.say(answer("1"));
    await settle();
    // Its turn: it is cancelled.
    assertEquals(cancels, 1);
    transport.say(ERROR, READY, answer("3"));
    const [first, second, third] = await outcomes;
    assertEquals([...(first as PromiseFulfilledResult<unknown[]>).value], [{ n: "1" }]);
    assertEquals(second!.status, "rejected");
    assertEquals([...(third as PromiseFulfilledResult<unknown[]>).value], [{ n: "3" }]);
    assertEquals([session.status, clock.countTimers()], ["idle", 0]);
  });
});

test("a statement that does not answer its cancel request in its own turn ends the session", async () => {
  await withClock(async (clock) => {
    const { transport, run } = scripted();
    const slow = run("select 1 as n");
    const limited = run("select 2 as n", [], { queryTimeout: 100 });
    const outcome = limited.then(() => null, (error) => (error as { code: string }).code);
    await clock.tickAsync(4_000);
    transport.say(answer("1"));
    await slow;
    // It has a whole patience of its own.
    await clock.tickAsync(5_000);
    assertEquals(transport.closed, false);
    await clock.tickAsync(6_000);
    assertEquals(transport.closed, true);
    assertEquals(await outcome, "QUERY_TIMEOUT");
  });
});

test("a second COPY of one text is refused, and the stream of the first ends", async () => {
  const into = scripted();
  const stream = await copying(into);
  const failure = failureOf(stream);
  stream.end("1\n");
  await settle();
  assertEquals(into.transport.take(), "dc");
  into.transport.say(frame("C", "COPY 1\0"), COPY_IN);
  await settle();
  assertEquals(into.transport.take(), "f");
  into.transport.say(COPY_FAILED, READY);
  assertMatch(String(await failure), /the only one of its text/);
  assertEquals(into.session.status, "idle");

  const out = scripted();
  const readable = await copying(out, {}, COPY_OUT);
  const left = failureOf(readable);
  const done = Buffer.concat([frame("c"), frame("C", "COPY 1\0")]);
  out.transport.say(frame("d", "1\n"), done, COPY_OUT, frame("d", "2\n"), ERROR, READY);
  assertMatch(String(await left), /the only one of its text/);
  assertEquals(out.session.status, "idle");
});

test("a COPY whose session ends in the turn in which it gives its stream tells whoever got it", async () => {
  const fatal = frame("E", "SFATAL\0VFATAL\0C57P01\0Mthe end\0\0");
  for (const says of [COPY_IN, COPY_OUT]) {
    for (const end of ["words", "loss"]) {
      const it = scripted();
      const query = it.run("copy", [], { simple: true });
      const stream = (query as unknown as { writable(): Promise<Duplex> }).writable();
      await settle();
      // As a socket calls: what is to come in the next tick comes before what waits for a promise.
      setTimeout(() => {
        it.transport.say(says);
        if (end === "words") it.transport.say(fatal);
        else it.transport.handlers!.close(null);
      });
      const failure = await failureOf(await stream) as Error & { code: string };
      assertEquals(failure.code, "CONNECTION_CLOSED");
    }
  }
});

test("rows of a COPY to stdout that come together are one piece of its stream", async () => {
  const it = scripted();
  const stream = await copying(it, {}, COPY_OUT);
  const pieces: string[] = [];
  const ended = new Promise((resolve) => stream.on("end", resolve));
  stream.on("data", (piece: Buffer) => pieces.push(String(piece)));
  const rows = [1, 2, 3].map((n) => frame("d", `${n}\n`));
  const first = new Promise((resolve) => stream.once("data", resolve));
  it.transport.say(...rows);
  assertEquals(String(await first), "1\n2\n3\n");
  // Cut anywhere, and with a row that is longer than what it came with.
  const long = frame("d", "x".repeat(100));
  const rest = Buffer.concat([...rows, long, ...rows]);
  const cuts = [0, 3, 9, 40, 120, rest.length];
  for (let i = 1; i < cuts.length; i++) it.transport.say(rest.subarray(cuts[i - 1], cuts[i]));
  it.transport.say(frame("c"), frame("C", "COPY 10\0"), READY);
  await ended;
  assertEquals(pieces.join(""), `1\n2\n3\n1\n2\n3\n${"x".repeat(100)}1\n2\n3\n`);
  assertEquals(it.session.status, "idle");
});

test("a statement rejects with its signal's reason as it is, whatever that is", async () => {
  const odd = Object.defineProperty(new Error("odd"), "cause", {
    get() {
      throw new Error("not to be read");
    },
  });
  const reasons = [
    new Error("plain"),
    Object.freeze(new Error("frozen")),
    odd,
    "text",
    null,
    5,
    Object.create(null),
  ];
  for (const reason of reasons) {
    const { transport, run, session } = scripted();
    const giveUp = new AbortController();
    const { signal } = giveUp;
    const both = [run("select 1", [], { signal }), run("select 2", [], { signal })];
    const outcomes = Promise.allSettled(both);
    await settle();
    giveUp.abort(reason);
    transport.say(ERROR, READY);
    await settle();
    transport.say(ERROR, READY);
    for (const outcome of await outcomes) {
      assert(outcome.status === "rejected" && outcome.reason === reason);
    }
    if (reason instanceof Error) assertEquals("query" in reason, false);
    const late = await run("select 3", [], { signal }).then(() => "resolved", (error) => error);
    assert(late === reason);
    assertEquals(session.status, "idle");
    // What a callback throws is told as it is, too.
    const each = run("select 1 as n");
    each.forEachFn = () => {
      throw reason;
    };
    await settle();
    transport.say(answer("1"));
    const thrown = await each.then(() => "resolved", (error) => error);
    if (reason instanceof Object) assert(thrown === reason);
    assertEquals(session.status, "idle");
  }
});

/** A whole conversation in the extended protocol, to be damaged. */
const SCRIPT = [1, 2, 3, 4].flatMap((i) => [
  frame("1"),
  frame("t", [0, 0]),
  ...i === 2 ? [frame("N", "SNOTICE\0VNOTICE\0C00000\0Mhi\0\0")] : [],
  description("n", "q"),
  frame("2"),
  row(`${i}`, "x"),
  row(`${i}`, null),
  i === 3 ? ERROR : frame("C", "SELECT 2\0"),
  READY,
]);

test("damaged streams give no answer of another question, nothing that hangs and nothing uncaught", async () => {
  const bytes = Buffer.concat(SCRIPT);
  const which = fc.nat(SCRIPT.length - 1);
  const damage = fc.oneof(
    // A frame is missing, comes twice, or changes places with its neighbour.
    fc.record({ how: fc.constantFrom("drop", "repeat", "swap"), a: which }).map(({ how, a }) => {
      const list = [...SCRIPT];
      if (how === "drop") list.splice(a, 1);
      else if (how === "repeat") list.splice(a, 0, list[a]!);
      else if (a > 0) [list[a], list[a - 1]] = [list[a - 1]!, list[a]!];
      return Buffer.concat(list);
    }),
    // A type or a length is another one.
    fc.record({ a: which, at: fc.nat(4), to: fc.nat(255) }).map(({ a, at, to }) => {
      const changed = Buffer.from(SCRIPT[a]!);
      changed[at] = to;
      return Buffer.concat(SCRIPT.with(a, changed));
    }),
    fc.nat(bytes.length).map((n) => Buffer.from(bytes.subarray(0, n))),
  );
  let answered = 0;
  let broken = 0;
  await fc.assert(
    fc.asyncProperty(damage, fc.array(fc.nat(400), { maxLength: 4 }), async (damaged, cuts) => {
      const { transport, run } = scripted();
      const all = [1, 2, 3, 4].map((i) =>
        run(`select ${i} as n, q`, [], { prepare: true, simple: false })
      );
      await settle();
      let from = 0;
      for (const cut of [...cuts].sort((a, b) => a - b).concat(damaged.length)) {
        const to = Math.min(cut, damaged.length);
        if (to > from) transport.say(damaged.subarray(from, to));
        from = Math.max(from, to);
      }
      if (transport.closed) broken++;
      // The server says no more.
      else transport.handlers!.end();
      for (const [i, one] of (await Promise.allSettled(all)).entries()) {
        if (one.status === "rejected") continue;
        answered++;
        assert(i !== 2);
        for (const { n } of one.value as { n: string }[]) assertEquals(n, `${i + 1}`);
      }
    }),
    { numRuns: 600 },
  );
  assert(answered > 300 && broken > 200, `${answered} answers, ${broken} broken sessions`);
});
