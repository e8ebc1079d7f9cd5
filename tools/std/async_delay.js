// @ts-self-types="./async_delay.d.ts"
export * from "deno-std/async/delay.js";
