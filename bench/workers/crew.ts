/** Workers under load, with one pool for all of them or one for each. */

import { ThreadedConnectionPool } from "@getconn/pool";
import type { Sample } from "../contest.ts";
import type { Order } from "./worker.ts";

interface Answer {
  readonly value?: unknown;
  readonly error?: string;
}

/** One worker, told one thing at a time. */
class Member {
  readonly worker: Worker = new Worker(new URL("./worker.ts", import.meta.url).href, {
    type: "module",
  });
  #settle: ((answer: Answer) => void) | null = null;
  readonly ready: Promise<unknown> = this.#answer();

  #answer(): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.#settle = ({ value, error }) =>
        error === undefined ? resolve(value) : reject(new Error(error));
      this.worker.onmessage = ({ data }: MessageEvent<Answer>) => this.#settle?.(data);
    });
  }

  tell(order: Order): Promise<unknown> {
    const answer = this.#answer();
    this.worker.postMessage(order);
    return answer;
  }
}

/** How much work there is, and for whom. */
export interface Shift {
  /** How many workers have work; the first ones. */
  readonly busy: number;
  /** How many tasks each of these has. */
  readonly tasks: number;
  /** How long the server takes for each statement, in milliseconds. */
  readonly pause: number;
}

/** Some workers. */
export class Crew {
  readonly #members: Member[];
  readonly #pool: ThreadedConnectionPool | null;

  private constructor(members: Member[], pool: ThreadedConnectionPool | null) {
    this.#members = members;
    this.#pool = pool;
  }

  /** Starts them; `shared`: with one pool of `max` for all, else each with its own part of `max`. */
  static async start(count: number, max: number, url: string, shared: boolean): Promise<Crew> {
    const members = Array.from({ length: count }, () => new Member());
    await Promise.all(members.map(({ ready }) => ready));
    if (!shared) {
      const own = Math.max(1, Math.floor(max / count));
      await Promise.all(members.map((one) => one.tell({ op: "own", url, max: own })));
      return new Crew(members, null);
    }
    const pool = new ThreadedConnectionPool(0, max, url, { pool: { timeout: 30_000 } });
    await Promise.all(
      members.map((one) => one.tell({ op: "join", handle: pool.share(one.worker) })),
    );
    return new Crew(members, pool);
  }

  /** Statements per second of all together. */
  async work({ busy, tasks, pause }: Shift, span: number): Promise<Sample> {
    const samples = await Promise.all(
      this.#members.slice(0, busy).map((one) => one.tell({ op: "load", tasks, span, pause })),
    ) as Sample[];
    return { value: samples.reduce((sum, { value }) => sum + value, 0) };
  }

  /** Lets each of them work alone, so that what is measured is not how their code is compiled. */
  async warm(span: number): Promise<void> {
    for (const one of this.#members) await one.tell({ op: "load", tasks: 4, span, pause: 0 });
  }

  /** Ends them. */
  async stop(): Promise<void> {
    for (const one of this.#members) await one.tell({ op: "close" });
    await this.#pool?.close();
    for (const { worker } of this.#members) worker.terminate();
  }
}
