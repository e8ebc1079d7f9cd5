/** Where the demo works: a PostgreSQL of its own, or a schema of its own in the one of DATABASE_URL. */

import { randomBytes } from "node:crypto";
import process from "node:process";
import postgres from "postgres";
import { startPostgres } from "../../tests/support/embedded_postgres.ts";
import { step } from "./report.ts";
import type { Watched } from "./sampler.ts";

/** The application_name of the connections beside the pool. */
const OBSERVER = "getconn demo observer";
/** How many sessions the server must bear beside the pool's: ours, and a few in reserve. */
const ROOM = 10;

/** The server and the place in it. Leaving it to `await using` removes every trace. */
export interface Database extends AsyncDisposable {
  readonly url: string;
  /** Server parameters for each session of the pool. */
  readonly connection: { readonly application_name: string; readonly search_path: string };
  /** How the pool's sessions are told from others. */
  readonly watched: Watched;
  /** The server's version. */
  readonly version: string;
  /** One connection beside the pool, in the same schema; it ends with the database. */
  observer(): postgres.Sql;
}

/** Starts the server where none is given, and makes the schema. */
export async function openDatabase(maxconn: number): Promise<Database> {
  const stack = new AsyncDisposableStack();
  try {
    const given = process.env["DATABASE_URL"];
    const config = { max_connections: maxconn + ROOM };
    const url = given ||
      stack.use(await step("starting PostgreSQL", startPostgres({ config }))).url;
    const id = randomBytes(4).toString("hex");
    const schema = `getconn_demo_${id}`;
    const applicationName = `getconn demo ${id}`;
    const observer = (): postgres.Sql => {
      const sql = postgres(url, {
        max: 1,
        onnotice: () => {},
        connection: { application_name: OBSERVER, search_path: schema },
      });
      stack.defer(() => sql.end({ timeout: 1 }));
      return sql;
    };
    const sql = observer();
    const made = Promise.resolve(sql`create schema ${sql(schema)}`);
    await (given ? step("connecting to the server of DATABASE_URL", made) : made);
    // A server of our own is removed as a whole.
    if (given) stack.defer(async () => void await sql`drop schema ${sql(schema)} cascade`);
    const [row] = await sql<{ version: string }[]>`
      select split_part(current_setting('server_version'), ' ', 1) as version`;
    return {
      url,
      connection: { application_name: applicationName, search_path: schema },
      watched: { applicationName, allBut: given ? undefined : OBSERVER },
      version: row!.version,
      observer,
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}
