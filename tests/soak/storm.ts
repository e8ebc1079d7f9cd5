/** The faults of a soak. A seed gives the same list of them at the same times. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import process from "node:process";
import type postgres from "postgres";
import type { PostgresServer } from "../../examples/embedded_postgres.ts";
import type { SimpleConnectionPool } from "../../mod.ts";
import type { FaultProxy } from "../_proxy.ts";
import type { Dice } from "./dice.ts";

/** What faults act on. */
export interface Stage {
  readonly server: PostgresServer;
  readonly proxy: FaultProxy;
  readonly pool: SimpleConnectionPool;
  readonly maxconn: number;
  /** A client that goes around the proxy. */
  readonly admin: () => postgres.Sql;
  /** Its sessions' application_name. */
  readonly name: string;
}

type Kind =
  | "killOne"
  | "killAll"
  | "cancelAll"
  | "restartFast"
  | "restartImmediate"
  | "resize"
  | "renew"
  | "block"
  | "freeze"
  | "refuse"
  | "reset"
  | "stall"
  | "blackhole"
  | "slow"
  | "cutEnd"
  | "cutReset"
  | "cutMidMessage";

/** One fault. */
export interface Fault {
  readonly kind: Kind;
  /** Milliseconds of peace before it. */
  readonly after: number;
  /** How long it lasts, in milliseconds. */
  readonly lasts: number;
  /** A number for whatever it needs one for. */
  readonly size: number;
}

/** Faults of one sort in a row. Behind a broken network the server may see sessions that we have lost. */
export interface Round {
  readonly sort: "server" | "network";
  readonly faults: readonly Fault[];
}

type Act = (stage: Stage, fault: Fault) => Promise<unknown>;

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function network(mode: Parameters<FaultProxy["set"]>[0]): Act {
  return async ({ proxy }, { lasts, size }) => {
    await proxy.set(mode, { delay: size % 40, bytesPerSecond: 20_000 + size * 100 });
    await pause(lasts);
    await proxy.set("pass");
  };
}

function restart(mode: "fast" | "immediate"): Act {
  return async ({ server }, { lasts }) => {
    await server.stop(mode);
    await pause(lasts / 4);
    await server.start();
  };
}

const FAULTS: Readonly<Record<Kind, Act>> = {
  killOne: ({ admin, name }, { size }) =>
    admin()`select pg_terminate_backend(pid) from pg_stat_activity where application_name = ${name}
      order by pid offset ${size % 8} limit 1`,
  killAll: ({ admin, name }) =>
    admin()`select pg_terminate_backend(pid) from pg_stat_activity where application_name = ${name}`,
  cancelAll: ({ admin, name }) =>
    admin()`select pg_cancel_backend(pid) from pg_stat_activity where application_name = ${name}`,
  restartFast: restart("fast"),
  restartImmediate: restart("immediate"),
  resize: async ({ pool, maxconn }, { size, lasts }) => {
    await pool.resize(size % 2, 1 + size % maxconn);
    await pause(lasts);
    await pool.resize(2, maxconn);
  },
  renew: ({ pool }) => pool.renew(),
  /** The program computes and lets nobody else have a turn. */
  block: (_stage, { lasts }) => {
    for (const end = performance.now() + lasts / 2; performance.now() < end;);
    return Promise.resolve();
  },
  /** The whole process stands still, as a frozen isolate or a suspended machine. */
  freeze: async (_stage, { lasts }) => {
    const script = `kill -STOP ${process.pid}; sleep ${lasts / 2000}; kill -CONT ${process.pid}`;
    await once(spawn("sh", ["-c", script], { stdio: "ignore" }), "close");
  },
  refuse: network("refuse"),
  reset: network("reset"),
  stall: network("stall"),
  blackhole: network("blackhole"),
  slow: network("slow"),
  cutEnd: ({ proxy }) => Promise.resolve(proxy.cut("end")),
  cutReset: ({ proxy }) => Promise.resolve(proxy.cut("reset")),
  cutMidMessage: async ({ proxy }, { size, lasts }) => {
    proxy.cutAfter(1 + size * 7);
    await pause(lasts);
  },
};

const SERVER: readonly Kind[] = [
  "killOne",
  "killOne",
  "killAll",
  "cancelAll",
  "restartFast",
  "restartImmediate",
  "resize",
  "renew",
  "block",
  "freeze",
];
const NETWORK: readonly Kind[] = [
  "refuse",
  "reset",
  "stall",
  "blackhole",
  "slow",
  "cutEnd",
  "cutReset",
  "cutMidMessage",
  "killOne",
  "freeze",
  "renew",
];

/** The list for a seed, without end. */
export function* rounds(dice: Dice): Generator<Round, never> {
  for (let number = 0;; number++) {
    const sort = number % 2 === 0 ? "server" : "network";
    yield {
      sort,
      faults: Array.from({ length: dice.from(4, 10) }, () => ({
        kind: dice.of(sort === "server" ? SERVER : NETWORK),
        after: dice.from(20, 500),
        lasts: dice.from(50, 600),
        size: dice.from(0, 200),
      })),
    };
  }
}

/** Makes one happen; resolves when it is over. */
export async function strike(stage: Stage, fault: Fault): Promise<void> {
  await pause(fault.after);
  await FAULTS[fault.kind](stage, fault);
}
