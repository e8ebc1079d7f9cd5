/** The only file that names a runtime. Everything else stands on what Deno, Bun and Node have in common. */

/** What setTimeout gives: a number, or an object with `unref` (Node, Bun, and Deno since 2.8). */
export type Timer = ReturnType<typeof setTimeout>;

interface DenoLike {
  unrefTimer?: (id: number) => void;
}

/** Lets the process end although this timer has not fired. */
export function unrefTimer(timer: Timer): void {
  const handle = timer as unknown as number | { unref?: () => void };
  if (typeof handle === "object") {
    handle.unref?.();
    return;
  }
  (globalThis as { Deno?: DenoLike }).Deno?.unrefTimer?.(handle);
}
