/** Counts the pool's sessions where it cannot cheat: at the server. */

import type postgres from "postgres";

/** Milliseconds between two looks: often enough to see a connection come and go. */
const PAUSE = 2;

/** What the sampler counts. */
export interface Watched {
  /** The pool's application_name. */
  readonly applicationName: string;
  /**
   * Our own connections' application_name, when nobody else uses the server: then everything but
   * these counts, also a session that has not yet told its name.
   */
  readonly allBut?: string | undefined;
}

/** Looks again and again, through a connection of its own. */
export class Sampler {
  /** How many sessions it saw last. */
  now = 0;
  /** How many sessions it ever saw at once. */
  most = 0;
  /** How often it looked. */
  looks = 0;
  /** Why it could not look any more. */
  failure: unknown;
  readonly #sql: postgres.Sql;
  readonly #watched: Watched;
  #stopped = false;
  #looking: Promise<void> = Promise.resolve();

  constructor(sql: postgres.Sql, watched: Watched) {
    this.#sql = sql;
    this.#watched = watched;
  }

  /** Begins. */
  start(): void {
    this.#looking = this.#lookOn().catch((error) => {
      this.failure = error;
    });
  }

  /** Ends. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#looking;
  }

  /**
   * The sessions of the pool at this moment.
   *
   * The view is no snapshot: the server reads it entry by entry, and when it is interrupted in the
   * middle it can see a session and also the next one that took its place. A session that began before the
   * query and is seen by it was there when the query began. So only these count, and the number is
   * exact for that instant.
   */
  async look(): Promise<number> {
    const { applicationName, allBut } = this.#watched;
    const [row] = await this.#sql<{ sessions: number }[]>`
      select count(*)::int as sessions from pg_stat_activity
      where backend_start < statement_timestamp() and backend_type = 'client backend' and
        case when ${allBut ?? null}::text is null then application_name = ${applicationName}
        else coalesce(application_name, '') <> ${allBut ?? null}::text end`;
    this.now = row!.sessions;
    this.most = Math.max(this.most, this.now);
    this.looks++;
    return this.now;
  }

  async #lookOn(): Promise<void> {
    while (!this.#stopped) {
      await this.look();
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }
}
