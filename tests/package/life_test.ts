/** How programs with a pool live and end: by themselves, by signals, through hot reloads. */

import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { test } from "../support/harness.ts";
import { admin, eventually, sessions, testServer } from "../support/server.ts";
import { bun, deno, installed, Program, runtimes } from "./install.ts";

const HEAD = `
import process from "node:process";
import { getPool, SimpleConnectionPool } from "@getconn/pool";

const [, , url, name] = process.argv;
const options = { connection: { application_name: name }, pool: { timeout: 90_000 } };
`;
const IDLE = `${HEAD}
const pool = new SimpleConnectionPool(2, 4, url, options);
await pool.ready();
await pool.use((conn) => conn\`select 1\`);
console.log("idle", pool.stats().idle);
`;
const LEASED = `${HEAD}
const pool = new SimpleConnectionPool(0, 4, url, options);
const conn = await pool.getconn();
const timer = setTimeout(() => {
  console.log("still here");
  void pool.putconn(conn);
}, 1_000);
timer.unref();
`;
const SERVER = `${HEAD}
const pool = new SimpleConnectionPool(2, 4, url, options).closeOn({ timeout: 30_000 });
await pool.ready();
const conn = await pool.getconn();
setInterval(() => {}, 1_000);
process.on("SIGINT", () => {
  void pool.close().then(() => setTimeout(() => process.exit(7), 100));
});
setInterval(() => { if (pool.closed) void conn[Symbol.asyncDispose](); }, 50);
console.log("ready");
`;

type Sql = Awaited<ReturnType<typeof admin>>;

function disposable(sql: Sql): Sql & AsyncDisposable {
  return Object.assign(sql, { [Symbol.asyncDispose]: () => sql.end() });
}

for (const runtime of ["deno", "bun", "node"] as const) {
  test(`${runtime}: a program with idle connections ends by itself`, async () => {
    await using folder = await installed({ "main.ts": IDLE });
    const [command, args] = (await runtimes())[runtime];
    const { url } = await testServer();
    await using program = new Program(command, [...args, "main.ts", url, "idle"], {
      cwd: folder.path,
    });
    assertEquals(await program.ends(), 0, program.output);
    assertEquals(program.output, "idle 2\n");
  });

  test(`${runtime}: a lent connection keeps the program alive until it is back`, async () => {
    await using folder = await installed({ "main.ts": LEASED });
    const [command, args] = (await runtimes())[runtime];
    const { url } = await testServer();
    await using program = new Program(command, [...args, "main.ts", url, "leased"], {
      cwd: folder.path,
    });
    assertEquals(await program.ends(), 0, program.output);
    assertEquals(program.output, "still here\n");
  });

  test(`${runtime}: closeOn() waits for leases and ends as the signal would`, async () => {
    await using folder = await installed({ "main.ts": SERVER });
    const [command, args] = (await runtimes())[runtime];
    const { url } = await testServer();
    // Who listens to the signal himself ends when he wants.
    for (const [signal, code] of [["SIGTERM", 143], ["SIGINT", 7]] as const) {
      const name = `package ${crypto.randomUUID()}`;
      await using program = new Program(command, [...args, "main.ts", url, name], {
        cwd: folder.path,
      });
      await program.says(/ready/);
      assertEquals(await sessions(name), 2);
      program.kill(signal);
      assertEquals(await program.ends(), code, program.output);
      await eventually(async () => assertEquals(await sessions(name), 0));
    }
  });
}

/** What serves on each runtime, and how README says to end it. */
const SERVE = {
  deno: [
    "Deno.serve({ port: 0, onListen: ({ port }) => console.log(`port ${port}`) }, answer)",
    "server.shutdown()",
  ],
  bun: [
    "Bun.serve({ port: 0, fetch: answer }); console.log(`port ${server.port}`)",
    "server.stop()",
  ],
  node: [
    `createServer((request, response) => {
      void answer(new Request("http://x" + request.url)).then(async (answered) => {
        response.writeHead(answered.status).end(await answered.text());
      });
    }).listen(0, () => console.log(\`port \${server.address().port}\`))`,
    `new Promise((done) => {
      server.close(done);
      setInterval(() => server.closeIdleConnections(), 100).unref();
    })`,
  ],
} as const;

/** Answers /work after a transaction that waits for a lock, and /late by a connection that it asks for late. */
function server(runtime: keyof typeof SERVE, before: boolean): string {
  const [serve, end] = SERVE[runtime];
  return `${HEAD}
import { createServer } from "node:http";
const pool = new SimpleConnectionPool(0, 4, url, options);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
async function answer(request) {
  try {
    if (request.url.endsWith("/late")) {
      console.log("late is here");
      while (!told) await pause(5);
      await pool.use((conn) => conn\`select 1\`);
      return new Response("served");
    }
    await pool.transaction(async (conn) => {
      await conn\`insert into kept values (\${name})\`;
      console.log("work is here");
      await conn\`select pg_advisory_xact_lock(28)\`;
    });
    // The lease is back: the answer is still to be made.
    await pause(100);
    return new Response("committed");
  } catch (error) {
    return new Response(String(error), { status: 500 });
  }
}
let told = false;
process.on("SIGTERM", function once() {
  process.off("SIGTERM", once);
  told = true;
  console.log("told");
});
const server = ${serve};
pool.closeOn({ ${before ? `before: () => ${end}, ` : ""}timeout: 60_000 });
`;
}

