// The types of `@std/async/deadline`, which npm's `deno-std` does not carry.
export interface DeadlineOptions {
  signal?: AbortSignal;
}
export function deadline<T>(p: Promise<T>, ms: number, options?: DeadlineOptions): Promise<T>;
