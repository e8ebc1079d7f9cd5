// @ts-self-types="./async_abortable.d.ts"
export * from "deno-std/async/abortable.js";
