// The types of `@std/async/delay`, which npm's `deno-std` does not carry.
export interface DelayOptions {
  signal?: AbortSignal;
  persistent?: boolean;
}
export function delay(ms: number, options?: DelayOptions): Promise<void>;
