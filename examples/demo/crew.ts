/** Workers over one pool, some of which end before their time. */

import { ThreadedConnectionPool } from "@getconn/pool";
import type { Mischief } from "./chaos.ts";
import type { Database } from "./database.ts";
import { Ledger } from "./ledger.ts";
import { mergeMetrics, type Metrics, newMetrics } from "./metrics.ts";
import type { DemoOptions } from "./options.ts";
import type { Source } from "./scene.ts";
import { PATIENCE, type Site, type TaskCount } from "./site.ts";
import { idsOf, type LoadPlan, newCounter } from "./tasks.ts";
import type { Answer, Order, Report } from "./worker.ts";

/** The tasks, spread evenly over workers that share the permits of one pool. */
export class Crew implements Site {
  readonly pool: ThreadedConnectionPool;
  readonly sources: readonly Post[];
  readonly ledger: Ledger = new Ledger();
  readonly mischiefs: readonly Mischief[];
  readonly #script: URL;
  readonly #scale: number;
  /** Terminated workers and where they were. */
  readonly #gone: { readonly member: CrewMember; readonly post: Post }[] = [];
  #terminated = 0;
  #lives = 0;
  #started = false;
  #stopping = false;

  constructor(
    db: Pick<Database, "url" | "connection">,
    { tasks, scale, maxconn, workers }: DemoOptions,
    script: URL = new URL("./worker.ts", import.meta.url),
  ) {
    // The main isolate only watches, so it keeps no connection for itself.
    this.pool = new ThreadedConnectionPool(0, maxconn, db.url, {
      connection: db.connection,
      pool: { name: "demo", timeout: PATIENCE },
    });
    this.#script = script;
    this.#scale = scale;
    this.sources = Array.from({ length: workers }, (_, n) => {
      const share = Math.floor(tasks / workers) + (n < tasks % workers ? 1 : 0);
      return new Post(`worker ${n + 1}`, share);
    });
    this.mischiefs = [{ name: "workers terminated", strike: () => this.#replaceAny() }];
  }

  async prepare(): Promise<void> {
    await Promise.all(this.sources.map((post) => this.#fill(post).joined));
  }

  start(): void {
    this.#started = true;
    for (const { worker } of this.sources) worker?.tell({ type: "start" });
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    for (const { worker } of this.sources) worker?.tell({ type: "stop" });
    await Promise.all(this.sources.map(({ worker }) => worker?.stopped));
    // terminate() does not wait: until its thread had ended, a worker could begin yet another transfer.
    for (const { member, post } of this.#gone) post.past.unknown += member.closeBooks();
  }

  tasks(): TaskCount {
    const count = { all: 0, running: 0, terminated: this.#terminated, failures: [] as string[] };
    for (const { name, tasks, worker } of this.sources) {
      count.all += tasks;
      count.running += worker?.report.running ?? tasks;
      if (worker?.failure !== undefined) count.failures.push(`${name}: ${worker.failure}`);
    }
    return count;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.pool.close({ timeout: 0 });
    } finally {
      for (const { worker } of this.sources) worker?.terminate();
    }
  }

  /** Starts a worker at a post. */
  #fill(post: Post): CrewMember {
    const { tasks } = post;
    const plan = { source: this.#lives++, tasks, scale: this.#scale, begun: newCounter() };
    const member = new CrewMember(this.pool, plan, this.ledger, this.#script);
    post.worker = member;
    member.joined.then((seat) => {
      // A seat that is free again may go to anybody.
      for (const { seats } of this.sources) seats.delete(seat);
      post.seats.add(seat);
    }, () => {});
    if (this.#started) member.tell({ type: "start" });
    return member;
  }

  /** Terminates a random worker, whatever it does at the moment, and starts another in its place. */
  #replaceAny(): Promise<boolean> {
    const working = this.sources.filter(({ worker }) => worker?.working);
    const post = working[Math.floor(Math.random() * working.length)];
    if (post === undefined || this.#stopping) return Promise.resolve(false);
    const member = post.worker!;
    member.terminate();
    this.#gone.push({ member, post });
    this.#terminated += post.tasks;
    post.retire();
    this.#fill(post);
    return Promise.resolve(true);
  }
}

/** Where one worker after the other works. */
class Post implements Source {
  readonly name: string;
  /** How many tasks each of them has. */
  readonly tasks: number;
  readonly seats: Set<number> = new Set();
  /** The one that works here now. */
  worker: CrewMember | undefined;
  /** What its predecessors measured. */
  past: Metrics = newMetrics();
  #replaced = 0;

  constructor(name: string, tasks: number) {
    this.name = name;
    this.tasks = tasks;
  }

  get metrics(): Metrics {
    return this.worker ? mergeMetrics([this.past, this.worker.report.metrics]) : this.past;
  }

  get note(): string {
    if (this.worker?.failure !== undefined) return "failed";
    if (!this.worker?.told) return "starting";
    return this.#replaced > 0 ? `no. ${this.#replaced + 1}` : "";
  }

  /** The worker has ended; what it measured stays. */
  retire(): void {
    this.past = this.metrics;
    this.worker = undefined;
    this.#replaced++;
  }
}

/** One worker. */
class CrewMember {
  /** The last thing that it told. */
  report: Report;
  /** Why it works no more, when nobody wanted that. */
  failure: string | undefined;
  readonly #plan: LoadPlan;
  readonly #ledger: Ledger;
  readonly #worker: Worker;
  readonly #joined = Promise.withResolvers<number>();
  readonly #stopped = Promise.withResolvers<void>();
  /** Whether it has reported anything. */
  told = false;
  #ended = false;

  constructor(pool: ThreadedConnectionPool, plan: LoadPlan, ledger: Ledger, script: URL) {
    this.#plan = plan;
    this.#ledger = ledger;
    this.report = { metrics: newMetrics(), news: [], running: plan.tasks };
    // The substitute of a worker may fail while nobody waits for it.
    this.#joined.promise.catch(() => {});
    this.#worker = new Worker(script.href, { type: "module" });
    this.#worker.onmessage = ({ data }: MessageEvent<Answer>) => this.#hear(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(wordsOf(event.message));
    };
    this.tell({ type: "join", handle: pool.share(this.#worker), plan });
  }

  /** The number of its row in the pool's statistics, as soon as it has one. */
  get joined(): Promise<number> {
    return this.#joined.promise;
  }

  /** Resolves when its tasks have ended and all is told, or when it can tell nothing more. */
  get stopped(): Promise<void> {
    return this.#stopped.promise;
  }

  /** Whether it is at its work. */
  get working(): boolean {
    return this.told && !this.#ended;
  }

  tell(order: Order): void {
    this.#worker.postMessage(order);
  }

  /** Ends it as it is. What it has not told by now counts as unknown. */
  terminate(): void {
    this.#worker.onmessage = null;
    this.#worker.terminate();
    this.#end();
  }

  /** What it has not told by now is unknown; returns how many transfers those are. */
  closeBooks(): number {
    return this.#ledger.close(idsOf(this.#plan));
  }

  #hear(answer: Answer): void {
    if (answer.type === "joined") this.#joined.resolve(answer.seat);
    else if (answer.type === "report") {
      this.told = true;
      this.report = answer.report;
      this.#ledger.add(answer.report.news);
    } else if (answer.type === "stopped") this.#end();
    else this.#fail(answer.message);
  }

  #fail(message: string): void {
    this.failure ??= message;
    this.#joined.reject(new Error(`a worker failed: ${message}`));
    this.#end();
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.report.metrics.unknown += this.closeBooks();
    this.#stopped.resolve();
  }
}

/** The error's own words: Bun's message also has the lines of the program around it. */
function wordsOf(message: string): string {
  return /\berror: (.*)$/im.exec(message)?.[1] ?? message;
}
