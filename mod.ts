export { AbstractConnectionPool } from "./src/abstract_pool.ts";
export * from "./src/types.ts";
export * from "./src/errors.ts";
export type { PoolOptions } from "./src/options.ts";
