/** The permit protocol: all interleavings of small cases, over the real code. */

import process from "node:process";
import { assert, assertEquals } from "@std/assert";
import { PermitTable } from "../src/workers/permit_table.ts";
import {
  bury,
  died,
  found,
  moveIn,
  moveOut,
  QUARANTINE,
  reserve,
  wordsFor,
} from "../src/workers/members.ts";
import { HEAD, isTenant, PERMITS, SLOT, slotAt, type Words } from "../src/workers/layout.ts";
import { AtomicWords, SharedPermits } from "../src/workers/shared_permits.ts";
import { type Case, explore, type Isolate, type Script } from "./support/explorer.ts";
import { runner, test } from "./support/harness.ts";

const CAPACITY = 4;
/**
 * Not all states of the larger cases fit into seconds. `GETCONN_SLOW` explores more of them on Bun: they are the same
 * on every runtime, and Deno takes four times as long.
 */
const MOST = process.env["GETCONN_SLOW"] && runner === "bun" ? 400_000 : 60_000;

/** Founds a pool and lets isolates move in. */
function start(limit: number, isolates: number): (words: Words) => number[] {
  return (words) => {
    found(words, 0, limit);
    return Array.from({ length: isolates }, () => {
      const id = reserve(words, 0);
      assert(moveIn(words, id));
      return id;
    });
  };
}

const wakeOf = (isolate: Isolate, permits: PermitTable): number =>
  isolate.words.load(slotAt(permits.slot, SLOT.WAKE));

/** One of the neediest others gets this isolate's idle connection, as Connections.spareIdle does it. */
function spare(isolate: Isolate, permits: PermitTable): boolean {
  const need = permits.neediest(permits.census());
  if (need === null || !permits.promise(need.id)) return false;
  isolate.words.store(slotAt(permits.slot, SLOT.IDLE), 0);
  isolate.closed();
  permits.give();
  return true;
}

/** What an isolate does for ever when nobody waits in it, as Membership does it. `idle`: connections at hand. */
function serve(isolate: Isolate, permits: PermitTable, idle: number): void {
  for (;;) {
    const seen = wakeOf(isolate, permits);
    if (permits.asked()) {
      while (idle > 0 && spare(isolate, permits)) idle--;
      permits.wakeLacking();
    }
    permits.passOn();
    isolate.sleep(seen);
  }
}

/** How often a waiter left in vain: a case about that has to come there. */
let left = 0;

/** Somebody waits until there is a connection: getconn in a pool that has none. False when he leaves before. */
function want(isolate: Isolate, permits: PermitTable, patience = Infinity): boolean {
  for (let look = 0;; look++) {
    const seen = wakeOf(isolate, permits);
    if (permits.take()) break;
    if (look === patience) {
      permits.lack(0, 0, 0);
      left++;
      return false;
    }
    if (look === 0) permits.lack(1, 0, 0);
    if (permits.available() && permits.take()) break;
    permits.ask();
    isolate.lacking = 1;
    isolate.sleep(seen);
    isolate.lacking = 0;
  }
  permits.lack(0, 0, 0);
  isolate.opened();
  return true;
}

/** Borrows, puts back, keeps it at hand, and gives it up for others. */
const keeper: Script = (isolate) => {
  const permits = new PermitTable(isolate.words, isolate.id);
  want(isolate, permits);
  isolate.words.store(slotAt(permits.slot, SLOT.IDLE), 1);
  let idle = 1;
  if (permits.othersLack() && spare(isolate, permits)) idle = 0;
  serve(isolate, permits, idle);
};

/** Borrows once and closes. */
const once: Script = (isolate) => {
  const permits = new PermitTable(isolate.words, isolate.id);
  want(isolate, permits);
  isolate.closed();
  permits.give();
  serve(isolate, permits, 0);
};

/** Waits and leaves in vain, at the first look or the second. */
const impatient: Script = (isolate) => {
  const permits = new PermitTable(isolate.words, isolate.id);
  if (want(isolate, permits, 1)) {
    isolate.closed();
    permits.give();
  }
  serve(isolate, permits, 0);
};

/** The second isolate's patience ends. */
const alarm: Script = (isolate) => isolate.words.wake(slotAt(2, SLOT.WAKE));

/** Borrows once and leaves the pool. */
const leaver: Script = (isolate) => {
  const permits = new PermitTable(isolate.words, isolate.id);
  if (want(isolate, permits, 1)) {
    isolate.closed();
    permits.give();
  }
  moveOut(isolate.words, isolate.id);
  permits.wakeLacking();
};

/** Buries who dies. */
const undertaker: Script = (isolate) => {
  const permits = new PermitTable(isolate.words, isolate.id);
  isolate.death((words, id) => {
    died(words, id);
    const deadSince = new Map();
    bury(words, deadSince, 0);
    bury(words, deadSince, QUARANTINE);
  });
  permits.wakeLacking();
};

