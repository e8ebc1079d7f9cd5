/** What the simulated world's people do with a pool, and what they must never see. */

import { type Connection, PoolError, SimpleConnectionPool } from "../../mod.ts";
import type { Dice } from "../support/dice.ts";
import { ACCOUNTS } from "./database.ts";
import type { World } from "./world.ts";

/** Nothing may take longer than this, whatever happens. Virtual milliseconds. */
export const LONGEST = 600_000;

/** What is known of an entry of the ledger. */
type Fate = "pending" | "acknowledged" | "refused" | "unknown";

/** Failures of which the outcome is not known: the connection was lost, or cancelled, at work. */
function isUnknown(error: unknown): boolean {
  const code = String((error as { code?: unknown } | null)?.code);
  return !/^(?:2[235]|40|42|53300|0A)/.test(code) && !(error instanceof PoolError && [
    "POOL_CLOSED",
    "POOL_EXHAUSTED",
    "POOL_TIMEOUT",
    "TOO_MANY_WAITING",
    "CONNECT_FAILED",
  ].includes(error.code));
}

function nameOf(error: unknown): string {
  const { code, name } = (error ?? {}) as { code?: unknown; name?: unknown };
  return String(code ?? name ?? error);
}

/** All that one pool is put through. */
export class Load {
  readonly pool: SimpleConnectionPool;
  readonly world: World;
  /** What became of what was written. */
  readonly ledger: Map<string, Fate> = new Map();
  /** Calls that have not settled: what, and since when. */
  readonly open: Map<number, { readonly what: string; readonly since: number }> = new Map();
  /** How often each thing was done, and how it ended. */
  readonly done: Record<string, number> = {};
  readonly maxconn: number;
  /** Sessions that are lent, by their number. */
  readonly #lent = new Map<number, string>();
  readonly #dice: Dice;
  readonly #claims = new Map<string, number>();
  #calls = 0;
  #entries = 0;

  constructor(world: World) {
    this.world = world;
    const dice = this.#dice = world.dice;
    const maxconn = this.maxconn = dice.of([1, 2, 3, 5, 8]);
    const minconn = dice.below(maxconn + 1);
    this.pool = new SimpleConnectionPool(minconn, maxconn, "postgres://sim@db/db", {
      transport: world.network.connect,
      ssl: false,
      connect_timeout: dice.of([2, 30]),
      onnotice: () => {},
      prepare: dice.chance(0.8),
      pool: {
        name: "sim",
        timeout: dice.of([0, 0, 50, 2_000, 30_000]),
        maxIdle: dice.of([0, 200, 60_000]),
        maxLifetime: dice.of([0, 500, 3_600_000]),
        checkAfter: dice.of([0, 100, 1_000]),
        ...dice.chance(0.2) ? { maxWaiting: 3 } : {},
        ...dice.chance(0.3) ? { reset: (conn: Connection) => conn.unsafe("discard all") } : {},
      },
    });
    world.check(() => this.#check());
  }

  /** Begins `clients` people's work. */
  begin(clients: number, calls: number): void {
    for (let client = 0; client < clients; client++) {
      void this.#client(client, calls);
    }
  }

  /** True when nobody waits for anything. */
  get quiet(): boolean {
    return this.open.size === 0;
  }

  /** Runs a call and notes how it ends; never rejects. */
  async call<T>(what: string, fn: () => Promise<T>): Promise<T | undefined> {
    const id = this.#calls++;
    this.open.set(id, { what, since: this.world.clock.now() });
    this.world.log(`${id} ${what}`);
    let end = "ok";
    try {
      return await fn();
    } catch (error) {
      end = nameOf(error);
      // Cancelled without having asked for it.
      if (end === "57014") this.world.broken(`${what} was hit by another's cancel request`);
      return undefined;
    } finally {
      this.open.delete(id);
      this.world.log(`${id} ${what}: ${end}`);
      const key = `${what}: ${end}`;
      this.done[key] = (this.done[key] ?? 0) + 1;
    }
  }

  #check(): void {
    const { world } = this;
    // What nobody on our side holds any more may take a moment to end at the server.
    const sessions = [...world.server.backends].length;
    const lines = world.network.open.size;
    if (Math.min(sessions, lines) > this.pool.maxconn && this.pool.maxconn === this.maxconn) {
      world.broken(`${sessions} sessions on ${lines} connections, ${this.pool.maxconn} allowed`);
    }
    const now = world.clock.now();
    for (const { what, since } of this.open.values()) {
      if (now - since > LONGEST) world.broken(`${what} has waited for ${now - since} ms`);
    }
  }

  async #client(client: number, calls: number): Promise<void> {
    const { world } = this;
    await this.#pause(50);
    for (let i = 0; i < calls; i++) {
      await this.#one(`c${client}`);
      if (this.#dice.chance(0.5)) await this.#pause(this.#dice.of([1, 10, 300, 3_000]));
    }
    world.log(`c${client} is done`);
  }

