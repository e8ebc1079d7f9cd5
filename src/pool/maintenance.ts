/** What happens by the clock: one timer, which lets the process end unless somebody waits for it, and none while there is nothing to do. */

import type { PoolContext } from "./state.ts";
import type { Demand } from "./requests.ts";
import { Leaks, WATCH_AFTER } from "./leaks.ts";
import type { PoolLoan } from "./lease.ts";
import { Alarm } from "./alarm.ts";
import { Succession } from "./succession.ts";
import type { Supply } from "./connections.ts";

/** A look at all connections is followed by a pause this many times as long. */
const LOOK_SHARE = 100;

/** Closes what is idle or old, looks for leaks, and wakes the pool when it is time to reconnect. */
export class Housekeeper<C extends object> {
  readonly #context: PoolContext<C>;
  readonly #supply: Supply<C>;
  readonly #wake: () => void;
  readonly succession: Succession<C>;
  readonly leaks: Leaks<C>;
  readonly #alarm: Alarm;
  #stopped = false;

  /** `wake` is called at every tick, `reclaim` for a lease whose borrower is gone, `weaken` for one of which only its key is to keep the handle. */
  constructor(
    context: PoolContext<C>,
    supply: Supply<C>,
    demand: Demand<C>,
    desk: {
      wake: () => void;
      reclaim: (loan: PoolLoan) => void;
      weaken: (key: object, handle: object) => void;
    },
  ) {
    this.#context = context;
    this.#supply = supply;
    this.#wake = desk.wake;
    this.#alarm = new Alarm(
      context.clock,
      // Not in the context of whoever set it: a request, or a hook, that may be over.
      () => context.inContext(() => this.#tick()),
      false,
    );
    this.succession = new Succession(context, supply, () => demand.failing);
    this.leaks = new Leaks(context, supply, desk.reclaim, desk.weaken);
  }

  /** Makes sure of a tick no later than `at`. */
  arm(at: number, now: number = this.#context.clock.now()): void {
    if (!this.#stopped) this.#alarm.set(at, now);
  }

  /** Keeps the process alive for the next tick, or no more: somebody may wait for nothing else. */
  hold(on: boolean): void {
    this.#alarm.hold(on);
  }

  /** A lease was given out: looks after it in time. */
  lent(now: number): void {
    const { leakAfter } = this.#context.options;
    this.arm(now + (leakAfter > 0 ? Math.min(leakAfter, WATCH_AFTER) : WATCH_AFTER), now);
  }

  /** No more ticks. */
  stop(): void {
    this.#alarm.clear();
    this.#stopped = true;
  }

  #tick(): void {
    const { clock } = this.#context;
    const now = clock.now();
    this.#retireIdle(now);
    this.#wake();
    const next = Math.min(this.leaks.look(now), this.#nextExpiry());
    // With very many connections not at every millisecond: a look takes some time, and may take a hundredth of all.
    this.arm(Math.max(next, now + LOOK_SHARE * (clock.now() - now)), now);
  }

  #retireIdle(now: number): void {
    for (const entry of [...this.#supply.idle]) {
      if (this.succession.over(entry, now)) void this.#supply.retire(entry, "lifetime");
    }
    const { maxIdle } = this.#context.options;
    // Those idle for longest stand first. What others have is counted once: to count takes all of theirs.
    let surplus = this.#surplus;
    for (const entry of [...this.#supply.idle]) {
      if (surplus <= 0 || (maxIdle > 0 && now < entry.idleSince + maxIdle)) break;
      surplus--;
      void this.#supply.retire(entry, "idle");
    }
  }

  #nextExpiry(): number {
    const { idle } = this.#supply;
    const { maxIdle } = this.#context.options;
    let next = Infinity;
    for (const entry of idle) next = Math.min(next, entry.expiresAt);
    const [first] = idle;
    if (first === undefined || maxIdle === 0 || this.#surplus <= 0) return next;
    return Math.min(next, first.idleSince + maxIdle);
  }

  /** How many idle connections are too many, once they have been idle for long enough. */
  get #surplus(): number {
    const { minconn, options, size, idleSurplus } = this.#context;
    // psycopg2's rule: minconn stay idle, however many are lent.
    if (options.maxIdle === 0) return idleSurplus;
    if (options.maxIdle === Infinity) return 0;
    return size + this.#context.elsewhere - minconn;
  }
}
