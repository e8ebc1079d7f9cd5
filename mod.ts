/**
 * Placeholder until the sources arrive.
 *
 * ```ts
 * import { placeholder } from "@getconn/pool";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(placeholder, 1);
 * ```
 *
 * @module
 */

/** The placeholder. */
export const placeholder = 1;
