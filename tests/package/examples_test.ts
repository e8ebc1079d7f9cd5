/** The examples for edge functions, each run as its platform would. */

import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { freePort } from "../support/embedded_postgres.ts";
import { test } from "../support/harness.ts";
import { eventually, killBackend, testServer } from "../support/server.ts";
import {
  bun,
  deno,
  type Folder,
  installed,
  node,
  Program,
  root,
  succeed,
  tools,
} from "./install.ts";

function example(name: string): string {
  return Deno.readTextFileSync(`${root}examples/edge/${name}`);
}

/** The backends that answered so many requests, one after the other. */
async function backends(port: number, requests = 3): Promise<number[]> {
  const pids: number[] = [];
  for (let i = 0; i < requests; i++) {
    const response = await eventually(() => fetch(`http://127.0.0.1:${port}/`));
    const { pid, time } = await response.json();
    assertMatch(time, /^\d{4}-/);
    pids.push(pid);
  }
  return pids;
}

test("examples/edge/deno_serve.ts serves from one connection and ends at SIGTERM", async () => {
  await using folder = await installed({ "main.ts": example("deno_serve.ts") });
  const [{ url }, port] = [await testServer(), await freePort()];
  const args = ["run", "--no-prompt", "--allow-net", "--allow-env=DATABASE_URL,PORT", "main.ts"];
  const env = { DATABASE_URL: url, PORT: String(port) };
  await using program = new Program(deno, args, { cwd: folder.path, env });
  const pids = await backends(port);
  assertEquals(new Set(pids).size, 1);
  program.kill("SIGTERM");
  assertEquals(await program.ends(), 143, program.output);
});

test("a frozen instance goes on with a new connection when its old one was closed meanwhile", async () => {
  await using folder = await installed({ "main.ts": example("deno_serve.ts") });
  const [{ url }, port] = [await testServer(), await freePort()];
  const env = { DATABASE_URL: url, PORT: String(port) };
  await using program = new Program(deno, ["run", "-A", "main.ts"], { cwd: folder.path, env });
  const [pid] = await backends(port, 1);
  program.kill("SIGSTOP");
  assertEquals(await killBackend(pid!), true);
  program.kill("SIGCONT");
  const [next] = await backends(port, 1);
  assertNotEquals(next, pid);
});

test("examples/edge/bun_serve.ts serves from one connection and ends at SIGTERM", async () => {
  await using folder = await installed({ "main.ts": example("bun_serve.ts") });
  const [{ url }, port] = [await testServer(), await freePort()];
  const env = { DATABASE_URL: url, PORT: String(port) };
  await using program = new Program(await bun(), ["--hot", "main.ts"], { cwd: folder.path, env });
  const pids = await backends(port);
  assertEquals(new Set(pids).size, 1);
  program.kill("SIGTERM");
  assertEquals(await program.ends(), 143, program.output);
});

/** What Supabase's runtime has and Deno has not; `/end` tells the isolate to end. */
const SUPABASE = `
let waiting = 0;
Object.assign(globalThis, {
  EdgeRuntime: {
    waitUntil(promise: Promise<unknown>) {
      console.log("waiting", ++waiting);
      void promise.then(() => console.log("settled", waiting));
    },
  },
});
const { serve } = Deno;
Deno.serve = ((handler: (request: Request) => Response | Promise<Response>) =>
  serve({ port: Number(Deno.env.get("PORT")) }, (request) => {
    if (!request.url.endsWith("/end")) return handler(request);
    dispatchEvent(new Event("beforeunload", { cancelable: true }));
    return new Response();
  })) as typeof Deno.serve;
`;

test("examples/edge/supabase.ts keeps the isolate until its connection is closed", async () => {
  const files = { "main.ts": example("supabase.ts"), "preload.ts": SUPABASE };
  await using folder = await installed(files);
  const [{ url }, port] = [await testServer(), await freePort()];
  const env = { SUPABASE_DB_URL: url, PORT: String(port) };
  const args = ["run", "-A", "--preload", "preload.ts", "main.ts"];
  await using program = new Program(deno, args, { cwd: folder.path, env });
  assertEquals(new Set(await backends(port)).size, 1);
  await program.says(/waiting 1/);
  assert(!/waiting 2|settled/.test(program.output), program.output);
  // maxIdle is five seconds.
  await program.says(/settled 1/);
  await backends(port, 1);
  await program.says(/waiting 2/);
  await (await fetch(`http://127.0.0.1:${port}/end`)).text();
  await program.says(/settled 2/);
});

const VERCEL = `
import process from "node:process";

const waiting: Promise<unknown>[] = [];
Object.assign(globalThis, {
  [Symbol.for("@vercel/request-context")]: {
    get: () => ({ waitUntil: (promise: Promise<unknown>) => void waiting.push(promise) }),
  },
});
const { GET } = await import("./main.ts");
const answers = [];
let started = 0;
for (let i = 0; i < 3; i++) {
  // What was before the last request counts, too: we may be slow behind it.
  started = performance.now();
  answers.push((await (await GET(new Request("http://x/"))).json()).pid);
}
await Promise.all(waiting);
const waited = performance.now() - started;
console.log(JSON.stringify({ answers, promises: waiting.length, waited }));
`;

