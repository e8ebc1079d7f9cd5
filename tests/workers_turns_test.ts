/** Turns of saturated isolates: the real policy over real shared words, in a time that the test makes. */

import { assert } from "@std/assert";
import { found, moveIn, reserve, wordsFor } from "../src/workers/members.ts";
import { AtomicWords, SharedPermits } from "../src/workers/shared_permits.ts";
import { withClock } from "./support/checks.ts";
import { test } from "./support/harness.ts";

/** How long the server takes to end a session, in milliseconds. */
const CLOSING = 2;

/** An isolate with more to do than it can: each of its connections comes back every millisecond. */
class Saturated {
  readonly permits: SharedPermits;
  readonly #tasks: number;
  readonly #connectTime: number;
  readonly #connecting: number[] = [];
  readonly #closing: number[] = [];
  standing = 0;
  connects = 0;
  /** For how long connections stood, all together. */
  stood = 0;
  longestWait = 0;
  /** Since when the tasks wait that are not at work, the first one first. */
  #waiting: number[] = [];
  #working = 0;

  constructor(permits: SharedPermits, tasks: number, connectTime: number) {
    this.permits = permits;
    this.#tasks = tasks;
    this.#connectTime = connectTime;
  }

  /** All tasks begin. */
  begin(now: number): void {
    this.#waiting = Array.from({ length: this.#tasks }, () => now);
  }

  /** All tasks end: what stands is idle, and nobody lacks anything. */
  rest(): void {
    this.#waiting = [];
    this.#working = 0;
    this.permits.lack(0, 0);
  }

  /** What happens in one millisecond. */
  tick(now: number): void {
    const { permits } = this;
    while ((this.#closing[0] ?? Infinity) <= now) {
      this.#closing.shift();
      permits.give();
    }
    while ((this.#connecting[0] ?? Infinity) <= now) {
      this.#connecting.shift();
      permits.tellOpened(this.#connectTime);
      this.standing++;
    }
    for (; this.#working > 0; this.#working--) {
      this.#waiting.push(now);
      if (!permits.claimReturned()) continue;
      this.standing--;
      this.#closing.push(now + CLOSING);
    }
    for (; this.#working < this.standing && this.#waiting.length > 0; this.#working++) {
      this.longestWait = Math.max(this.longestWait, now - this.#waiting.shift()!);
    }
    let wanted: number;
    do {
      wanted = this.#waiting.length - this.#connecting.length;
      while (wanted > 0 && permits.take()) {
        wanted--;
        this.connects++;
        this.#connecting.push(now + this.#connectTime);
      }
    } while (permits.lack(wanted, 0));
    this.stood += this.standing;
    this.longestWait = Math.max(this.longestWait, now - (this.#waiting[0] ?? now));
  }

  /** Counts from now on. */
  reset(): void {
    this.connects = this.stood = this.longestWait = 0;
  }
}

for (
  const [workers, limit, connectTime, share, connecting] of [
    // As measured with all cores at work.
    [16, 8, 80, 0.95, 0.35],
    [32, 8, 80, 0.9, 0.7],
    [12, 8, 80, 0.95, 0.35],
    // Opening takes so long that the bound on waiting is what counts.
    [32, 8, 160, 0.85, 1.2],
    // As measured on an idle machine.
    [16, 8, 10, 0.95, 0.25],
    [4, 1, 10, 0.8, 0.2],
  ] as const
) {
  test(`turns: ${workers} workers on ${limit} connections that take ${connectTime} ms to open`, async () => {
    await withClock(async (clock) => {
      const words = new AtomicWords(new SharedArrayBuffer(4 * wordsFor(limit)));
      found(words, 0, limit);
      const isolates = Array.from({ length: workers }, () => {
        const id = reserve(words, 0);
        assert(moveIn(words, id));
        return new Saturated(new SharedPermits(words, id), 4, connectTime);
      });
      const run = async (ms: number): Promise<void> => {
        for (let i = 0; i < ms; i++) {
          clock.tick(1);
          isolates.forEach((_, at) => isolates[(at + i) % workers]!.tick(performance.now()));
          const standing = isolates.reduce((sum, one) => sum + one.standing, 0);
          assert(standing <= limit);
        }
        await clock.tickAsync(0);
      };
      const begin = (): void => isolates.forEach((one) => one.begin(performance.now()));
      // The bound that is promised: 2 s, or so long for each worker that shares, and opening on the way.
      const perWorker = Math.max(125, 250 / limit);
      const bound = Math.max(2_000, workers * perWorker) +
        (workers / limit + 1) * (connectTime + 10);
      begin();
      await run(5_000);
      // What was idle meanwhile is no turn that was too long.
      for (const one of isolates) one.rest();
      await run(10_000);
      for (const one of isolates) one.reset();
      begin();
      await run(2 * bound);
      for (const one of isolates) {
        assert(one.longestWait <= bound, `${one.longestWait} ms after a rest, not ${bound}`);
      }
      for (const one of isolates) one.reset();
      const SPAN = 15_000;
      await run(SPAN);
      const sum = (of: (one: Saturated) => number) =>
        isolates.reduce((all, one) => all + of(one), 0);
      const stood = isolates.map((one) => one.stood);
      const longest = Math.max(...isolates.map((one) => one.longestWait));
      const opening = sum((one) => one.connects) * connectTime / SPAN;
      const told = `stood ${
        sum((one) => one.stood) / SPAN
      }, opening ${opening}, longest wait ${longest}, ` +
        `most to least ${Math.max(...stood) / Math.min(...stood)}`;
      // Most of the time goes into work, and few connections at a time are being opened.
      assert(
        sum((one) => one.stood) >= share * limit * SPAN,
        told,
      );
      assert(opening <= connecting, told);
      // The bound that is promised.
      assert(longest <= bound, told);
      assert(Math.max(...stood) <= 1.5 * Math.min(...stood), told);
    });
  });
}
