/** Things to pool that are no connections: what is measured is the pool alone. */

import { AbstractConnectionPool, type Connector, type PoolOptions } from "@getconn/pool";

/** What is pooled. */
export interface Thing {
  readonly id: number;
}

let made = 0;

/** Makes one. */
export function thing(): Thing {
  return { id: ++made };
}

const connector: Connector<Thing> = {
  open: () => Promise.resolve(thing()),
  close: () => Promise.resolve(),
  status: () => "idle",
};

/** Our pool of things, made as somebody outside would make it. */
export class FakePool extends AbstractConnectionPool<Thing> {
  constructor(minconn: number, maxconn: number, options: PoolOptions<Thing> = {}) {
    super(minconn, maxconn, { pool: { timeout: Infinity, ...options, connector } });
  }
}
