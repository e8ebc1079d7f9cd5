/** What is lent under which key: a map whose keys come and go, and may be garbage while they are in it. */

/** So many keys without a value are kept whatever the size. */
const SPARE = 16;

/**
 * A Map in which one key is set and deleted over and over gets slow when it is large: in V8 and in
 * JavaScriptCore each deletion leaves a mark in the key's chain, and every look walks over the marks
 * until the map is built anew; among 10 000 keys that is 100 µs. So a deleted key stays, with no value,
 * and the map is built anew when half of it is such keys.
 */
export class KeyMap<V extends object> {
  /** What is under keys that may become garbage, and what is to live as long as the key; null before the first. */
  #weak: WeakMap<object, { readonly value: V; readonly kept: object }> | null = null;
  #map = new Map<unknown, V | null>();
  #vacant = 0;

  /** As a Map's. */
  get(key: unknown): V | undefined {
    const value = this.#map.get(key) ?? undefined;
    return value !== undefined || this.#weak === null
      ? value
      : this.#weak.get(key as object)?.value;
  }

  /** As a Map's. */
  set(key: unknown, value: V): void {
    if (this.#map.get(key) === null) this.#vacant--;
    this.#map.set(key, value);
  }

  /** As a Map's. */
  delete(key: unknown): void {
    if (!this.#map.get(key)) {
      this.#weak?.delete(key as object);
      return;
    }
    this.#map.set(key, null);
    this.#vacant++;
    if (this.#vacant <= SPARE || this.#vacant * 2 < this.#map.size) return;
    const kept = new Map<unknown, V | null>();
    for (const [one, value] of this.#map) if (value !== null) kept.set(one, value);
    this.#map = kept;
    this.#vacant = 0;
  }

  /** From now on this map alone does not keep the key, which keeps `kept` as long as it is under it. */
  weaken(key: object, kept: object): void {
    const value = this.#map.get(key);
    if (!value) return;
    this.#map.delete(key);
    (this.#weak ??= new WeakMap()).set(key, { value, kept });
  }

  /** What a key keeps since `weaken`. */
  keptBy(key: unknown): object | null {
    return this.#weak?.get(key as object)?.kept ?? null;
  }

  /** As a Map's. */
  clear(): void {
    this.#weak = null;
    this.#map.clear();
    this.#vacant = 0;
  }
}
