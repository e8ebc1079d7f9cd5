/** The demo's command line. */

import { parseArgs } from "node:util";

/** What the user asked for. */
export interface DemoOptions {
  /** How long the load runs. */
  readonly seconds: number;
  /** How many tasks want a connection at the same time. */
  readonly tasks: number;
  /** How many workers they are spread over; 0 = all in the main isolate. */
  readonly workers: number;
  /** How many connections they share. */
  readonly maxconn: number;
  /** The size of the data: one branch, 10 tellers and 100 000 accounts for each. */
  readonly scale: number;
  /** Whether backends are killed and workers terminated meanwhile. */
  readonly chaos: boolean;
}

/** Bad usage: a message for the user, and exit code 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** What `--help` prints. */
export const HELP = `TPC-B (what pgbench runs) through a connection pool, with an audit in the end.

Usage: deno task demo [options]
       bun examples/demo/main.ts [options]

  --seconds N   how long the load runs                    (default 15)
  --tasks N     tasks that want a connection at once      (default 64)
  --workers N   workers that they are spread over         (default 4)
                (0 = all in one isolate, with a SimpleConnectionPool)
  --maxconn N   connections that they share               (default 4)
  --scale N     size of the data, in 100 000 accounts     (default 1)
  --no-chaos    kill no backends and terminate no workers
  --help        this text

It starts a PostgreSQL server of its own. With DATABASE_URL set it uses that one instead, in a
schema of its own that it drops afterwards. NO_COLOR turns colours off.
Exit code: 0 when every check of the audit passes, 1 when one fails, 2 for bad options.`;

/** Option, least and greatest value, and whether fractions are allowed. */
const NUMBERS = {
  seconds: { least: 0.1, greatest: 86_400, fractions: true },
  tasks: { least: 1, greatest: 10_000, fractions: false },
  workers: { least: 0, greatest: 64, fractions: false },
  maxconn: { least: 1, greatest: 500, fractions: false },
  scale: { least: 1, greatest: 100, fractions: false },
} as const;

/**
 * Reads the command line.
 *
 * @returns the options, or "help" when that is what is asked for
 * @throws {UsageError} for anything that is not understood
 */
export function readOptions(args: readonly string[]): DemoOptions | "help" {
  const { values } = parse(args);
  if (values.help) return "help";
  return {
    seconds: number("seconds", values.seconds),
    tasks: number("tasks", values.tasks),
    workers: number("workers", values.workers),
    maxconn: number("maxconn", values.maxconn),
    scale: number("scale", values.scale),
    chaos: !values["no-chaos"],
  };
}

// The type follows from the table inside.
// deno-lint-ignore explicit-function-return-type
function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        seconds: { type: "string", default: "15" },
        tasks: { type: "string", default: "64" },
        workers: { type: "string", default: "4" },
        maxconn: { type: "string", default: "4" },
        scale: { type: "string", default: "1" },
        "no-chaos": { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    });
  } catch (error) {
    // The first sentence says what is wrong, the rest speaks of positional arguments.
    const [message] = String((error as Error).message).split(/\. |\.?\n/);
    throw new UsageError(message);
  }
}

function number(option: keyof typeof NUMBERS, text: string): number {
  const { least, greatest, fractions } = NUMBERS[option];
  const value = Number(text);
  const wellFormed = fractions ? /^\d+(\.\d+)?$/.test(text) : /^\d+$/.test(text);
  if (!wellFormed || value < least || value > greatest) {
    const kind = fractions ? "a number" : "a whole number";
    throw new UsageError(
      `Option '--${option}' must be ${kind} from ${least} to ${greatest}, not '${text}'`,
    );
  }
  return value;
}
