/**
 * The benchmarks of this runtime: `main.ts [--only NAME[,NAME]] [--quick] [--list] [--out FOLDER]
 * [--rounds N] [--span MS] [--alone CONTESTANT] [--apart]`.
 *
 * Figures go to the terminal and to results.json, results.md and the charts in FOLDER (this one,
 * unless told otherwise), where those of the other runtime and of rows that were not run stay.
 *
 * @module
 */

import process from "node:process";
import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";
import { type PostgresServer, startPostgres } from "../tests/support/embedded_postgres.ts";
import { apart } from "./apart.ts";
import { type Bench, runtime } from "./contest.ts";
import { CURVES, ROWS } from "./list.ts";
import type { CurveResult, Update } from "./figures.ts";
import { readResults, saveResults } from "./results.ts";
import { runRow } from "./run.ts";
import { printCurve, printRow } from "./table.ts";

const { values: args } = parseArgs({
  options: {
    only: { type: "string" },
    quick: { type: "boolean", default: false },
    list: { type: "boolean", default: false },
    out: { type: "string", default: fileURLToPath(new URL(".", import.meta.url)) },
    rounds: { type: "string" },
    span: { type: "string" },
    alone: { type: "string" },
    apart: { type: "boolean", default: false },
  },
});

async function main(): Promise<void> {
  if (args.list) {
    for (const { name, title } of [...ROWS, ...CURVES]) console.log(`${name.padEnd(18)} ${title}`);
    return;
  }
  const wanted = args.only?.split(",");
  const unknown = wanted?.find((name) => ![...ROWS, ...CURVES].some((one) => one.name === name));
  if (unknown !== undefined) {
    console.error(`There is no row or curve "${unknown}": see --list`);
    process.exitCode = 2;
    return;
  }
  const chosen = <T extends { name: string }>(all: readonly T[]): T[] =>
    all.filter(({ name }) => wanted === undefined || wanted.includes(name));
  const host = new Host();
  const bench: Bench = {
    runtime,
    quick: args.quick,
    rounds: Number(args.rounds ?? (args.quick ? 2 : 20)),
    span: Number(args.span ?? (args.quick ? 60 : 120)),
    url: () => host.url(),
  };
  try {
    if (args.apart) return await apart(chosen(ROWS), bench);
    await run(chosen(ROWS), chosen(CURVES), bench);
  } finally {
    await host.stop();
  }
}

async function run(rows: typeof ROWS, curves: typeof CURVES, bench: Bench): Promise<void> {
  const update: Update = { rows: [], curves: [] };
  for (const row of rows) {
    const result = await runRow(row, bench, args.alone);
    printRow(result);
    update.rows.push(result);
  }
  for (const curve of curves) {
    const { name, title, x, y, linear = false } = curve;
    const result: CurveResult = { name, title, x, y, linear, series: await curve.measure(bench) };
    printCurve(result);
    update.curves.push(result);
  }
  // The figures of one contestant alone are no result: there is nothing to compare them with.
  if (args.alone !== undefined) return;
  await saveResults(args.out, await readResults(args.out), update, bench);
}

/** The server, started at the first need; the one that DATABASE_URL names, where it does. */
class Host {
  #server: Promise<PostgresServer> | null = null;

  async url(): Promise<string> {
    const given = process.env["DATABASE_URL"];
    if (given) return given;
    this.#server ??= startPostgres({ config: { max_connections: 300 } });
    return (await this.#server).url;
  }

  async stop(): Promise<void> {
    await (await this.#server)?.dispose();
  }
}

await main();
