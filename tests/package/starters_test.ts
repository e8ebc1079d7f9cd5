/** The examples that people start from, each in its folder, run as a user would. */

import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { type Health, health } from "../../examples/health/health.ts";
import { SimpleConnectionPool } from "../../mod.ts";
import type postgres from "postgres";
import { freePort } from "../support/embedded_postgres.ts";
import { test } from "../support/harness.ts";
import { noPgBouncer, startPgBouncer } from "../support/pgbouncer.ts";
import { admin, asAdmin, eventually, testServer } from "../support/server.ts";
import { deno, installed, node, Program, root, runtimes, succeed } from "./install.ts";

/** An example's files. */
function files(name: string): Record<string, string> {
  const folder = `${root}examples/${name}`;
  return Object.fromEntries(
    [...Deno.readDirSync(folder)].filter(({ name }) => name !== "README.md")
      .map((file) => [file.name, Deno.readTextFileSync(`${folder}/${file.name}`)]),
  );
}

function answers(port: number, path = "/", init?: RequestInit): Promise<Response> {
  return eventually(() => fetch(`http://127.0.0.1:${port}${path}`, init));
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
    const pool = new SimpleConnectionPool(0, 1, url, { pool: { timeout: 60_000 } });
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
  { timeout: 300_000 },
);

/** On all runtimes at the same time, as most of it is waiting. */
async function onEach(
  fn: (runtime: string, program: string, args: string[]) => Promise<void>,
): Promise<void> {
  const all = Object.entries(await runtimes());
  const ends = await Promise.allSettled(
    all.map(([runtime, [program, args]]) => fn(runtime, program, args)),
  );
  for (const end of ends) if (end.status === "rejected") throw end.reason;
}

/** The server's URL under a name by which the sessions of one program are found. */
async function named(name: string): Promise<string> {
  const url = new URL((await testServer()).url);
  url.searchParams.set("application_name", name);
  return url.href;
}

/** What the sessions of that name do: the state and, where they wait, for what. */
function doings(name: string): Promise<string[]> {
  return asAdmin(async (sql) => {
    const rows = await sql<{ doing: string }[]>`
      select concat_ws(' ', state, wait_event) as doing from pg_stat_activity
      where application_name = ${name}`;
    return rows.map(({ doing }) => doing);
  });
}

/** A database for one program, its URL, and a client that looks into it. */
async function ownDatabase(
  stack: AsyncDisposableStack,
  prefix: string,
): Promise<{ database: string; url: string; sql: postgres.Sql }> {
  const database = `${prefix}_${crypto.randomUUID().replaceAll("-", "")}`;
  await asAdmin((sql) => sql`create database ${sql(database)}`);
  stack.defer(async () => {
    await asAdmin((sql) => sql`drop database ${sql(database)} with (force)`);
  });
  const url = new URL((await testServer()).url);
  url.pathname = `/${database}`;
  const sql = await admin({ database });
  stack.defer(() => sql.end());
  return { database, url: url.href, sql };
}

/** RFC 4180, read back by rules of its own: quotes, doubled quotes, CRLF between records. */
function records(text: string): string[][] {
  const found: string[][] = [[]];
  const fields = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n)/gy;
  let end = 0;
  for (const [all, quoted, plain, separator] of text.matchAll(fields)) {
    end += all.length;
    found.at(-1)!.push(quoted?.replaceAll('""', '"') ?? plain!);
    if (separator === "\r\n" && end < text.length) found.push([]);
  }
  assertEquals(end, text.length, "what follows is no CSV: " + text.slice(end, end + 200));
  return found;
}

/** How many rows of the report are read back. */
const ROWS = 20_000;

/** Row by row what the report must say. */
function expectedOrders(rows: number): string[][] {
  const expected = [["id", "note", "day", "remark"]];
  for (let id = 1; id <= rows; id++) {
    const day = new Date(Date.UTC(2026, 0, 1 + id % 365)).toISOString().slice(0, 10);
    expected.push([String(id), `No. ${id}, "paid"`, day, id % 2 === 0 ? "two\nlines" : ""]);
  }
  return expected;
}

