import { assert, assertEquals, assertLess } from "@std/assert";
import { currentClock } from "../src/clock.ts";
import { Caller, Deadlines, Signals, type Waiter, WaitQueue } from "../src/pool/wait_queue.ts";
import { outcome, withClock } from "./support/checks.ts";
import { Dice } from "./support/dice.ts";
import { settle } from "./support/fake.ts";
import { test } from "./support/harness.ts";

const signals = new Signals();

function waiter(
  options: { key?: unknown; timeout?: number; signal?: AbortSignal; leave?: () => void } = {},
): Caller<string> {
  const one = new Caller<string>({
    key: options.key ?? null,
    timeout: options.timeout ?? Infinity,
    signal: options.signal,
    deadlines: new Deadlines(currentClock()),
    signals,
    expired: (waited) => new Error(`waited ${waited}`),
    leave: options.leave ?? (() => {}),
  });
  one.promise.catch(() => {});
  return one;
}

function fill(count: number, keys: readonly unknown[] = []) {
  const queue = new WaitQueue<string>();
  const all = Array.from({ length: count }, (_, i) => waiter({ key: keys[i] }));
  for (const one of all) queue.push(one);
  return { queue, all };
}

function drain(queue: WaitQueue<string>): Waiter<string>[] {
  const order: Waiter<string>[] = [];
  for (let one = queue.shift(); one !== null; one = queue.shift()) order.push(one);
  return order;
}

test("WaitQueue.shift() gives waiters back in order of arrival", () => {
  const { queue, all } = fill(5);
  assertEquals(queue.size, 5);
  assertEquals(drain(queue), all);
  assertEquals([queue.size, queue.callers, queue.first], [0, 0, null]);
});

test("WaitQueue.remove() takes the first, the last, one of the middle, and the only one", () => {
  for (const gone of [[0], [4], [2], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 3]]) {
    const { queue, all } = fill(5);
    for (const i of gone) queue.remove(all[i] as Waiter<string>);
    assertEquals(queue.size, 5 - gone.length);
    assertEquals(drain(queue), all.filter((_, i) => !gone.includes(i)));
  }
});

test("WaitQueue.remove() does nothing for a waiter that is not in the queue", () => {
  const { queue, all } = fill(3);
  const first = queue.shift() as Waiter<string>;
  queue.remove(first);
  queue.remove(waiter());
  assertEquals([queue.size, queue.callers], [2, 2]);
  assertEquals(drain(queue), all.slice(1));
});

test("WaitQueue.push() lets callers of one key share a place", () => {
  const { queue, all } = fill(5, ["k", null, "k", "l", "k"]);
  assertEquals([queue.size, queue.callers], [3, 5]);
  const first = queue.shift() as Waiter<string>;
  assertEquals(first, all[0]);
  assertEquals([...first.followers ?? []], [all[2], all[4]]);
  assertEquals([queue.size, queue.callers], [2, 2]);
  // The key is free again: its next caller queues at the end.
  const late = waiter({ key: "k" });
  queue.push(late);
  assertEquals(drain(queue), [all[1]!, all[3]!, late]);
});

test("WaitQueue.remove() of a key's first caller leaves its place to the next one", () => {
  const { queue, all } = fill(5, [null, "k", null, "k", "k"]);
  queue.remove(all[1] as Waiter<string>);
  assertEquals([queue.size, queue.callers], [3, 4]);
  queue.shift();
  const heir = queue.shift() as Waiter<string>;
  assertEquals(heir, all[3]);
  assertEquals([...heir.followers ?? []], [all[4]]);
  assertEquals(drain(queue), [all[2]!]);
});

test("WaitQueue.remove() of every caller of a key ends its place", () => {
  for (const order of [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]]) {
    const { queue, all } = fill(3, ["k", "k", "k"]);
    for (const i of order) queue.remove(all[i] as Waiter<string>);
    assertEquals([queue.size, queue.callers, queue.first], [0, 0, null]);
  }
});

test("WaitQueue.impatientBeyond() finds who has timeout 0 and no place among the first, followers too", () => {
  const queue = new WaitQueue<string>();
  const first = waiter({ timeout: 0 });
  const patient = waiter({ key: "k" });
  const follower = waiter({ key: "k", timeout: 0 });
  const last = waiter({ timeout: 0 });
  for (const one of [first, patient, follower, last]) queue.push(one);
  assertEquals(queue.impatientBeyond(3), []);
  assertEquals(queue.impatientBeyond(2), [last]);
  assertEquals(queue.impatientBeyond(1), [follower, last]);
  assertEquals(queue.impatientBeyond(0), [first, follower, last]);
  assertEquals(queue.impatientFirst(9), 3);
  queue.remove(follower);
  assertEquals(queue.impatientBeyond(1), [last]);
});

