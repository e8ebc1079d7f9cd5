/** Every isolate's numbers where all can read them. */

import { noTotals, type PoolState } from "../pool/state.ts";
import type { PermitTable } from "./permit_table.ts";
import { isLive, isTenant, SLOT, slotAt, slotOf, SLOTS } from "./layout.ts";
import { tenants } from "./members.ts";
import type { PoolGauges, PoolStats, PoolTotals, WorkerStats } from "../pool/types.ts";

const TOTALS = Object.keys(noTotals()) as readonly (keyof PoolTotals)[];
/** Where the totals stand that earlier tenants of the slot have left behind. */
const BEFORE: number = TOTALS.length;
/** Where the numbers of this moment stand. */
const NOW: number = 2 * TOTALS.length;
const GAUGES = [
  "connecting",
  "idle",
  "leased",
  "shared",
  "closing",
  "requestsWaiting",
] as const satisfies readonly (keyof PoolGauges)[];
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
    const { counters } = context;
    const gauges = context.gauges();
    let changed = false;
    const write = (at: number, value: number): void => {
      if (this.#numbers[this.#base + at] === value) return;
      this.#numbers[this.#base + at] = value;
      changed = true;
    };
    TOTALS.forEach((name, at) => write(at, (this.#before[at] as number) + counters[name]));
    GAUGES.forEach((name, at) => write(NOW + at, gauges[name]));
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
    // Else its slot may have another tenant.
    const here = isTenant(this.#table.words, this.#table.id);
    const totals = pick(TOTALS, (name, at) => {
      let total = here ? (this.#before[at] as number) + own[name] : 0;
      for (let slot = 1; slot < SLOTS; slot++) {
        if (!here || slot !== this.#table.slot) total += this.#numbers[slot * WIDTH + at] as number;
      }
      return total;
    });
    const now = pick(GAUGES, (name) => workers.reduce((total, one) => total + one[name], 0));
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
      ...pick(GAUGES, (name) => own[name]),
      ...pick(TOTALS, (name) => own[name]),
    });
  }

  #other(id: number, permits: number): WorkerStats {
    const slot = slotOf(id);
    const { words } = this.#table;
    const number = (at: number): number => this.#numbers[slot * WIDTH + at] ?? 0;
    const told = (name: keyof PoolGauges): number => number(NOW + GAUGES.indexOf(name));
    const alive = isLive(words, id);
    // Its numbers are not of one instant, and it has no more connections than permits.
    let left = alive ? permits : 0;
    const part = (count: number): number => {
      const some = Math.min(count, left);
      left -= some;
      return some;
    };
    const idle = part(words.load(slotAt(slot, SLOT.IDLE)));
    // What a dead worker holds is on its way out.
    const closing = alive ? part(told("closing")) : permits;
    const connecting = part(told("connecting"));
    const shared = part(told("shared"));
    return Object.freeze({
      worker: slot,
      self: false,
      alive,
      permits,
      connecting,
      idle,
      leased: left,
      shared,
      closing,
      requestsWaiting: alive ? told("requestsWaiting") : 0,
      ...pick(TOTALS, (_, at) => number(at) - number(BEFORE + at)),
    });
  }
}

function pick<Name extends string>(
  names: readonly Name[],
  value: (name: Name, at: number) => number,
): Record<Name, number> {
  return Object.fromEntries(names.map((name, at) => [name, value(name, at)])) as Record<
    Name,
    number
  >;
}
