/** Looks all the time whether no pool has more connections than it may. */

import type { Admin } from "./admin.ts";
import { CAPS, type PoolName } from "./arena.ts";
import { socketsTo } from "./growth.ts";
import type { Net, Stage } from "./stage.ts";
import type { Witness } from "./witness.ts";
import { pause } from "./works.ts";

interface Sessions {
  readonly name: string;
  readonly active: boolean;
  readonly count: number;
}

/** How many there were at most, by pool. */
export type Most = Map<PoolName, number>;

/** Samples at the server and here. */
export class CapWatch {
  readonly #stage: Stage;
  readonly #witness: Witness;
  /** The most sessions that the server showed. */
  readonly atServer: Most = new Map();
  /** The most sockets that were open on our side. */
  readonly here: Most = new Map();
  samples = 0;
  /** How often a statement of a worker that had ended was seen at the server. */
  outlived = 0;
  #running = true;
  #atServer = false;
  readonly #loops: Promise<unknown>;

  constructor(stage: Stage, witness: Witness) {
    this.#stage = stage;
    this.#witness = witness;
    this.#loops = Promise.all([this.#watchServer(), this.#watchHere()]);
  }

  /** Whether the server's own count tells something: behind a broken network it knows lost sessions. */
  set serverCounts(on: boolean) {
    this.#atServer = on;
  }

  /** Ends it. */
  async stop(): Promise<void> {
    this.#running = false;
    await this.#loops;
  }

  async #watchServer(): Promise<void> {
    while (this.#running) {
      if (this.#atServer) {
        // The server may be away.
        const rows = await sessionsOf(this.#stage.admin).catch(() => []);
        if (this.#atServer && rows.length > 0) this.#judge(rows);
      }
      await pause(10);
    }
  }

  #judge(rows: readonly Sessions[]): void {
    this.samples++;
    const counts: Most = new Map();
    for (const { name, active, count } of rows) {
      const [, pool, isolate] = /^soak (\w+) (.*)$/.exec(name) as unknown as [0, PoolName, string];
      // Over PgBouncer the sessions are its own.
      if (pool === "session" || pool === "transaction") continue;
      // So documented: what a worker that has ended left running is outside of the cap until it ends.
      const number = Number(/\d+/.exec(isolate)?.[0] ?? 0);
      if (active && this.#witness.journal.isDead(number)) this.outlived += count;
      else counts.set(pool, (counts.get(pool) ?? 0) + count);
    }
    for (const [pool, count] of counts) this.#compare(this.atServer, pool, count, "at the server");
  }

  async #watchHere(): Promise<void> {
    while (this.#running) {
      const sockets = socketsTo();
      for (const net of this.#stage.nets) {
        if (sockets === null) break;
        let open = openSessions(net, sockets);
        // A runtime may close in its own time what was destroyed: such a socket is gone when we look again.
        if (open.length > CAPS[net.name]) open = await this.#still(net, open);
        this.#compare(this.here, net.name, open.length, `of our sockets: ${open.join(", ")}`);
      }
      for (const { name, cap, pool } of this.#stage.arenas) {
        const { connecting, idle, leased, shared, closing, workers } = pool.stats();
        // Of several isolates only the permits are of one instant.
        const held = workers.length > 0
          ? workers.reduce((sum, { permits }) => sum + permits, 0)
          : connecting + idle + leased + shared + closing;
        if (held > cap) {
          this.#witness.violated(`${name}: ${held} connections by its own account, of ${cap}`);
        }
      }
      await pause(40);
    }
  }

  async #still(net: Net, open: readonly string[]): Promise<string[]> {
    await pause(20);
    const now = new Set(openSessions(net, socketsTo()!));
    return open.filter((one) => now.has(one));
  }

  #compare(most: Most, pool: PoolName, count: number, where: string): void {
    most.set(pool, Math.max(most.get(pool) ?? 0, count));
    if (count > CAPS[pool]) {
      this.#witness.violated(`${pool}: ${count} sessions ${where}, the cap is ${CAPS[pool]}`);
    }
  }
}

/** What the server has of all pools. */
export async function sessionsOf(admin: Admin): Promise<Sessions[]> {
  return await admin.rows<Sessions>(
    `select application_name as name, state = 'active' as active, count(*)::int as count
     from pg_stat_activity where application_name like 'soak %' group by 1, 2`,
  );
}

/** The sockets of sessions that are open towards these proxies; cancel requests are no sessions. */
export function openSessions(
  { proxies }: Net,
  sockets: Map<number, Map<number, string>>,
): string[] {
  return proxies.flatMap(({ port, sessions }) =>
    sessions.flatMap((own) => {
      const how = sockets.get(port)?.get(own);
      return how === undefined ? [] : [`${own} to ${port} ${how}`];
    })
  );
}
