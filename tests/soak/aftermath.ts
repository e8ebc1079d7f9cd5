/** What must hold when the storm is over. */

import type { Connection } from "../../mod.ts";
import { textOf } from "../support/faults.ts";
import type { Arena } from "./arena.ts";
import { openSessions, sessionsOf } from "./cap.ts";
import { collect, measure, type Size, socketsTo, type Timers } from "./growth.ts";
import { Fate } from "./journal.ts";
import type { Stage } from "./stage.ts";
import type { Witness } from "./witness.ts";
import { pause } from "./works.ts";

/** Looks again and again until nothing is wrong any more; false, and a violation, when something is after `patience`. */
async function eventually(
  witness: Witness,
  wrong: () => string | null | Promise<string | null>,
  patience = 15_000,
): Promise<boolean> {
  for (const end = performance.now() + patience;;) {
    const what = await Promise.resolve().then(wrong).catch((error) => textOf(error));
    if (what === null) return true;
    if (performance.now() > end) {
      witness.violated(`at the end: ${what}`);
      return false;
    }
    await pause(20);
  }
}

/** Everything comes back, everything can be lent, and the books are right. */
export async function aftermath(stage: Stage, witness: Witness, calm: Size): Promise<void> {
  for (const arena of stage.arenas) {
    const fine = await eventually(witness, () => {
      // Leases that were forgotten come back when they are garbage.
      collect();
      const { requestsWaiting, leased, shared, closing } = arena.stats();
      if (requestsWaiting + leased + shared + closing === 0) return null;
      const missed = witness.missed.join("; ");
      return `left over in ${arena.name}: ${JSON.stringify(arena.stats())}; forgotten: ${missed}`;
    });
    if (!fine) { for (const text of await stage.fleet!.lists("leases")) console.error(text); }
    await lendAll(arena, witness).catch((error) =>
      witness.violated(`${arena.name} at the end: ${textOf(error)}`)
    );
  }
  compare(calm, measure(), witness);
  await audit(stage, witness);
}

/** maxconn connections at once, each alive and one of its own. */
async function lendAll(arena: Arena, witness: Witness): Promise<void> {
  const count = arena.keys || arena.tasks > 1 ? arena.cap : 1;
  const gate = Promise.withResolvers<void>();
  const pids = new Set<number>();
  let lent = 0;
  const lease = async (): Promise<void> => {
    const conn: Connection = await arena.lend(null, { timeout: 8_000 });
    try {
      // With PgBouncer's transaction mode all are served, but not each by a session of its own.
      const [row] = await conn<{ pid: number }[]>`select pg_backend_pid() as pid`;
      pids.add(row!.pid);
      if (++lent === count) gate.resolve();
      await gate.promise;
    } finally {
      await arena.giveBack(conn, null, false);
    }
  };
  const leases = Array.from({ length: count }, () =>
    arena.within(lease).catch((error) => {
      gate.resolve();
      throw error;
    }));
  const failed = (await Promise.allSettled(leases)).filter(({ status }) => status === "rejected");
  for (const { reason } of failed as PromiseRejectedResult[]) {
    const stats = JSON.stringify(arena.stats());
    witness.violated(`${arena.name} cannot lend ${count} at the end: ${textOf(reason)} ${stats}`);
  }
  if (arena.sessions && failed.length === 0 && pids.size !== count) {
    witness.violated(`${arena.name} lent ${pids.size} sessions to ${count} borrowers at the end`);
  }
}

/** What was acknowledged is there once, what was abandoned is not. */
async function audit({ admin, journal }: Stage, witness: Witness): Promise<void> {
  const rows = await admin.rows<{ id: number; times: number }>(
    "select id, count(*)::int as times from ledger group by id",
  );
  const there = new Set(rows.map(({ id }) => id));
  const lost = [...journal.rows(Fate.acknowledged)].filter((id) => !there.has(id));
  if (lost.length > 0) {
    witness.violated(`${lost.length} acknowledged commits are lost, such as row ${lost[0]}`);
  }
  const twice = rows.filter(({ times }) => times > 1);
  if (twice.length > 0) witness.violated(`${twice.length} rows are there more than once`);
  const undead = rows.filter(({ id }) => journal.fate(id) === Fate.undone);
  if (undead.length > 0) witness.violated(`${undead.length} abandoned transactions were committed`);
  const [forgotten, recovered] = [journal.total("forgotten"), journal.total("recovered")];
  // A session that was killed, or a worker that ended, took its lease along.
  if (forgotten > 20 && recovered === 0) {
    witness.violated(`${forgotten} leases were forgotten, and none was reported as a leak`);
  }
}

function compare(before: Size, after: Size, witness: Witness): void {
  const grown = after.heap - before.heap;
  console.log(
    `heap: ${before.heap.toFixed(1)} MiB, then ${grown.toFixed(1)} more; ` +
      `open files: ${before.files}, then ${after.files}`,
  );
  if (grown > 20) witness.violated(`the heap has grown by ${grown.toFixed(1)} MiB`);
  if (after.files > before.files + 60) {
    witness.violated(`open files: ${before.files}, then ${after.files}`);
  }
}

/** Closes all pools; nothing of theirs may be left, here, in the workers, and at the server. */
export async function closeAll(stage: Stage, witness: Witness, timers: Timers): Promise<void> {
  const { arenas, admin, nets, fleet } = stage;
  await Promise.all(arenas.map(async ({ name, pool }) => {
    const begun = performance.now();
    await pool.closeall().catch((error) => witness.violated(`closeall of ${name}: ${error}`));
    const took = performance.now() - begun;
    if (took > 5_000) witness.violated(`closeall of ${name} took ${Math.round(took)} ms`);
  }));
  await eventually(witness, () => {
    const sockets = socketsTo() ?? new Map();
    const left = nets.flatMap((net) =>
      openSessions(net, sockets).map((one) => `${net.name} ${one}`)
    );
    return left.length > 0 ? `sockets are left: ${left.join(", ")}` : null;
  });
  await eventually(witness, async () => {
    // PgBouncer keeps what it has.
    const rows = (await sessionsOf(admin)).filter(({ name }) => !/session|transaction/.test(name));
    return rows.length > 0 ? `sessions are left: ${JSON.stringify(rows)}` : null;
  });
  await eventually(witness, async () => {
    const left = [...timers.left, ...await fleet!.lists("left")];
    return left.length > 0 ? `timers are left: ${left.join("; ")}` : null;
  }, 6_000);
}
