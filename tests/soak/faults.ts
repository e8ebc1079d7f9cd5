/** What a soak does to its pools. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import process from "node:process";
import type { FaultProxy, ProxyMode } from "../support/proxy.ts";
import type { Ending } from "./fleet.ts";
import type { Stage } from "./stage.ts";
import { pause } from "./works.ts";

/** How long, and a number from 0 to 200 for whatever it needs one for. */
export interface Measure {
  readonly lasts: number;
  readonly size: number;
}

/** Makes one happen; resolves when it is over. */
export type Act = (stage: Stage, measure: Measure) => Promise<unknown>;

type Acts = Readonly<Record<string, Act>>;

/** One pool's proxies, or everybody's. */
function reached({ nets }: Stage, size: number): FaultProxy[] {
  const one = size % 4 === 3 ? undefined : nets[size % nets.length];
  return (one === undefined ? nets : [one]).flatMap(({ proxies }) => proxies);
}

function network(mode: ProxyMode): Act {
  return async (stage, { lasts, size }) => {
    const proxies = reached(stage, size);
    const settings = { delay: size % 40, bytesPerSecond: 20_000 + size * 100 };
    await Promise.all(proxies.map((proxy) => proxy.set(mode, settings)));
    await pause(lasts);
    await Promise.all(proxies.map((proxy) => proxy.set("pass")));
  };
}

function cut(how: "end" | "reset"): Act {
  return (stage, { size }) => {
    for (const proxy of reached(stage, size)) proxy.cut(how);
    return Promise.resolve();
  };
}

function restart(mode: "fast" | "immediate"): Act {
  return async ({ server }, { lasts }) => {
    await server.stop(mode);
    await pause(lasts / 4);
    await server.start();
  };
}

function signal(which: "terminate" | "cancel", one: boolean): Act {
  return ({ admin }, { size }) =>
    admin.rows(
      `select pg_${which}_backend(pid) from pg_stat_activity where application_name like 'soak %'
       ${one ? `order by pid offset ${size % 16} limit 1` : ""}`,
    );
}

function worker(how: Ending): Act {
  return ({ fleet }, { size, lasts }) => fleet!.replace(size, how, lasts / 2);
}

/** The wall clock of the whole process jumps, and stays there until it jumps again. */
function clock(direction: 1 | -1): Act {
  return async ({ journal }, { size, lasts }) => {
    // From seconds to a day.
    journal.wall = direction * Math.round(Math.exp(size / 18));
    await pause(lasts);
  };
}

/** A process stands still for a while, and whatever happens goes on. */
async function standStill(pid: number, ms: number): Promise<void> {
  const script = `kill -STOP ${pid}; sleep ${ms / 1_000}; kill -CONT ${pid}`;
  await once(spawn("sh", ["-c", script], { stdio: "ignore" }), "close");
}

/** Faults in which the server's own count of sessions holds. */
const ANYWHERE: Acts = {
  killOne: signal("terminate", true),
  renew: ({ arenas }, { size }) => arenas[size % arenas.length]!.pool.renew(),
  block: (_stage, { lasts }) => {
    // The program computes and lets nobody else have a turn.
    for (const end = performance.now() + lasts / 2; performance.now() < end;);
    return Promise.resolve();
  },
  // All isolates, as a frozen instance or a suspended machine.
  freeze: (_stage, { lasts }) => standStill(process.pid, lasts / 2),
  clockForward: clock(1),
  clockBack: clock(-1),
  workerTerminated: worker("terminate"),
  workerCloses: worker("close"),
  workerThrows: worker("throw"),
  workerBlocked: async ({ fleet }, { size, lasts }) => {
    fleet!.block(size, lasts);
    await pause(lasts);
  },
  bouncerRestart: async ({ bouncers }, { size, lasts }) => {
    const bouncer = bouncers[size % 2];
    await bouncer?.stop();
    await pause(lasts / 4);
    await bouncer?.start();
  },
};

const AT_THE_SERVER: Acts = {
  killAll: signal("terminate", false),
  cancelAll: signal("cancel", false),
  restartFast: restart("fast"),
  restartImmediate: restart("immediate"),
  resize: async ({ arenas }, { size, lasts }) => {
    const { pool, cap } = arenas[size % arenas.length]!;
    const { minconn } = pool;
    await pool.resize(size % 2, 1 + size % cap);
    await pause(lasts);
    await pool.resize(minconn, cap);
  },
  // One session's process at the server.
  freezeBackend: async ({ admin }, { size, lasts }) => {
    const [row] = await admin.rows<{ pid: number }>(
      `select pid from pg_stat_activity where application_name like 'soak %'
       order by pid offset ${size % 16} limit 1`,
    );
    if (row !== undefined) await standStill(row.pid, lasts);
  },
  // 53300, for everybody who comes.
  crowded: async ({ admin }, { size, lasts }) => {
    await admin.rows(`alter role soaker connection limit ${size % 12}`);
    await pause(2 * lasts);
    await admin.rows("alter role soaker connection limit -1");
  },
  // 57014 and 25P03, for sessions that stand, too.
  impatient: async ({ server }, { size, lasts }) => {
    const patience = 5 + size % 60;
    await server.reload({
      statement_timeout: patience,
      idle_in_transaction_session_timeout: patience,
    });
    await pause(lasts);
    await server.reload({ statement_timeout: 0, idle_in_transaction_session_timeout: 0 });
  },
};

const IN_THE_NETWORK: Acts = {
  refuse: network("refuse"),
  reset: network("reset"),
  stall: network("stall"),
  blackhole: network("blackhole"),
  slow: network("slow"),
  cutEnd: cut("end"),
  cutReset: cut("reset"),
  cutMidMessage: async (stage, { size, lasts }) => {
    for (const proxy of reached(stage, size)) proxy.cutAfter(1 + size * 7);
    await pause(lasts);
  },
};

/** All of them. */
export const FAULTS: Acts = { ...ANYWHERE, ...AT_THE_SERVER, ...IN_THE_NETWORK };
/** What a round is drawn from. Behind a broken network the server may see sessions that we have lost. */
export const SORTS: Readonly<Record<"server" | "network", readonly string[]>> = {
  server: Object.keys({ ...ANYWHERE, ...AT_THE_SERVER }),
  network: Object.keys({ ...ANYWHERE, ...IN_THE_NETWORK }),
};
