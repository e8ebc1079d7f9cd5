/** Knows what must hold in one isolate, and tells where it did not. */

import type { Connection } from "../../mod.ts";
import { textOf } from "../support/faults.ts";
import { type Journal, nameOf } from "./journal.ts";

/** How long a getconn may last beyond its timeout, and beyond the time that its isolate stood still; in milliseconds. */
const SLACK = 300;

/** Watches one isolate. */
export class Witness {
  /** Failures that were to be expected, by kind. */
  readonly failures: Map<string, number> = new Map();
  readonly journal: Journal;
  readonly #forgotten: { readonly lease: WeakRef<Connection>; readonly after: string }[] = [];
  readonly #secret: string;
  readonly #tell: (what: string) => void;

  /** `secret` must not be in any message; `tell` hears of what did not hold. */
  constructor(journal: Journal, secret: string, tell: (what: string) => void) {
    this.journal = journal;
    this.#secret = secret;
    this.#tell = tell;
  }

  /** Something did not hold. */
  violated(what: string): void {
    this.journal.count("violations");
    this.#tell(what);
  }

  /** An operation failed, as it may in a storm. */
  failed(error: unknown): void {
    const kind = String((error as { code?: unknown } | null)?.code ?? (error as Error)?.name);
    this.failures.set(kind, (this.failures.get(kind) ?? 0) + 1);
    if (textOf(error).includes(this.#secret)) this.violated(`a secret in: ${kind}`);
    // Our own mistakes are no failures of the server.
    if (error instanceof TypeError || error instanceof ReferenceError) {
      this.violated(`a bug: ${error.stack}`);
    }
  }

  /** A lease is left without being put back, `after` something was done with it. */
  forgets(conn: Connection, after: string): void {
    this.journal.count("forgotten");
    this.#forgotten.push({ lease: new WeakRef(conn), after });
  }

  /** What was done with forgotten leases that stand still: their handles are no garbage. */
  get missed(): string[] {
    return this.#forgotten.map(({ lease, after }) => [lease.deref(), after] as const)
      .filter(([lease]) => lease !== undefined)
      .map(([lease, after]) => lease!.closed ? `${after} (lost)` : after);
  }

  /** getconn has settled, after `waited` milliseconds without those in which this isolate stood still. */
  settled(waited: number, timeout: number, who: number): void {
    // With timeout 0 it waits for what is on its way: a connect, a check, a close.
    const limit = (timeout === 0 ? 12_000 : timeout) + SLACK;
    if (waited > limit) {
      const took = Math.round(waited);
      this.violated(`getconn of ${nameOf(who)} took ${took} ms with timeout ${timeout}`);
    }
  }

  /** A lease begins on this backend. */
  lent(pid: number, who: number): void {
    this.journal.count("leases");
    const other = this.journal.lent(pid, who);
    if (other !== 0) {
      this.violated(`backend ${pid} is lent to ${nameOf(other)} and to ${nameOf(who)}`);
    }
  }
}
