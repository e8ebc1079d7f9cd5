/** What must hold on Node as well: the same tests, run by Node, on the package as users get it. */

import { assert, assertEquals } from "@std/assert";
import { test } from "../support/harness.ts";
import { testServer } from "../support/server.ts";
import { type Folder, installed, node, root, run } from "./install.ts";

/** Runs a file of tests on Node; it must pass as a whole, and leave nothing out. */
async function runOnNode(name: string, timeout = 300_000): Promise<void> {
  await using folder: Folder = await installed();
  const server = await testServer();
  const hooks = `${root}tests/package/node_hooks.mjs`;
  const args = ["--import", hooks, "--test-reporter=tap", `${root}tests/${name}`];
  const { code, stdout, stderr } = await run(await node(), args, {
    cwd: root,
    timeout,
    env: {
      GETCONN_PACKAGE: `${folder.path}/node_modules/@getconn/pool`,
      GETCONN_TEST_SERVER: JSON.stringify(server),
    },
  });
  const count = (word: string) => Number(new RegExp(`^# ${word} (\\d+)$`, "m").exec(stdout)?.[1]);
  const [passed, failed, skipped] = [count("pass"), count("fail"), count("skipped")];
  assertEquals([code, failed], [0, 0], `${name}\n${stdout}\n${stderr}`);
  assert(passed > 0, stdout);
  console.log(`${name}: ${passed} passed on Node, ${skipped} skipped`);
  if (Deno.env.get("GETCONN_NO_SKIP")) assertEquals(skipped, 0, stdout);
}

for (
  const name of [
    "conninfo_test.ts",
    "conninfo_function_test.ts",
    "conninfo_libpq_test.ts",
    "conninfo_tls_test.ts",
    "psycopg2_test.ts",
    "mistakes_test.ts",
    "transaction_retry_test.ts",
    "check_idle_test.ts",
    "health_test.ts",
    "validate_test.ts",
    "stuck_test.ts",
    "nested_transactions_test.ts",
    "telemetry_test.ts",
    "telemetry_statements_test.ts",
    "events_test.ts",
    "stats_test.ts",
    "outage_test.ts",
    "failover_test.ts",
    "call_options_test.ts",
    "options_test.ts",
    "wire_frames_test.ts",
    "wire_startup_test.ts",
    "wire_scram_test.ts",
    "wire_tls_test.ts",
    "wire_session_test.ts",
    "wire_globals_test.ts",
    "language_test.ts",
    "values_test.ts",
    "postgres_connect_test.ts",
    "postgres_prepared_test.ts",
    "postgres_session_test.ts",
    "postgres_lease_test.ts",
    "transactions_test.ts",
    "sql_shared_test.ts",
    "sql_queries_test.ts",
    "sql_endings_test.ts",
    "sql_driver_test.ts",
    "sql_pool_test.ts",
    "sql_end_test.ts",
    "sql_sessions_test.ts",
    "postgres_failures_test.ts",
  ]
) test(`Node: ${name}`, () => runOnNode(name), { timeout: 320_000 });

test("Node: keepalives_interval and keepalives_count reach the socket", async () => {
  const { url } = await testServer();
  await using folder = await installed({
    "main.mjs": `
import net from "node:net";
import process from "node:process";
import { SimpleConnectionPool } from "@getconn/pool";
const { setKeepAlive } = net.Socket.prototype;
net.Socket.prototype.setKeepAlive = function (...args) {
  console.log(JSON.stringify(args));
  return setKeepAlive.apply(this, args);
};
const keepalives = { keepalives_idle: 30, keepalives_interval: 5, keepalives_count: 3 };
for (const options of [keepalives, {}, { keepalives: 0 }]) {
  await using pool = new SimpleConnectionPool(0, 1, process.argv[2], options);
  await pool.sql\`select 1\`;
}
`,
  });
  const { code, stdout, stderr } = await run(await node(), ["main.mjs", url], { cwd: folder.path });
  assertEquals(code, 0, stderr);
  assertEquals(stdout.trim().split("\n"), ["[true,30000,5000,3]", "[true,60000,null,null]"]);
});
