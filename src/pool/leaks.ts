/** Leases that nobody puts back: reported after `leakAfter`, and taken back when they are garbage. */

import type { PoolContext } from "./state.ts";
import type { PoolLoan } from "./lease.ts";
import type { Supply } from "./connections.ts";

/**
 * A lease that is younger is not watched. To watch one costs as much as a whole loan, and hardly any
 * lives so long: until then the pool itself keeps the handle, so that it cannot vanish unseen.
 */
export const WATCH_AFTER = 1_000;

function isCollectable(key: unknown): key is object {
  return (typeof key === "object" && key !== null) || typeof key === "function";
}

/** Looks after the leases of one pool. */
export class Leaks<C extends object> {
  readonly #context: PoolContext<C>;
  readonly #supply: Supply<C>;
  readonly #takeBack: (loan: PoolLoan) => void;
  readonly #weaken: (key: object, handle: object) => void;
  #registry: FinalizationRegistry<PoolLoan> | undefined;

  /**
   * `takeBack` puts back a lease whose borrower is gone; `weaken` makes a key, and no more the pool, keep the handle
   * that is lent under it.
   */
  constructor(
    context: PoolContext<C>,
    supply: Supply<C>,
    takeBack: (loan: PoolLoan) => void,
    weaken: (key: object, handle: object) => void,
  ) {
    this.#weaken = weaken;
    this.#context = context;
    this.#supply = supply;
    this.#takeBack = takeBack;
  }

  /** Reports and begins to watch what is due; returns when to look again. */
  look(now: number): number {
    const { leakAfter } = this.#context.options;
    let next = Infinity;
    for (const { loan } of [...this.#supply.entries]) {
      if (loan === null) continue;
      if (leakAfter > 0 && !loan.reported) {
        if (now >= loan.since + leakAfter) this.#report(loan, now);
        else next = Math.min(next, loan.since + leakAfter);
      }
      if (!loan.open || loan.handle === null) continue;
      // What is lent under a key can be had again by it, for ever, unless the key itself is garbage.
      if (loan.keyed && !isCollectable(loan.key)) continue;
      if (now >= loan.since + WATCH_AFTER) this.#watch(loan, loan.handle);
      else next = Math.min(next, loan.since + WATCH_AFTER);
    }
    return next;
  }

  /** The lease has come back. */
  returned(loan: PoolLoan, held: number): void {
    if (loan.watched) this.#registry?.unregister(loan);
    if (loan.reported) this.#tell(loan, held, true, false);
  }

  #watch(loan: PoolLoan, handle: object): void {
    this.#registry ??= new FinalizationRegistry((lost) => this.#collected(lost));
    this.#registry.register(handle, loan, loan);
    loan.watched = true;
    const { key } = loan;
    if (isCollectable(key)) {
      this.#weaken(key, handle);
      loan.weaken(key);
    }
    // From now on the borrower alone keeps it.
    loan.handle = null;
  }

  #collected(loan: PoolLoan): void {
    if (!loan.open) return;
    loan.watched = loan.reported = false;
    this.#tell(loan, this.#context.clock.now() - loan.since, true, true);
    // A listener may have closed the pool.
    if (loan.open) this.#takeBack(loan);
  }

  #report(loan: PoolLoan, now: number): void {
    loan.reported = true;
    this.#tell(loan, now - loan.since, false, false);
  }

  #tell(loan: PoolLoan, held: number, returned: boolean, collected: boolean): void {
    if (!this.#context.heard("leak")) return;
    this.#context.tell("leak", { held, stack: loan.stack ?? "", returned, collected });
  }
}
