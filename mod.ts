export { AbstractConnectionPool } from "./src/abstract_pool.ts";
export { ThreadedConnectionPool } from "./src/threaded_pool.ts";
export { PersistentConnectionPool, type PersistentPoolOptions } from "./src/persistent_pool.ts";
export type { PoolHandle } from "./src/handle.ts";
export type { WorkerLike } from "./src/runtime.ts";
export * from "./src/types.ts";
export * from "./src/errors.ts";
export type { PoolOptions } from "./src/options.ts";