  #pause(most: number): Promise<void> {
    const ms = this.#dice.next() * most;
    return new Promise((resolve) => this.world.clock.after(ms, resolve));
  }

  #newEntry(): string {
    const id = `e${this.#entries++}`;
    this.ledger.set(id, "pending");
    return id;
  }

  /** Notes what became of the entries of one transaction. */
  async #writes<T>(ids: readonly string[], work: Promise<T>): Promise<T> {
    try {
      const result = await work;
      for (const id of ids) this.ledger.set(id, "acknowledged");
      return result;
    } catch (error) {
      for (const id of ids) this.ledger.set(id, isUnknown(error) ? "unknown" : "refused");
      throw error;
    }
  }

  /** Asks something of which the answer is known. */
  async #ask(conn: Connection | SimpleConnectionPool["sql"], what: string): Promise<void> {
    const n = this.#calls * 1_000 + this.#dice.below(1_000);
    const rows = await conn`select ${n}::int as n`;
    if (rows.length !== 1 || rows[0]?.["n"] !== n) {
      this.world.broken(`${what} asked for ${n} and got ${JSON.stringify(rows)}`);
    }
  }

  #take(conn: Connection, what: string, state: "I" | "T"): void {
    const { pid } = conn;
    const other = this.#lent.get(pid);
    if (other !== undefined && this.world.backend(pid) !== null) {
      this.world.broken(`${what} got session ${pid}, which ${other} has`);
    }
    const session = this.world.backend(pid)?.session;
    if (session !== undefined && session.state !== state) {
      this.world.broken(`${what} got session ${pid} with ${session.leftovers}`);
    }
    this.#lent.set(pid, what);
  }

  /** Works with a session that nobody else may have meanwhile. */
  async #holding(
    conn: Connection,
    who: string,
    state: "I" | "T",
    work: () => Promise<void>,
  ): Promise<void> {
    const { pid } = conn;
    this.#take(conn, who, state);
    try {
      await work();
    } finally {
      if (this.#lent.get(pid) === who) this.#lent.delete(pid);
    }
  }

  async #one(who: string): Promise<void> {
    const dice = this.#dice;
    const { pool } = this;
    const { sql } = pool;
    const signal = dice.chance(0.1) ? this.#signal() : undefined;
    const options = signal === undefined ? {} : { signal };
    switch (dice.below(19)) {
      case 0:
      case 1:
        return void await this.call("getconn", async () => {
          const conn = await pool.getconn(null, options);
          try {
            await this.#holding(conn, who, "I", () => this.#lease(conn, who));
          } finally {
            await pool.putconn(conn, null, dice.chance(0.1));
          }
        });
      case 2:
        return void await this.call(
          "use",
          () =>
            pool.use(
              (conn) => this.#holding(conn, who, "I", () => this.#lease(conn, who)),
              options,
            ),
        );
      case 3:
      case 4:
      case 5:
        return void await this.call("transaction", () => this.#transfer(who));
      case 6:
      case 7:
      case 8:
        return void await this.call("sql select", () => this.#ask(sql, who));
      case 9:
        return void await this.call("sql insert", () => {
          const id = this.#newEntry();
          return this.#writes([id], sql`insert into ledger (id) values (${id})`);
        });
      case 10:
        return void await this.call(
          "sql many",
          () =>
            Promise.all(Array.from({ length: dice.from(2, 20) }, () => {
              if (dice.chance(0.1)) return sql`select 1/0`.catch(() => {});
              if (dice.chance(0.05)) return sql`select pg_sleep(${dice.of([0.01, 0.3])})`;
              return this.#ask(sql, who);
            })),
        );
      case 11:
        return void await this.call("sql cancel", async () => {
          const query = sql`select pg_sleep(${dice.of([0.001, 0.1, 5])})`;
          const end = query.then(() => {}, () => {});
          await this.#pause(dice.of([0, 1, 50]));
          query.cancel();
          await end;
        });
      case 12:
        return void await this.call("sql begin", () => {
          const id = this.#newEntry();
          const work = sql.begin(async (tx) => {
            await tx`insert into ledger (id) values (${id})`;
            if (dice.chance(0.2)) await tx`select pg_sleep(0.05)`;
            if (dice.chance(0.2)) await tx`select 1/0`;
          });
          return this.#writes([id], work);
        });
      case 13:
        return void await this.call("keyed", async () => {
          const key = dice.of(["a", "b"]);
          const conn = await pool.getconn(key, options);
          // Whoever asks for the key gets the same one: no transaction, and back when all are done.
          const claims = (this.#claims.get(key) ?? 0) + 1;
          this.#claims.set(key, claims);
          try {
            await this.#ask(conn, who);
          } finally {
            const left = this.#claims.get(key)! - 1;
            this.#claims.set(key, left);
            if (left === 0) await pool.putconn(conn, key).catch(() => {});
          }
        });
      case 14:
        return void await this.call("copy in", async () => {
          const ids = [this.#newEntry(), this.#newEntry()];
          await this.#writes(
            ids,
            pool.use(async (conn) => {
              const stream = await conn`copy ledger (id) from stdin`.writable();
              await new Promise<void>((resolve, reject) => {
                stream.on("error", reject);
                stream.on("finish", resolve);
                stream.end(ids.map((id) => `${id}\n`).join(""));
              });
            }),
          );
        });
      case 15:
        return void await this.call("hidden begin", async () => {
          try {
            await sql.unsafe("begin");
            this.world.broken("a begin beside others was accepted");
          } catch (error) {
            if (nameOf(error) !== "UNSAFE_TRANSACTION") throw error;
          }
        });
      case 16:
        return void await this.call("savepoints", () => {
          const [kept, lost] = [this.#newEntry(), this.#newEntry()];
          const work = sql.begin(async (tx) => {
            await Promise.all([
              tx.savepoint(async (sp) => {
                await sp`insert into ledger (id) values (${kept})`;
              }),
              tx.savepoint(async (sp) => {
                await sp`insert into ledger (id) values (${lost})`;
                await sp`select 1/0`;
              }).catch((error: unknown) => {
                if (nameOf(error) !== "22012") throw error;
              }),
            ]);
          });
          this.ledger.set(lost, "refused");
          return this.#writes([kept], work);
        });
      case 17:
        return void await this.call("resize", async () => {
          const most = dice.from(1, this.maxconn);
          await pool.resize(dice.below(most + 1), most);
        });
      default:
        return void await this.call("control", async () => {
          if (dice.chance(0.3)) await pool.renew();
          pool.stats();
          pool.inspect();
        });
    }
  }

  #signal(): AbortSignal {
    const controller = new AbortController();
    this.world.clock.after(this.#dice.of([0, 1, 20, 500]), () => controller.abort());
    return controller.signal;
  }

  /** What one does with a connection of one's own. */
  async #lease(conn: Connection, who: string): Promise<void> {
    const dice = this.#dice;
    for (let steps = dice.from(0, 4); steps > 0; steps--) {
      switch (dice.below(9)) {
        case 0:
        case 1:
          await this.#ask(conn, who);
          break;
        case 2:
          await Promise.all([this.#ask(conn, who), this.#ask(conn, who), this.#ask(conn, who)]);
          break;
        case 3:
          await conn`select 1/0`.catch(() => {});
          break;
        case 4: {
          const id = this.#newEntry();
          await this.#writes([id], conn`insert into ledger (id) values (${id})`);
          break;
        }
        case 5: {
          let expected = 1;
          const stop = dice.from(1, 30);
          for await (const rows of conn`select n from generate_series(1, ${20}) n`.cursor(7)) {
            for (const row of rows) {
              if (row["n"] !== expected++) this.world.broken(`a cursor gave ${row["n"]}`);
            }
            if (expected > stop) break;
          }
          break;
        }
        case 6:
          // Left open on purpose: putconn rolls it back.
          await conn.unsafe("begin");
          await conn`update account set balance = balance + ${1_000} where id = ${
            dice.below(ACCOUNTS)
          }`;
          if (dice.chance(0.3)) await conn.unsafe("selec").catch(() => {});
          return;
        case 7: {
          const query = conn`select pg_sleep(${0.2})`;
          const end = query.then(() => {}, () => {});
          await this.#pause(dice.of([0, 1, 20]));
          query.cancel();
          if (dice.chance(0.5)) await this.#ask(conn, who);
          await end;
          break;
        }
        default:
          await this.#pause(20);
      }
    }
  }

  /** Moves money, and writes down that it did. */
  async #transfer(who: string): Promise<void> {
    const dice = this.#dice;
    const id = this.#newEntry();
    const from = dice.below(ACCOUNTS), to = dice.below(ACCOUNTS), sum = dice.from(1, 100);
    const quits = dice.chance(0.15);
    const quit = new Error("changed my mind");
    const work = this.pool.transaction((conn) =>
      this.#holding(conn, who, "T", async () => {
        await conn`insert into ledger (id) values (${id})`;
        await conn`update account set balance = balance + ${-sum} where id = ${from}`;
        await conn`update account set balance = balance + ${sum} where id = ${to}`;
        if (dice.chance(0.1)) await this.#pause(200);
        if (quits) throw quit;
      })
    );
    try {
      await this.#writes([id], work);
    } catch (error) {
      // Thrown in the body: rolled back for certain.
      if (error === quit) this.ledger.set(id, "refused");
      throw error;
    }
  }

  /** What must be true of the tables once all is over. */
  audit(): void {
    const { database } = this.world.server;
    for (const [id, fate] of this.ledger) {
      const there = database.entries.has(id);
      if (fate === "acknowledged" && !there) {
        this.world.broken(`${id} was acknowledged and is lost`);
      }
      if (fate === "refused" && there) this.world.broken(`${id} was refused and is there`);
      if (fate === "pending") this.world.broken(`${id} has never ended`);
    }
    const sum = database.accounts.reduce((a, b) => a + b, 0);
    if (sum !== 0) this.world.broken(`money was made: ${sum}`);
  }
}
