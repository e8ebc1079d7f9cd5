/**
 * A storm over a pool: `deno task soak [--minutes N] [--seed S] [--runtime bun]`.
 *
 * Many tasks use a pool on a real server in every way, while the server, the network and the process
 * itself fail at random. What must hold is watched throughout and at the end. The seed is printed; with
 * it the same faults come at the same times again.
 *
 * @module
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import postgres from "postgres";
import { startPostgres } from "../../examples/embedded_postgres.ts";
import { SimpleConnectionPool } from "../../mod.ts";
import { assertLendable, textOf } from "../_faults.ts";
import { startProxy } from "../_proxy.ts";
import { eventually } from "../_server.ts";
import { Dice } from "./dice.ts";
import { type Ground, task } from "./load.ts";
import { rounds, type Stage, strike } from "./storm.ts";
import { Witness } from "./witness.ts";

const MAXCONN = 8;
const TASKS = 24;
const SECRET = `secret-${crypto.randomUUID()}`;

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "1" },
    seed: { type: "string", default: String(Math.floor(Math.random() * 2 ** 31)) },
    runtime: { type: "string", default: "" },
  },
});

if (values.runtime === "bun" && !("Bun" in globalThis)) {
  const file = fileURLToPath(import.meta.url);
  const args = ["-y", "bun", file, "--minutes", values.minutes, "--seed", values.seed];
  const [code] = await once(spawn("npx", args, { stdio: "inherit" }), "close");
  process.exitCode = code as number;
} else await soak(Number(values.minutes), Number(values.seed));

/** One run; sets the exit code. */
async function soak(minutes: number, seed: number): Promise<void> {
  const runtime = "Bun" in globalThis ? "Bun" : "Deno";
  console.log(`soak on ${runtime}: ${minutes} minutes, --seed ${seed}`);
  const witness = new Witness(SECRET);
  for (const type of ["unhandledRejection", "uncaughtException"] as const) {
    process.on(type, (error: unknown) => witness.violated(`${type}: ${textOf(error)}`));
  }
  {
    await using server = await startPostgres({
      password: SECRET,
      config: { max_connections: 60, synchronous_commit: "on" },
    });
    await using proxy = await startProxy(server.url);
    const name = "soak";
    const pool = new SimpleConnectionPool(2, MAXCONN, proxy.url(server.url), {
      connection: { application_name: name },
      connect_timeout: 2,
      onnotice: () => {},
      pool: { name, timeout: 5_000, maxIdle: 400, maxLifetime: 4_000, checkAfter: 100 },
    });
    let client: postgres.Sql | undefined;
    const admin = (): postgres.Sql =>
      client ??= postgres(server.url, {
        max: 2,
        onnotice: () => {},
        max_lifetime: null,
        // The driver leaves the rejection of a catalog query that a restart hits unhandled.
        fetch_types: false,
      });
    await admin()`create table ledger (id int primary key)`;
    const stage: Stage = { server, proxy, pool, maxconn: MAXCONN, admin, name };
    await storm(stage, witness, minutes * 60_000, seed);
    // The driver's own pool does not get over every fault of a storm; what follows wants a sound client.
    await client?.end({ timeout: 0 });
    client = undefined;
    await aftermath(stage, witness);
    await pool.closeall().catch((error) => witness.violated(`closeall: ${error}`));
    await eventually(async () => {
      const left = await sessionsOf(stage);
      if (left > 0) throw new Error(`${left} sessions are left`);
    }).catch((error) => witness.violated(String(error)));
    await admin().end();
  }
  report(witness, seed);
  // Fires only when something is left that keeps the process alive.
  const alarm = setTimeout(() => {
    console.error("VIOLATION: the process does not end by itself");
    process.exit(1);
  }, 10_000) as unknown as { unref?: () => void };
  alarm.unref?.();
}

async function sessionsOf({ admin, name }: Stage): Promise<number> {
  const [row] = await admin()<{ count: number }[]>`
    select count(*)::int as count from pg_stat_activity where application_name = ${name}`;
  return row!.count;
}

