/**
 * TPC-B through a connection pool: many tasks in several workers move money over few connections,
 * backends are killed and workers terminated meanwhile, and in the end an audit looks whether anything
 * is wrong. `--help` tells the options.
 *
 * Where to read on: `crew.ts` shares a pool with workers, `worker.ts` joins it, `tasks.ts` borrows
 * connections, `tpcb.ts` is what runs on them, `audit.ts` is what must hold.
 *
 * @module
 */
import process from "node:process";
import { Interrupt, INTERRUPTED, Interrupted } from "./interrupt.ts";
import { HELP, readOptions, UsageError } from "./options.ts";
import { runDemo } from "./run.ts";

/** Runs the demo; gives the exit code. */
async function main(args: readonly string[]): Promise<number> {
  try {
    const options = readOptions(args);
    if (options === "help") {
      console.log(HELP);
      return 0;
    }
    using interrupt = new Interrupt();
    return await runDemo(options, interrupt) ? 0 : 1;
  } catch (error) {
    if (error instanceof UsageError) {
      console.error(`${error.message}. --help tells the options.`);
      return 2;
    }
    if (error instanceof Interrupted) return INTERRUPTED;
    console.error(`The demo failed: ${messageOf(error)}`);
    return 1;
  }
}

function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  // Several addresses of one host that fail have no message of their own.
  if (error instanceof AggregateError) return error.errors.map(messageOf).join("; ");
  // An error with a code comes from the system or the server; any other from a mistake in here.
  return "code" in error ? error.message : error.stack ?? error.message;
}

process.exitCode = await main(process.argv.slice(2));
