/**
 * Drizzle and Kysely, call by call: on `pool.sql` each gives what it gives on the driver's own client. The one wanted
 * difference that was met, NULL in an array, which the driver takes for a text, is left out here.
 */

import { assertEquals } from "@std/assert";
import {
  and,
  asc,
  avg,
  between,
  count,
  countDistinct,
  desc,
  eq,
  exists,
  gt,
  ilike,
  inArray,
  isNull,
  like,
  max,
  not,
  or,
  relations,
  sql as raw,
  sum,
} from "drizzle-orm";
import {
  alias,
  bigint,
  boolean,
  char,
  date,
  doublePrecision,
  integer,
  interval,
  json,
  jsonb,
  numeric,
  pgTable,
  point,
  real,
  serial,
  smallint,
  text,
  time,
  timestamp,
  union,
  unionAll,
  uuid,
  varchar,
} from "drizzle-orm/pg-core";
import { drizzle } from "drizzle-orm/postgres-js";
import { Kysely, sql as kysely } from "kysely";
import { PostgresJSDialect } from "kysely-postgres-js";
import postgres from "postgres";
import { SimpleConnectionPool } from "@getconn/pool";
import { test } from "./support/harness.ts";
import { asAdmin, testServer } from "./support/server.ts";
import { uniqueName } from "./support/sql.ts";

/** A value as text: with classes, bytes, and what results carry beside their rows. */
function show(value: unknown): unknown {
  if (value === undefined) return "undefined";
  if (typeof value === "bigint") return `${value}n`;
  if (value instanceof Date) return `Date ${value.toISOString()}`;
  if (value instanceof Uint8Array) return `bytes ${[...value].join()}`;
  if (Array.isArray(value)) {
    const { count, command } = value as unknown as { count?: unknown; command?: unknown };
    const rows = value.map(show);
    return command === undefined ? rows : { rows, count: show(count), command };
  }
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, show(one)]));
}

async function outcomeOf(call: () => PromiseLike<unknown>): Promise<unknown> {
  try {
    return { value: show(await call()) };
  } catch (error) {
    const { name, message, cause } = error as Error;
    const { code, detail, constraint_name: constraint } = (cause ?? error) as Record<
      string,
      unknown
    >;
    return { name, message, code: show(code), detail: show(detail), constraint: show(constraint) };
  }
}

type Call<D> = readonly [name: string, call: (db: D) => PromiseLike<unknown>];

/** Makes the same calls on both clients, one after the other, each in a schema of its own. */
async function compare<D>(
  tables: string,
  make: (client: postgres.Sql) => D,
  calls: readonly Call<D>[],
): Promise<void> {
  const { url } = await testServer();
  const outcomes: unknown[][] = [];
  for (const which of ["driver", "pool"] as const) {
    const schema = uniqueName("s");
    await asAdmin((admin) =>
      admin.unsafe(`create schema ${schema}; set search_path = ${schema}; ${tables}`)
    );
    const options = { connection: { search_path: schema }, onnotice: () => {} };
    const client = which === "driver"
      ? postgres(url, { max: 3, ...options })
      : new SimpleConnectionPool(0, 3, url, options).sql;
    const db = make(client);
    const all: unknown[] = [];
    for (const [, call] of calls) all.push(await outcomeOf(() => call(db)));
    outcomes.push(all);
    await client.end();
    await asAdmin((admin) => admin.unsafe(`drop schema ${schema} cascade`));
  }
  const [driver, pool] = outcomes;
  calls.forEach(([name], i) => assertEquals(pool![i], driver![i], name));
  // A comparison of nothing but failures would compare nothing.
  const good = driver!.filter((one) => "value" in (one as object)).length;
  assertEquals(good >= calls.length * 0.8, true, `${good} of ${calls.length}`);
}

