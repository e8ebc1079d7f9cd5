/**
 * How many files and functions of `src/`, and of the driver, one call runs through, by V8's precise coverage around the call, on a real
 * server: the table in `docs/architecture.md`. `--names` lists them; `--house PATH` measures another checkout.
 *
 * @module
 */
import { Session } from "node:inspector";
import { parseArgs } from "node:util";
import { startPostgres } from "../tests/support/embedded_postgres.ts";

interface Coverage {
  result: {
    url: string;
    functions: { functionName: string; ranges: { startOffset: number; count: number }[] }[];
  }[];
}
/** Where the driver's files are. */
const DRIVER = "/node_modules/postgres/";
/** What was called, by file. */
type Called = Record<string, string[]>;

const inWorker = "WorkerGlobalScope" in globalThis;
const { values: { house, names } } = parseArgs({
  args: inWorker ? [] : Deno.args,
  options: { house: { type: "string", default: ".." }, names: { type: "boolean", default: false } },
});

const session = new Session();
session.connect();
const ask = (method: string, params?: object): Promise<Coverage> =>
  new Promise((resolve, reject) =>
    session.post(
      method,
      params,
      (error: Error | null, answer?: object) =>
        error === null ? resolve(answer as Coverage) : reject(error),
    )
  );

/** Runs it between two looks: a look sets every count to zero. */
async function measure(src: string, run: () => unknown): Promise<Called> {
  await ask("Profiler.takePreciseCoverage");
  await run();
  const { result } = await ask("Profiler.takePreciseCoverage");
  const called: Called = {};
  for (const { url, functions } of result) {
    const driver = url.lastIndexOf(DRIVER);
    if (!url.startsWith(src) && driver === -1) continue;
    const ran = functions.filter(({ ranges }) => ranges[0]!.count > 0)
      .map(({ functionName, ranges }) => functionName || `(at ${ranges[0]!.startOffset})`);
    if (ran.length > 0) called[url.slice(driver === -1 ? src.length : driver)] = ran;
  }
  return called;
}

/** The least of several: timers of the pool, and of the runtime, may fall into one. */
async function least(src: string, run: () => unknown): Promise<Called> {
  const sum = (called: Called): number => Object.values(called).flat().length;
  const all: Called[] = [];
  for (let i = 0; i < 10; i++) all.push(await measure(src, run));
  return all.reduce((best, one) => sum(one) < sum(best) ? one : best);
}

function tell(call: string, called: Called): void {
  const count = (files: string[]): string => {
    const functions = files.reduce((sum, file) => sum + called[file]!.length, 0);
    return `${files.length} files, ${functions} functions`;
  };
  const files = Object.keys(called);
  const own = count(files.filter((file) => !file.startsWith(DRIVER)));
  const drivers = count(files.filter((file) => file.startsWith(DRIVER)));
  console.log(`${call}: ${own}; of the driver ${drivers}`);
  if (names) {
    for (const file of Object.keys(called).sort()) console.log(`  ${file}: ${called[file]}`);
  }
}

async function main(): Promise<void> {
  const root = new URL(`${house}/`, house === ".." ? import.meta.url : `file://${Deno.cwd()}/`);
  const src = new URL("src/", root).href;
  const { SimpleConnectionPool, ThreadedConnectionPool } = await import(
    new URL("mod.ts", root).href
  ) as typeof import("../mod.ts");
  await using server = await startPostgres();
  await ask("Profiler.enable");
  await ask("Profiler.startPreciseCoverage", { callCount: true, detailed: true });

  const pool = new SimpleConnectionPool(0, 2, server.url);
  let conn: Awaited<ReturnType<typeof pool.getconn>>;
  tell("getconn that opens", await measure(src, async () => conn = await pool.getconn()));
  await pool.putconn(conn!);
  const borrow = async (work?: (lease: typeof conn) => unknown): Promise<void> => {
    const lease = await pool.getconn();
    await work?.(lease);
    await pool.putconn(lease);
  };
  await borrow();
  tell("getconn and putconn", await least(src, () => borrow()));
  const select = (lease: typeof conn): unknown => lease`select 1`;
  await borrow(select);
  tell("the same with a statement", await least(src, () => borrow(select)));
  await pool.sql`select 1`;
  tell("a statement of pool.sql", await least(src, () => pool.sql`select 1`));
  await pool.closeall();

  const shared = new ThreadedConnectionPool(0, 2, server.url);
  const worker = new Worker(import.meta.url, { type: "module" });
  const joined = new Promise<Called>((resolve, reject) => {
    worker.onmessage = ({ data }) => data === "ready" ? send() : resolve(data);
    worker.onerror = reject;
  });
  const send = (): void => worker.postMessage({ root: root.href, handle: shared.share(worker) });
  tell("a worker's join", await joined);
  worker.terminate();
  await shared.closeall();
}

/** A worker's join is the worker's work. */
async function join(root: string, handle: unknown): Promise<Called> {
  const { ThreadedConnectionPool } = await import(`${root}mod.ts`) as typeof import("../mod.ts");
  await ask("Profiler.enable");
  await ask("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
  return await measure(
    `${root}src/`,
    () => ThreadedConnectionPool.join(handle as Parameters<typeof ThreadedConnectionPool.join>[0]),
  );
}

if (inWorker) {
  const scope = self as unknown as Worker;
  scope.onmessage = async ({ data }) => scope.postMessage(await join(data.root, data.handle));
  scope.postMessage("ready");
} else {
  await main();
}
