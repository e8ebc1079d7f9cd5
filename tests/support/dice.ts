/** Random numbers that can be had again. */

/** Random choices from a source of numbers from 0 to below 1: a seed's, or fast-check's. */
export class Dice {
  readonly next: () => number;

  constructor(source: number | (() => number)) {
    this.next = typeof source === "number" ? seeded(source) : source;
  }

  below(n: number): number {
    return Math.floor(this.next() * n);
  }

  /** An integer from `least` to `most`. */
  from(least: number, most: number): number {
    return least + this.below(most - least + 1);
  }

  chance(p: number): boolean {
    return this.next() < p;
  }

  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
}

/** Random numbers that a seed repeats (mulberry32). */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    let t = state += 0x6d2b79f5;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}