/** Every permit is free, or stands for a session; and nobody lacks what could be had. */
function settled(limit: number, allServed: boolean): Case["quiet"] {
  return (words, lacking, sessions) => {
    let free = 0;
    let held = 0;
    for (let at = PERMITS; at < PERMITS + CAPACITY; at++) {
      const word = words.load(at);
      const isFree = word === 0 || !isTenant(words, word & 0xffffff);
      if (!isFree) held++;
      else if (at < PERMITS + limit) free++;
      assert(isFree || word >>> 24 === 0, "a permit is on its way, and nobody moves it");
    }
    const lack = lacking.reduce((sum, one) => sum + one, 0);
    const standing = sessions.reduce((sum, one) => sum + one, 0);
    assertEquals(held, standing, "permits that stand for no session, or the reverse");
    assert(lack === 0 || free === 0, "somebody waits although a permit is free");
    if (allServed) assertEquals(lack, 0, "somebody was forgotten");
  };
}

const cases: Record<string, Case> = {
  "two want one permit, and put it back": {
    setup: start(1, 2),
    scripts: [once, once],
    limit: 1,
    quiet: settled(1, true),
  },
  "three want one permit, and put it back": {
    setup: start(1, 3),
    scripts: [once, once, once],
    limit: 1,
    quiet: settled(1, true),
  },
  "one keeps it at hand, the other wants it": {
    setup: start(1, 2),
    scripts: [keeper, once],
    limit: 1,
    quiet: settled(1, true),
  },
  "both keep it at hand": {
    setup: start(1, 2),
    scripts: [keeper, keeper],
    limit: 1,
    quiet: settled(1, true),
  },
  "one keeps it, the other leaves in vain": {
    setup: start(1, 3),
    scripts: [keeper, impatient, alarm],
    limit: 1,
    quiet: settled(1, true),
  },
  "one keeps it, the other leaves the pool": {
    setup: start(1, 3),
    scripts: [keeper, leaver, alarm],
    limit: 1,
    quiet: settled(1, true),
  },
  "one dies at any step": {
    setup: start(1, 3),
    scripts: [keeper, once, undertaker],
    mortal: [0],
    limit: 1,
    quiet: settled(1, true),
  },
  "the one that wants dies at any step": {
    setup: start(1, 3),
    scripts: [keeper, once, undertaker],
    mortal: [1],
    limit: 1,
    quiet: settled(1, true),
  },
  "the limit falls to one while two are held": {
    setup: start(2, 3),
    scripts: [once, once, (isolate) => isolate.words.store(HEAD.LIMIT, 1)],
    limit: 2,
    quiet: settled(1, false),
  },
};

for (const [name, one] of Object.entries(cases)) {
  test(`Permits: ${name}`, () => {
    left = 0;
    const states = explore(wordsFor(CAPACITY), one, MOST);
    assert(states > 100, `only ${states} states`);
    if (name.includes("leaves")) assert(left > 0, "nobody left in vain");
  }, { timeout: 600_000 });
}

/** So many permits, and how an isolate comes to share them. */
function sharing(limit: number): { readonly words: AtomicWords; join(): SharedPermits } {
  const words = new AtomicWords(new SharedArrayBuffer(4 * wordsFor(limit)));
  found(words, 0, limit);
  const join = (): SharedPermits => {
    const id = reserve(words, 0);
    moveIn(words, id);
    return new SharedPermits(words, id);
  };
  return { words, join };
}

test("who has a permit above the limit takes the place below it that becomes free, and does not keep others from taking", () => {
  const { words, join } = sharing(3);
  const [first, second, third] = [join(), join(), join()];
  assertEquals([first.take(), first.take(), second.take()], [true, true, true]);
  first.setSizes(0, 2);
  const wake = slotAt(second.table.slot, SLOT.WAKE);
  const before = words.load(wake);
  first.give();
  first.give();
  // It is told, does what an isolate does that hears something, and then the other place is anybody's.
  assert(words.load(wake) !== before);
  second.fit();
  assertEquals([second.held, third.take(), third.take()], [1, true, false]);
});

test("a promise is void when the connection that was closed for it stood for a permit above the limit", () => {
  const { join } = sharing(2);
  const [first, second] = [join(), join()];
  assertEquals([first.take(), first.take(), second.take()], [true, true, false]);
  second.lack(1, 0);
  assertEquals(first.table.promise(second.table.id), true);
  first.setSizes(0, 1);
  // Of its two connections the one that was to make room is gone; the other one is lent.
  first.give();
  assertEquals(first.held, 1);
  // So it is asked for that one, when it comes back.
  const need = first.table.neediest(first.table.census());
  assertEquals(need?.id, second.table.id);
  assertEquals(first.table.promise(second.table.id), true);
  first.give();
  assertEquals(second.take(), true);
});

test("a permit above the limit does not keep the one who has it from a free one below", () => {
  const permits = sharing(3).join();
  assertEquals([permits.take(), permits.take(), permits.take()], [true, true, true]);
  permits.give();
  permits.give();
  permits.setSizes(0, 2);
  assertEquals([permits.take(), permits.take(), permits.held], [true, false, 2]);
});
