/**
 * A queue of jobs in a table. What takes a job locks its row, so a job is with one worker at a time, in
 * whatever process; and a worker that dies gives it back, as its transaction ends with its session.
 *
 * @module
 */
import type { postgres, SimpleConnectionPool } from "@getconn/pool";

/** A client, a lease or a transaction. */
type Sql = postgres.ISql;

/** What is to be done. */
export interface Job {
  readonly id: string;
  readonly kind: string;
  readonly payload: Record<string, unknown>;
  /** How often it was tried and failed. */
  readonly attempts: number;
}

/** Does a job of one kind, within the transaction that takes it from the queue. */
export type Handler = (sql: postgres.TransactionSql, job: Job) => Promise<unknown>;

/** After so many a job has failed for good. */
const ATTEMPTS = 3;
/** The longest sleep in milliseconds: notices do not tell of jobs that a killed process gave back. */
const LOOK = 30_000;
/** The pause after an error that is not a job's own, such as a server that is away. */
const PAUSE = 1_000;

/** Makes the table, where there is none. */
export async function createQueue(pool: SimpleConnectionPool): Promise<void> {
  await pool.transaction(async (conn) => {
    // "if not exists" alone fails when two processes begin together.
    await conn`select pg_advisory_xact_lock(hashtext('jobs'))`;
    await conn`
      create table if not exists jobs (
        id bigint generated always as identity primary key,
        kind text not null,
        payload jsonb not null,
        attempts int not null default 0,
        run_at timestamptz not null default now(),
        state text not null default 'ready' check (state in ('ready', 'done', 'failed')),
        error text
      )`;
    await conn`create index if not exists jobs_ready on jobs (run_at, id) where state = 'ready'`;
  });
}

/** Adds a job, and wakes workers. Within a transaction: at its commit, and only then. */
export async function addJob(
  sql: Sql,
  kind: string,
  payload: Record<string, string | number>,
): Promise<string> {
  const [job] = await sql<[{ id: string }]>`
    with job as (insert into jobs (kind, payload) values (${kind}, ${
    sql.json(payload)
  }) returning id)
    select id, pg_notify('jobs', '') from job`;
  return job.id;
}

/** Wakes those who wait. Rings are counted, so that one between a look and the wait is not missed. */
class Bell {
  rings = 0;
  readonly #waiting = new Set<() => void>();

  ring(): void {
    this.rings++;
    for (const wake of this.#waiting) wake();
  }

  /** Until the bell has rung since `heard` was read, or time is up. */
  async wait(heard: number, ms: number): Promise<void> {
    if (this.rings !== heard) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, ms);
    this.#waiting.add(resolve);
    await promise;
    this.#waiting.delete(resolve);
    clearTimeout(timer);
  }
}

/** Workers of one process. */
export class Workers {
  readonly #pool: SimpleConnectionPool;
  readonly #handlers: Record<string, Handler>;
  readonly #bell = new Bell();
  #stopped = false;
  #running: Promise<unknown> = Promise.resolve();

  constructor(pool: SimpleConnectionPool, handlers: Record<string, Handler>) {
    this.#pool = pool;
    this.#handlers = handlers;
  }

  /** Starts so many; the pool needs one connection more, which listens. */
  async start(workers: number): Promise<void> {
    const ring = () => this.#bell.ring();
    // Also rung whenever it listens anew: what was told while the session was away was not heard.
    await this.#pool.sql.listen("jobs", ring, ring);
    this.#running = Promise.all(Array.from({ length: workers }, () => this.#work()));
  }

  /** Takes no more; resolves when the jobs that run are done. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#bell.ring();
    await this.#running;
  }

  async #work(): Promise<void> {
    while (!this.#stopped) {
      const heard = this.#bell.rings;
      const pause = await this.#next().catch((error) => {
        console.error("cannot work:", error);
        return PAUSE;
      });
      if (pause > 0 && !this.#stopped) await this.#bell.wait(heard, pause);
    }
  }

  /** Does the next job; gives how long there is nothing to do, in milliseconds. */
  async #next(): Promise<number> {
    return await this.#pool.sql.begin(async (sql) => {
      const [job] = await sql<Job[]>`
        select id, kind, payload, attempts from jobs where state = 'ready' and run_at <= now()
        order by run_at, id limit 1 for update skip locked`;
      if (job === undefined) {
        const [row] = await sql<[{ ms: number | null }]>`
          select ceil(extract(epoch from min(run_at) - now()) * 1000)::float8 as ms from jobs
          where state = 'ready' and run_at > now()`;
        return Math.min(row.ms ?? LOOK, LOOK);
      }
      try {
        // What a job that fails has done is undone to here; the job stays ours.
        await sql.savepoint((sql) => this.#handle(sql, job));
      } catch (error) {
        await sql`
          update jobs set attempts = attempts + 1, error = ${String(error)},
            state = case when attempts + 1 < ${ATTEMPTS} then 'ready' else 'failed' end,
            run_at = clock_timestamp() + interval '0.3 s' * 4 ^ attempts
          where id = ${job.id}`;
        return 0;
      }
      await sql`update jobs set attempts = attempts + 1, state = 'done', error = null
        where id = ${job.id}`;
      return 0;
    });
  }

  async #handle(sql: postgres.TransactionSql, job: Job): Promise<void> {
    const handler = Object.hasOwn(this.#handlers, job.kind) ? this.#handlers[job.kind] : undefined;
    if (handler === undefined) {
      const known = Object.keys(this.#handlers).join(", ");
      throw new TypeError(`no handler for jobs of kind "${job.kind}"; there are: ${known}`);
    }
    await handler(sql, job);
  }
}
