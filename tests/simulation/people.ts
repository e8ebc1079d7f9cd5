/** What the simulated world's people do with a pool, and what they must never see. */

import {
  type Connection,
  type GetconnOptions,
  limited,
  type PersistentConnectionPool,
  type SimpleConnectionPool,
  type ThreadedConnectionPool,
} from "../../mod.ts";
import type { Dice } from "../support/dice.ts";
import { ACCOUNTS } from "./database.ts";
import { type Load, nameOf, type Part, type Patience } from "./load.ts";
import type { World } from "./world.ts";

type Ask = Pick<Connection, "unsafe"> & {
  (
    strings: TemplateStringsArray,
    ...args: never[]
  ): PromiseLike<readonly Record<string, unknown>[]>;
};

/** What is not a transaction, and of a pool in which each has a connection of its own. */
type Keyed = SimpleConnectionPool | ThreadedConnectionPool;

/** What never aborts. */
const NO_SIGNAL: { signal?: AbortSignal; aborts: number } = { aborts: Infinity };

/** One person, who works in one isolate. */
export class Person {
  readonly #name: string;
  readonly #load: Load;
  readonly #part: Part;
  readonly #world: World;
  /** For what is done now. */
  #dice: Dice;

  constructor(name: string, load: Load, part: Part) {
    this.#name = name;
    this.#load = load;
    this.#part = part;
    this.#world = load.world;
    this.#dice = load.world.diceFor(name);
  }

  /** Does so many things, one after the other. */
  async work(things: number): Promise<void> {
    const world = this.#world;
    await this.#pause(50);
    for (let i = 0; i < things; i++) {
      const act = `${this.#name}.${i}`;
      this.#dice = world.diceFor(act);
      if (world.without.acts?.has(act)) continue;
      world.acts.push(act);
      await this.#one();
      if (this.#dice.chance(0.5)) await this.#pause(this.#dice.of([1, 10, 300, 3_000]));
    }
    world.log(`${this.#name} is done`);
  }

  #pause(most: number): Promise<void> {
    const ms = this.#dice.next() * most;
    return new Promise((resolve) => this.#part.isolate.after(ms, resolve));
  }

  #call<T>(what: string, fn: () => Promise<T>): Promise<T | undefined> {
    return this.#load.call(this.#part.isolate, what, fn);
  }

