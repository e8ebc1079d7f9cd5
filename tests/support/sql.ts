/** One test for two clients: the driver's own, and `pool.sql`, which must not differ. */

import { subscribe } from "node:diagnostics_channel";
import type { Socket } from "node:net";
import postgres from "postgres";
import { type PostgresOptions, SimpleConnectionPool } from "@getconn/pool";
import { runner, test } from "./harness.ts";
import { testServer } from "./server.ts";

/** What the driver is given; the pool's own options where they matter. */
export type ClientOptions = PostgresOptions & { readonly max?: number };

/** Makes a client; it is ended after the test. */
export type MakeSql = (options?: ClientOptions) => postgres.Sql;

/** Registers a test twice: with the driver's client and with the pool's. */
export function both(name: string, fn: (make: MakeSql) => Promise<void>): void {
  test(`postgres.js: ${name}`, () => withClients(bare, fn));
  test(`pool.sql: ${name}`, () => withClients(pooled, fn));
}

interface Client {
  readonly sql: postgres.Sql;
  end(): Promise<unknown>;
}

async function withClients(
  make: (url: string, options: ClientOptions) => Client,
  fn: (make: MakeSql) => Promise<void>,
): Promise<void> {
  const { url } = await testServer();
  const clients: Client[] = [];
  try {
    await fn((options = {}) => {
      const client = make(url, { onnotice: () => {}, ...options });
      clients.push(client);
      return client.sql;
    });
  } finally {
    await Promise.all(clients.map((client) => client.end()));
    for (const socket of ofDriver) socket.destroy();
    ofDriver.clear();
  }
}

/**
 * The driver's own client leaves sockets open when it is ended in the midst of work. Node would wait for them, where
 * that a file of tests ends by itself shows that nothing of ours is left.
 */
const ofDriver = new Set<Socket>();
if (runner === "node") {
  subscribe("net.client.socket", (message) => {
    const { socket } = message as { socket: Socket };
    if (/\/postgres\/src\/connection\.js/.test(new Error().stack ?? "")) ofDriver.add(socket);
  });
}

function bare(url: string, { pool: _, max = 4, ...options }: ClientOptions): Client {
  const sql = postgres(url, { max, max_lifetime: null, ...options } as postgres.Options<
    Record<string, postgres.PostgresType>
  >) as unknown as postgres.Sql;
  return { sql, end: () => sql.end({ timeout: 5 }) };
}

function pooled(url: string, { max = 4, ...options }: ClientOptions): Client {
  const pool = new SimpleConnectionPool(0, max, url, options);
  return { sql: pool.sql, end: () => pool.close({ timeout: 5_000 }) };
}

/** What a promise rejects with. */
export async function failure(promise: PromiseLike<unknown>): Promise<{
  code?: string;
  message: string;
  name: string;
  query?: string;
}> {
  try {
    await promise;
  } catch (error) {
    return error as Error;
  }
  throw new Error("it resolved");
}

/** A name that no other test uses. */
export function uniqueName(prefix: string): string {
  return `${prefix}_${crypto.randomUUID().replaceAll("-", "").slice(0, 12)}`;
}
