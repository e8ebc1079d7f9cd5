/**
 * What a connection does not have. Assigning a member that does not exist would do nothing, and a
 * program brought from psycopg2 would not notice: so it throws, and so do methods of psycopg2's.
 *
 * It stands at the end of the handles' prototype chain, so what they have costs nothing more.
 */

const TRANSACTIONS = "there is no implicit transaction here: each statement is its own, and " +
  "pool.transaction(fn) or conn.begin(fn) makes one and commits it";
const ROWS = "await conn`select …` gives the rows, as objects";
const COPY = "use conn`copy … to stdout`.readable() or conn`copy … from stdin`.writable()";
const SET = "write it into the options of the pool, as connection: { … }, or run a set statement";

/** psycopg2's members, and what takes their place. */
const PSYCOPG2: Readonly<Record<string, string>> = {
  autocommit: TRANSACTIONS,
  commit: TRANSACTIONS,
  isolation_level: "give it to pool.transaction(fn, { mode: 'isolation level serializable' })",
  readonly: "give it to pool.transaction(fn, { mode: 'read only' })",
  deferrable: "give it to pool.transaction(fn, { mode: 'deferrable' })",
  set_session: "give the mode to pool.transaction(fn, { mode })",
  set_isolation_level: "give it to pool.transaction(fn, { mode: 'isolation level serializable' })",
  set_client_encoding: "strings are Unicode here",
  cursor: `${ROWS}; conn\`select …\`.cursor(100) gives them in parts`,
  cursor_factory: "rows are objects here",
  notices: "give the pool the option onnotice",
  notifies: "use conn.listen(channel, fn)",
  copy_expert: COPY,
  copy_from: COPY,
  copy_to: COPY,
  row_factory: "rows are objects here",
  itersize: "give it to conn`select …`.cursor(100)",
  search_path: SET,
};
/** Those that are called. */
const METHODS = new Set([
  "commit",
  "cursor",
  "set_session",
  "set_isolation_level",
  "set_client_encoding",
  "copy_expert",
  "copy_from",
  "copy_to",
]);

/** The last prototype of all handles of connections. */
export const NO_MEMBERS: object = new Proxy(Function.prototype, {
  get(target, key, receiver) {
    if (typeof key !== "string" || !METHODS.has(key)) return Reflect.get(target, key, receiver);
    return () => {
      throw new TypeError(`a connection has no ${key}(): ${PSYCOPG2[key]}`);
    };
  },
  set(_target, key, value, receiver) {
    // An object of somebody else that inherits from a connection is his.
    if (typeof receiver !== "function") {
      const own = { value, writable: true, enumerable: true, configurable: true };
      return Reflect.defineProperty(receiver, key, own);
    }
    const name = String(key);
    const advice = Object.hasOwn(PSYCOPG2, name)
      ? PSYCOPG2[name]
      : "what is to be kept with a connection goes into a WeakMap, or under a key of the pool";
    throw new TypeError(`a connection has no ${name} that could be set: ${advice}`);
  },
});