const TABLES = `
  create table authors (id serial primary key, name text not null unique, born date, mentor int);
  create table books (id serial primary key, author int not null references authors (id), title varchar(80) not null,
    price numeric(10, 2), sold boolean default false);
  create table kinds (id serial primary key, s smallint, i int, b bigint, bb bigint, r real, d double precision,
    n numeric, t text, v varchar(20), c char(5), bo boolean, da date, ti time, ts timestamp, tz timestamptz,
    tss timestamp, tzs timestamptz, iv interval, u uuid, j json, jb jsonb, ia int[], ta text[], jba jsonb[], p point);
  insert into authors (name, born) values ('Ada', '1815-12-10'), ('Bob', null), ('Cyd', '1999-01-02');
  insert into books (author, title, price) values (1, 'Notes', 9.75), (1, 'More', 12), (2, 'Bees', null);
`;

const authors = pgTable("authors", {
  id: serial().primaryKey(),
  name: text().notNull(),
  born: date(),
  mentor: integer(),
});
const books = pgTable("books", {
  id: serial().primaryKey(),
  author: integer().notNull(),
  title: varchar({ length: 80 }).notNull(),
  price: numeric(),
  sold: boolean(),
});
const kinds = pgTable("kinds", {
  id: serial().primaryKey(),
  s: smallint(),
  i: integer(),
  b: bigint({ mode: "number" }),
  bb: bigint({ mode: "bigint" }),
  r: real(),
  d: doublePrecision(),
  n: numeric(),
  t: text(),
  v: varchar(),
  c: char(),
  bo: boolean(),
  da: date(),
  ti: time(),
  ts: timestamp(),
  tz: timestamp({ withTimezone: true }),
  tss: timestamp({ mode: "string" }),
  tzs: timestamp({ mode: "string", withTimezone: true }),
  iv: interval(),
  u: uuid(),
  j: json(),
  jb: jsonb(),
  ia: integer().array(),
  ta: text().array(),
  jba: jsonb().array(),
  p: point(),
});
const schema = {
  authors,
  books,
  kinds,
  authorsRelations: relations(authors, ({ many, one }) => ({
    books: many(books),
    teacher: one(authors, { fields: [authors.mentor], references: [authors.id] }),
  })),
  booksRelations: relations(books, ({ one }) => ({
    writer: one(authors, { fields: [books.author], references: [authors.id] }),
  })),
};
const drizzled = (client: postgres.Sql) => drizzle(client, { schema });
type Drizzle = ReturnType<typeof drizzled>;

const moment = new Date("2024-05-06T07:08:09.010Z");
const kind = {
  s: 1,
  i: 2,
  b: 3,
  bb: 9007199254740993n,
  r: 1.5,
  d: 2.25,
  n: "1.10",
  t: "a'b\"c\\",
  v: "v",
  c: "c",
  bo: true,
  da: "2024-02-29",
  ti: "12:34:56",
  ts: moment,
  tz: moment,
  tss: "2024-05-06 07:08:09.01",
  tzs: "2024-05-06 07:08:09.01+02",
  iv: "1 day 02:03:04",
  u: "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
  j: { a: [1, null, "x"] },
  jb: [{ k: "v" }],
  ia: [1, 2],
  ta: ["a", "b,c", 'd"e'],
  jba: [{ x: 1 }, { y: [2] }],
  p: [1, 2] as [number, number],
};
const second = alias(authors, "second");
const undo = new Error("undo");

