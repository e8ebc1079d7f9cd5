/** Where a soak plays: primary and standby, PgBouncer, proxies before all of them, and the pools. */

import process from "node:process";
import { type PostgresServer, startPostgres } from "../support/embedded_postgres.ts";
import {
  PersistentConnectionPool,
  SimpleConnectionPool,
  ThreadedConnectionPool,
} from "../../mod.ts";
import { noPgBouncer, type PgBouncer, startPgBouncer } from "../support/pgbouncer.ts";
import { type FaultProxy, startProxy } from "../support/proxy.ts";
import { eventually } from "../support/server.ts";
import { Admin } from "./admin.ts";
import { type Arena, arenaOf, CAPS, type PoolName } from "./arena.ts";
import type { Fleet } from "./fleet.ts";
import type { Journal } from "./journal.ts";

/** Where the pools' users log in: no superuser, so that limits hold for it. */
const USER = "soaker";
/** PgBouncer's own sessions, by its mode. */
const BOUNCED = { session: CAPS.session, transaction: 2 };

/** The way of one pool to its servers. */
export interface Net {
  readonly name: PoolName;
  readonly proxies: readonly FaultProxy[];
}

/** What faults act on. */
export interface Stage {
  /** The one that takes writes. */
  server: PostgresServer;
  /** The one that will after the failover. */
  standby: PostgresServer | null;
  readonly admin: Admin;
  readonly nets: readonly Net[];
  readonly bouncers: readonly PgBouncer[];
  /** The pools in the main isolate. */
  readonly arenas: readonly Arena[];
  fleet?: Fleet;
  readonly journal: Journal;
}

/** What a pool connects with. */
export interface Login {
  readonly secret: string;
  readonly scope: "worker" | "context";
}

/** A primary whose commits are acknowledged when the standby has them. */
async function startServers(
  stack: AsyncDisposableStack,
): Promise<{ server: PostgresServer; standby: PostgresServer }> {
  const config = {
    max_connections: 100,
    synchronous_commit: "on",
    // A statement of a worker that is terminated ends with it.
    client_connection_check_interval: 100,
    wal_retrieve_retry_interval: 200,
  };
  const server = stack.use(await startPostgres({ config }));
  await server.stop("fast");
  const standby = stack.use(await startPostgres({ standbyOf: server, config }));
  await server.start();
  return { server, standby };
}

async function prepare(admin: Admin, server: PostgresServer, secret: string): Promise<void> {
  await admin.rows(`create role ${USER} login password '${secret}'`);
  // No key: a row that is there twice shall be seen, not refused.
  await admin.rows("create table ledger (id int)");
  await admin.rows(`grant all on ledger to ${USER}`);
  await server.reload({ synchronous_standby_names: "standby" });
  await eventually(async () => {
    const [row] = await admin.rows("select sync_state from pg_stat_replication");
    if (row?.["sync_state"] !== "sync") throw new Error("the standby does not follow");
  }, { timeout: 20_000 });
}

/** The server's URL for the pools. */
function loginUrl(server: PostgresServer, secret: string): string {
  const url = new URL(server.url);
  url.username = USER;
  url.password = secret;
  return url.href;
}

const TIMES = { timeout: 5_000, maxIdle: 400, maxLifetime: 4_000, checkAfter: 100 };

/** Starts everything; `stack` ends it. */
export async function setUp(
  stack: AsyncDisposableStack,
  journal: Journal,
  login: Login,
): Promise<Stage> {
  const { server, standby } = await startServers(stack);
  const admin = new Admin(server.url);
  stack.defer(() => admin.end());
  await prepare(admin, server, login.secret);
  const nets: Net[] = [];
  const arenas: Arena[] = [];
  const stage: Stage = { server, standby, admin, nets, bouncers: [], arenas, journal };
  for (const name of ["threaded", "persistent", "simple"] as const) {
    const proxies = [await startProxy(server.url), await startProxy(standby.url)];
    for (const proxy of proxies) stack.use(proxy);
    nets.push({ name, proxies });
    arenas.push(arenaOf(name, directPool(name, proxies, login), journal, login.scope));
  }
  if (canBounce()) await addBouncers(stack, stage, login);
  return stage;
}

