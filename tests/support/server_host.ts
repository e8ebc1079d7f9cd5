/**
 * The process behind `testServer()`: holds a PostgreSQL server until the test run with the given
 * process id ends. `server_host.ts PID FOLDER` writes where the server is to FOLDER/answer.json.
 *
 * @module
 */
import { existsSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { startPostgres } from "./embedded_postgres.ts";
import { isAlive } from "./server.ts";

const [owner, folder] = [Number(process.argv[2]), process.argv[3]!];
{
  await using server = await startPostgres({ config: { max_connections: 200 } });
  const { url, socketDir } = server;
  writeFileSync(join(folder, "draft"), JSON.stringify({ url, socketDir, host: process.pid }), {
    mode: 0o600,
  });
  // Whoever finds the answer shall find the whole of it.
  renameSync(join(folder, "draft"), join(folder, "answer.json"));
  while (isAlive(owner) && existsSync(folder)) {
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}
rmSync(folder, { recursive: true, force: true });
