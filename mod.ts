/** Placeholder. @module */

/** The placeholder. */
export const placeholder = 1;
