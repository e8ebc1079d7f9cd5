/** A map whose keys come and go, at the same price with many keys as with few. */

/** So many keys without a value are kept whatever the size. */
const SPARE = 16;

/**
 * A Map in which one key is set and deleted over and over gets slow when it is large: in V8 and in
 * JavaScriptCore each deletion leaves a mark in the key's chain, and every look walks over the marks
 * until the map is built anew; among 10 000 keys that is 100 µs. So a deleted key stays, with no value,
 * and the map is built anew when half of it is such keys.
 */
export class KeyMap<V extends object> {
  #map = new Map<unknown, V | null>();
  #vacant = 0;

  /** As a Map's. */
  get(key: unknown): V | undefined {
    return this.#map.get(key) ?? undefined;
  }

  /** As a Map's. */
  set(key: unknown, value: V): void {
    if (this.#map.get(key) === null) this.#vacant--;
    this.#map.set(key, value);
  }

  /** As a Map's. */
  delete(key: unknown): void {
    if (!this.#map.get(key)) return;
    this.#map.set(key, null);
    this.#vacant++;
    if (this.#vacant <= SPARE || this.#vacant * 2 < this.#map.size) return;
    const kept = new Map<unknown, V | null>();
    for (const [one, value] of this.#map) if (value !== null) kept.set(one, value);
    this.#map = kept;
    this.#vacant = 0;
  }

  /** As a Map's. */
  clear(): void {
    this.#map.clear();
    this.#vacant = 0;
  }
}
