/** One cap over workers, from the package as users get it, on all runtimes. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { freePort } from "../support/embedded_postgres.ts";
import { test } from "../support/harness.ts";
import { asAdmin, eventually, sessions, testServer } from "../support/server.ts";
import { deno, Folder, installed, Program, root, runtimes, succeed } from "./install.ts";
import { Registry } from "./registry.ts";

const MAIN = `
import process from "node:process";
import { PersistentConnectionPool, ThreadedConnectionPool } from "@getconn/pool";
WORKER

const [, , url, name] = process.argv;
const options = { connection: { application_name: name }, pool: { timeout: 60_000 } };
const threaded = new ThreadedConnectionPool(0, 3, url, options);
const persistent = new PersistentConnectionPool(0, 3, url, options);
const workers = [start(), start()];
const sums = workers.map((worker) =>
  new Promise<number>((resolve) => listen(worker, (data) => resolve(data as number)))
);
for (const worker of workers) {
  worker.postMessage([threaded.share(worker), persistent.share(worker)]);
}
let own = 0;
for (let i = 0; i < 50; i++) {
  const [row] = await threaded.use((conn) => conn<{ n: number }[]>\`select 1 as n, pg_sleep(0.005)\`);
  own += row?.n ?? 0;
}
console.log(own, ...await Promise.all(sums));
await Promise.all([threaded.close(), persistent.close()]);
for (const worker of workers) await worker.terminate();
`;

/** What differs between web workers and those of Node. */
const STARTS = {
  web: `
const start = () => new Worker(new URL("./worker.ts", import.meta.url).href, { type: "module" });
const listen = (worker: Worker, fn: (data: unknown) => void) =>
  worker.addEventListener("message", ({ data }) => fn(data));
`,
  node: `
import { Worker } from "node:worker_threads";
const start = () => new Worker(new URL("./worker.ts", import.meta.url));
const listen = (worker: Worker, fn: (data: unknown) => void) => worker.on("message", fn);
`,
};
const PORTS = {
  web: `
const port = globalThis as unknown as Worker;
const listen = (fn: (data: any) => void) => addEventListener("message", (event) => fn((event as MessageEvent).data));
`,
  node: `
import { parentPort } from "node:worker_threads";
const port = parentPort!;
const listen = (fn: (data: any) => void) => port.on("message", fn);
`,
};
const WORKER = `
import { PersistentConnectionPool, ThreadedConnectionPool } from "@getconn/pool";
PORT

listen(async ([first, second]) => {
  const threaded = await ThreadedConnectionPool.join(first);
  const persistent = await PersistentConnectionPool.join(second);
  let sum = 0;
  await Promise.all(Array.from({ length: 50 }, async () => {
    const [row] = await threaded.use((conn) => conn\`select 1 as n, pg_sleep(0.005)\`);
    sum += row!["n"];
  }));
  const conn = await persistent.getconn();
  if (await persistent.getconn() !== conn) throw new Error("another connection");
  await persistent.putconn();
  port.postMessage(sum);
});
`;

function files(kind: "web" | "node"): Record<string, string> {
  return {
    "main.ts": MAIN.replace("WORKER", STARTS[kind]),
    "worker.ts": WORKER.replace("PORT", PORTS[kind]),
  };
}

/** Runs a program to its end; gives the most sessions that were seen under the name meanwhile. */
async function watched(program: Program, name: string): Promise<number> {
  let most = 0;
  let over = false;
  const watching = asAdmin(async (sql) => {
    while (!over) {
      const [row] = await sql<{ count: number }[]>`
        select count(*)::int as count from pg_stat_activity where application_name = ${name}`;
      most = Math.max(most, row!.count);
    }
  });
  const code = await program.ends();
  over = true;
  await watching;
  assertEquals(code, 0, program.output);
  assertEquals(program.output, "50 50 50\n");
  return most;
}

for (const runtime of ["deno", "bun", "node"] as const) {
  test(`${runtime}: Threaded and Persistent over workers keep their caps`, async () => {
    await using folder = await installed(files(runtime === "node" ? "node" : "web"));
    const [command, args] = (await runtimes())[runtime];
    const { url } = await testServer();
    const name = `package ${crypto.randomUUID()}`;
    await using program = new Program(command, [...args, "main.ts", url, name], {
      cwd: folder.path,
    });
    const most = await watched(program, name);
    // Three of each pool.
    assert(most >= 2 && most <= 6, `${most} sessions`);
    await eventually(async () => assertEquals(await sessions(name), 0));
  });
}

test("Deno: workers from JSR, with the way to the server and to the worker's file", async () => {
  await using registry = await Registry.start();
  await using folder = new Folder();
  for (const [name, text] of Object.entries(files("web"))) folder.write(name, text);
  folder.write("deno.json", { imports: { "@getconn/pool": "jsr:@getconn/pool@^0.1" } });
  const env = { JSR_URL: registry.url, DENO_DIR: `${folder.path}/.deno` };
  const { url } = await testServer();
  const { host } = new URL(url);
  await succeed(deno, ["cache", "main.ts", "worker.ts"], { cwd: folder.path, env });
  const name = `package ${crypto.randomUUID()}`;
  const allowed = ["--no-prompt", `--allow-net=${host}`, "--allow-read=."];
  await using program = new Program(deno, ["run", ...allowed, "main.ts", url, name], {
    cwd: folder.path,
    env,
  });
  assert(await watched(program, name) <= 6);
});

test("examples/edge/workers_server.ts: several workers serve from one pool", async () => {
  const example = (name: string) => Deno.readTextFileSync(`${root}examples/edge/${name}`);
  await using folder = await installed({
    "main.ts": example("workers_server.ts"),
    "workers_server_worker.ts": example("workers_server_worker.ts"),
  });
  const [{ url }, port] = [await testServer(), await freePort()];
  const allowed = ["--allow-net", "--allow-read=.", "--allow-env=DATABASE_URL,PORT"];
  await using program = new Program(deno, ["run", "--no-prompt", ...allowed, "main.ts"], {
    cwd: folder.path,
    env: { DATABASE_URL: url, PORT: String(port) },
  });
  const ask = async () => {
    const response = await fetch(`http://127.0.0.1:${port}/`);
    return await response.json() as { pid: number; worker: number; time: string };
  };
  await eventually(ask);
  const answers = await Promise.all(Array.from({ length: 60 }, ask));
  for (const { time } of answers) assertMatch(time, /^\d{4}-/);
  assertEquals(new Set(answers.map(({ worker }) => worker)), new Set([1, 2, 3]));
  program.kill("SIGTERM");
  assertEquals(await program.ends(), 143, program.output);
});