test(
  "examples/csv_report: all rows, bad input, a client that stalls, leaves, or stays at SIGTERM",
  async () => {
    await using folder = await installed(files("csv_report"));
    await onEach(async (runtime, program, args) => {
      const [name, port] = [`report-${crypto.randomUUID()}`, await freePort()];
      const env = { DATABASE_URL: await named(name), PORT: String(port) };
      await using server = new Program(program, [...args, "main.ts"], { cwd: folder.path, env });
      const path = (rows: string) => `/orders.csv?rows=${rows}`;

      const whole = await answers(port, path(String(ROWS)));
      assertMatch(whole.headers.get("content-type") ?? "", /^text\/csv\b/, runtime);
      assertEquals(records(await whole.text()), expectedOrders(ROWS), runtime);
      for (const rows of ["0", "-1", "1.5", "1e3", "abc", "", "2000000001"]) {
        const bad = await answers(port, path(rows));
        assertEquals(
          [bad.status, await bad.text()],
          [400, "rows must be a whole number from 1 to 2000000000\n"],
          `${runtime} ${rows}`,
        );
      }
      const others = [
        await answers(port, "/other"),
        await answers(port, path("1"), { method: "POST" }),
      ];
      assertEquals(others.map(({ status }) => status), [404, 405], runtime);
      for (const other of others) await other.text();

      // It reads a little, and no more: the server comes to wait for the program, and stays there.
      const slow = (await answers(port, path("2000000000"))).body!.getReader();
      assert(!(await slow.read()).done, runtime);
      await eventually(async () => {
        for (let i = 0; i < 20; i++) {
          assertEquals(await doings(name), ["idle in transaction ClientRead"], runtime);
        }
      });
      await slow.cancel();
      await eventually(async () => assertEquals(await doings(name), ["idle ClientRead"], runtime));

      // It reads as fast as it can, and leaves in the middle.
      const fast = (await answers(port, path("2000000000"))).body!.getReader();
      for (let bytes = 0; bytes < 2_000_000;) bytes += (await fast.read()).value!.length;
      await fast.cancel();
      await eventually(async () => assertEquals(await doings(name), ["idle ClientRead"], runtime));
      assertEquals(records(await (await answers(port, path("2"))).text()).length, 3, runtime);
      assert(!/error/i.test(server.output), `${runtime} ${server.output}`);

      // The report that runs now is cut off: the client is not told that this was all.
      const late = (await answers(port, path("2000000000"))).body!.getReader();
      await late.read();
      server.kill("SIGTERM");
      await assertRejects(async () => {
        while (!(await late.read()).done);
      });
      assertEquals(await server.ends(), 143, `${runtime} ${server.output}`);
      await eventually(async () => assertEquals(await doings(name), [], runtime));
    });
  },
  { timeout: 300_000 },
);

