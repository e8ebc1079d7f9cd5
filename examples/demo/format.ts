/** Numbers as people read them. */

/** A whole number with spaces between thousands. */
export function count(value: number): string {
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, " ");
}

/** A time, given in milliseconds, in about three digits. */
export function duration(ms: number | undefined): string {
  if (ms === undefined) return "–";
  if (ms >= 1_000) return `${(ms / 1_000).toFixed(1)} s`;
  if (ms < 0.1) return `${(ms * 1_000).toFixed(0)} µs`;
  return `${ms.toFixed(ms < 1 ? 2 : ms < 100 ? 1 : 0)} ms`;
}
