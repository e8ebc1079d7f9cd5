/** What takes a client of the driver takes `pool.sql`: Drizzle, Kysely. */

import { assertEquals, assertRejects } from "@std/assert";
import { SimpleConnectionPool } from "@getconn/pool";
import { eq, relations, sql as raw } from "drizzle-orm";
import {
  date,
  integer,
  jsonb,
  numeric,
  pgTable,
  serial,
  text,
  timestamp,
} from "drizzle-orm/pg-core";
import { drizzle } from "drizzle-orm/postgres-js";
import { type Generated, Kysely } from "kysely";
import { PostgresJSDialect } from "kysely-postgres-js";
import { test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";
import { uniqueName } from "./support/sql.ts";

async function withPool(fn: (pool: SimpleConnectionPool) => Promise<void>): Promise<void> {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 3, url, { onnotice: () => {} });
  await fn(pool);
}

test("drizzle: schema, relational query, transaction, dates", () =>
  withPool(async (pool) => {
    // As literals, for the types of relational queries go by them.
    const authorsName = uniqueName("authors") as "authors";
    const booksName = uniqueName("books") as "books";
    const authors = pgTable(authorsName, {
      id: serial().primaryKey(),
      name: text().notNull(),
      born: date(),
      seen: timestamp({ withTimezone: true }),
      tags: text().array(),
      extra: jsonb().$type<{ a: number[] }>(),
    });
    const books = pgTable(booksName, {
      id: serial().primaryKey(),
      author: integer().notNull(),
      title: text().notNull(),
      price: numeric(),
    });
    const schema = {
      authors,
      books,
      authorsRelations: relations(authors, ({ many }) => ({ books: many(books) })),
      booksRelations: relations(books, ({ one }) => ({
        writer: one(authors, { fields: [books.author], references: [authors.id] }),
      })),
    };
    const db = drizzle(pool.sql, { schema });
    await pool.sql.unsafe(`
      create table ${authorsName} (id serial primary key, name text not null, born date,
        seen timestamptz, tags text[], extra jsonb);
      create table ${booksName} (id serial primary key, author int not null, title text not null,
        price numeric)`);
    try {
      const seen = new Date("2024-05-06T07:08:09.010Z");
      const [author] = await db.insert(authors).values({
        name: "Ada",
        born: "1815-12-10",
        seen,
        tags: ["x", 'y"'],
        extra: { a: [1] },
      }).returning();
      assertEquals(author, {
        id: 1,
        name: "Ada",
        born: "1815-12-10",
        seen,
        tags: ["x", 'y"'],
        extra: { a: [1] },
      });
      await Promise.all([1, 2, 3].map((n) =>
        db.insert(books).values({ author: 1, title: `book ${n}`, price: `${n}.25` })
      ));
      await assertRejects(
        () =>
          db.transaction(async (tx) => {
            await tx.insert(books).values({ author: 1, title: "never" });
            await tx.transaction(async (inner) => {
              await inner.update(authors).set({ name: "Eve" }).where(eq(authors.id, 1));
            });
            tx.rollback();
          }),
      );
      await db.transaction(async (tx) => {
        await tx.update(books).set({ price: "9.75" }).where(eq(books.title, "book 3"));
      }, { isolationLevel: "serializable" });
      const found = await db.query.authors.findFirst({
        with: { books: { columns: { title: true, price: true }, orderBy: books.id } },
        columns: { name: true },
      });
      assertEquals(found?.name, "Ada");
      assertEquals(
        found?.books.map(({ price }) =>
          price
        ).sort(),
        ["1.25", "2.25", "9.75"],
      );
      const [total] = await db.execute(raw`select count(*)::int as n from ${books}`);
      assertEquals(total, { n: 3 });
      const many = await Promise.all(
        Array.from({ length: 40 }, () => db.select({ id: books.id }).from(books)),
      );
      assertEquals(many.every((rows) => rows.length === 3), true);
    } finally {
      await pool.sql.unsafe(`drop table ${authorsName}, ${booksName}`);
    }
    const { leased, shared, requestsWaiting } = pool.stats();
    assertEquals({ leased, shared, requestsWaiting }, { leased: 0, shared: 0, requestsWaiting: 0 });
  }));

test("kysely: query, transaction, streaming", async () => {
  const { url } = await testServer();
  const pool = new SimpleConnectionPool(0, 3, url);
  const name = uniqueName("numbers");
  interface Database {
    [table: string]: { id: Generated<number>; n: number };
  }
  const db = new Kysely<Database>({ dialect: new PostgresJSDialect({ postgres: pool.sql }) });
  await db.schema.createTable(name).addColumn("id", "serial", (c) => c.primaryKey())
    .addColumn("n", "integer").execute();
  try {
    await db.insertInto(name).values(Array.from({ length: 100 }, (_, n) => ({ n }))).execute();
    await assertRejects(() =>
      db.transaction().execute(async (tx) => {
        await tx.deleteFrom(name).execute();
        throw new Error("undo");
      })
    );
    await db.transaction().setIsolationLevel("serializable").execute(async (tx) => {
      await tx.insertInto(name).values({ n: 100 }).execute();
    });
    const { sum } = await db.selectFrom(name).select(({ fn }) => fn.sum<string>("n").as("sum"))
      .executeTakeFirstOrThrow();
    assertEquals(sum, "5050");
    let streamed = 0;
    for await (const { n } of db.selectFrom(name).selectAll().stream(10)) streamed += n;
    assertEquals(streamed, 5050);
    for await (const _ of db.selectFrom(name).selectAll().stream(10)) break;
    const many = await Promise.all(
      Array.from(
        { length: 20 },
        (_, n) => db.selectFrom(name).where("n", "=", n).selectAll().execute(),
      ),
    );
    assertEquals(many.map(([row]) => row?.n), many.map((_, n) => n));
  } finally {
    await db.schema.dropTable(name).execute();
    assertEquals(pool.stats().leased, 0);
    // Ends its client, which is the pool.
    await db.destroy();
  }
  assertEquals([pool.closed, pool.stats().poolSize], [true, 0]);
});

test("what drizzle changes in the options holds for its pool, leases too, and for no other pool", async () => {
  const { url } = await testServer();
  await using pool = new SimpleConnectionPool(0, 2, url);
  await using other = new SimpleConnectionPool(0, 2, url);
  const moment = "select '2024-01-02 03:04:05Z'::timestamptz as at";
  const typesOf = (one: SimpleConnectionPool) =>
    Promise.all([
      one.sql.unsafe(moment),
      one.sql.begin((tx) => tx.unsafe(moment)),
      one.use((conn) => conn.unsafe(moment)),
    ]).then((all) => all.map(([row]) => typeof row!["at"]));
  assertEquals(await typesOf(pool), ["object", "object", "object"]);
  drizzle(pool.sql);
  assertEquals(await typesOf(pool), ["string", "string", "string"]);
  assertEquals(await typesOf(other), ["object", "object", "object"]);
});
