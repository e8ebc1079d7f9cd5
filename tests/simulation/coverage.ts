/** Which steps of the tables of states were taken: of a connection, of a request on the wire, of a permit. */

import { NEXT, PoolEntry } from "../../src/pool/entry.ts";
import type { Request } from "../../src/postgres/wire/request.ts";
import { Session } from "../../src/postgres/wire/session.ts";
import { permitSteps } from "./isolate.ts";

type Counts = Record<string, number>;

/** A request's states, and where it can go from each. */
const REQUESTS: Readonly<Record<string, readonly string[]>> = {
  new: ["waiting", "sent", "parked", "lost"],
  waiting: ["sent", "withdrawn", "lost"],
  sent: ["answered", "failed", "sent again", "lost"],
  parked: ["sent", "lost"],
};

/** A permit's, by whom it is held and for whom it is meant. */
const PERMITS: Readonly<Record<string, readonly string[]>> = {
  free: ["held"],
  held: ["free", "promised", "handed over", "held by another"],
  promised: ["handed over", "free", "held", "held by another"],
  "handed over": ["held", "free", "handed over", "held by another"],
};

function steps(what: string, table: Readonly<Record<string, readonly string[]>>): string[] {
  return Object.entries(table).flatMap(([from, all]) =>
    all.map((to) => `${what}: ${from} → ${to}`)
  );
}

/** All steps that there are. */
const ALL: readonly string[] = [
  ...steps("connection", NEXT),
  ...steps("request", REQUESTS),
  ...steps("permit", PERMITS),
];

/** Counts steps from its making on. */
export class Coverage {
  readonly counts: Counts = {};
  readonly #undo: () => void;

  constructor() {
    const count = (step: string): void => {
      this.counts[step] = (this.counts[step] ?? 0) + 1;
    };
    const { move } = PoolEntry.prototype;
    PoolEntry.prototype.move = function (to) {
      count(`connection: ${this.state} → ${to}`);
      move.call(this, to);
    };
    const { send, park, withdraw } = Session.prototype;
    const known = new WeakSet<Request>();
    const watch = (request: Request): void => {
      if (known.has(request)) return;
      known.add(request);
      const { settle, write } = request;
      request.write = (out) => {
        write.call(request, out);
        if (waiting.delete(request)) count("request: waiting → sent");
      };
      request.settle = (lost) => {
        const from = waiting.delete(request)
          ? "waiting"
          : parked.delete(request)
          ? "parked"
          : "sent";
        const { failed } = request;
        const again = settle.call(request, lost);
        if (lost) count(`request: ${from} → lost`);
        else if (from === "sent") {
          count(`request: sent → ${again ? "sent again" : failed ? "failed" : "answered"}`);
        }
        return again;
      };
    };
    const waiting = new WeakSet<Request>();
    const parked = new WeakSet<Request>();
    Session.prototype.send = function (request) {
      watch(request);
      const from = parked.delete(request) ? "parked" : "new";
      send.call(this, request);
      const { state } = request;
      if (state === "waiting") waiting.add(request);
      if (state === "sent" || state === "waiting") {
        count(`request: ${from} → ${from === "parked" ? "sent" : state}`);
      } else if (this.reason !== null) count("request: new → lost");
    };
    Session.prototype.park = function (request) {
      watch(request);
      park.call(this, request);
      if (request.state !== "parked") return;
      parked.add(request);
      count("request: new → parked");
    };
    Session.prototype.withdraw = function (request) {
      const done = withdraw.call(this, request);
      if (done && waiting.delete(request)) count("request: waiting → withdrawn");
      return done;
    };
    permitSteps.tell = (from, to) => count(`permit: ${from} → ${to}`);
    this.#undo = () => {
      PoolEntry.prototype.move = move;
      Object.assign(Session.prototype, { send, park, withdraw });
      permitSteps.tell = null;
    };
  }

  /** Counts no more. */
  dispose(): void {
    this.#undo();
  }

  /** What was reached, and what was not. */
  static report(counts: Readonly<Counts>): string {
    const missed = ALL.filter((step) => !counts[step]);
    const odd = Object.keys(counts).filter((step) => !ALL.includes(step));
    return [
      `${ALL.length - missed.length} of ${ALL.length} steps of the tables of states were taken`,
      ...missed.map((step) => `  never: ${step}`),
      ...odd.map((step) => `  in no table: ${step} (${counts[step]} times)`),
    ].join("\n");
  }
}