const DRIZZLE: readonly Call<Drizzle>[] = [
  ["select all", (db) => db.select().from(authors).orderBy(authors.id)],
  ["select columns", (db) => db.select({ n: authors.name }).from(authors).orderBy(authors.id)],
  ["select where eq", (db) => db.select().from(authors).where(eq(authors.name, "Ada"))],
  [
    "select where and, gt",
    (db) => db.select().from(books).where(and(eq(books.author, 1), gt(books.price, "10"))),
  ],
  [
    "select where or, isNull",
    (db) =>
      db.select().from(books).where(or(isNull(books.price), eq(books.title, "More"))).orderBy(
        books.id,
      ),
  ],
  [
    "select inArray",
    (db) => db.select().from(books).where(inArray(books.id, [1, 3])).orderBy(books.id),
  ],
  [
    "select not like",
    (db) => db.select().from(books).where(not(like(books.title, "N%"))).orderBy(books.id),
  ],
  ["select ilike", (db) => db.select().from(books).where(ilike(books.title, "n%"))],
  [
    "select between",
    (db) => db.select().from(books).where(between(books.id, 2, 3)).orderBy(books.id),
  ],
  [
    "select exists",
    (db) =>
      db.select().from(authors).where(
        exists(db.select().from(books).where(eq(books.author, authors.id))),
      ).orderBy(authors.id),
  ],
  [
    "select order, limit, offset",
    (db) => db.select().from(books).orderBy(desc(books.id)).limit(1).offset(1),
  ],
  [
    "select distinct",
    (db) => db.selectDistinct({ a: books.author }).from(books).orderBy(books.author),
  ],
  [
    "select distinct on",
    (db) => db.selectDistinctOn([books.author]).from(books).orderBy(books.author, asc(books.id)),
  ],
  [
    "inner join",
    (db) =>
      db.select().from(books).innerJoin(authors, eq(books.author, authors.id)).orderBy(books.id),
  ],
  [
    "left join",
    (db) =>
      db.select().from(authors).leftJoin(books, eq(books.author, authors.id)).orderBy(
        authors.id,
        books.id,
      ),
  ],
  [
    "right join",
    (db) =>
      db.select().from(books).rightJoin(authors, eq(books.author, authors.id)).orderBy(
        authors.id,
        books.id,
      ),
  ],
  [
    "full join",
    (db) =>
      db.select().from(books).fullJoin(authors, eq(books.author, authors.id)).orderBy(
        authors.id,
        books.id,
      ),
  ],
  [
    "self join",
    (db) =>
      db.select({ a: authors.name, b: second.name }).from(authors).innerJoin(
        second,
        gt(second.id, authors.id),
      ).orderBy(authors.id, second.id),
  ],
  [
    "aggregates",
    (db) =>
      db.select({
        n: count(),
        s: sum(books.price),
        a: avg(books.price),
        m: max(books.title),
        d: countDistinct(books.author),
      }).from(books),
  ],
  [
    "group by, having",
    (db) =>
      db.select({ a: books.author, n: count() }).from(books).groupBy(books.author).having(
        gt(count(), 1),
      ),
  ],
  ["$count", (db) => db.$count(books)],
  ["$count where", (db) => db.$count(books, eq(books.author, 1))],
  ["subquery", (db) => {
    const sub = db.select({ id: books.author }).from(books).as("sub");
    return db.select({ name: authors.name }).from(authors).innerJoin(sub, eq(sub.id, authors.id))
      .orderBy(authors.id);
  }],
  ["with", (db) => {
    const w = db.$with("w").as(db.select().from(books).where(eq(books.author, 1)));
    return db.with(w).select().from(w).orderBy(w.id);
  }],
  [
    "union",
    (db) =>
      union(db.select({ id: authors.id }).from(authors), db.select({ id: books.id }).from(books))
        .orderBy(raw`id`),
  ],
  [
    "union all",
    (db) =>
      unionAll(db.select({ id: authors.id }).from(authors), db.select({ id: books.id }).from(books))
        .orderBy(raw`id`),
  ],
  [
    "raw column",
    (db) => db.select({ x: raw<number>`${authors.id} + 1` }).from(authors).orderBy(authors.id),
  ],
  [
    "raw now as date",
    (db) => db.select({ x: raw`'2024-01-01'::timestamptz` }).from(authors).limit(1),
  ],
  ["execute", (db) => db.execute(raw`select 1 as one, 'x' as two`)],
  [
    "execute with values",
    (db) => db.execute(raw`select ${1}::int as a, ${"b"}::text as b, ${null}::text as c`),
  ],
  [
    "execute dates",
    (db) =>
      db.execute(
        raw`select '2024-01-02'::date as d, '2024-01-02 03:04:05Z'::timestamptz as tz, interval '1 day' as i`,
      ),
  ],
  [
    "execute arrays, json",
    (db) =>
      db.execute(
        raw`select array[1,2] as a, array['x','y'] as b, '{"a":1}'::json as j, '[1]'::jsonb as k`,
      ),
  ],
  ["execute text", (db) => db.execute("select 2 as two")],
  ["execute bytes", (db) => db.execute(raw`select '\\x0102'::bytea as b`)],
  ["execute bad", (db) => db.execute(raw`selec 1`)],
  ["execute missing table", (db) => db.execute(raw`select * from nowhere`)],
  ["execute division", (db) => db.execute(raw`select 1 / ${0}::int`)],
  ["query many", (db) => db.query.authors.findMany({ orderBy: authors.id })],
  ["query first", (db) => db.query.authors.findFirst({ where: eq(authors.id, 2) })],
  ["query none", (db) => db.query.authors.findFirst({ where: eq(authors.id, 99) })],
  [
    "query with many",
    (db) =>
      db.query.authors.findMany({ with: { books: { orderBy: books.id } }, orderBy: authors.id }),
  ],
  [
    "query with one",
    (db) => db.query.books.findMany({ with: { writer: true }, orderBy: books.id }),
  ],
  [
    "query nested",
    (db) =>
      db.query.books.findFirst({
        with: { writer: { with: { books: { orderBy: books.id } } } },
        orderBy: books.id,
      }),
  ],
  [
    "query columns, extras",
    (db) =>
      db.query.authors.findMany({
        columns: { name: true },
        extras: { up: raw<string>`upper(name)`.as("up") },
        orderBy: authors.id,
      }),
  ],
  [
    "query limit, offset",
    (db) => db.query.books.findMany({ limit: 1, offset: 1, orderBy: books.id }),
  ],
  ["insert", (db) => db.insert(authors).values({ name: "Dee" })],
  [
    "insert returning",
    (db) => db.insert(authors).values({ name: "Eve", born: "2000-02-29" }).returning(),
  ],
  [
    "insert returning columns",
    (db) => db.insert(authors).values({ name: "Fay" }).returning({ id: authors.id }),
  ],
  [
    "insert many",
    (db) =>
      db.insert(books).values([{ author: 3, title: "a", price: "1.5" }, { author: 3, title: "b" }])
        .returning(),
  ],
  ["insert conflict", (db) => db.insert(authors).values({ name: "Ada" })],
  ["insert foreign key", (db) => db.insert(books).values({ author: 999, title: "x" })],
  ["insert null", (db) => db.insert(books).values({ author: 1, title: null as never })],
  ["insert too long", (db) => db.insert(books).values({ author: 1, title: "x".repeat(100) })],
  [
    "on conflict nothing",
    (db) => db.insert(authors).values({ name: "Ada" }).onConflictDoNothing().returning(),
  ],
  [
    "on conflict update",
    (db) =>
      db.insert(authors).values({ name: "Ada" }).onConflictDoUpdate({
        target: authors.name,
        set: { mentor: 2 },
      }).returning(),
  ],
  [
    "insert select",
    (db) =>
      db.insert(books).select(
        db.select({
          id: raw<number>`100`.as("id"),
          author: authors.id,
          title: authors.name,
          price: raw<string>`1`.as("price"),
          sold: raw<boolean>`true`.as("sold"),
        }).from(authors).where(eq(authors.id, 1)),
      ).returning(),
  ],
  ["insert every kind", (db) => db.insert(kinds).values(kind).returning()],
  ["select every kind", (db) => db.select().from(kinds)],
  ["query every kind", (db) => db.query.kinds.findMany()],
  ["insert nulls", (db) => db.insert(kinds).values({}).returning()],
  ["where timestamp", (db) => db.select({ id: kinds.id }).from(kinds).where(eq(kinds.tz, moment))],
  [
    "where jsonb",
    (db) =>
      db.select({ id: kinds.id }).from(kinds).where(
        raw`${kinds.jb} @> ${JSON.stringify([{ k: "v" }])}::jsonb`,
      ),
  ],
  ["update", (db) => db.update(books).set({ sold: true }).where(eq(books.id, 1))],
  [
    "update returning",
    (db) =>
      db.update(books).set({ price: raw`${books.price} + 1` }).where(eq(books.id, 1)).returning(),
  ],
  [
    "update from",
    (db) =>
      db.update(books).set({ title: raw`${authors.name}` }).from(authors).where(
        and(eq(books.author, authors.id), eq(books.id, 3)),
      ).returning({ t: books.title }),
  ],
  [
    "update none",
    (db) => db.update(books).set({ sold: true }).where(eq(books.id, 12345)).returning(),
  ],
  [
    "delete returning",
    (db) => db.delete(books).where(eq(books.author, 3)).returning({ t: books.title }),
  ],
  ["prepared", async (db) => {
    const prepared = db.select().from(authors).where(eq(authors.id, raw.placeholder("id"))).prepare(
      "one",
    );
    return [await prepared.execute({ id: 1 }), await prepared.execute({ id: 2 })];
  }],
  ["transaction", (db) =>
    db.transaction(async (tx) => {
      await tx.insert(authors).values({ name: "Gil" });
      return await tx.select().from(authors).where(eq(authors.name, "Gil"));
    })],
  ["transaction undone", (db) =>
    db.transaction(async (tx) => {
      await tx.insert(authors).values({ name: "Hal" });
      throw undo;
    })],
  ["transaction rollback()", (db) =>
    db.transaction(async (tx) => {
      await tx.insert(authors).values({ name: "Hal" });
      tx.rollback();
    })],
  ["nested transaction undone", (db) =>
    db.transaction(async (tx) => {
      await tx.insert(authors).values({ name: "Ian" });
      await tx.transaction(async (inner) => {
        await inner.insert(authors).values({ name: "Jan" });
        throw undo;
      }).catch(() => {});
      return await tx.select({ n: authors.name }).from(authors).where(
        inArray(authors.name, ["Ian", "Jan"]),
      );
    })],
  [
    "transaction read only",
    (db) =>
      db.transaction((tx) => tx.insert(authors).values({ name: "Kim" }), {
        accessMode: "read only",
      }),
  ],
  [
    "transaction isolation",
    (db) =>
      db.transaction((tx) => tx.execute(raw`show transaction_isolation`), {
        isolationLevel: "serializable",
        deferrable: true,
      }),
  ],
  ["transaction fails in it", (db) =>
    db.transaction(async (tx) => {
      await tx.insert(authors).values({ name: "Lou" });
      await tx.insert(authors).values({ name: "Ada" });
    })],
  ["what has stayed", (db) => db.select({ n: authors.name }).from(authors).orderBy(authors.id)],
  [
    "at once",
    (db) => Promise.all([1, 2, 3].map((id) => db.select().from(authors).where(eq(authors.id, id)))),
  ],
  [
    "the client's parsers after it",
    (db) =>
      db.$client`select '2024-01-02'::date as d, '2024-01-02 03:04:05Z'::timestamptz as tz, '{"a":1}'::json as j`,
  ],
];

