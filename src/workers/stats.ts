/** Every isolate's numbers where all can read them. */

import { noTotals, type PoolState } from "../pool/state.ts";
import type { PermitTable } from "./permit_table.ts";
import { isLive, isTenant, SLOT, slotAt, slotOf, SLOTS } from "./layout.ts";
import { tenants } from "./members.ts";
import type { PoolGauges, PoolStats, PoolTotals, WorkerStats } from "../pool/types.ts";

const TOTALS = Object.keys(noTotals()) as readonly (keyof PoolTotals)[];
/** Where the totals stand that earlier tenants of the slot have left behind. */
const BEFORE: number = TOTALS.length;
const CONNECTING: number = 2 * TOTALS.length;
const CLOSING: number = CONNECTING + 1;
const WAITING: number = CONNECTING + 2;
const SHARED: number = CONNECTING + 3;
const WIDTH = 32;
/** How many bytes the numbers of all slots take. */
export const STATS_BYTES: number = SLOTS * WIDTH * 8;

/**
 * One isolate's view of the numbers. Each number is whole, all together are not of one instant.
 *
 * A slot's totals go on from tenant to tenant and are never taken back, so the whole pool's only grow,
 * whoever ends and however. What is a tenant's own is what it has added to those that it found.
 */
export class SharedStats<C extends object> {
  readonly #numbers: Float64Array<SharedArrayBuffer>;
  readonly #table: PermitTable;
  readonly #base: number;
  /** The totals that this isolate found in its slot. */
  readonly #before: Float64Array;

  constructor(buffer: SharedArrayBuffer, table: PermitTable) {
    this.#numbers = new Float64Array(buffer);
    this.#table = table;
    this.#base = table.slot * WIDTH;
    this.#before = this.#numbers.slice(this.#base, this.#base + TOTALS.length);
    this.#numbers.fill(0, this.#base + BEFORE, this.#base + WIDTH);
    this.#numbers.set(this.#before, this.#base + BEFORE);
  }

  /** Writes this isolate's numbers; true when anything has changed. */
  publish(context: PoolState<C>): boolean {
    const { counters, counts, waiting } = context;
    let changed = false;
    const write = (at: number, value: number): void => {
      if (this.#numbers[this.#base + at] === value) return;
      this.#numbers[this.#base + at] = value;
      changed = true;
    };
    TOTALS.forEach((name, at) => write(at, (this.#before[at] as number) + counters[name]));
    write(CONNECTING, counts.connecting);
    write(CLOSING, counts.closing);
    write(WAITING, waiting);
    write(SHARED, counts.shared);
    return changed;
  }

  /** The whole pool's numbers, of which `own` are this isolate's. */
  all(own: PoolStats): PoolStats {
    const owned = [...this.#table.census().owned];
    const workers = tenants(this.#table.words).map((id) =>
      id === this.#table.id
        ? this.#own(own, owned[slotOf(id)] as number)
        : this.#other(id, owned[slotOf(id)] as number)
    );
    const sum = (key: keyof PoolGauges) => workers.reduce((total, one) => total + one[key], 0);
    // Else its slot may have another tenant.
    const here = isTenant(this.#table.words, this.#table.id);
    const totals = pick((at, name) => {
      let total = here ? (this.#before[at] as number) + own[name] : 0;
      for (let slot = 1; slot < SLOTS; slot++) {
        if (!here || slot !== this.#table.slot) total += this.#numbers[slot * WIDTH + at] as number;
      }
      return total;
    });
    const now = gaugesBy(sum);
    return Object.freeze({
      ...own,
      ...totals,
      ...now,
      poolSize: now.connecting + now.idle + now.leased + now.shared,
      poolAvailable: now.idle,
      workers: Object.freeze(workers),
    });
  }

  #own(own: PoolStats, permits: number): WorkerStats {
    return Object.freeze({
      worker: this.#table.slot,
      self: true,
      alive: true,
      permits,
      ...gaugesBy((name) => own[name]),
      ...pick((_, name) => own[name]),
    });
  }

  #other(id: number, permits: number): WorkerStats {
    const slot = slotOf(id);
    const { words } = this.#table;
    const number = (at: number): number => this.#numbers[slot * WIDTH + at] ?? 0;
    const alive = isLive(words, id);
    // What a dead worker holds is on its way out.
    const idle = alive ? Math.min(words.load(slotAt(slot, SLOT.IDLE)), permits) : 0;
    const closing = alive ? Math.min(number(CLOSING), permits - idle) : permits;
    const connecting = alive ? Math.min(number(CONNECTING), permits - idle - closing) : 0;
    const shared = alive ? Math.min(number(SHARED), permits - idle - closing - connecting) : 0;
    return Object.freeze({
      worker: slot,
      self: false,
      alive,
      permits,
      connecting,
      idle,
      leased: permits - idle - closing - connecting - shared,
      shared,
      closing,
      requestsWaiting: alive ? number(WAITING) : 0,
      ...pick((at) => number(at) - number(BEFORE + at)),
    });
  }
}

function pick(value: (at: number, name: keyof PoolTotals) => number): PoolTotals {
  return Object.fromEntries(
    TOTALS.map((name, at) => [name, value(at, name)]),
  ) as unknown as PoolTotals;
}

function gaugesBy(value: (name: keyof PoolGauges) => number): PoolGauges {
  return {
    connecting: value("connecting"),
    idle: value("idle"),
    leased: value("leased"),
    shared: value("shared"),
    closing: value("closing"),
    requestsWaiting: value("requestsWaiting"),
  };
}
