/** Statements that run for too long: told while they run, by one timer for all. */

import type { Clock } from "../clock.ts";
import { Alarm } from "./alarm.ts";
import type { StatementFacts, StatementObservation, StatementObserver } from "./observe.ts";
import { snapshotContext } from "../runtime.ts";

/** A statement that runs. */
interface Running {
  readonly facts: StatementFacts;
  readonly resource: object;
  readonly since: number;
  /** Runs a function as whoever called it. */
  readonly inContext: (fn: () => void) => void;
  told: boolean;
}

/** Tells of a slow statement: what it is, on what it runs, for how long it has, and whether it has ended. */
export type TellSlow = (
  facts: StatementFacts,
  resource: object,
  duration: number,
  over: boolean,
) => void;

/** Looks after the statements of one pool. No timer is set while none runs. */
export class SlowStatements implements StatementObserver {
  /** In the order in which they began, which is the order in which they fall due. */
  readonly #running = new Set<Running>();
  readonly #clock: Clock;
  readonly #after: number;
  readonly #tell: TellSlow;
  readonly #alarm: Alarm;

  /** `after`: milliseconds. */
  constructor(clock: Clock, after: number, tell: TellSlow) {
    this.#clock = clock;
    this.#after = after;
    this.#tell = tell;
    this.#alarm = new Alarm(clock, () => this.#look(), false);
  }

  sent(facts: StatementFacts, resource: object): StatementObservation {
    const since = this.#clock.now();
    const one: Running = { facts, resource, since, inContext: snapshotContext(), told: false };
    this.#running.add(one);
    this.#alarm.set(since + this.#after, since);
    return {
      ended: ({ duration }) => {
        this.#running.delete(one);
        if (one.told) this.#tell(facts, resource, duration, true);
      },
    };
  }

  /** No more ticks. */
  stop(): void {
    this.#alarm.clear();
  }

  #look(): void {
    const now = this.#clock.now();
    for (const one of [...this.#running]) {
      if (one.told) continue;
      if (now < one.since + this.#after) return this.#alarm.set(one.since + this.#after, now);
      one.told = true;
      one.inContext(() => this.#tell(one.facts, one.resource, now - one.since, false));
    }
  }
}