test("drizzle: each call gives what it gives on the driver's client", () =>
  compare(TABLES, drizzled, DRIZZLE));

interface Database {
  authors: {
    id: number | undefined;
    name: string;
    born: unknown;
    mentor: number | null | undefined;
  };
  books: {
    id: number | undefined;
    author: number;
    title: string;
    price: unknown;
    sold: boolean | undefined;
  };
  kinds: Record<string, unknown>;
}
// The tables have more in them than is worth a type here.
// deno-lint-ignore no-explicit-any
type Loose = Kysely<any>;
const kyselied = (client: postgres.Sql): Loose =>
  new Kysely<Database>({ dialect: new PostgresJSDialect({ postgres: client }) });

async function all<T>(rows: AsyncIterable<T>, most = Infinity): Promise<T[]> {
  const got: T[] = [];
  for await (const row of rows) {
    got.push(row);
    if (got.length >= most) break;
  }
  return got;
}

const KYSELY: readonly Call<Loose>[] = [
  ["select all", (db) => db.selectFrom("authors").selectAll().orderBy("id").execute()],
  [
    "select columns",
    (db) => db.selectFrom("authors").select(["id", "name as n"]).orderBy("id").execute(),
  ],
  ["first", (db) => db.selectFrom("authors").selectAll().where("id", "=", 1).executeTakeFirst()],
  [
    "first of none",
    (db) => db.selectFrom("authors").selectAll().where("id", "=", 99).executeTakeFirst(),
  ],
  [
    "first or throw",
    (db) => db.selectFrom("authors").selectAll().where("id", "=", 99).executeTakeFirstOrThrow(),
  ],
  [
    "where in",
    (db) => db.selectFrom("books").selectAll().where("id", "in", [1, 3]).orderBy("id").execute(),
  ],
  [
    "where or",
    (db) =>
      db.selectFrom("books").selectAll().where((eb) =>
        eb.or([eb("price", "is", null), eb("title", "like", "M%")])
      ).orderBy("id").execute(),
  ],
  [
    "where exists",
    (db) =>
      db.selectFrom("authors").selectAll().where((eb) =>
        eb.exists(eb.selectFrom("books").select("id").whereRef("author", "=", "authors.id"))
      ).orderBy("id").execute(),
  ],
  [
    "where any array",
    (db) =>
      db.selectFrom("books").select("id").where(kysely<boolean>`id = any(${[1, 2]}::int[])`)
        .orderBy("id").execute(),
  ],
  [
    "inner join",
    (db) =>
      db.selectFrom("books").innerJoin("authors", "authors.id", "books.author").select([
        "title",
        "name",
      ]).orderBy("books.id").execute(),
  ],
  [
    "left join",
    (db) =>
      db.selectFrom("authors").leftJoin("books", "authors.id", "books.author").select([
        "title",
        "name",
      ]).orderBy("authors.id").orderBy("books.id").execute(),
  ],
  [
    "lateral",
    (db) =>
      db.selectFrom("authors").innerJoinLateral(
        (eb) =>
          eb.selectFrom("books").select("title").whereRef("author", "=", "authors.id").orderBy("id")
            .limit(1).as("b"),
        (j) => j.onTrue(),
      ).select(["name", "title"]).orderBy("authors.id").execute(),
  ],
  [
    "group by",
    (db) =>
      db.selectFrom("books").select(["author", (eb) => eb.fn.countAll().as("n")]).groupBy("author")
        .orderBy("author").execute(),
  ],
  [
    "aggregates",
    (db) =>
      db.selectFrom("books").select((
        eb,
      ) => [
        eb.fn.sum("price").as("s"),
        eb.fn.avg("price").as("a"),
        eb.fn.max("title").as("m"),
        eb.fn.count("id").distinct().as("c"),
      ]).execute(),
  ],
  [
    "distinct on",
    (db) =>
      db.selectFrom("books").distinctOn("author").selectAll().orderBy("author").orderBy("id")
        .execute(),
  ],
  [
    "limit, offset",
    (db) => db.selectFrom("books").selectAll().orderBy("id", "desc").limit(1).offset(1).execute(),
  ],
  [
    "with",
    (db) =>
      db.with("w", (q) => q.selectFrom("books").selectAll().where("author", "=", 1)).selectFrom("w")
        .selectAll().orderBy("id").execute(),
  ],
  [
    "with recursive",
    (db) =>
      db.withRecursive("r(n)", (q) =>
        q.selectNoFrom(kysely<number>`1`.as("n")).unionAll(
          q.selectFrom("r").select(kysely<number>`n + 1`.as("n")).where("n", "<", 3),
        )).selectFrom("r").selectAll().execute(),
  ],
  [
    "union",
    (db) =>
      db.selectFrom("authors").select("id").union(db.selectFrom("books").select("id")).orderBy("id")
        .execute(),
  ],
  [
    "case",
    (db) =>
      db.selectFrom("books").select((eb) =>
        eb.case().when("price", ">", 10).then("dear").else("cheap").end().as("c")
      ).orderBy("id").execute(),
  ],
  [
    "for update",
    (db) =>
      db.transaction().execute((tx) =>
        tx.selectFrom("books").selectAll().where("id", "=", 1).forUpdate().execute()
      ),
  ],
  ["no from", (db) => db.selectNoFrom(kysely<number>`1 + 1`.as("x")).execute()],
  ["raw", (db) => kysely`select ${1}::int as a, ${"x"}::text as b, ${null}::text as c`.execute(db)],
  [
    "raw dates",
    (db) =>
      kysely`select '2024-01-02'::date as d, '2024-01-02 03:04:05Z'::timestamptz as tz, 12345678901::bigint as b, 1.5::numeric as n`
        .execute(db),
  ],
  [
    "raw ref, lit",
    (db) =>
      kysely`select ${kysely.ref("name")}, ${kysely.lit("x")} as l from ${
        kysely.table("authors")
      } order by id`.execute(db),
  ],
  ["raw bad", (db) => kysely`selec 1`.execute(db)],
  ["raw missing table", (db) => kysely`select * from nowhere`.execute(db)],
  ["insert", (db) => db.insertInto("authors").values({ name: "Dee" }).execute()],
  ["insert first", (db) => db.insertInto("authors").values({ name: "Eve" }).executeTakeFirst()],
  [
    "insert returning",
    (db) =>
      db.insertInto("authors").values({ name: "Fay", born: "2000-02-29" }).returningAll().execute(),
  ],
  [
    "insert many",
    (db) =>
      db.insertInto("books").values([{ author: 3, title: "a", price: 1.5 }, {
        author: 3,
        title: "b",
        price: null,
      }]).returning("id").execute(),
  ],
  ["insert default", (db) => db.insertInto("kinds").defaultValues().returning("id").execute()],
  ["insert conflict", (db) => db.insertInto("authors").values({ name: "Ada" }).execute()],
  [
    "insert foreign key",
    (db) => db.insertInto("books").values({ author: 999, title: "x" }).execute(),
  ],
  [
    "on conflict nothing",
    (db) =>
      db.insertInto("authors").values({ name: "Ada" }).onConflict((oc) => oc.doNothing())
        .executeTakeFirst(),
  ],
  [
    "on conflict update",
    (db) =>
      db.insertInto("authors").values({ name: "Ada" }).onConflict((oc) =>
        oc.column("name").doUpdateSet({ mentor: 2 })
      ).returningAll().execute(),
  ],
  [
    "insert from",
    (db) =>
      db.insertInto("books").columns(["author", "title"]).expression((eb) =>
        eb.selectFrom("authors").select(["id", "name"]).where("id", "=", 1)
      ).returning("title").execute(),
  ],
  [
    "insert kinds",
    (db) =>
      db.insertInto("kinds").values({
        i: 1,
        b: "12345678901",
        d: 1.5,
        n: "1.10",
        t: "x",
        bo: true,
        da: moment,
        tz: moment,
        j: JSON.stringify({ a: 1 }),
        jb: JSON.stringify([1]),
        ia: [1, 2],
        ta: ["a", 'b"c'],
      }).returning(["i", "b", "d", "n", "t", "bo", "tz", "j", "jb", "ia", "ta"]).execute(),
  ],
  ["select kinds", (db) => db.selectFrom("kinds").selectAll().orderBy("id").execute()],
  [
    "where timestamp",
    (db) => db.selectFrom("kinds").select("id").where("tz", "=", moment).execute(),
  ],
  ["update", (db) => db.updateTable("books").set({ sold: true }).where("author", "=", 1).execute()],
  [
    "update first",
    (db) => db.updateTable("books").set({ sold: true }).where("id", "=", 1).executeTakeFirst(),
  ],
  [
    "update returning",
    (db) =>
      db.updateTable("books").set((eb) => ({ price: eb("price", "+", 1) })).where("id", "=", 1)
        .returningAll().execute(),
  ],
  [
    "update from",
    (db) =>
      db.updateTable("books").from("authors").set((eb) => ({ title: eb.ref("authors.name") }))
        .whereRef("authors.id", "=", "books.author").where("books.id", "=", 3).returning("title")
        .execute(),
  ],
  ["delete", (db) => db.deleteFrom("books").where("title", "=", "b").execute()],
  [
    "delete returning",
    (db) => db.deleteFrom("books").where("title", "=", "a").returning("title").execute(),
  ],
  [
    "delete using",
    (db) =>
      db.deleteFrom("books").using("authors").whereRef("authors.id", "=", "books.author").where(
        "authors.name",
        "=",
        "Nobody",
      ).executeTakeFirst(),
  ],
  [
    "merge",
    (db) =>
      db.mergeInto("books").using("authors", "authors.id", "books.author").whenMatchedAnd(
        "books.id",
        "=",
        2,
      ).thenUpdateSet({ title: "merged" }).executeTakeFirst(),
  ],
  ["explain", async (db) => (await db.selectFrom("books").selectAll().explain("json")).length],
  ["stream", (db) => all(db.selectFrom("books").selectAll().orderBy("id").stream(2))],
  ["stream left early", (db) => all(db.selectFrom("books").selectAll().orderBy("id").stream(1), 1)],
  [
    "stream of none",
    (db) => all(db.selectFrom("books").selectAll().where("id", "=", 999).stream()),
  ],
  ["stream bad", (db) => all(db.selectFrom("nowhere").selectAll().stream())],
  ["transaction", (db) =>
    db.transaction().execute(async (tx) => {
      await tx.insertInto("authors").values({ name: "Gil" }).execute();
      return await tx.selectFrom("authors").select("name").where("name", "=", "Gil").execute();
    })],
  ["transaction undone", (db) =>
    db.transaction().execute(async (tx) => {
      await tx.insertInto("authors").values({ name: "Hal" }).execute();
      throw undo;
    })],
  [
    "transaction read only",
    (db) =>
      db.transaction().setAccessMode("read only").execute((tx) =>
        tx.insertInto("authors").values({ name: "Kim" }).execute()
      ),
  ],
  [
    "transaction isolation",
    (db) =>
      db.transaction().setIsolationLevel("serializable").execute((tx) =>
        kysely`show transaction_isolation`.execute(tx)
      ),
  ],
  [
    "transaction stream",
    (db) =>
      db.transaction().execute((tx) =>
        all(tx.selectFrom("books").select("id").orderBy("id").stream(1))
      ),
  ],
  ["controlled transaction", async (db) => {
    const tx = await db.startTransaction().execute();
    await tx.insertInto("authors").values({ name: "Ian" }).execute();
    const saved = await tx.savepoint("one").execute();
    await saved.insertInto("authors").values({ name: "Jan" }).execute();
    await saved.rollbackToSavepoint("one").execute();
    await tx.commit().execute();
    return [tx.isCommitted, tx.isRolledBack];
  }],
  ["controlled transaction undone", async (db) => {
    const tx = await db.startTransaction().execute();
    await tx.insertInto("authors").values({ name: "Lou" }).execute();
    await tx.rollback().execute();
    return tx.isRolledBack;
  }],
  ["connection", (db) =>
    db.connection().execute(async (one) => {
      await kysely`set local statement_timeout = 1000`.execute(one);
      return await one.selectFrom("authors").select("name").where("id", "=", 1).execute();
    })],
  ["one connection keeps its session", (db) =>
    db.connection().execute(async (one) => {
      const pid = async () =>
        (await kysely<{ p: number }>`select pg_backend_pid() as p`.execute(one)).rows[0]!.p;
      return await pid() === await pid();
    })],
  ["schema", async (db) => {
    await db.schema.createTable("made").addColumn("id", "serial", (c) => c.primaryKey()).addColumn(
      "n",
      "integer",
      (c) => c.notNull().defaultTo(7),
    ).execute();
    await db.schema.createIndex("made_n").on("made").column("n").execute();
    await db.schema.alterTable("made").addColumn("t", "text").execute();
    const rows = await db.insertInto("made").values({ t: "x" }).returningAll().execute();
    await db.schema.dropTable("made").execute();
    return rows;
  }],
  ["create twice", (db) => db.schema.createTable("books").addColumn("id", "integer").execute()],
  [
    "introspection",
    async (db) =>
      (await db.introspection.getTables()).filter(({ name }) => name === "books").length > 0,
  ],
  [
    "at once",
    (db) =>
      Promise.all(
        [1, 2, 3, 4, 5].map((id) =>
          db.selectFrom("authors").selectAll().where("id", "=", id).execute()
        ),
      ),
  ],
  ["what has stayed", (db) => db.selectFrom("authors").select("name").orderBy("id").execute()],
];

test("kysely: each call gives what it gives on the driver's client", () =>
  compare(TABLES, kyselied, KYSELY));
