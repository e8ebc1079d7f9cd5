/** Workers for tests: each joins a pool and does what it is told. */

import type { PoolHandle, WorkerLike } from "../../mod.ts";

/** What can be shared. */
interface Shareable {
  share(worker: WorkerLike): PoolHandle;
}

interface Answer {
  readonly id: number;
  readonly value?: unknown;
  readonly error?: { readonly name: string; readonly message: string; readonly code?: string };
}

/** One worker; the test ends it. */
export class TestWorker {
  readonly worker: Worker;
  readonly #calls = new Map<
    number,
    { resolve: (value: unknown) => void; reject: (e: unknown) => void }
  >();
  #next = 0;

  private constructor(worker: Worker) {
    this.worker = worker;
    worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      const call = this.#calls.get(data.id);
      this.#calls.delete(data.id);
      if (data.error) call?.reject(Object.assign(new Error(data.error.message), data.error));
      else call?.resolve(data.value);
    };
    // One that fails on purpose must not end the test.
    worker.onerror = (event) => event.preventDefault();
  }

  /** Starts one that joins no pool yet. */
  static async start(): Promise<TestWorker> {
    const url = new URL("../fixtures/pool_worker.ts", import.meta.url).href;
    const worker = new TestWorker(new Worker(url, { type: "module" }));
    await worker.tell("hello");
    return worker;
  }

  /** Starts one that joins `pool`. */
  static async join(
    pool: Shareable,
    kind: "threaded" | "persistent" = "threaded",
    options: Record<string, unknown> = {},
  ): Promise<TestWorker> {
    const worker = await TestWorker.start();
    await worker.tell("join", pool.share(worker.worker), kind, options);
    return worker;
  }

  /** Has it do something. */
  tell<T = unknown>(op: string, ...args: unknown[]): Promise<T> {
    const id = this.#next++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#calls.set(id, { resolve, reject });
    this.worker.postMessage({ id, op, args });
    return promise as Promise<T>;
  }

  /** Ends it from outside. */
  [Symbol.dispose](): void {
    this.worker.terminate();
  }
}