for (const runtime of ["deno", "bun", "node"] as const) {
  for (const before of [true, false]) {
    const what = before ? "closeOn({ before })" : "closeOn() without before";
    test(`${runtime}: ${what}: what was committed at SIGTERM is answered`, async () => {
      await using folder = await installed({ "main.mjs": server(runtime, before) });
      const [command, args] = (await runtimes())[runtime];
      const name = `package ${crypto.randomUUID()}`;
      await using sql = disposable(await admin());
      await sql`create table if not exists kept (name text)`;
      await sql`select pg_advisory_lock(28)`;
      const { url } = await testServer();
      await using program = new Program(command, [...args, "main.mjs", url, name], {
        cwd: folder.path,
      });
      const [, port] = await program.says(/port (\d+)/);
      const ask = async (path: string) => {
        const response = await fetch(`http://127.0.0.1:${port}/${path}`);
        return `${response.status} ${await response.text()}`;
      };
      const work = ask("work");
      const late = ask("late");
      late.catch(() => {});
      await program.says(/work is here/);
      await program.says(/late is here/);
      program.kill("SIGTERM");
      await program.says(/told/);
      // The late one has had its turn before the transaction can end.
      if (before) assertEquals(await late, "200 served");
      else assertMatch(await late, /^500 PoolClosed/);
      await sql`select pg_advisory_unlock(28)`;
      assertEquals(await work, "200 committed");
      assertEquals(await program.ends(), 143, program.output);
      const rows = await sql`select 1 from kept where name = ${name}`;
      assertEquals(rows.length, 1);
      await eventually(async () => assertEquals(await sessions(name), 0));
    });
  }

  test(`${runtime}: closeOn({ timeout }): a server that does not end delays the end no longer`, async () => {
    const text = server(runtime, true).replace("timeout: 60_000", "timeout: 300");
    await using folder = await installed({ "main.mjs": text });
    const [command, args] = (await runtimes())[runtime];
    const name = `package ${crypto.randomUUID()}`;
    await using sql = disposable(await admin());
    await sql`create table if not exists kept (name text)`;
    await sql`select pg_advisory_lock(28)`;
    const { url } = await testServer();
    await using program = new Program(command, [...args, "main.mjs", url, name], {
      cwd: folder.path,
    });
    const [, port] = await program.says(/port (\d+)/);
    const work = fetch(`http://127.0.0.1:${port}/work`).then((answer) => answer.text());
    work.catch(() => {});
    await program.says(/work is here/);
    program.kill("SIGTERM");
    assertEquals(await program.ends(), 143, program.output);
    assertMatch(program.output, /"before" has not ended within 300 ms/);
    await sql`select pg_advisory_unlock(28)`;
    await work.catch(() => {});
    // Not committed, and the client was told so, or nothing.
    assertEquals((await sql`select 1 from kept where name = ${name}`).length, 0);
    await eventually(async () => assertEquals(await sessions(name), 0));
  });
}

// No async function: V8 exchanges no module of which one is suspended, and Deno starts again then.
const HOT = `${HEAD}
const VERSION = "one";
const scope = globalThis as { ticking?: boolean; tick?: () => void };
function tick() {
  const pool = getPool("app", () => new SimpleConnectionPool(0, 1, url, options));
  pool.use((conn) => conn\`select pg_backend_pid() as pid\`).then(([row]) => {
    console.log(VERSION, "text-one", row?.pid);
  });
}
scope.tick = tick;
if (!scope.ticking) setInterval(() => scope.tick?.(), 100);
scope.ticking = true;
`;

test("bun --hot: the pool stays, and a changed factory is said once", async () => {
  await using folder = await installed({ "main.ts": HOT });
  const { url } = await testServer();
  const name = `package ${crypto.randomUUID()}`;
  await using program = new Program(await bun(), ["--hot", "main.ts", url, name], {
    cwd: folder.path,
  });
  const [, pid] = await program.says(/^one text-one (\d+)$/m);
  folder.write("main.ts", HOT.replace('VERSION = "one"', 'VERSION = "two"'));
  const [, second] = await program.says(/^two text-one (\d+)$/m);
  assertEquals(second, pid);
  folder.write("main.ts", HOT.replace('"one"', '"three"').replace("(0, 1, url", "(0, 3, url"));
  const [, third] = await program.says(/^three text-one (\d+)$/m);
  assertEquals(third, pid);
  await program.says(/the factory has changed/);
  await program.says(/(three.*\n){3}/);
  assertEquals(program.output.split("the factory has changed").length, 2, program.output);
  assertEquals(await sessions(name), 1);
});

test("deno run --watch-hmr: the pool stays", async () => {
  await using folder = await installed({ "main.ts": HOT });
  const { url } = await testServer();
  const name = `package ${crypto.randomUUID()}`;
  const args = ["run", "-A", "--watch-hmr", "main.ts", url, name];
  await using program = new Program(deno, args, { cwd: folder.path });
  const [, pid] = await program.says(/^one text-one (\d+)$/m);
  folder.write("main.ts", HOT.replace("text-one", "text-two"));
  const [, second] = await program.says(/^one text-two (\d+)$/m);
  assertEquals(second, pid, program.output);
  assertEquals(await sessions(name), 1);
  assertNotEquals(pid, undefined);
  assert(!program.output.includes("Restarting"), program.output);
});
