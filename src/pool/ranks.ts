/** Who is how far from the front, where some leave from the middle. */

const FIRST_SIZE = 64;

/**
 * Numbers, given out in order and taken back in any, and how many that are still out come before one:
 * each in as many steps as the logarithm of how many there are (a Fenwick tree).
 */
export class Ranks {
  /** At `i`: how many are out of the `i & -i` numbers up to `i`. */
  #tree = new Int32Array(FIRST_SIZE + 1);
  #last = 0;
  #out = 0;

  /** True when there is no number left: whoever has some takes new ones, in order, after `clear`. */
  get full(): boolean {
    return this.#last === this.#tree.length - 1;
  }

  /** Takes all numbers back; now there is room for twice as many as were out. */
  clear(): void {
    let size = FIRST_SIZE;
    while (size < 2 * this.#out + 2) size *= 2;
    this.#tree = new Int32Array(size + 1);
    this.#last = this.#out = 0;
  }

  /** Gives a number behind all others. */
  take(): number {
    const number = ++this.#last;
    this.#out++;
    this.#add(number, 1);
    return number;
  }

  /** Takes one back. */
  give(number: number): void {
    this.#out--;
    this.#add(number, -1);
  }

  /** How many are out up to this one, counted with it. */
  of(number: number): number {
    let rank = 0;
    for (let at = number; at > 0; at -= at & -at) rank += this.#tree[at] as number;
    return rank;
  }

  #add(number: number, by: number): void {
    const tree = this.#tree;
    for (let at = number; at < tree.length; at += at & -at) tree[at]! += by;
  }
}
