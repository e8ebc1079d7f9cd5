/** The examples that people start from, each in its folder, run as a user would. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Health, health } from "../../examples/health/health.ts";
import { SimpleConnectionPool } from "../../mod.ts";
import { freePort } from "../support/embedded_postgres.ts";
import { test } from "../support/harness.ts";
import { noPgBouncer, startPgBouncer } from "../support/pgbouncer.ts";
import { eventually, testServer } from "../support/server.ts";
import { installed, Program, root, runtimes, succeed } from "./install.ts";

/** An example's files. */
function files(name: string): Record<string, string> {
  const folder = `${root}examples/${name}`;
  return Object.fromEntries(
    [...Deno.readDirSync(folder)].filter(({ name }) => name !== "README.md")
      .map((file) => [file.name, Deno.readTextFileSync(`${folder}/${file.name}`)]),
  );
}

function answers(port: number, path = "/", init?: RequestInit): Promise<Response> {
  return eventually(() => fetch(`http://127.0.0.1:${port}${path}`, init), { timeout: 20_000 });
}

test(
  "examples/pgbouncer: single statements and transactions behind PgBouncer in transaction mode",
  async () => {
    await using stack = new AsyncDisposableStack();
    const bouncer = stack.use(await startPgBouncer("transaction", 2));
    const folder = stack.use(await installed(files("pgbouncer")));
    for (const [name, [program, args]] of Object.entries(await runtimes())) {
      const env = { DATABASE_URL: bouncer.url };
      const said = await succeed(program, [...args, "main.ts"], { cwd: folder.path, env });
      assertEquals(said, "answer 42\nlimit 5s\n", name);
    }
  },
  { skip: noPgBouncer },
);

test(
  "examples/health: probes and metrics without I/O: open, degraded with its reason, down with the last failure",
  async () => {
    await using stack = new AsyncDisposableStack();
    const folder = stack.use(await installed(files("health")));
    const [{ url }, nothing] = [await testServer(), await freePort()];
    for (const [program, args] of Object.values(await runtimes())) {
      for (const away of [false, true]) {
        const port = await freePort();
        const env = {
          DATABASE_URL: away ? `postgres://127.0.0.1:${nothing}/app` : url,
          PORT: String(port),
        };
        await using server = new Program(program, [...args, "main.ts"], { cwd: folder.path, env });
        const live = await answers(port, "/livez");
        assertEquals([live.status, await live.text()], [200, "ok\n"]);
        await eventually(async () => {
          const ready = await answers(port, "/readyz");
          const found: Health = await ready.json();
          assertEquals([ready.status, found.status], away ? [503, "down"] : [200, "open"]);
          if (away) assertMatch(found.reason ?? "", /ECONNREFUSED/);
        });
        const metrics = await (await answers(port, "/metrics")).text();
        assertMatch(metrics, new RegExp(`^pool_up\\{pool="shop"\\} ${away ? 0 : 1}$`, "m"));
        assertMatch(metrics, /^# TYPE pool_requests_total counter$/m);
        for (const line of metrics.trim().split("\n")) {
          assertMatch(line, /^# (?:HELP|TYPE) \w+ .+$|^\w+\{pool="shop"\} \d+(?:\.\d+)?$/);
        }
        server.kill("SIGTERM");
        assertEquals(await server.ends(), 143, server.output);
      }
    }
    const pool = new SimpleConnectionPool(0, 1, url, { pool: { timeout: 10_000 } });
    assertEquals(health(pool), { status: "open" });
    const held = await pool.getconn();
    const waiting = [1, 2].map(() => pool.use((conn) => conn`select 1`));
    assertEquals(health(pool), { status: "degraded", reason: "2 wait for 1 connections" });
    assert(pool.stats().longestWaitMs >= 0);
    await pool.putconn(held);
    await Promise.all(waiting);
    assertEquals(health(pool), { status: "open" });
    assertEquals(pool.stats().longestWaitMs, 0);
    await pool.close();
    assertEquals(health(pool), { status: "down", reason: "the pool is closed" });
  },
  { timeout: 120_000 },
);
