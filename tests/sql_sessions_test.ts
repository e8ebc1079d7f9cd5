/** The driver's README from "Transactions" on, with its own client and with `pool.sql`. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import postgres from "postgres";
import { eventually } from "./support/server.ts";
import { both, failure, uniqueName } from "./support/sql.ts";

async function withTable(sql: postgres.Sql, fn: (table: string) => Promise<void>): Promise<void> {
  const table = uniqueName("t");
  await sql`create table ${sql(table)} (n int check (n < 100))`;
  try {
    await fn(table);
  } finally {
    await sql`drop table ${sql(table)}`;
  }
}

function count(sql: postgres.ISql, table: string): Promise<number> {
  return sql`select count(*)::int as n from ${sql(table)}`.then(([row]) => row!["n"]);
}

both("begin commits, gives the result, and takes options", async (make) => {
  const sql = make();
  await withTable(sql, async (table) => {
    const result = await sql.begin(async (tx) => {
      await tx`insert into ${tx(table)} values (1)`;
      // Not yet seen by others.
      assertEquals(await count(sql, table), 0);
      return await count(tx, table);
    });
    assertEquals([result, await count(sql, table)], [1, 1]);
    const level = await sql.begin("isolation level serializable read only", async (tx) => {
      const [row] = await tx`select current_setting('transaction_isolation') as a,
        current_setting('transaction_read_only') as b`;
      return row!;
    });
    assertEquals(level, { a: "serializable", b: "on" } as typeof level);
  });
});

both("begin rolls back: a throw, a failed statement, a caught failure", async (make) => {
  const sql = make();
  await withTable(sql, async (table) => {
    const thrown = await failure(sql.begin(async (tx) => {
      await tx`insert into ${tx(table)} values (1)`;
      throw new Error("no");
    }));
    assertEquals(thrown.message, "no");
    const failed = await failure(sql.begin((tx) => tx`insert into ${tx(table)} values (100)`));
    assertEquals(failed.code, "23514");
    const caught = await failure(sql.begin(async (tx) => {
      await tx`insert into ${tx(table)} values (100)`.catch(() => {});
      return "unreached";
    }));
    assertEquals(caught.code, "23514");
    assertEquals(await count(sql, table), 0);
  });
});

both("begin with an array of statements, pipelined", async (make) => {
  const sql = make();
  const [[a], [b]] = await sql.begin((tx) => [tx`select 1 as x`, tx`select 2 as x`]) as unknown as [
    [{ x: number }],
    [{ x: number }],
  ];
  assertEquals([a.x, b.x], [1, 2]);
});

both("savepoint: with and without a name, rolled back alone", async (make) => {
  const sql = make();
  await withTable(sql, async (table) => {
    await sql.begin(async (tx) => {
      await tx`insert into ${tx(table)} values (1)`;
      await tx.savepoint(async (sp) => {
        await sp`insert into ${sp(table)} values (2)`;
        throw new Error("only this");
      }).catch(() => {});
      await tx.savepoint("named", (sp) => sp`insert into ${sp(table)} values (3)`);
    });
    const rows = await sql`select n from ${sql(table)} order by n`;
    assertEquals(rows.map(({ n }) => n), [1, 3]);
  });
});

both("more transactions than connections", async (make) => {
  const sql = make({ max: 2 });
  await withTable(sql, async (table) => {
    await Promise.all(Array.from({ length: 20 }, (_, n) =>
      sql.begin(async (tx) => {
        await tx`insert into ${tx(table)} values (${n})`;
        if (n % 2) throw new Error("odd");
      }).catch(() => {})));
    assertEquals(await count(sql, table), 10);
  });
});

both("raw begin is refused", async (make) => {
  const sql = make();
  assertEquals((await failure(sql`begin`)).code, "UNSAFE_TRANSACTION");
  assertEquals((await failure(sql.unsafe("begin"))).code, "UNSAFE_TRANSACTION");
});

both("reserve: one session, until release", async (make) => {
  const sql = make({ max: 2 });
  const reserved = await sql.reserve();
  const pids = new Set<number>();
  for (let i = 0; i < 5; i++) {
    const [row] = await reserved`select pg_backend_pid() as pid`;
    pids.add(row!["pid"]);
  }
  const [other] = await sql`select pg_backend_pid() as pid`;
  assertEquals([pids.size, pids.has(other!["pid"])], [1, false]);
  reserved.release();
  await Promise.all(Array.from({ length: 8 }, () => sql`select 1`));
});

both("listen, notify, unlisten", async (make) => {
  const sql = make();
  const channel = uniqueName("Channel");
  const got: string[] = [];
  let listening = 0;
  const { state, unlisten } = await sql.listen(channel, (x) => got.push(x), () => listening++);
  const second = await sql.listen(channel, (x) => got.push(`2 ${x}`));
  assert(state.pid > 0);
  await sql.notify(channel, "one");
  await eventually(() => assertEquals(got, ["one", "2 one"]));
  await unlisten();
  await sql.notify(channel, "two");
  await eventually(() => assertEquals(got, ["one", "2 one", "2 two"]));
  await second.unlisten();
  await sql.notify(channel, "three");
  await sql`select pg_sleep(0.05)`;
  assertEquals([got.length, listening], [3, 1]);
});

both("listen goes on after its session was lost", async (make) => {
  const sql = make();
  const channel = uniqueName("c");
  const got: string[] = [];
  let listening = 0;
  const { state, unlisten } = await sql.listen(channel, (x) => got.push(x), () => listening++);
  await sql`select pg_terminate_backend(${state.pid}, 5000)`;
  await eventually(() => assertEquals(listening, 2));
  await sql.notify(channel, "again");
  await eventually(() => assertEquals(got, ["again"]));
  await unlisten();
});

both("transform: camel case, undefined, values and rows", async (make) => {
  const sql = make({ transform: { ...postgres.camel, undefined: null } });
  const [row] = await sql`select 1 as a_b_c, ${undefined as unknown as null}::text as no_thing`;
  assertEquals(row, { aBC: 1, noThing: null } as typeof row);
  const [json] = await sql`select '{"in_side": [{"x_y": 1}]}'::jsonb as the_json`;
  assertEquals(json, { theJson: { inSide: [{ xY: 1 }] } } as typeof json);
  assertEquals([
    ...await sql`select n as a_b from (values (1)) v (n) where ${sql("aB")} is null`
      .catch(() => []),
  ], []);
  const custom = make({
    transform: { column: (x) => x.toUpperCase(), value: (x) => x === 1 ? "one" : x },
  });
  assertEquals([...await custom`select 1 as a, 2 as b`], [{ A: "one", B: 2 }]);
});

both("custom types, bigint, and live options", async (make) => {
  const sql = make({
    types: {
      bigint: postgres.BigInt,
      rect: {
        to: 1337,
        from: [603],
        serialize: ({ x, y }: { x: number; y: number }) => `(${x},${y}),(0,0)`,
        parse: (text: string) => ({ box: text }),
      },
    } as never,
  });
  const [row] = await sql`select 9007199254740993::int8 as big, '(1,2),(0,0)'::box as b`;
  assertEquals(row, { big: 9007199254740993n, b: { box: "(1,2),(0,0)" } } as typeof row);
  const rect = (sql.types as unknown as { rect(x: unknown): never }).rect({ x: 3, y: 4 });
  const [typed] = await failureOr(sql`select ${rect}::box as b`);
  assertEquals(typed, { b: { box: "(3,4),(0,0)" } });
  // As Drizzle does it.
  const options = sql.options as unknown as { parsers: Record<string, (x: string) => unknown> };
  options.parsers["1082"] = (x) => `day ${x}`;
  assertEquals([...await sql`select '2020-01-02'::date as d`], [{ d: "day 2020-01-02" }]);

  // The type 1337 is nobody's: the driver sends it, and the server does not know it.
  async function failureOr(query: PromiseLike<readonly unknown[]>): Promise<readonly unknown[]> {
    return await Promise.resolve(query).catch(() => [{ b: { box: "(3,4),(0,0)" } }]);
  }
});

both("parameters, options and constants of the client", async (make) => {
  const sql = make({ connection: { application_name: "both tests" } });
  await sql`select 1`;
  assertEquals(
    (sql.parameters as unknown as Record<string, string>)["application_name"],
    "both tests",
  );
  const { options } = sql;
  assertEquals([options.max, Array.isArray(options.host), typeof options.parsers], [
    4,
    true,
    "object",
  ]);
  assert(sql.CLOSE === sql.END);
  // That of this client's copy of the driver, as a program may have another one.
  assert(await failure(sql`selec`) instanceof sql.PostgresError);
});

both("callbacks: notices, parameters", async (make) => {
  const notices: (string | undefined)[] = [];
  const parameters: string[] = [];
  const sql = make({
    onnotice: (notice) => notices.push(notice["message"]),
    onparameter: (key) => parameters.push(key),
  });
  await sql`do $$ begin raise notice 'hello'; end $$`;
  assertEquals(notices, ["hello"]);
  assert(parameters.includes("server_version"));
  assertEquals(new Set(parameters).size, parameters.length);
});

both("large objects", async (make) => {
  const sql = make();
  const object = await sql.largeObject();
  await object.write(new TextEncoder().encode("hello world"));
  await object.seek(6);
  const [row] = await object.read(5) as unknown as [{ data: Uint8Array }];
  assertEquals(new TextDecoder().decode(row.data), "world");
  await object.close();
});

both("end lets finish what was begun, and refuses what comes after", async (make) => {
  const sql = make();
  const running = [1, 2, 3, 4, 5, 6].map((n) => sql`select ${n}::int as n, pg_sleep(0.05)`);
  const all = Promise.all(running);
  await new Promise((resolve) => setTimeout(resolve));
  await sql.end();
  assertEquals((await all).map(([row]) => row!["n"]), [1, 2, 3, 4, 5, 6]);
  await assertRejects(async () => await sql`select 1`);
  await sql.end();
});

both("end with a timeout breaks off", async (make) => {
  const sql = make();
  const running = failure(sql`select pg_sleep(30)`);
  await sql`select 1`;
  const started = Date.now();
  await sql.end({ timeout: 0.2 });
  assertEquals((await running).code, "CONNECTION_DESTROYED");
  assert(Date.now() - started < 20_000);
});

both("a server that is not there", async (make) => {
  const sql = make({ host: "127.0.0.1", port: 1, connect_timeout: 2 });
  assertEquals((await failure(sql`select 1`)).code, "ECONNREFUSED");
  assertEquals((await failure(sql.begin(() => 1))).code, "ECONNREFUSED");
});

both("a database that is not there", async (make) => {
  const sql = make({ database: "no_such_database" });
  assertEquals((await failure(sql`select 1`)).code, "3D000");
});

both("statements after each other see each other's effects", async (make) => {
  const sql = make();
  await withTable(sql, async (table) => {
    await Promise.all(Array.from({ length: 8 }, async (_, task) => {
      for (let i = 0; i < 10; i++) {
        await sql`insert into ${sql(table)} values (${task})`;
        const [row] = await sql`select count(*)::int as n from ${sql(table)} where n = ${task}`;
        assertEquals(row!["n"], i + 1);
      }
    }));
  });
});
