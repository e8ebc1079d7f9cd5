/**
 * Which transports keep the process alive. Those of leased sessions do, at once; those of idle
 * sessions let go of it a moment later, so that a session that is lent over and over pays nothing:
 * `ref` and `unref` of a socket cost 100 ns together in Deno, a quarter of a loan.
 */

/** How long a process with nothing but idle sessions lives on, in milliseconds. */
const MOMENT = 10;

/** Those that are to let go. */
const due = new Set<Hold>();
let timer: ReturnType<typeof setTimeout> | undefined;

function letGo(): void {
  timer = undefined;
  for (const hold of due) hold.settle();
  due.clear();
}

/** One transport's hold on the process. */
export class Hold {
  readonly #transport: { ref?: () => void; unref?: () => void };
  #wanted = true;
  #holds = true;
  #due = false;

  constructor(transport: object) {
    this.#transport = transport;
  }

  /** From now on it keeps the process alive. */
  take(): void {
    this.#wanted = true;
    if (this.#holds) return;
    this.#holds = true;
    this.#transport.ref?.();
  }

  /** From now on, or a moment later, it does not. */
  drop(): void {
    this.#wanted = false;
    if (!this.#holds || this.#due) return;
    this.#due = true;
    due.add(this);
    timer ??= setTimeout(letGo, MOMENT);
  }

  /** Makes it so. */
  settle(): void {
    this.#due = false;
    if (this.#wanted || !this.#holds) return;
    this.#holds = false;
    this.#transport.unref?.();
  }

  /** The transport is gone: leaves no timer behind. */
  end(): void {
    if (!due.delete(this) || due.size > 0) return;
    clearTimeout(timer);
    timer = undefined;
  }
}
