/** One pool per name and isolate, whatever becomes of the module that asks for it. */

import { checkFn } from "./pool/options.ts";

/** What getPool needs to know of a pool. */
export interface Closable {
  /** True once the pool refuses new callers. */
  readonly closed: boolean;
}

interface Registered {
  readonly pool: Closable;
  /** The factory's text: what it would do, as far as one can know without calling it. */
  readonly text: string;
  /** The last factory that was found to have this text, so that the usual call compares no text. */
  factory: () => Closable;
  /** The last other text that was warned of. */
  warned: string | null;
  /** The last other text that says the same; another version of this module may not have set it. */
  alike?: string;
}

/** In the global scope, for a hot reload makes this module anew, and two versions may be loaded. */
const REGISTRY = Symbol.for("@getconn/pool.registry");

function registry(): Map<string, Registered> {
  const scope = globalThis as { [REGISTRY]?: Map<string, Registered> };
  return scope[REGISTRY] ??= new Map();
}

/**
 * Gives the pool of this name, and makes it by `factory` when there is none or it is closed. So an
 * edge function or a module that is loaded again (`deno run --watch-hmr`, `bun --hot`) reuses the
 * pool and its connections, where a plain `new` would leave the old ones open.
 *
 * The first factory decides. When a later one has other numbers, strings or booleans in its source
 * (it is not called), the pool stays as it is and console.warn says so once: close the pool to have
 * the new one. What a minifier or a bundler changes is no difference; where one cannot tell, there is
 * no warning.
 *
 * @param name One name for one purpose, such as `"app"`.
 * @param factory Makes the pool; it is called at once or never.
 * @throws what the factory throws; nothing is kept then
 * @throws {TypeError} for a name that is no string, a factory that is no function, and one that gives no pool, but a
 * promise of one, say
 *
 * @example Once per isolate
 * ```ts
 * import { getPool, SimpleConnectionPool } from "@getconn/pool";
 * import { assertStrictEquals } from "@std/assert";
 * import { env } from "node:process";
 *
 * function db() {
 *   return getPool("app", () => new SimpleConnectionPool(0, 4, env.DATABASE_URL));
 * }
 *
 * assertStrictEquals(db(), db());
 * await db().close();
 * ```
 */
export function getPool<P extends Closable>(name: string, factory: () => P): P {
  if (typeof name !== "string" || name === "") {
    throw new TypeError("getPool needs a name: a string that is not empty");
  }
  checkFn("getPool", factory);
  const pools = registry();
  const known = pools.get(name);
  if (known === undefined || known.pool.closed) {
    const pool = factory();
    if (typeof (pool as Partial<Closable> | null | undefined)?.closed !== "boolean") {
      throw new TypeError(
        `getPool("${name}") needs a factory that gives a pool, at once; ` +
          'what it gave has no "closed" that is true or false',
      );
    }
    pools.set(name, { pool, text: String(factory), factory, warned: null });
    return pool;
  }
  if (known.factory !== factory) compare(name, known, factory);
  return known.pool as P;
}

function compare(name: string, known: Registered, factory: () => Closable): void {
  const text = String(factory);
  if (text === known.text) {
    known.factory = factory;
  } else if (text !== known.warned && text !== known.alike) {
    if (sayTheSame(text, known.text)) {
      known.alike = text;
      return;
    }
    known.warned = text;
    console.warn(
      `getPool("${name}"): the factory has changed, and the pool at hand keeps the options ` +
        "that it was made with. Close it, or start again, to have the new ones.",
    );
  }
}

/**
 * False only when two factories have as many values written in them, and not the same. Names and
 * spaces are nothing to go by, as copies of one module in two chunks differ in them; and where a
 * bundler has put a constant into its place there is a value more.
 */
function sayTheSame(one: string, other: string): boolean {
  const [here, there] = [valuesIn(one), valuesIn(other)];
  return here.length !== there.length || here.every((value, at) => value === there[at]);
}

const COMMENT_STRING_OR_VALUE = new RegExp(
  [
    /\/\*[^]*?\*\/|\/\/.*/, // a comment
    /"((?:\\[^]|[^"\\])*)"|'((?:\\[^]|[^'\\])*)'|`((?:\\[^]|[^`\\])*)`/,
    /(?<![\w$.])(\d[\w.]*|\.\d\w*|true|false|![01])(?![\w$])/,
  ].map(({ source }) => source).join("|"),
  "g",
);
const SHORT: Record<string, string> = { "!0": "true", "!1": "false" };

/** The strings, numbers and booleans in a source, however they are written. */
function valuesIn(source: string): string[] {
  const values: string[] = [];
  for (const [, double, single, template, word] of source.matchAll(COMMENT_STRING_OR_VALUE)) {
    const text = double ?? single ?? template;
    if (text !== undefined) values.push(JSON.stringify(text.replace(/\\(["'`])/g, "$1")));
    else if (word !== undefined) {
      const number = Number(word.replaceAll("_", ""));
      values.push(SHORT[word] ?? (Number.isNaN(number) ? word : String(number)));
    }
  }
  return values;
}