function directPool(
  name: "threaded" | "persistent" | "simple",
  proxies: readonly FaultProxy[],
  { secret, scope }: Login,
): ThreadedConnectionPool | PersistentConnectionPool | SimpleConnectionPool {
  const options = {
    host: proxies.map(({ host, port }) => `${host}:${port}`),
    user: USER,
    password: secret,
    database: "postgres",
    target_session_attrs: "read-write" as const,
    connect_timeout: 2,
    onnotice: () => {},
    connection: { application_name: `soak ${name} main` },
    pool: { name, ...TIMES },
  };
  if (name === "threaded") return new ThreadedConnectionPool(2, CAPS.threaded, options);
  if (name === "persistent") {
    const pool = { ...options.pool, scope };
    return new PersistentConnectionPool(1, CAPS.persistent, { ...options, pool });
  }
  // The server's patience, as a pool's option.
  const patience = { statement_timeout: 4_000, idle_in_transaction_session_timeout: 1_500 };
  const connection = { ...options.connection, ...patience };
  return new SimpleConnectionPool(2, CAPS.simple, { ...options, connection });
}

function canBounce(): boolean {
  if (noPgBouncer === false) return true;
  if (process.env["GETCONN_NO_SKIP"]) {
    throw new Error(`the soak would skip PgBouncer where nothing may be skipped: ${noPgBouncer}`);
  }
  console.log(`SKIPPED: the pools over PgBouncer and its restarts: ${noPgBouncer}`);
  return false;
}

async function addBouncers(stack: AsyncDisposableStack, stage: Stage, login: Login): Promise<void> {
  for (const mode of ["session", "transaction"] as const) {
    const url = loginUrl(stage.server, login.secret);
    // Who waits for a session of PgBouncer's hears of it before our own limits are over.
    const more = { query_wait_timeout: 4 };
    const bouncer = stack.use(await startPgBouncer(mode, BOUNCED[mode], more, url));
    const proxy = stack.use(await startProxy(bouncer.url));
    (stage.bouncers as PgBouncer[]).push(bouncer);
    (stage.nets as Net[]).push({ name: mode, proxies: [proxy] });
    const pool = new SimpleConnectionPool(1, CAPS[mode], proxy.url(bouncer.url), {
      ...(mode === "transaction" ? { prepare: false } : {}),
      connect_timeout: 2,
      onnotice: () => {},
      connection: { application_name: `soak ${mode} main` },
      pool: { name: mode, ...TIMES },
    });
    (stage.arenas as Arena[]).push(arenaOf(mode, pool, stage.journal, login.scope));
  }
}

/** The primary dies under load, the standby is promoted, and PgBouncer is told. */
export async function failOver(stage: Stage, secret: string): Promise<void> {
  const { admin, standby } = stage;
  if (standby === null) return;
  await caughtUp(admin);
  await stage.server.stop("immediate");
  await admin.moveTo(standby.url);
  await admin.rows("select pg_promote()");
  stage.server = standby;
  stage.standby = null;
  for (const bouncer of stage.bouncers) {
    await bouncer.stop();
    await bouncer.target(loginUrl(standby, secret));
    await bouncer.start();
  }
}

/**
 * A commit whose wait for the standby was cancelled is acknowledged without it, as PostgreSQL warns. From
 * here on nothing cancels, and what was acknowledged before is there when this resolves.
 */
async function caughtUp(admin: Admin): Promise<void> {
  const [now] = await admin.rows("select pg_current_wal_flush_lsn()::text as lsn");
  await eventually(async () => {
    const [row] = await admin.rows(
      "select flush_lsn >= $1::pg_lsn and sync_state = 'sync' as there from pg_stat_replication",
      now!["lsn"],
    );
    if (row?.["there"] !== true) throw new Error("the standby does not catch up");
  }, { timeout: 20_000 });
}