test(
  "examples/job_queue: each job once, attempts and savepoints, wake-ups, killed and stopped workers",
  async () => {
    await using folder = await installed(files("job_queue"));
    await onEach(async (runtime, program, args) => {
      await using stack = new AsyncDisposableStack();
      const { database, url, sql } = await ownDatabase(stack, "jobs");
      const options = { cwd: folder.path, env: { DATABASE_URL: url } };
      const work = async () => {
        const process = stack.use(new Program(program, [...args, "work.ts"], options));
        await process.says(/^working$/m);
        return process;
      };
      const add = (...job: string[]) => succeed(program, [...args, "add.ts", ...job], options);
      const jobs = (state: string) =>
        sql`select id::int, attempts, error from jobs where state = ${state} order by id`;
      /** How many jobs sleep. */
      const sleeping = async () => {
        const rows = await sql`select 1 from pg_stat_activity
          where datname = ${database} and wait_event = 'PgSleep'`;
        return rows.length;
      };

      // Its process dies with the job, which is free again when the server has seen that.
      const killed = await work();
      assertEquals(await add("sleep", '{"seconds":1}'), "job 1\n");
      await eventually(async () => assertEquals(await sleeping(), 1, killed.output));
      killed.kill("SIGKILL");
      await killed.ends();
      await eventually(async () => {
        const free = await sql`select 1 from jobs where id = 1 for update skip locked`;
        assertEquals(free.length, 1);
      });
      const workers = await Promise.all([work(), work()]);
      await eventually(async () => assertEquals((await jobs("done")).length, 1, runtime));

      // Nobody looks by himself within the time that is waited here: the notice wakes them.
      await sql`insert into jobs (kind, payload)
        select 'letter', jsonb_build_object('to', n || '@example.org') from generate_series(1, 100) n`;
      await sql`insert into jobs (kind, payload) values
        ('letter', '{"to":"nobody"}'), ('constructor', '{}')`;
      assertEquals(await add("letter", '{"to":"last@example.org"}'), "job 104\n");
      await eventually(async () => assertEquals((await jobs("ready")).length, 0, runtime));
      const done = [...await jobs("done")];
      assertEquals(done.length, 102, runtime);
      assertEquals(done.filter(({ attempts, error }) => attempts !== 1 || error !== null), []);
      assertEquals([...await jobs("failed")], [
        { id: 102, attempts: 3, error: "RangeError: no address: nobody" },
        {
          id: 103,
          attempts: 3,
          error: 'TypeError: no handler for jobs of kind "constructor"; there are: letter, sleep',
        },
      ]);
      // Each was sent once, and nothing is left of the attempts that failed.
      const letters = await sql`select job::int as id from letters order by job`;
      assertEquals(letters.map(({ id }) => id), done.slice(1).map(({ id }) => id), runtime);

      // What listens is lost: they listen anew, and are told of what comes then.
      await sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity
        where datname = ${database} and pid <> pg_backend_pid()`;
      await add("letter", '{"to":"again@example.org"}');
      await eventually(async () => assertEquals((await jobs("done")).length, 103, runtime));

      // One has a job that runs, and ends it; nobody takes another.
      await add("sleep", '{"seconds":2}');
      await eventually(async () => assertEquals(await sleeping(), 1, runtime));
      for (const process of workers) process.kill("SIGTERM");
      for (const process of workers) assertEquals(await process.ends(), 143, process.output);
      assertEquals((await jobs("done")).length, 104, runtime);
      await add("letter", '{"to":"late@example.org"}');
      assertEquals((await jobs("ready")).length, 1, runtime);
    });
  },
  { timeout: 300_000 },
);

test(
  "examples/hono: a transaction per request by Drizzle, on Deno and on Bun, and a clean end",
  async () => {
    await using folder = await installed(files("hono"));
    await succeed(deno, ["check", "main_deno.ts", "main_bun.ts"], { cwd: folder.path });
    const { deno: onDeno, bun: onBun } = await runtimes();
    for (const [name, [program, args]] of Object.entries({ deno: onDeno, bun: onBun })) {
      await using stack = new AsyncDisposableStack();
      const { database, url, sql } = await ownDatabase(stack, "bank");
      await sql`create table accounts (id bigint primary key, owner text not null,
        balance bigint not null check (balance >= 0))`;
      await sql`insert into accounts values (1, 'Ann', 100), (2, 'Bob', 0), (3, 'Eve', 0)`;
      // An error that comes with the commit: Eve must not be rich.
      await sql`create function no_riches() returns trigger language plpgsql as $$
        begin if new.owner = 'Eve' and new.balance > 10 then raise 'Eve is rich'; end if; return new; end $$`;
      await sql`create constraint trigger riches after update on accounts
        deferrable initially deferred for each row execute function no_riches()`;
      const balances = async () =>
        (await sql`select balance::int from accounts order by id`).map(({ balance }) => balance);

      const port = await freePort();
      const env = { DATABASE_URL: url, PORT: String(port) };
      const server = stack.use(
        new Program(program, [...args, `main_${name}.ts`], { cwd: folder.path, env }),
      );
      const asks = async (path: string, body?: string) => {
        const init = body === undefined ? {} : { method: "POST", body };
        const answer = await answers(port, path, init);
        return [answer.status, await answer.json()];
      };
      const transfer = (from: unknown, to: unknown, amount: unknown) =>
        asks("/transfers", JSON.stringify({ from, to, amount }));

      assertEquals(await asks("/accounts/1"), [200, { id: 1, owner: "Ann", balance: 100 }], name);
      assertEquals(await asks("/accounts/9"), [404, { error: "no such account" }]);
      const noId = { error: "id must be a whole number above 0" };
      for (const id of ["x", "0", "1.5"]) assertEquals(await asks(`/accounts/${id}`), [400, noId]);
      assertEquals(await transfer(1, 2, 30), [200, {
        from: { id: 1, owner: "Ann", balance: 70 },
        to: { id: 2, owner: "Bob", balance: 30 },
      }]);
      // Returned, thrown, and not JSON at all.
      assertEquals(await transfer(2, 1, 31), [409, { error: "not enough money" }]);
      assertEquals(await transfer(1, 9, 1), [404, { error: "no such account" }]);
      for (const amount of [-1, 0, 1.5, "1", null]) {
        const error = "amount must be a whole number above 0";
        assertEquals(await transfer(1, 2, amount), [400, { error }]);
      }
      assertEquals((await asks("/transfers", "{"))[0], 400);
      assertEquals(await balances(), [70, 30, 0], name);
      // The handler has succeeded, the commit has not: the client is told so.
      assertEquals(await transfer(1, 3, 11), [500, { error: "internal error" }]);
      assertMatch(server.output, /Eve is rich/);
      assertEquals(await balances(), [70, 30, 0], name);

      // Both ways at the same time, more than there are connections.
      const moves = await Promise.all(
        Array.from({ length: 60 }, (_, i) => i % 2 === 0 ? transfer(1, 2, 1) : transfer(2, 1, 1)),
      );
      assertEquals(new Set(moves.map(([status]) => status)), new Set([200]), server.output);
      assertEquals(await balances(), [70, 30, 0], name);

      // A request that waits for a row at SIGTERM gets its answer.
      const locked = Promise.withResolvers<void>();
      const released = Promise.withResolvers<void>();
      const holding = sql.begin(async (sql) => {
        await sql`select 1 from accounts where id = 1 for update`;
        locked.resolve();
        await released.promise;
      });
      await locked.promise;
      const late = transfer(1, 2, 1);
      await eventually(() =>
        asAdmin(async (sql) => {
          const waiting = await sql`select 1 from pg_stat_activity
            where datname = ${database} and wait_event_type = 'Lock'`;
          assertEquals(waiting.length, 1);
        })
      );
      server.kill("SIGTERM");
      await eventually(() =>
        Deno.connect({ hostname: "127.0.0.1", port }).then((conn) => {
          conn.close();
          throw new Error("it still listens");
        }, () => {})
      );
      released.resolve();
      await holding;
      assertEquals((await late)[0], 200, name);
      assertEquals(await server.ends(), 143, server.output);
      assertEquals(await balances(), [69, 31, 0], name);
    }
  },
  { timeout: 300_000 },
);

/** What a collector was sent, as OTLP's JSON has it. */
interface Exported {
  resourceSpans?: { resource: Attributed; scopeSpans: { spans: ExportedSpan[] }[] }[];
  resourceMetrics?: {
    resource: Attributed;
    scopeMetrics: { metrics: { name: string; unit: string }[] }[];
  }[];
}
interface Attributed {
  attributes: { key: string; value: { stringValue?: string; intValue?: number | string } }[];
}
interface ExportedSpan extends Attributed {
  name: string;
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  kind: number;
}

function attributes(of: Attributed): Record<string, unknown> {
  return Object.fromEntries(
    of.attributes.map(({ key, value }) => [key, value.stringValue ?? Number(value.intValue)]),
  );
}

test(
  "examples/fastify_otel: requests with their statements in one trace, sent to a collector by its end",
  async () => {
    await using stack = new AsyncDisposableStack();
    const folder = stack.use(await installed(files("fastify_otel")));
    await succeed(deno, ["check", "main.ts"], { cwd: folder.path });
    const { database, url, sql } = await ownDatabase(stack, "shop");
    await sql`create table orders (id serial primary key, item text not null)`;
    await sql`create table events (what text, id int)`;

    const sent: string[] = [];
    const collector = Deno.serve(
      { port: 0, hostname: "127.0.0.1", onListen() {} },
      async (request) => {
        const { pathname } = new URL(request.url);
        assertMatch(`${request.method} ${pathname}`, /^POST \/v1\/(traces|metrics)$/);
        sent.push(await request.text());
        return Response.json({ partialSuccess: {} });
      },
    );
    stack.defer(() => collector.shutdown());

    const port = await freePort();
    const env = {
      DATABASE_URL: url,
      PORT: String(port),
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${collector.addr.port}`,
      OTEL_SERVICE_NAME: "shop-test",
    };
    const server = stack.use(new Program(await node(), ["main.ts"], { cwd: folder.path, env }));
    const asks = async (path: string, init?: RequestInit) => {
      const answer = await answers(port, path, init);
      return [answer.status, await answer.json()];
    };
    const post = (body: string, traceId = "") =>
      asks("/orders", {
        method: "POST",
        body,
        headers: {
          "content-type": "application/json",
          ...(traceId && { traceparent: `00-${traceId}-00f067aa0ba902b7-01` }),
        },
      });
    const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
    assertEquals(await post('{"item":"a secret gift"}', traceId), [201, { id: 1 }]);
    assertEquals(await asks("/orders/1"), [200, { id: 1, item: "a secret gift" }]);
    assertEquals(await asks("/orders/2"), [404, { error: "no such order" }]);
    for (const id of ["x", "0", "1.5", "99999999999"]) {
      assertEquals((await asks(`/orders/${id}`))[0], 400, id);
    }
    for (const body of ["{", "{}", '{"item":""}']) assertEquals((await post(body))[0], 400, body);
    await sql`alter table events rename to gone`;
    assertEquals(await post('{"item":"tea"}'), [500, { error: "try again later" }]);
    assertEquals((await sql`select 1 from orders`).length, 1);

    server.kill("SIGTERM");
    assertEquals(await server.ends(), 143, server.output);
    const exported: Exported[] = sent.map((text) => JSON.parse(text));
    const resources = exported.flatMap((one) => [
      ...one.resourceSpans ?? [],
      ...one.resourceMetrics ?? [],
    ]);
    assert(resources.length > 0, server.output);
    for (const { resource } of resources) {
      assertEquals(attributes(resource)["service.name"], "shop-test");
    }
    const spans = exported.flatMap(({ resourceSpans = [] }) =>
      resourceSpans.flatMap(({ scopeSpans }) => scopeSpans.flatMap(({ spans }) => spans))
    );
    const requests = spans.filter(({ kind }) => kind === 2);
    assertEquals(requests.length, 11);
    const under = ({ spanId }: ExportedSpan) =>
      spans.filter(({ parentSpanId, name }) =>
        parentSpanId === spanId && !/^(connect|getconn|wait)$/.test(name)
      );

    const ordered = requests.find((span) => span.traceId === traceId)!;
    assertEquals([ordered.name, ordered.parentSpanId], ["POST /orders", "00f067aa0ba902b7"]);
    assertEquals(attributes(ordered), {
      "http.request.method": "POST",
      "http.route": "/orders",
      "url.path": "/orders",
      "url.scheme": "http",
      "http.response.status_code": 201,
    });
    assertEquals(under(ordered).map(({ name }) => name), [
      "begin",
      "insert orders",
      "insert events",
      "commit",
    ]);
    for (const span of under(ordered)) assertEquals(span.traceId, traceId);
    const read = requests.find((span) => attributes(span)["url.path"] === "/orders/1")!;
    const [select] = under(read);
    const { "db.query.text": text, ...rest } = attributes(select!);
    assertEquals(text, "select id, item from orders where id = $1");
    assertEquals([rest["db.system.name"], rest["db.namespace"]], ["postgresql", database]);
    const failed = requests.find((span) => attributes(span)["error.type"] === "500")!;
    const insert = under(failed).find(({ name }) => name === "insert events")!;
    assertEquals(attributes(insert)["db.response.status_code"], "42P01");

    const metrics = exported.flatMap(({ resourceMetrics = [] }) =>
      resourceMetrics.flatMap(({ scopeMetrics }) => scopeMetrics.flatMap(({ metrics }) => metrics))
    );
    const names = new Set(metrics.map(({ name }) => name));
    for (const name of ["operation.duration", "connection.max", "connection.use_time"]) {
      assert(names.has(`db.client.${name}`), [...names].join());
    }
    assert(!sent.some((text) => text.includes("secret")), "a value was sent");

    // A collector that is away keeps nobody up.
    const other = await freePort();
    const alone = {
      ...env,
      PORT: String(other),
      OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:9",
    };
    const second = stack.use(
      new Program(await node(), ["main.ts"], { cwd: folder.path, env: alone }),
    );
    await (await answers(other, "/orders/1")).text();
    second.kill("SIGTERM");
    assertEquals(await second.ends(), 143, second.output);
  },
  { timeout: 300_000 },
);
