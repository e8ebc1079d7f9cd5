/**
 * In place of the suite's own runner, which stops at the first failure: this one goes on, removes what a failed test has
 * left behind, and counts.
 */
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import process from "node:process";
import { inspect } from "node:util";

const only = process.env.ONLY ? JSON.parse(process.env.ONLY) : null;
const tests = [];
const results = [];

/** What nobody has caught, since the last test began. */
let uncaught = [];
for (const type of ["unhandledRejection", "uncaughtException"]) {
  process.on(type, (error) => uncaught.push(String(error?.stack ?? error)));
}

export function t(name, options, fn) {
  if (typeof options === "function") [options, fn] = [{}, options];
  if (tests.length === 0) setTimeout(runAll);
  if (only === null || only.includes(name)) tests.push({ name, fn, seconds: options.timeout || 5 });
}
export const ot = t;
export const nt = () => {};

async function within(seconds, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("timed out")), seconds * 1000);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Null when it holds. */
async function failureOf({ fn, seconds }) {
  try {
    const pair = await within(seconds, fn());
    const [expected, actual] = await within(5, Promise.all(pair));
    return expected === actual ? null : `${inspect(expected)} != ${inspect(actual)}`;
  } catch (error) {
    return `${error?.code ?? ""} ${error instanceof Error ? error.message : inspect(error)}`.trim();
  }
}

function cleanUp() {
  const psql = (...args) => spawnSync("psql", args, { stdio: "pipe" });
  psql(
    "-d",
    "postgres_js_test",
    "-c",
    "set lock_timeout = '2s'; drop table if exists test, tester, students, users; " +
      "drop publication if exists alltables; rollback prepared 'tx1'",
  );
  psql("-c", "alter system set ssl = on");
  psql("-c", "select pg_reload_conf()");
}

async function runAll() {
  for (const test of tests) {
    uncaught = [];
    const failure = await failureOf(test);
    results.push({ name: test.name, failure, uncaught });
    if (failure === null) continue;
    console.log(`fails: ${test.name} | ${failure.slice(0, 150)}`);
    cleanUp();
  }
  for (const { name, uncaught } of results) {
    if (uncaught.length > 0) console.log(`nobody caught, in ${name}: ${uncaught.join("\n")}`);
  }
  writeFileSync(process.env.OUT, JSON.stringify(results, null, 1));
  const passed = results.filter(({ failure }) => failure === null).length;
  console.log(`${passed} of ${results.length}`);
  process.exit(0);
}
