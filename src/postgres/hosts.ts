/** Where the server is, for people's eyes. */

import type { Target } from "./wire/settings.ts";

/** A target for people's eyes. */
export function nameOf(target: Target): string {
  if (target.path !== null) return target.path;
  return target.host.includes(":")
    ? `[${target.host}]:${target.port}`
    : `${target.host}:${target.port}`;
}

export type { Target };
