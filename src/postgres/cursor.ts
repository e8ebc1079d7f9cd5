/** A statement that is read by a cursor, and lets somebody come between its callback and the driver. */

import type { DriverQuery } from "./driver.ts";

/** Gets the rows of a round. */
export type OnRows = NonNullable<DriverQuery["cursorFn"]>;

/** Who comes between. */
export interface Supervisor {
  /** While true the statement does not show itself as a cursor. */
  readonly paused: boolean;
  /** Gets the rows instead of `callback`. */
  supervised(query: DriverQuery, callback: OnRows, rows: unknown): Promise<unknown>;
}

const CALLBACK: unique symbol = Symbol("callback");
const SUPERVISOR: unique symbol = Symbol("supervisor");

interface Cursor extends DriverQuery {
  [CALLBACK]?: OnRows;
  [SUPERVISOR]?: Supervisor;
}

/** In place of the callback, for all cursors: the driver calls it as a method. */
function supervised(this: Cursor, rows: unknown): Promise<unknown> {
  return this[SUPERVISOR]!.supervised(this, this[CALLBACK]!, rows);
}

const accessors: PropertyDescriptorMap & ThisType<Cursor> = {
  cursorFn: {
    get() {
      const supervisor = this[SUPERVISOR];
      if (supervisor === undefined) return this[CALLBACK];
      return supervisor.paused ? undefined : supervised;
    },
    // The iterator sets another one for each round.
    set(callback: OnRows) {
      this[CALLBACK] = callback;
    },
  },
};

/** What cursors inherit from, by what they did before. */
const prototypes: WeakMap<object, Cursor> = new WeakMap();

function prototypeOf(query: DriverQuery): Cursor {
  const before = Object.getPrototypeOf(query) as object;
  let prototype = prototypes.get(before);
  if (prototype === undefined) {
    prototypes.set(before, prototype = Object.create(before, accessors) as Cursor);
  }
  return prototype;
}

/**
 * `cursor` of a statement, as the driver's. The accessors are inherited, for with its own ones each statement
 * would be a dictionary to V8, and the driver looks several things up for each row.
 */
export function cursor(this: DriverQuery, ...args: unknown[]): unknown {
  const prototype = prototypeOf(this);
  Object.setPrototypeOf(this, prototype);
  return prototype.cursor.apply(this, args);
}

/** Puts somebody between a cursor's callback and the driver. */
export function supervise(query: DriverQuery, supervisor: Supervisor): void {
  const { cursorFn } = query;
  if (Object.hasOwn(query, "cursorFn")) {
    // Made by the driver alone.
    delete query.cursorFn;
    Object.setPrototypeOf(query, prototypeOf(query));
    query.cursorFn = cursorFn!;
  }
  (query as Cursor)[SUPERVISOR] = supervisor;
}
