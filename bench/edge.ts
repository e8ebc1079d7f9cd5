/**
 * What reuse is worth to an edge function: requests per second and p99 of an HTTP server that keeps
 * its pool at module scope, compared with postgres.js there and with connecting for every request,
 * and how many sessions each made at the server. `deno run -A bench/edge.ts [seconds] [concurrency]`
 *
 * @module
 */
import postgres from "postgres";
import { startPostgres } from "../tests/support/embedded_postgres.ts";

const seconds = Number(Deno.args[0] ?? 5);
const concurrency = Number(Deno.args[1] ?? 16);
const program = new URL("./edge_function.ts", import.meta.url).pathname;

const HOWS = [
  ["pool", "pool of 4"],
  ["client", "postgres.js, max 4"],
  ["connect", "one per request"],
] as const;

interface Result {
  readonly rate: number;
  readonly p50: number;
  readonly p99: number;
  readonly sessions: number;
}

async function bun(): Promise<string> {
  const args = ["-y", "bun", "-e", "console.log(process.execPath)"];
  const { stdout } = await new Deno.Command("npx", { args }).output();
  return new TextDecoder().decode(stdout).trim();
}

/** Sends requests as fast as they are answered; gives the times of all. */
async function load(address: string, milliseconds: number): Promise<number[]> {
  const times: number[] = [];
  const end = performance.now() + milliseconds;
  await Promise.all(Array.from({ length: concurrency }, async () => {
    while (performance.now() < end) {
      const started = performance.now();
      const response = await fetch(address);
      if (!response.ok) throw new Error(await response.text());
      await response.arrayBuffer();
      times.push(performance.now() - started);
    }
  }));
  return times.sort((a, b) => a - b);
}

async function untilUp(address: string): Promise<void> {
  for (let attempt = 0; attempt < 200; attempt++) {
    try {
      return void await (await fetch(address)).arrayBuffer();
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  throw new Error("the edge function did not start");
}

/** Sessions that the server has seen so far; it reports them with a delay of up to a second. */
async function sessions(sql: postgres.Sql): Promise<number> {
  await new Promise((resolve) => setTimeout(resolve, 1_500));
  const rows = await sql<{ count: number }[]>`
    select sessions::int as count from pg_stat_database where datname = current_database()`;
  return rows[0]!.count;
}

async function measure(command: string[], how: string, url: string): Promise<Result> {
  const probe = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = probe.addr;
  probe.close();
  const address = `http://127.0.0.1:${port}/`;
  const [name, ...args] = [...command, program, how, String(port), url];
  const child = new Deno.Command(name!, { args, stdout: "null", stdin: "null" }).spawn();
  const sql = postgres(url, { max: 1 });
  try {
    const before = await sessions(sql);
    await untilUp(address);
    await load(address, 1_000);
    const warm = await sessions(sql);
    const times = await load(address, seconds * 1_000);
    const after = await sessions(sql);
    const at = (part: number) => times[Math.floor(times.length * part)]!;
    // At module scope the sessions were made while it warmed up: those count as well.
    const made = how === "connect" ? after - warm : after - before;
    return { rate: times.length / seconds, p50: at(0.5), p99: at(0.99), sessions: made };
  } finally {
    await sql.end();
    child.kill("SIGKILL");
    await child.status;
  }
}

{
  await using server = await startPostgres({ config: { max_connections: 200 } });
  const runtimes = { Deno: [Deno.execPath(), "run", "-A"], Bun: [await bun()] };
  console.log(`${concurrency} requests at a time for ${seconds} s\n`);
  console.log("| runtime | connections         | requests/s | p50 ms | p99 ms | sessions made |");
  console.log("| ------- | ------------------- | ---------- | ------ | ------ | ------------- |");
  for (const [runtime, command] of Object.entries(runtimes)) {
    for (const [how, name] of HOWS) {
      const { rate, p50, p99, sessions } = await measure(command, how, server.url);
      const cells = [
        runtime.padEnd(7),
        name.padEnd(19),
        rate.toFixed(0).padStart(10),
        p50.toFixed(1).padStart(6),
        p99.toFixed(1).padStart(6),
        String(sessions).padStart(13),
      ];
      console.log(`| ${cells.join(" | ")} |`);
    }
  }
}
