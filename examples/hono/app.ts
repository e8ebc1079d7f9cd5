/**
 * A bank as a Hono app with Drizzle: each request is one transaction. It is committed before the answer
 * goes out, and rolled back when the answer is an error.
 *
 * @module
 */
import { PoolError, type SimpleConnectionPool } from "@getconn/pool";
import { asc, eq, inArray, sql, TransactionRollbackError } from "drizzle-orm";
import { bigint, check, pgTable, text } from "drizzle-orm/pg-core";
import { drizzle, type PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { Hono } from "hono";
import { createMiddleware } from "hono/factory";
import { HTTPException } from "hono/http-exception";

/** As in the database. */
export const accounts = pgTable("accounts", {
  id: bigint({ mode: "number" }).primaryKey(),
  owner: text().notNull(),
  balance: bigint({ mode: "number" }).notNull(),
}, ({ balance }) => [check("accounts_balance_check", sql`${balance} >= 0`)]);

type Transaction = Parameters<Parameters<PostgresJsDatabase["transaction"]>[0]>[0];
type Env = { Variables: { tx: Transaction } };

/** Puts `tx` into the context: read only for GET and HEAD. */
function transaction(db: PostgresJsDatabase) {
  return createMiddleware<Env>(async (c, next) => {
    const reads = c.req.method === "GET" || c.req.method === "HEAD";
    try {
      await db.transaction(async (tx) => {
        c.set("tx", tx);
        // What a handler throws does not come out of here: Hono has made it the answer.
        await next();
        if (c.error !== undefined || c.res.status >= 400) tx.rollback();
      }, reads ? { accessMode: "read only" } : undefined);
    } catch (error) {
      if (!(error instanceof TransactionRollbackError)) throw error;
    }
  });
}

function integer(value: unknown, name: string): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value > 0) return value;
  throw new HTTPException(400, { message: `${name} must be a whole number above 0` });
}

/** The app on a pool, for whatever serves it. */
export function createApp(pool: SimpleConnectionPool): Hono<Env> {
  const app = new Hono<Env>();
  app.use(transaction(drizzle(pool.sql)));

  app.get("/accounts/:id", async (c) => {
    const id = integer(Number(c.req.param("id")), "id");
    const [account] = await c.var.tx.select().from(accounts).where(eq(accounts.id, id));
    return account === undefined ? c.json({ error: "no such account" }, 404) : c.json(account);
  });

  app.post("/transfers", async (c) => {
    const body = await c.req.json().catch(() => null);
    const [from, to] = [integer(body?.from, "from"), integer(body?.to, "to")];
    const amount = integer(body?.amount, "amount");
    if (from === to) throw new HTTPException(400, { message: "from and to are the same" });
    const { tx } = c.var;
    // In the order of their ids, so that two transfers never wait for each other.
    const both = await tx.select().from(accounts).where(inArray(accounts.id, [from, to]))
      .orderBy(asc(accounts.id)).for("update");
    if (both.length < 2) return c.json({ error: "no such account" }, 404);
    const move = (id: number, by: number) =>
      tx.update(accounts).set({ balance: sql`${accounts.balance} + ${by}` })
        .where(eq(accounts.id, id)).returning();
    const [target] = await move(to, amount);
    // It may come to less than nothing here: the answer is an error, so nothing of it stays.
    if (both.find(({ id }) => id === from)!.balance < amount) {
      return c.json({ error: "not enough money" }, 409);
    }
    const [source] = await move(from, -amount);
    return c.json({ from: source, to: target });
  });

  app.onError((error, c) => {
    if (error instanceof HTTPException) return c.json({ error: error.message }, error.status);
    console.error(error);
    // Drizzle gives the error of a statement as the cause of its own.
    const busy = error instanceof PoolError || error.cause instanceof PoolError;
    return c.json({ error: busy ? "try again later" : "internal error" }, busy ? 503 : 500);
  });
  return app;
}