/** Makes every access to a waiter's links count. */
function counted(one: Waiter<string>, count: () => void): Waiter<string> {
  for (const link of ["prev", "next"] as const) {
    let value: Waiter<string> | null = null;
    Object.defineProperty(one, link, {
      get: () => (count(), value),
      set: (to) => (count(), value = to),
    });
  }
  return one;
}

test("WaitQueue.remove(), push() and shift() take the same few steps with 100 000 waiters as with 10", () => {
  const stepsWith = (length: number): number[] => {
    let steps = 0;
    const queue = new WaitQueue<string>();
    const all = Array.from({ length }, () => counted(waiter(), () => steps++));
    for (const one of all) queue.push(one);
    const measured = (work: () => void) => {
      steps = 0;
      work();
      return steps;
    };
    return [
      measured(() => queue.remove(all[length >> 1] as Waiter<string>)),
      measured(() => queue.shift()),
      measured(() => queue.remove(all.at(-1) as Waiter<string>)),
      measured(() => queue.push(counted(waiter(), () => steps++))),
      measured(() => queue.impatientBeyond(4)),
    ];
  };
  const many = stepsWith(100_000);
  assertEquals(many, stepsWith(10));
  assertLess(Math.max(...many), 20);
});

test("WaitQueue.impatientBeyond() looks at nobody of a place that is served, however many share it", () => {
  const queue = new WaitQueue<string>();
  let looks = 0;
  for (let i = 0; i < 1_000; i++) {
    const one = waiter({ key: "k", timeout: 0 });
    for (const trait of ["key", "impatient"] as const) {
      const value = one[trait];
      Object.defineProperty(one, trait, { get: () => (looks++, value) });
    }
    queue.push(one);
  }
  queue.push(waiter());
  assertEquals(queue.impatient, 1_000);
  looks = 0;
  assertEquals(queue.impatientBeyond(1), []);
  assertEquals([queue.lastImpatient(9), queue.impatientFirst(9), looks], [1, 1, 0]);
});

test("WaitQueue.remove() of followers of one key takes no walk", () => {
  const { queue, all } = fill(50_000, Array(50_000).fill("k"));
  let walked = 0;
  const followers = all[0]?.followers as Set<Waiter<string>>;
  const { delete: remove } = Set.prototype;
  followers.delete = (one) => (walked++, remove.call(followers, one));
  for (const one of all.slice(1).reverse()) queue.remove(one);
  assertEquals(walked, 49_999);
  assertEquals([queue.size, queue.callers], [1, 1]);
});

test("Waiter settles once: accept, refuse, signal and deadline after the first have no effect", async () => {
  await withClock(async (clock) => {
    const abort = new AbortController();
    let left = 0;
    const one = waiter({ timeout: 100, signal: abort.signal, leave: () => left++ });
    const seen = outcome(one.promise);
    assert(one.accept("value"));
    assert(!one.accept("other"));
    assert(!one.refuse(new Error("no")));
    abort.abort();
    assertEquals(clock.countTimers(), 0);
    await clock.tickAsync(200);
    assertEquals([seen.value, left], ["value", 0]);
  });
});

test("Waiter leaves at its deadline, with the time it waited, and accepts nothing after it", async () => {
  await withClock(async (clock) => {
    let left = 0;
    const one = waiter({ timeout: 100, leave: () => left++ });
    const seen = outcome(one.promise);
    await clock.tickAsync(99);
    assert(!seen.settled);
    await clock.tickAsync(1);
    assertEquals([seen.word, left], ["waited 100", 1]);
    assert(!one.accept("value"));
  });
});

test("Waiter leaves when its signal aborts, with the signal's reason, and listens no more", async () => {
  const abort = new AbortController();
  let listeners = 0;
  const { signal } = abort;
  const add = signal.addEventListener.bind(signal);
  const remove = signal.removeEventListener.bind(signal);
  signal.addEventListener = (...args: Parameters<typeof add>) => (listeners++, add(...args));
  signal.removeEventListener = (...args: Parameters<typeof remove>) => (
    listeners--, remove(...args)
  );
  const one = waiter({ signal });
  assertEquals(listeners, 1);
  abort.abort(new Error("enough"));
  const seen = outcome(one.promise);
  await settle();
  assertEquals([seen.word, listeners], ["enough", 0]);
});

test("Waiter with a timeout beyond what a timer can take has no timer", async () => {
  await withClock((clock) => {
    waiter({ timeout: Infinity });
    assertEquals(clock.countTimers(), 0);
    return Promise.resolve();
  });
});

