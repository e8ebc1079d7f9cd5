/** What is on its way to those who wait, and for how long that is believed. */

/** The ways: being opened, being checked, being rolled back or reset after a lease. */
export type Way = "connecting" | "checking" | "returning";

/** Something on its way; kept by {@linkcode Coming} alone. */
export interface Comer {
  /** On which way it is; null when on none. */
  way: Way | null;
  /** When it set out. */
  setOutAt: number;
  /** Whether it gave no sign for longer than anybody's patience: nobody counts on it any more. */
  silent: boolean;
}

type Counts = Record<Way, number>;

/**
 * Everything that is on its way, the first that set out first.
 *
 * What gives no sign for too long is `silent`: it may come nevertheless, but whoever waits no longer
 * counts on it. There is no timer for each: the pool's one timer looks at the oldest, and only while
 * somebody waits.
 */
export class Coming {
  /** How many there are that can be counted on. */
  readonly fresh: Counts = { connecting: 0, checking: 0, returning: 0 };
  /** How many there are that give no sign. */
  readonly silent: Counts = { connecting: 0, checking: 0, returning: 0 };
  /** Those that can be counted on; a set keeps the order in which they set out. */
  readonly #line = new Set<Comer>();

  /** How many can be counted on, on whatever way. */
  get count(): number {
    return this.#line.size;
  }

  /** When the oldest of those that can be counted on set out; Infinity when there is none. */
  get oldest(): number {
    for (const one of this.#line) return one.setOutAt;
    return Infinity;
  }

  /** It sets out. */
  add(one: Comer, way: Way, now: number): void {
    one.way = way;
    one.setOutAt = now;
    this.#line.add(one);
    this.fresh[way]++;
  }

  /** It has come, or will not. */
  delete(one: Comer): void {
    const { way } = one;
    if (way === null) return;
    one.way = null;
    if (one.silent) {
      one.silent = false;
      this.silent[way]--;
    } else {
      this.#line.delete(one);
      this.fresh[way]--;
    }
  }

  /** Counts no more on what set out at `before` or earlier; returns how many connects are among that. */
  doubt(before: number): number {
    let connects = 0;
    for (const one of this.#line) {
      if (one.setOutAt > before) break;
      if (one.way === "connecting") connects++;
      this.giveUp(one);
    }
    return connects;
  }

  /** Counts no more on this one. */
  giveUp(one: Comer): void {
    const { way } = one;
    if (way === null || one.silent) return;
    this.#line.delete(one);
    one.silent = true;
    this.fresh[way]--;
    this.silent[way]++;
  }
}
