/** Chaos: at random moments something breaks. */

import type postgres from "postgres";

/** One way to break something. */
export interface Mischief {
  /** What the view calls it: `backends killed`. */
  readonly name: string;
  /** Does it; false when there was nothing to break. */
  readonly strike: () => Promise<boolean>;
}

/** Milliseconds between two strikes, at least and at most. */
const PAUSE = { least: 300, most: 1_200 } as const;

/** Strikes again and again, with each of its mischiefs in turn: also in a short run none is left out. */
export class Chaos {
  /** How often each mischief struck. */
  readonly strikes: Record<string, number> = {};
  readonly #mischiefs: readonly Mischief[];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #striking: Promise<void> = Promise.resolve();
  #stopped = false;
  #turn = 0;

  constructor(mischiefs: readonly Mischief[]) {
    this.#mischiefs = mischiefs;
    for (const { name } of mischiefs) this.strikes[name] = 0;
  }

  /** Begins. */
  start(): void {
    if (this.#mischiefs.length === 0) return;
    const wait = PAUSE.least + Math.random() * (PAUSE.most - PAUSE.least);
    this.#timer = setTimeout(() => {
      this.#striking = this.#strike().then(() => {
        if (!this.#stopped) this.start();
      });
      // A strike that failed is the last one; stop() tells of it.
      this.#striking.catch(() => {});
    }, wait);
  }

  /**
   * Ends; resolves when the last strike is over.
   *
   * @throws what a strike threw
   */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#striking;
  }

  async #strike(): Promise<void> {
    const { name, strike } = this.#mischiefs[this.#turn++ % this.#mischiefs.length]!;
    if (await strike()) this.strikes[name]!++;
  }
}

/** Ends a random session of the pool, whatever it does at the moment, as an administrator would. */
export function killBackends(sql: postgres.Sql, applicationName: string): Mischief {
  return {
    name: "backends killed",
    async strike() {
      const killed = await sql`
        select pg_terminate_backend(pid) from (
          select pid from pg_stat_activity
          where application_name = ${applicationName} order by random() limit 1
        ) as victim`;
      return killed.length > 0;
    },
  };
}
