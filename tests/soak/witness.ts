/** Knows what must hold, and writes down where it did not. */

import { textOf } from "../_faults.ts";

/** How long a getconn may last beyond its timeout: the process itself gets stopped and blocked. */
const SLACK = 2_500;

/** Watches one run. */
export class Witness {
  /** What did not hold; empty is success. */
  readonly violations: string[] = [];
  /** Commits that were acknowledged. */
  readonly acknowledged: number[] = [];
  /** Writes that must never be seen: their transactions were not committed. */
  readonly undone: Set<number> = new Set();
  /** Failures that were to be expected, by kind. */
  readonly failures: Map<string, number> = new Map();
  leases = 0;
  samples = 0;
  most = 0;
  #nextId = 0;
  readonly #held = new Map<number, string>();
  readonly #secret: string;

  /** `secret` must not be in any message. */
  constructor(secret: string) {
    this.#secret = secret;
  }

  /** A number for a row that nobody else uses. */
  id(): number {
    return this.#nextId++;
  }

  /** Something did not hold. */
  violated(what: string): void {
    if (this.violations.length < 50) this.violations.push(what);
    console.error(`VIOLATION: ${what}`);
  }

  /** An operation failed, as it may in a storm. */
  failed(error: unknown): void {
    const kind = String((error as { code?: unknown } | null)?.code ?? (error as Error)?.name);
    this.failures.set(kind, (this.failures.get(kind) ?? 0) + 1);
    if (textOf(error).includes(this.#secret)) this.violated(`a secret in: ${kind}`);
  }

  /** getconn has settled. */
  settled(waited: number, timeout: number): void {
    // With timeout 0 it waits for what is on its way: a connect, a check, a close.
    const limit = (timeout === 0 ? 12_000 : timeout) + SLACK;
    if (waited > limit) {
      this.violated(`getconn took ${Math.round(waited)} ms with timeout ${timeout}`);
    }
  }

  /** A lease begins on this backend. */
  lent(pid: number, who: string): void {
    this.leases++;
    const other = this.#held.get(pid);
    if (other !== undefined && other !== who) {
      this.violated(`backend ${pid} is lent to ${other} and to ${who}`);
    }
    this.#held.set(pid, who);
  }

  /** It ends. */
  returned(pid: number): void {
    this.#held.delete(pid);
  }

  /** What the server showed at one moment. */
  sampled(sessions: number, cap: number): void {
    this.samples++;
    this.most = Math.max(this.most, sessions);
    if (sessions > cap) this.violated(`${sessions} sessions at the server, the cap is ${cap}`);
  }
}