test("Deadlines know the shortest of many durations, whatever comes and goes, as a sort would", async () => {
  await withClock(async (clock) => {
    const deadlines = new Deadlines(currentClock());
    const dice = new Dice(7);
    const all = new Set<Caller<string>>();
    const make = (timeout: number): void => {
      const one = new Caller<string>({
        key: null,
        timeout,
        signal: undefined,
        deadlines,
        signals,
        expired: () => new Error("late"),
        leave: () => all.delete(one),
      });
      one.promise.catch(() => {});
      Object.assign(one, { timeout });
      all.add(one);
    };
    const look = (): void => {
      const durations = [...all].map((one) => (one as unknown as { timeout: number }).timeout);
      assertEquals(deadlines.shortest, Math.min(Infinity, ...durations));
    };
    for (let round = 0; round < 2_000; round++) {
      if (dice.below(5) < 3) make(1 + dice.below(1_000) / 4);
      else {
        const one = [...all][dice.below(all.size)];
        one?.refuse(new Error("left"));
        if (one !== undefined) all.delete(one);
      }
      if (round % 100 === 99) await clock.tickAsync(20);
      look();
    }
    await clock.tickAsync(1_000);
    look();
    assertEquals([all.size, clock.countTimers()], [0, 0]);
  });
});

test("Deadlines: the shortest of 150 000 durations takes the same few steps as of 10", () => {
  const timer = undefined as unknown as ReturnType<typeof setTimeout>;
  const still = { now: () => 0, setTimeout: () => timer, clearTimeout: () => {} };
  const deadlines = new Deadlines({ ...currentClock(), ...still });
  const count = 150_000;
  const common = { key: null, signal: undefined, deadlines, signals };
  const callers = Array.from({ length: count }, (_, i) =>
    new Caller<string>({
      ...common,
      timeout: 1_000 + i,
      expired: () => new Error("late"),
      leave: () => {},
    }));
  let sum = 0;
  // Each that leaves was the one with the shortest: a walk each time would take minutes.
  for (const one of callers) {
    sum += deadlines.shortest;
    one.accept("");
  }
  assertEquals(sum, count * 1_000 + count * (count - 1) / 2);
  assertEquals(deadlines.shortest, Infinity);
});

test("WaitQueue knows its callers with timeout 0 whatever comes and goes, as a list would", () => {
  let seed = 11;
  const dice = (below: number): number =>
    (seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648) % below;
  const queue = new WaitQueue<string>();
  let places: Waiter<string>[][] = [];
  const leave = (one: Waiter<string>): void => {
    places = places.map((callers) => callers.filter((other) => other !== one))
      .filter((callers) => callers.length > 0);
  };
  for (let i = 0; i < 4_000; i++) {
    const what = dice(10);
    if (what < 6) {
      const one = waiter({
        key: dice(3) === 0 ? dice(6) : null,
        timeout: dice(3) === 0 ? 0 : Infinity,
      });
      queue.push(one);
      const place = places.find(([first]) => one.key !== null && first?.key === one.key);
      if (place === undefined) places.push([one]);
      else place.push(one);
    } else if (what < 9 && places.length > 0) {
      const callers = places[dice(places.length)] as Waiter<string>[];
      const one = callers[dice(callers.length)] as Waiter<string>;
      queue.remove(one);
      leave(one);
    } else {
      const first = queue.shift();
      if (first !== null) { for (const one of [first, ...first.followers ?? []]) leave(one); }
    }
    const all = places.flat();
    const hasty = places.map((callers) => callers.some((one) => one.impatient));
    assertEquals([queue.size, queue.callers], [places.length, all.length]);
    assertEquals(queue.impatient, all.filter((one) => one.impatient).length);
    const last = hasty.lastIndexOf(true) + 1;
    const most = dice(5);
    assertEquals(queue.lastImpatient(Infinity), last);
    assertEquals(queue.lastImpatient(most), Math.min(most, last));
    const run = hasty.indexOf(false) < 0 ? hasty.length : hasty.indexOf(false);
    assertEquals(queue.impatientFirst(most), Math.min(most, run));
    const beyond = queue.impatientBeyond(most);
    const expected = places.slice(most).flat().filter((one) => one.impatient);
    assertEquals(beyond.length, expected.length);
    assert(beyond.every((one, at) => one === expected[at]));
  }
});

test("Signals: one listener for each signal, however many wait on it, and none when nobody does", () => {
  const abort = new AbortController();
  const { signal } = abort;
  let added = 0;
  let removed = 0;
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...args: Parameters<typeof addEventListener>) => {
    added++;
    addEventListener.apply(signal, args);
  };
  signal.removeEventListener = (...args: Parameters<typeof removeEventListener>) => {
    removed++;
    removeEventListener.apply(signal, args);
  };
  const left: number[] = [];
  const many = Array.from(
    { length: 1_000 },
    (_, i) => waiter({ signal, leave: () => left.push(i) }),
  );
  assertEquals([added, removed], [1, 0]);
  for (const one of many.slice(500)) one.accept("a");
  assertEquals(removed, 0);
  for (const one of many.slice(1, 500)) one.refuse(new Error("no"));
  (many[0] as Waiter<string>).accept("b");
  assertEquals([added, removed], [1, 1]);
  const order = Array.from({ length: 3 }, (_, i) => waiter({ signal, leave: () => left.push(i) }));
  abort.abort(new Error("all"));
  assertEquals([left, order.every((one) => one.settled), added], [[0, 1, 2], true, 2]);
});
