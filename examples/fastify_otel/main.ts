/** A shop on Fastify, whose requests and statements are traced together: `node main.ts` */

import { instrument, PoolError, SimpleConnectionPool } from "@getconn/pool";
import Fastify from "fastify";
import process from "node:process";
import { flush, meterProvider, traceRequests, tracerProvider } from "./telemetry.ts";

const pool = new SimpleConnectionPool(0, 10, process.env["DATABASE_URL"], {
  pool: { name: "shop", timeout: 5_000 },
});
instrument(pool, { tracerProvider, meterProvider, spans: true });

const app = Fastify({ forceCloseConnections: "idle" });
traceRequests(app);

const id = { type: "integer", minimum: 1, maximum: 2_147_483_647 };
const schema = {
  params: { type: "object", properties: { id }, required: ["id"] },
};
app.get<{ Params: { id: number } }>("/orders/:id", { schema }, async (request, reply) => {
  const [order] = await pool.sql`select id, item from orders where id = ${request.params.id}`;
  return order ?? reply.code(404).send({ error: "no such order" });
});

const body = {
  type: "object",
  properties: { item: { type: "string", minLength: 1, maxLength: 100 } },
  required: ["item"],
};
app.post<{ Body: { item: string } }>("/orders", { schema: { body } }, async (request, reply) => {
  const order = await pool.transaction(async (conn) => {
    const [row] = await conn`insert into orders (item) values (${request.body.item}) returning id`;
    await conn`insert into events (what, id) values ('ordered', ${row!["id"]})`;
    return row;
  });
  return reply.code(201).send(order);
});

app.setErrorHandler((error: Error & { statusCode?: number }, _request, reply) => {
  const status = error.statusCode ?? (error instanceof PoolError ? 503 : 500);
  if (status >= 500) console.error(error);
  return reply.code(status).send({ error: status >= 500 ? "try again later" : error.message });
});

await app.listen({ port: Number(process.env["PORT"] ?? 8000), host: "0.0.0.0" });
pool.closeOn({
  before: async () => {
    await app.close();
    await flush();
  },
});