async function storm(
  stage: Stage,
  witness: Witness,
  duration: number,
  seed: number,
): Promise<void> {
  const dice = new Dice(seed);
  let over = false;
  const ground: Ground = { pool: stage.pool, witness, stopped: () => over };
  const tasks = Array.from(
    { length: TASKS },
    (_, i) => task(`task ${i}`, ground, new Dice(seed + i + 1)),
  );
  const end = performance.now() + duration;
  let calm = { heap: 0, files: 0 };
  let number = 0;
  for (const round of rounds(dice)) {
    if (performance.now() > end) break;
    let sampling = round.sort === "server";
    const sampler = (async () => {
      while (sampling) {
        // The server may be away.
        await sessionsOf(stage).then((count) => witness.sampled(count, MAXCONN), () => {});
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    })();
    for (const fault of round.faults) {
      await strike(stage, fault).catch((error) => {
        // An admin's statement may be hit by its own restart.
        if (!/CONNECT|57P|ECONN/.test(String(error?.code))) {
          witness.violated(`${fault.kind} failed: ${error}`);
        }
      });
    }
    sampling = false;
    await sampler;
    if (round.sort === "network") await mend(stage);
    // The first rounds fill caches.
    if (++number === 4) calm = measure();
  }
  over = true;
  const late = setTimeout(() => witness.violated("a task does not end"), 30_000);
  await Promise.all(tasks);
  clearTimeout(late);
  if (calm.heap > 0) compare(calm, measure(), witness);
}

/** What a broken network has left at the server, maybe in the middle of a statement, is none of ours any more. */
async function mend({ proxy, admin, name }: Stage): Promise<void> {
  await proxy.set("pass");
  proxy.cut("reset");
  await admin()`select pg_terminate_backend(pid, 10000) from pg_stat_activity
    where application_name = ${name}`;
}

/** Everything can be lent again, and the books are right. */
async function aftermath(stage: Stage, witness: Witness): Promise<void> {
  const { pool, admin } = stage;
  await pool.resize(2, MAXCONN);
  await assertLendable(pool).catch((error) => witness.violated(`at the end: ${error}`));
  const rows = await admin()<{ id: number }[]>`select id from ledger`;
  const there = new Set(rows.map(({ id }) => id));
  const lost = witness.acknowledged.filter((id) => !there.has(id));
  if (lost.length > 0) witness.violated(`${lost.length} acknowledged commits are lost`);
  const undead = rows.filter(({ id }) => witness.undone.has(id));
  if (undead.length > 0) witness.violated(`${undead.length} abandoned transactions were committed`);
  const { requestsWaiting, leased, closing } = pool.stats();
  if (requestsWaiting + leased + closing > 0) {
    witness.violated(`left over: ${JSON.stringify(pool.stats())}`);
  }
}

function measure(): { heap: number; files: number } {
  const { gc, Bun } = globalThis as { gc?: () => void; Bun?: { gc(force: boolean): void } };
  gc?.();
  Bun?.gc(true);
  return {
    heap: process.memoryUsage().heapUsed,
    files: process.platform === "linux" ? readdirSync("/proc/self/fd").length : 0,
  };
}

function compare(
  before: { heap: number; files: number },
  after: { heap: number; files: number },
  witness: Witness,
): void {
  const grown = (after.heap - before.heap) / 2 ** 20;
  console.log(`heap: ${(before.heap / 2 ** 20).toFixed(1)} MiB, then ${grown.toFixed(1)} more`);
  // The ledger of the witness itself takes a part of it.
  if (grown > 30) witness.violated(`the heap has grown by ${grown.toFixed(1)} MiB`);
  if (after.files > before.files + MAXCONN * 4) {
    witness.violated(`open files: ${before.files}, then ${after.files}`);
  }
}

function report(witness: Witness, seed: number): void {
  const { leases, acknowledged, undone, samples, most, violations } = witness;
  console.log(
    `${leases} leases, ${acknowledged.length} commits acknowledged, ${undone.size} abandoned, ` +
      `${samples} samples with ${most} sessions at most, cap ${MAXCONN}`,
  );
  const failures = [...witness.failures].sort((a, b) => b[1] - a[1]);
  console.log(`failures seen: ${failures.map(([kind, n]) => `${kind} ${n}`).join(", ")}`);
  if (violations.length === 0) {
    console.log("soak: everything held");
    return;
  }
  console.log(`soak: ${violations.length} violations; again with --seed ${seed}`);
  process.exitCode = 1;
}
