/** A pool at module scope on Cloudflare Workers, in workerd: requests that overlap, and that leave work behind. */

import { assert, assertEquals, assertLessOrEqual } from "@std/assert";
import { delay } from "@std/async/delay";
import { test } from "../support/harness.ts";
import { asAdmin, testServer } from "../support/server.ts";
import { type Folder, installed, node, succeed, tools } from "./install.ts";

const HOST = `
import { build } from "esbuild";
import { Miniflare } from "miniflare";
import { readFile } from "node:fs/promises";
import process from "node:process";

const [, , folder, url, rounds] = process.argv;
const outfile = folder + "/out.mjs";
await build({
  entryPoints: [folder + "/worker.ts"],
  outfile,
  bundle: true,
  format: "esm",
  conditions: ["workerd", "worker", "browser"],
  external: ["node:*", "cloudflare:*"],
});
const host = new Miniflare({
  modules: true,
  script: await readFile(outfile, "utf8"),
  compatibilityDate: "2026-04-01",
  compatibilityFlags: ["nodejs_compat"],
  bindings: { DATABASE_URL: url, HYPERDRIVE: { connectionString: url } },
});
const get = async (path) => {
  const begun = performance.now();
  const hang = new Promise((resolve) => setTimeout(resolve, 40_000, { hangs: true }).unref());
  const answer = host.dispatchFetch("http://worker" + path).then(async (response) => {
    const text = await response.text();
    try {
      return JSON.parse(text);
    } catch {
      return { text };
    }
  }, (error) => ({ error: String(error) }));
  return { path, ...await Promise.race([answer, hang]), ms: Math.round(performance.now() - begun) };
};
const results = [];
for (const round of JSON.parse(rounds)) results.push(await Promise.all(round.map(get)));
console.log(JSON.stringify(results));
await host.dispose();
process.exit();
`;

const WORKER = `
import { env } from "cloudflare:workers";
import { SimpleConnectionPool } from "@getconn/pool";

const pool = new SimpleConnectionPool(0, 2, env.DATABASE_URL, {
  application_name: "workerd",
  pool: { timeout: 20_000 },
});
// A statement that a request has left goes on at the server until its end.
const pids = async (conn) =>
  (await conn\`select pg_backend_pid() as pid, (select count(*)::int from pg_stat_activity
    where application_name = 'workerd' and query not like 'select pg_sleep(30%') as sessions\`)[0];
export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    try {
      switch (pathname) {
        case "/connect":
          pool.use((conn) => conn\`select 1\`).catch(() => {});
          return Response.json({ left: true });
        case "/lease":
          await (await pool.getconn())\`select 1\`;
          return Response.json({ left: true });
        case "/waiter":
          pool.getconn().catch(() => {});
          pool.getconn().catch(() => {});
          pool.getconn().catch(() => {});
          return Response.json({ left: true });
        case "/transaction":
          pool.transaction(async (conn) => void await conn\`select pg_sleep(30)\`).catch(() => {});
          await new Promise((resolve) => setTimeout(resolve, 50));
          return Response.json({ left: true });
        case "/slow":
          return Response.json(await pool.use(async (conn) => {
            await conn\`select pg_sleep(0.1)\`;
            return await pids(conn);
          }));
        case "/twice": {
          const one = await pool.use(pids);
          const two = await pool.use(pids);
          return Response.json({ pid: one.pid, again: two.pid === one.pid });
        }
        case "/sql":
          return Response.json((await Promise.all([1, 2, 3].map((n) =>
            pool.sql\`select \${n}::int as n\`)))[2][0]);
        case "/close":
          await pool.close();
          return Response.json({ closed: pool.closed });
      }
      return Response.json(await pool.use(pids));
    } catch (error) {
      return Response.json({ name: error.name, code: error.code, message: error.message });
    }
  },
};
`;

interface Answer {
  readonly path: string;
  readonly ms: number;
  readonly pid?: number;
  readonly [key: string]: unknown;
}

async function workerd(folder: Folder, url: string, rounds: string[][]): Promise<Answer[][]> {
  const host = `${await tools()}/workerd-${crypto.randomUUID()}.mjs`;
  await Deno.writeTextFile(host, HOST);
  try {
    const args = [host, folder.path, url, JSON.stringify(rounds)];
    return JSON.parse(await succeed(await node(), args, { cwd: folder.path, timeout: 170_000 }));
  } finally {
    await Deno.remove(host);
  }
}

test("Cloudflare: a pool at module scope serves requests that overlap and that leave work behind", async () => {
  await using folder = await installed({ "worker.ts": WORKER });
  const { url } = await testServer();
  const many = (path: string, count: number): string[] => Array.from({ length: count }, () => path);
  const left = ["/connect", "/lease", "/waiter", "/transaction"];
  const results = await workerd(folder, url, [
    ["/twice"],
    // What each of them leaves fills the pool, and the next two are served nevertheless.
    ...left.flatMap((path) => [many(path, 2), many("/query", 2)]),
    many("/slow", 8),
    ["/slow", "/lease", "/twice", "/connect", "/query", "/sql"],
    ["/sql"],
    ["/close"],
    ["/query"],
  ]);
  const say = JSON.stringify(results);
  assertEquals(results[0]![0]!["again"], true, say);
  const served = results.slice(1, -3).flat();
  for (const { path, ms, ...answer } of served) {
    if (left.includes(path)) assertEquals(answer, { left: true }, say);
    else if (path === "/sql") assertEquals(answer, { n: 3 }, say);
    else assert(answer.pid! > 0, say);
    // What hangs is given up after 40 s.
    assertLessOrEqual(ms, 39_000, say);
  }
  for (const { sessions } of results[9]!) assertLessOrEqual(sessions as number, 2, say);
  assertEquals(results.at(-3)![0]!["n"], 3, say);
  assertEquals(results.at(-2)![0]!["closed"], true, say);
  assertEquals(results.at(-1)![0]!["code"], "POOL_CLOSED", say);
});

test("Cloudflare: examples/edge/cloudflare.ts serves many requests at once by one pool", async () => {
  const example = new URL("../../examples/edge/cloudflare.ts", import.meta.url);
  await using folder = await installed({ "worker.ts": await Deno.readTextFile(example) });
  const url = new URL((await testServer()).url);
  url.searchParams.set("application_name", "cloudflare_example");
  const round = Array.from({ length: 12 }, () => "/");
  const watching = new AbortController();
  let most = 0;
  const watch = asAdmin(async (sql) => {
    while (!watching.signal.aborted) {
      const [row] = await sql<{ n: number }[]>`select count(*)::int as n from pg_stat_activity
        where application_name = 'cloudflare_example'`;
      most = Math.max(most, row!.n);
      await delay(5);
    }
  });
  const results = (await workerd(folder, url.href, [round, ["/"], round])).flat();
  watching.abort();
  await watch;
  const say = JSON.stringify(results);
  for (const { pid, time } of results) assert(pid! > 0 && typeof time === "string", say);
  assert(most >= 1 && most <= 5, `${most} sessions`);
});
