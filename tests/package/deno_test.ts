import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { test } from "../support/harness.ts";
import { testServer } from "../support/server.ts";
import { deno, Folder, run, succeed } from "./install.ts";
import { Registry } from "./registry.ts";

const PROGRAM = `
import { PoolError, SimpleConnectionPool } from "@getconn/pool";

await using pool = new SimpleConnectionPool(1, 2, Deno.args[0], { pool: { timeout: 60_000 } });
const [row] = await pool.use((conn) => conn<{ sum: number }[]>\`select 1 + 2 as sum\`);
const sum: number | undefined = row?.sum;
await pool.transaction(async (conn) => {
  await conn\`create temporary table t (n int) on commit drop\`;
});
const lease = await pool.getconn();
await pool.putconn(lease);
try {
  await lease\`select 1\`;
} catch (error) {
  if (!(error instanceof PoolError)) throw error;
  console.log(sum, error.code);
}
`;

/** A folder as `deno add jsr:@getconn/pool` leaves it, and where its downloads go. */
async function project(
  registry: Registry,
): Promise<{ folder: Folder; env: Record<string, string> }> {
  const folder = new Folder();
  const env = {
    JSR_URL: registry.url,
    DENO_DIR: `${folder.path}/.deno`,
    DENO_NO_PACKAGE_JSON: "1",
  };
  folder.write("deno.json", { imports: {} });
  await succeed(deno, ["add", "jsr:@getconn/pool"], { cwd: folder.path, env });
  return { folder, env };
}

test("Deno: add, check and run from JSR, with no permission but the way to the server", async () => {
  await using registry = await Registry.start();
  const { folder, env } = await project(registry);
  await using _ = folder;
  const { url, socketDir } = await testServer();
  const { host, port } = new URL(url);
  folder.write("main.ts", PROGRAM);
  const options = { cwd: folder.path, env };
  await succeed(deno, ["check", "main.ts"], options);
  const program = ["run", "--no-prompt", "--cached-only"];
  // The permissions that README names.
  const said = await succeed(deno, [...program, `--allow-net=${host}`, "main.ts", url], options);
  assertEquals(said.trim(), "3 CONNECTION_RETURNED");

  // With names of variables, when a URL is not given.
  const names = "--allow-env=PGHOST,PGPORT,PGUSER,PGPASSWORD,PGDATABASE";
  const { username, password } = new URL(url);
  const variables = {
    PGHOST: "127.0.0.1",
    PGPORT: port,
    PGUSER: username,
    PGPASSWORD: password,
    PGDATABASE: "postgres",
  };
  const byName = await succeed(deno, [...program, `--allow-net=${host}`, names, "main.ts"], {
    cwd: folder.path,
    env: { ...env, ...variables },
  });
  assertEquals(byName.trim(), "3 CONNECTION_RETURNED");

  if (socketDir !== undefined) {
    const socket = `${socketDir}/.s.PGSQL.${port}`;
    const unix = `postgres://${username}:${password}@/postgres?host=${socketDir}&port=${port}`;
    const allowed = [
      `--allow-read=${socket}`,
      `--allow-write=${socket}`,
      `--allow-net=unix:${socket}`,
    ];
    const local = await succeed(deno, [...program, ...allowed, "main.ts", unix], options);
    assertEquals(local.trim(), "3 CONNECTION_RETURNED");
  }

  const refused = await run(deno, [...program, "main.ts", url], options);
  assertStringIncludes(refused.stderr, "Requires net access");
});

test("Deno: importing does nothing that needs a permission, in a worker too, and ends", async () => {
  await using registry = await Registry.start();
  const { folder, env } = await project(registry);
  await using _ = folder;
  folder.write(
    "main.ts",
    `import * as pool from "@getconn/pool"; console.log(typeof pool.getPool);`,
  );
  folder.write(
    "worker.ts",
    `
const worker = new Worker(new URL("./inside.ts", import.meta.url), { type: "module" });
worker.onmessage = ({ data }) => (console.log(data), worker.terminate());
`,
  );
  folder.write(
    "inside.ts",
    `import { SimpleConnectionPool } from "@getconn/pool";
(self as unknown as Worker).postMessage(new SimpleConnectionPool(0, 1, "postgres://u@h/d").maxconn);`,
  );
  const options = { cwd: folder.path, env };
  await succeed(deno, ["cache", "main.ts"], options);
  const run = ["run", "--no-prompt", "--cached-only"];
  assertEquals((await succeed(deno, [...run, "main.ts"], options)).trim(), "function");
  assertEquals((await succeed(deno, [...run, "--allow-read=.", "worker.ts"], options)).trim(), "1");
  const own = registry.asked.filter((path) => path.includes(".ts"));
  assert(own.length > 20 && own.every((path) => /\/(mod\.ts|src\/.*)$/.test(path)), own.join("\n"));
});
