// @ts-self-types="./async_retry.d.ts"
export * from "deno-std/async/retry.js";
