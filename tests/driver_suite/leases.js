/**
 * The `postgres(url?, options?)` of the driver's suite: each statement, `begin`, `reserve`, cursor, COPY, large object
 * and `listen` on a lease of its own.
 */
import driver from "postgres";
import { poolOf } from "./pool_sql.js";

/** A statement that takes its lease when it is awaited: of the driver's Query what the suite uses. */
class Statement {
  #leases;
  #make;
  #steps = [];
  #query = null;
  #answer = null;
  #cancelled = false;

  constructor(leases, make, strings, args) {
    this.#leases = leases;
    this.#make = make;
    // By these it is known as a fragment within another one.
    if (strings) Object.assign(this, { strings, args, tagged: true, options: {}, handler() {} });
  }

  #step(name, ...args) {
    this.#steps.push((query) => query[name](...args));
    return this;
  }

  #on(conn) {
    return this.#steps.reduce((query, step) => step(query), this.#make(conn));
  }

  async #stream(name) {
    const conn = await this.#leases.take();
    try {
      const stream = await this.#on(conn)[name]();
      stream.once("close", () => this.#leases.give(conn));
      return stream;
    } catch (error) {
      await this.#leases.give(conn);
      throw error;
    }
  }

  simple = () => this.#step("simple");
  raw = () => this.#step("raw");
  values = () => this.#step("values");
  describe = () => this.#step("describe");
  forEach = (fn) => this.#step("forEach", fn);
  readable = () => this.#stream("readable");
  writable = () => this.#stream("writable");
  then = (ok, no) => this.execute().#answer.then(ok, no);
  catch = (no) => this.execute().#answer.catch(no);
  finally = (fn) => this.execute().#answer.finally(fn);

  execute() {
    this.#answer ??= this.#leases.use(async (conn) => {
      if (this.#cancelled) throw Object.assign(new Error("cancelled"), { code: "57014" });
      this.#query = this.#on(conn);
      return await this.#query;
    });
    return this;
  }

  cancel() {
    this.#cancelled = true;
    this.#query?.cancel();
  }

  cursor(rows = 1, fn) {
    if (typeof rows === "function") return this.#step("cursor", rows);
    if (fn) return this.#step("cursor", rows, fn);
    const leases = this.#leases;
    const make = (conn) => this.#on(conn).cursor(rows);
    return (async function* () {
      const conn = await leases.take();
      try {
        yield* make(conn);
      } finally {
        await leases.give(conn);
      }
    })();
  }
}

class Leases {
  pending = new Set();
  ended = false;
  #pool;

  constructor(pool) {
    this.#pool = pool;
  }

  async take() {
    if (this.ended) throw Object.assign(new Error("ended"), { code: "CONNECTION_ENDED" });
    try {
      return await this.#pool.getconn();
    } catch (error) {
      throw error.cause instanceof Error ? error.cause : error;
    }
  }

  async give(conn) {
    // It has been closed when the pool was.
    await this.#pool.putconn(conn).catch(() => {});
  }

  use(fn) {
    const work = (async () => {
      const conn = await this.take();
      try {
        return await fn(conn);
      } finally {
        await this.give(conn);
      }
    })();
    this.pending.add(work);
    work.catch(() => {}).finally(() => this.pending.delete(work));
    return work;
  }
}

function postgres(...given) {
  const pool = poolOf(given, { timeout: 1_500 });
  const leases = new Leases(pool);
  const { sql: all } = pool;
  // What a helper has in it must be of the same copy of the driver as the helper.
  const inside = (value) =>
    value instanceof Statement && value.strings ? all(value.strings, ...value.args) : value;

  function sql(first, ...args) {
    if (first?.raw) return new Statement(leases, (conn) => conn(first, ...args), first, args);
    const plain = first && Object.getPrototypeOf(first) === Object.prototype;
    const entries = plain ? Object.entries(first).map(([key, value]) => [key, inside(value)]) : [];
    return all(plain ? Object.fromEntries(entries) : first, ...args);
  }

  for (const name of ["json", "array", "typed", "types", "CLOSE", "END", "PostgresError"]) {
    sql[name] = all[name];
  }
  Object.defineProperty(sql, "parameters", { get: () => all.parameters });
  return Object.assign(sql, {
    options: all.options,
    subscribe: all.subscribe,
    unsafe: (...args) => new Statement(leases, (conn) => conn.unsafe(...args)),
    file: (...args) => new Statement(leases, (conn) => conn.file(...args)),
    notify: (...args) => leases.use((conn) => conn.notify(...args)),
    begin: (...args) => leases.use((conn) => conn.begin(...args)),
    listen: async (...args) => await (await leases.take()).listen(...args),
    reserve: async () => {
      const conn = await leases.take();
      const release = () => void leases.give(conn);
      return new Proxy(conn, { get: (conn, key) => key === "release" ? release : conn[key] });
    },
    largeObject: async (...args) => {
      const conn = await leases.take();
      const object = await conn.largeObject(...args);
      const close = async () => {
        await object.close();
        await leases.give(conn);
      };
      return { ...object, close };
    },
    close: () => pool.renew(),
    end: async ({ timeout } = {}) => {
      await Promise.resolve();
      leases.ended = true;
      if (timeout !== 0) await Promise.allSettled(leases.pending);
      await pool.close({ timeout: (timeout ?? 3) * 1000 });
    },
  });
}

export default Object.assign(postgres, driver);