  #broken(what: string): void {
    this.#world.broken(`${this.#name} ${what}`);
  }

  #newEntry(): string {
    return this.#load.newEntry(this.#part.isolate);
  }

  /** A signal, and after how many milliseconds it aborts. */
  #signal(): { signal: AbortSignal; aborts: number } {
    const controller = new AbortController();
    const aborts = this.#dice.of([0, 1, 20, 500]);
    this.#part.isolate.after(aborts, () => controller.abort());
    return { signal: controller.signal, aborts };
  }

  /** Asks for a connection, in the order of those who do. */
  async #asking<T>(ask: () => Promise<T>): Promise<T> {
    const asked = this.#load.asks(this.#part.isolate, this.#name);
    let served = false;
    try {
      const conn = await ask();
      served = true;
      return conn;
    } finally {
      this.#load.answered(asked, served);
    }
  }

  /** Asks something of which the answer is known. */
  async #ask(conn: unknown, dice: Dice = this.#dice): Promise<void> {
    const n = dice.below(1_000_000);
    const rows = await (conn as Ask)`select ${n as never}::int as n`;
    if (rows.length !== 1 || rows[0]?.["n"] !== n) {
      this.#broken(`asked for ${n} and got ${JSON.stringify(rows)}`);
    }
  }

  async #insert(conn: unknown, id: string): Promise<void> {
    await (conn as Ask)`insert into ledger (id) values (${id as never})`;
  }

  async #one(): Promise<void> {
    const { kind, resizes } = this.#load;
    const dice = this.#dice;
    if (resizes && dice.chance(0.2)) return await this.#resize();
    if (dice.chance(0.5)) return await this.#sqlAct();
    if (kind === "worker") return await this.#workerAct();
    if (kind === "context") return await this.#contextAct();
    return await this.#leaseAct();
  }

  /** How to ask for a connection, and how long that may take at most. */
  #options(): { options: GetconnOptions; patience: Patience } {
    const dice = this.#dice;
    const own = dice.chance(0.2) ? dice.of([0, 5, 300, 10_000]) : null;
    const { signal, aborts } = dice.chance(0.1) ? this.#signal() : NO_SIGNAL;
    return {
      options: {
        ...signal === undefined ? {} : { signal },
        ...own === null ? {} : { timeout: own },
      },
      patience: { timeout: own ?? this.#load.timeout, aborts },
    };
  }

  // --- leases ---

  async #leaseAct(): Promise<void> {
    const dice = this.#dice;
    const load = this.#load;
    const pool = this.#part.pool as Keyed;
    const { options, patience } = this.#options();
    switch (dice.below(16)) {
      case 0:
      case 1:
      case 2:
        return void await this.#call("getconn", async () => {
          const conn = await this.#asking(() =>
            load.wait(this.#part, patience, () => pool.getconn(null, options))
          );
          try {
            await load.holding(conn, this.#name, () => this.#lease(conn));
          } finally {
            await pool.putconn(conn, null, dice.chance(0.1));
          }
        });
      case 3:
      case 4:
        return void await this.#call("use", async () => {
          const { isolate } = this.#part;
          const asked = load.asks(isolate, this.#name);
          try {
            await pool.use((conn) => {
              load.answered(asked, true);
              return load.holding(conn, this.#name, () => this.#lease(conn));
            }, options);
          } finally {
            load.answered(asked, false);
          }
        });
      case 5:
      case 6:
      case 7:
        return void await this.#call("transaction", () => this.#transfer());
      case 8:
        return void await this.#call("keyed", async () => {
          const key = dice.of(["a", "b"]);
          const conn = await load.wait(this.#part, patience, () => pool.getconn(key, options));
          const { isolate } = this.#part;
          load.takeKeyed(isolate, key, conn);
          try {
            await this.#ask(conn);
            if (dice.chance(0.3)) await this.#pause(20);
          } finally {
            load.returnKeyed(isolate, key, conn);
            // Whoever has the same key may have put it back already.
            await pool.putconn(conn, key).catch(() => {});
          }
        });
      case 9:
        return void await this.#call("copy", () => pool.use((conn) => this.#copy(conn)));
      case 10:
        return await this.#resize();
      case 11:
        return void await this.#call("ended by hand", () => this.#endedByHand());
      case 12:
        return void await this.#call("hanging use", () =>
          pool.use(async (conn) => {
            load.kept.push(conn);
            await this.#ask(conn);
            const backend = this.#world.backend(conn.pid);
            if (backend === null) return;
            this.#part.isolate.after(dice.next() * 100, () => this.#world.kill(backend));
            await new Promise((never) => load.kept.push(never));
          }));
      case 13:
        return void await this.#call("large object", () => this.#largeObject());
      case 14:
        return void await this.#call("lease listens", () =>
          pool.use(async (conn) => {
            const { unlisten } = await conn.listen("news", () => {});
            await conn.notify("news", "1");
            if (dice.chance(0.5)) return;
            await unlisten();
            const listens = this.#world.backend(conn.pid)?.session.channels.size ?? 0;
            if (listens > 0) this.#broken("still listens");
          }));
      default:
        return void await this.#control();
    }
  }

  async #resize(): Promise<void> {
    const dice = this.#dice;
    const load = this.#load;
    if (load.squeezes) return;
    await this.#call("resize", async () => {
      const most = dice.from(1, load.maxconn);
      await load.resize(this.#part.pool, dice.below(most + 1), most);
    });
  }

  async #control(): Promise<void> {
    const { pool } = this.#part;
    const load = this.#load;
    const dice = this.#dice;
    await this.#call("control", async () => {
      if (dice.chance(0.15) && !load.squeezes) {
        const most = dice.from(1, load.maxconn);
        await load.resize(pool, dice.below(most + 1), most);
      }
      if (dice.chance(0.3)) await pool.renew();
      if (dice.chance(0.2)) await pool.check();
      if (dice.chance(0.2)) await pool.ready({ timeout: dice.of([0, 100, 5_000]) });
      pool.stats();
      pool.inspect();
    });
  }

  /** What one does with a connection of one's own. */
  async #lease(conn: Connection): Promise<void> {
    const dice = this.#dice;
    const load = this.#load;
    if (load.lingers && dice.chance(0.3)) await this.#pause(5_000);
    for (let steps = dice.from(0, 4); steps > 0; steps--) {
      switch (dice.below(13)) {
        case 0:
        case 1:
          await this.#ask(conn);
          break;
        case 2:
          await Promise.all([this.#ask(conn), this.#ask(conn), this.#ask(conn)]);
          break;
        case 3:
          await conn`select 1/0`.catch(() => {});
          break;
        case 4: {
          const id = this.#newEntry();
          await load.writes([id], this.#insert(conn, id));
          break;
        }
        case 5: {
          let expected = 1;
          const stop = dice.from(1, 30);
          for await (const rows of conn`select n from generate_series(1, ${20}) n`.cursor(7)) {
            for (const row of rows) {
              if (row["n"] !== expected++) this.#broken(`got ${row["n"]} of a cursor`);
            }
            if (expected > stop) break;
            if (dice.chance(0.2)) await this.#ask(conn);
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
          const query = conn`select pg_sleep(${dice.of([0.001, 0.003, 0.01, 0.2, 5])})`;
          const end = query.then(() => {}, () => {});
          await this.#pause(dice.of([0, 1, 3, 20]));
          const begun = this.#world.clock.now();
          query.cancel();
          void end.then(() => load.soon(`${this.#name}'s cancel`, begun));
          // What takes its time behind it must not be hit.
          if (dice.chance(0.7)) await conn`select pg_sleep(${0.02})`;
          await end;
          break;
        }
        case 11: {
          // One that may not have been sent yet is taken back, and its neighbours are not hit.
          const slow = conn`select pg_sleep(${0.01})`.then(() => {});
          slow.catch(() => {});
          const taken = dice.chance(0.5)
            ? conn`select ${5}::int as n`
            : conn`select pg_sleep(${8})`;
          const end = taken.then(() => {}, () => {});
          const after = this.#ask(conn);
          after.catch(() => {});
          if (dice.chance(0.5)) await this.#pause(5);
          const begun = this.#world.clock.now();
          taken.cancel();
          await Promise.all([slow, after, end]);
          // In its turn at the latest.
          load.soon(`${this.#name}'s cancel behind another statement`, begun);
          break;
        }
        case 8: {
          const id = this.#newEntry();
          const work = conn.begin(async (tx) => {
            await this.#insert(tx, id);
            if (dice.chance(0.3)) throw new Error("no");
          });
          await load.writes([id], work).catch(() => {});
          break;
        }
        case 9:
          await this.#limits(conn);
          break;
        case 10:
          // Nobody waits for it.
          conn`select pg_sleep(${0.05})`.catch(() => {});
          return;
        default:
          if (!this.#world.faults.has("clock")) await this.#pause(20);
          else {
            // What takes its time is not measured by the time of day.
            await this.#pause(200);
            this.#world.setClock(dice);
          }
      }
    }
  }

  /** A statement with a limit of its own, or a signal. */
  async #limits(conn: unknown): Promise<void> {
    const dice = this.#dice;
    const sql = conn as Connection;
    const query = sql`select pg_sleep(${dice.of([0.001, 0.05, 8])})`;
    const queryTimeout = dice.chance(0.6) ? dice.of([1, 30, 500]) : null;
    const { signal, aborts } = dice.chance(0.6) ? this.#signal() : NO_SIGNAL;
    const begun = this.#world.clock.now();
    const work = limited(query, {
      ...queryTimeout === null ? {} : { queryTimeout },
      ...signal === undefined ? {} : { signal },
    });
    await work.then(() => {}, () => {});
    // The limit does not count while a statement of the pool's waits for a connection.
    const limit = Math.min(queryTimeout ?? Infinity, aborts);
    if (conn !== this.#part.pool.sql) {
      this.#load.soon(`${this.#name}'s statement with a limit`, begun, limit);
    }
  }

  /** Moves money, and writes down that it did. */
  async #transfer(): Promise<void> {
    const dice = this.#dice;
    const load = this.#load;
    const id = this.#newEntry();
    const from = dice.below(ACCOUNTS), to = dice.below(ACCOUNTS), sum = dice.from(1, 100);
    const quits = dice.chance(0.15);
    const quit = new Error("changed my mind");
    const work = this.#part.pool.transaction((conn) => {
      const moves = async (): Promise<void> => {
        await this.#insert(conn, id);
        await conn`update account set balance = balance + ${-sum} where id = ${from}`;
        await conn`update account set balance = balance + ${sum} where id = ${to}`;
        if (dice.chance(0.1)) await this.#pause(200);
        if (quits) throw quit;
      };
      return load.moving(conn, id, () =>
        // What a worker has all in it have.
        load.kind === "worker" ? moves() : load.holding(conn, this.#name, moves));
    }, dice.chance(0.2) ? { retry: { attempts: 3, delay: 5 } } : {});
    try {
      await load.writes([id], work);
    } catch (error) {
      // Thrown in the body: rolled back for certain.
      if (error === quit) load.ledger.set(id, "refused");
      if (nameOf(error) === "TRANSACTION_ENDED") this.#broken("has not ended it by hand");
      throw error;
    }
  }

  /** A transaction within another one is a savepoint of it, and taken back alone. */
  async #nested(): Promise<void> {
    const dice = this.#dice;
    const load = this.#load;
    const { pool } = this.#part;
    const [outer, inner] = [this.#newEntry(), this.#newEntry()];
    const fails = dice.chance(0.5);
    const quit = new Error("changed my mind");
    const work = pool.transaction(async (conn) => {
      await this.#insert(conn, outer);
      await pool.transaction(async (within) => {
        await this.#insert(within, inner);
        if (fails) throw quit;
      }, { nested: "savepoint" }).catch((error: unknown) => {
        if (error !== quit) throw error;
      });
    });
    if (fails) load.ledger.set(inner, "refused");
    await load.writes([outer, inner], work);
  }

  async #twoTransfers(): Promise<void> {
    const both = await Promise.allSettled([this.#transfer(), this.#transfer()]);
    const failed = both.find(({ status }) => status === "rejected");
    if (failed !== undefined) throw (failed as PromiseRejectedResult).reason;
  }

  /** Whoever commits by hand in a transaction's function must be told. */
  async #endedByHand(): Promise<void> {
    const dice = this.#dice;
    const load = this.#load;
    const id = this.#newEntry();
    const how = dice.of(["commit", "rollback", "commit; begin"]);
    const body = async (tx: unknown): Promise<void> => {
      await this.#insert(tx, id);
      await (tx as Connection).unsafe(how);
    };
    const { pool } = this.#part;
    await load.writes([id], dice.chance(0.5) ? pool.transaction(body) : pool.sql.begin(body))
      .then(() => this.#broken(`has ended a transaction by hand (${how}), and nobody said so`));
  }

  async #copy(conn: Connection): Promise<void> {
    const dice = this.#dice;
    if (dice.chance(0.5)) {
      const ids = [this.#newEntry(), this.#newEntry()];
      const stream = await this.#load.writes(
        ids,
        conn`copy ledger (id) from stdin`.writable().then(
          (stream) =>
            new Promise<void>((resolve, reject) => {
              stream.on("error", reject);
              stream.on("finish", resolve);
              stream.end(ids.map((id) => `${id}\n`).join(""));
            }),
        ),
      );
      return stream;
    }
    const stream = await conn`copy ledger to stdout`.readable();
    const leaves = dice.chance(0.3);
    let text = "";
    for await (const chunk of stream) {
      text += chunk;
      if (leaves) break;
    }
    if (!leaves && !/^(?:i\d+e\d+\n)*$/.test(text)) this.#broken(`copied ${text}`);
  }

  async #largeObject(): Promise<void> {
    const dice = this.#dice;
    const { pool } = this.#part;
    const work = async (conn: Connection): Promise<void> => {
      const object = await conn.largeObject();
      await object.write(new Uint8Array([1, 2, 3]) as never);
      await object.seek(1 as never);
      const [row] = await object.read(10) as unknown as { data: Uint8Array }[];
      const read = row!.data.join();
      if (read !== "2,3") this.#broken(`read ${read} of a large object`);
      if (dice.chance(0.7)) await object.close();
    };
    await pool.use(work);
  }

  // --- a connection for each worker ---

  async #workerAct(): Promise<void> {
    const dice = this.#dice;
    const load = this.#load;
    const pool = this.#part.pool as PersistentConnectionPool;
    const { options, patience } = this.#options();
    switch (dice.below(8)) {
      case 0:
      case 1:
        return void await this.#call("worker's getconn", async () => {
          const conn = await load.wait(this.#part, patience, () => pool.getconn(options));
          try {
            await this.#ask(conn);
            if (dice.chance(0.3)) await this.#pause(load.lingers ? 5_000 : 200);
            await this.#ask(conn);
          } finally {
            await pool.putconn();
          }
        });
      case 2:
      case 3:
        return void await this.#call("worker's use", () =>
          pool.use(async (conn) => {
            await this.#ask(conn);
            if (dice.chance(0.3)) await this.#pause(20);
            await this.#ask(conn);
          }, options));
      case 4:
      case 5:
        return void await this.#call(
          "worker's transaction",
          () => dice.chance(0.3) ? this.#nested() : this.#transfer(),
        );
      case 6:
        return void await this.#call("worker's two transactions", async () => {
          if (dice.chance(0.5)) return await this.#twoTransfers();
          // Beside what is on its way nobody knows whether one is open already.
          await pool.use(async (conn) => {
            const slow = conn`select pg_sleep(${dice.of([0.001, 0.005])})`.then(() => {});
            slow.catch(() => {});
            await this.#pause(1);
            await Promise.all([slow, this.#twoTransfers()]);
          });
        });
      default:
        return void await this.#control();
    }
  }

  // --- a connection for each run ---

  async #contextAct(): Promise<void> {
    const dice = this.#dice;
    const pool = this.#part.pool as PersistentConnectionPool;
    const { options } = this.#options();
    switch (dice.below(7)) {
      case 0:
      case 1:
        return void await this.#call("run", () =>
          pool.run(async () => {
            const conn = await pool.getconn(options);
            await this.#load.holding(conn, this.#name, async () => {
              await this.#ask(conn);
              if (await pool.getconn() !== conn) this.#broken("got two connections in one run");
              if (dice.chance(0.5)) await this.#lease(conn);
            });
            if (dice.chance(0.3)) await pool.putconn();
          }));
      case 2:
        // What has not got a connection when the run ends gets none.
        return void await this.#call("run with a limit", () =>
          pool.run(() => {
            const work = pool.getconn().then((conn) => this.#ask(conn));
            work.catch(() => {});
            return Promise.race([work, this.#pause(dice.of([1, 5, 100]))]);
          }));
      case 3:
        return void await this.#call("run leaves work behind", async () => {
          let ended = false;
          await pool.run(async () => {
            const late = this.#pause(20).then(() => pool.getconn());
            late.then(() => {
              if (ended) this.#broken("got a connection after its run");
            }, () => {});
            await pool.use((conn) => this.#ask(conn));
          });
          ended = true;
        });
      case 4:
        return void await this.#call(
          "run with two transactions",
          () => pool.run(() => this.#twoTransfers()),
        );
      case 5:
        return void await this.#call(
          "run with a transaction",
          () => pool.run(() => dice.chance(0.3) ? this.#nested() : this.#transfer()),
        );
      default:
        return void await this.#control();
    }
  }

  // --- pool.sql ---

  async #sqlAct(): Promise<void> {
    const dice = this.#dice;
    const load = this.#load;
    const { pool } = this.#part;
    const { sql } = pool;
    switch (dice.below(17)) {
      case 0:
      case 1:
      case 2:
        return void await this.#call("sql select", () => this.#ask(sql));
      case 3:
        return void await this.#call("sql insert", () => {
          const id = this.#newEntry();
          return load.writes([id], this.#insert(sql, id));
        });
      case 4:
        return void await this.#call(
          "sql many",
          () =>
            Promise.all(Array.from({ length: dice.from(2, 20) }, () => {
              if (dice.chance(0.1)) return sql`select 1/0`.catch(() => {});
              if (dice.chance(0.05)) return this.#limits(sql);
              if (dice.chance(0.05)) return sql`select pg_sleep(${0.01})`;
              if (dice.chance(0.1)) {
                const id = this.#newEntry();
                return load.writes([id], this.#insert(sql, id));
              }
              return this.#ask(sql);
            })),
        );
      case 5:
        return void await this.#call("sql cancel", async () => {
          const query = sql`select pg_sleep(${dice.of([0.001, 0.1, 5])})`;
          const end = query.then(() => {}, () => {});
          await this.#pause(dice.of([0, 1, 50]));
          query.cancel();
          await end;
        });
      case 6:
        return void await this.#call("sql begin", () => {
          const id = this.#newEntry();
          const work = sql.begin(async (tx) => {
            await this.#insert(tx, id);
            if (dice.chance(0.2)) await tx`select pg_sleep(0.05)`;
            if (dice.chance(0.2)) await tx`select 1/0`;
          });
          return load.writes([id], work);
        });
      case 7:
        return void await this.#call("hidden begin", async () => {
          try {
            await sql.unsafe(dice.of(["begin", "; begin", "/* /* */ */ begin", "select 1; begin"]));
            this.#broken("has begun a transaction beside others");
          } catch (error) {
            if (nameOf(error) !== "UNSAFE_TRANSACTION") throw error;
          }
        });
      case 8:
        return void await this.#call("savepoints", () => this.#savepoints());
      case 14:
        return void await this.#call("savepoint behind", () => this.#savepointBehind());
      case 9:
        return void await this.#call("sql listen", () => this.#listen());
      case 10:
        return void await this.#call("sql limits", () => this.#limits(sql));
      case 11:
        return void await this.#call("sql cursor", async () => {
          let expected = 1;
          await sql`select n from generate_series(1, ${10}) n`.cursor(3, (rows) => {
            for (const row of rows) {
              if (row["n"] !== expected++) this.#broken(`got ${row["n"]} of a cursor`);
            }
            return expected > 5 && dice.chance(0.5) ? sql.CLOSE : undefined;
          });
        });
      case 12:
        return void await this.#call("sql reserve", async () => {
          const reserved = await sql.reserve();
          try {
            await this.#ask(reserved);
          } finally {
            reserved.release();
          }
        });
      case 13:
        return void await this.#call("sql session state", async () => {
          const text = dice.of([
            "set search_path = elsewhere",
            "create temp table t (n int)",
            "select pg_advisory_lock(1)",
            "select set_config('a.b', 'c', false)",
            "listen elsewhere",
          ]);
          await sql.unsafe(text);
        });
      default:
        return void await this.#call("sql own begin", async () => {
          const work = sql.begin((tx) => [tx`select ${1}::int as n`, tx`select ${2}::int as n`]);
          const results = await work as unknown as { n: number }[][];
          if (`${results.map((rows) => rows[0]?.n)}` !== "1,2") this.#broken("got others' answers");
        });
    }
  }

  /** Beside each other in one transaction: one that fails takes back what is its own. */
  async #savepoints(): Promise<void> {
    const dice = this.#dice;
    const load = this.#load;
    const [kept, lost] = [this.#newEntry(), this.#newEntry()];
    const work = this.#part.pool.sql.begin(async (tx) => {
      await Promise.all([
        tx.savepoint(async (sp) => {
          await this.#insert(sp, kept);
          if (dice.chance(0.5)) await this.#ask(sp);
        }),
        tx.savepoint(async (sp) => {
          await this.#insert(sp, lost);
          await sp`select 1/0`;
        }).catch((error: unknown) => {
          if (nameOf(error) !== "22012") throw error;
        }),
      ]);
    });
    load.ledger.set(lost, "refused");
    await load.writes([kept], work);
  }

  /** Nobody waits for it: what comes after the end of its transaction must not be done. */
  async #savepointBehind(): Promise<void> {
    const dice = this.#dice;
    const load = this.#load;
    const id = this.#newEntry();
    const how = dice.of(["fails", "throws", "returns"]);
    const quit = new Error("changed my mind");
    let released = false;
    const work = this.#part.pool.sql.begin(async (tx) => {
      tx.savepoint(async (sp) => {
        await this.#pause(dice.of([0, 1, 1, 5]));
        await this.#insert(sp, id);
      }).then(() => released = true, () => {});
      if (how === "fails") await tx`select 1/0`;
      await this.#pause(dice.of([0, 1, 5]));
      if (how === "throws") throw quit;
    });
    // What the body has thrown is rolled back for certain.
    load.ledger.set(id, how === "returns" ? "unknown" : "refused");
    await work.then(() => {
      if (released) load.ledger.set(id, "acknowledged");
    }, (error) => {
      if (error !== quit) throw error;
    });
  }

  /** Whoever listens hears all, unless the session was lost. */
  async #listen(): Promise<void> {
    const dice = this.#dice;
    const { sql } = this.#part.pool;
    const channel = `c${dice.below(2)}`;
    const heard = new Set<string>();
    let sessions = 0;
    const { unlisten } = await sql.listen(channel, (payload) => void heard.add(payload), () => {
      sessions++;
    });
    try {
      const payload = `${this.#name} ${dice.below(1e9)}`;
      // Whoever listens has a connection: where others have all the rest this waits for its end.
      const notified = sql.notify(channel, payload).then(() => true, () => false);
      const later = (): Promise<false> =>
        new Promise((resolve) => this.#part.isolate.after(3_000, () => resolve(false)));
      if (!await Promise.race([notified, later()])) return;
      await later();
      const lossless = ["kill", "crash", "restart", "reset", "stall", "failover", "slow", "freeze"]
        .every((fault) => !this.#world.faults.has(fault as never));
      // A pool that closes lets go of its listeners.
      if (lossless && sessions === 1 && !this.#part.pool.closed && !heard.has(payload)) {
        this.#broken(`has not heard ${payload}`);
      }
    } finally {
      await unlisten();
    }
  }
}