test("examples/edge/vercel.ts: Vercel's attachDatabasePool takes the pool and keeps it awake", async () => {
  const files = {
    "main.ts": example("vercel.ts"),
    "host.ts": VERCEL,
  };
  await using folder = await installed(files);
  const { url } = await testServer();
  const env = { DATABASE_URL: url, VERCEL_URL: "app.vercel.app", VERCEL_REGION: "fra1" };
  const said = JSON.parse(await succeed(await node(), ["host.ts"], { cwd: folder.path, env }));
  assertEquals(new Set(said.answers).size, 1);
  assertEquals(said.promises, 3);
  // idleTimeoutMillis and a tenth of a second more, and not at all where nobody holds it awake.
  assert(said.waited > 1_000 && said.waited < 30_000, `waited ${said.waited}`);
});

const WORKERD = `
import { build } from "esbuild";
import { Miniflare } from "miniflare";
import { readFile } from "node:fs/promises";
import process from "node:process";

const [, , folder, url] = process.argv;
const results = {};
for (const name of ["main", "module"]) {
  const outfile = \`\${folder}/out/\${name}.mjs\`;
  const { metafile } = await build({
    entryPoints: [\`\${folder}/\${name}.ts\`],
    outfile,
    bundle: true,
    format: "esm",
    conditions: ["workerd", "worker", "browser"],
    external: ["node:*", "cloudflare:*"],
    metafile: true,
    minify: true,
  });
  const host = new Miniflare({
    modules: true,
    script: await readFile(outfile, "utf8"),
    // The oldest that will do, as docs/edge.md says.
    compatibilityDate: "2025-09-15",
    compatibilityFlags: ["nodejs_compat"],
    bindings: { HYPERDRIVE: { connectionString: url }, DATABASE_URL: url },
  });
  const get = async (path) => {
    const response = await host.dispatchFetch(\`http://worker\${path}\`);
    const text = await response.text();
    try {
      return JSON.parse(text);
    } catch {
      throw new Error(text);
    }
  };
  const paths = name === "main" ? ["/", "/"] : ["/use", "/use", "/keep", "/kept", "/use"];
  results[name] = [];
  for (const path of paths) results[name].push(await get(path));
  results[name + "Inputs"] = Object.keys(metafile.inputs);
  await host.dispose();
}
console.log(JSON.stringify(results));
`;

/** A pool at module scope, and a lease that is used in a later request. */
const MODULE = `
import { env } from "cloudflare:workers";
import { SimpleConnectionPool } from "@getconn/pool";

const pool = new SimpleConnectionPool(0, 2, env.DATABASE_URL, { pool: { timeout: 60_000 } });
let kept;
export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    try {
      if (pathname === "/keep") {
        kept = await pool.getconn();
        await kept\`select 1\`;
        return Response.json({ kept: true });
      }
      if (pathname === "/kept") {
        try {
          await kept\`select 1\`;
        } finally {
          await pool.putconn(kept);
        }
      }
      const [row] = await pool.use((conn) => conn\`select pg_backend_pid() as pid\`);
      return Response.json({ ...row, size: pool.stats().poolSize });
    } catch (error) {
      return Response.json({ name: error.name, code: error.code, message: error.message });
    }
  },
};
`;

async function workerd(folder: Folder, url: string): Promise<Record<string, unknown[]>> {
  // Beside its node_modules, where its imports are found.
  const host = `${await tools()}/workerd-${crypto.randomUUID()}.mjs`;
  await Deno.writeTextFile(host, WORKERD);
  try {
    return JSON.parse(await succeed(await node(), [host, folder.path, url], { cwd: folder.path }));
  } finally {
    await Deno.remove(host);
  }
}

test("Cloudflare: one pool for all requests works in workerd, each with connections of its own; a lease is for one request", async () => {
  const files = { "main.ts": example("cloudflare.ts"), "module.ts": MODULE };
  await using folder = await installed(files);
  const { url } = await testServer();
  const results = await workerd(folder, url);
  const inputs = results["mainInputs"] as string[];
  assert(inputs.some((path) => path.endsWith("postgres/cf/src/index.js")), "the build for workerd");
  const [first, second] = results["main"] as { pid: number; time: string }[];
  assertNotEquals(first!.pid, second!.pid);
  const [one, two, keep, later, after] = results["module"] as Record<string, unknown>[];
  // The first request's connection ended with it, and is replaced.
  assertEquals([one!["size"], two!["size"], keep!["kept"]], [1, 1, true]);
  assertNotEquals(one!["pid"], two!["pid"]);
  assertEquals([later!["name"], later!["code"]], ["PoolError", "CONNECTION_LOST"]);
  assertMatch(String(later!["message"]), /^the connection belongs to another request/);
  assertEquals(after!["size"], 1);
});
