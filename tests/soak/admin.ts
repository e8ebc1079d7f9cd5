/**
 * The one who looks at the server and does things to it, around every proxy. It is another driver than
 * the pool's, one that gets over a server that goes away: a judge must not fall with the accused.
 */

import pgModule from "pg";
import { pause } from "./works.ts";

/** How long one attempt to connect may take, and all of them together, in milliseconds. */
const ATTEMPT = 30_000;
const PATIENCE = 120_000;

/** What we use of node-postgres: its types would bring those of a browser along. */
interface Client {
  connect(): Promise<void>;
  query(text: string, values: readonly unknown[]): Promise<{ rows: unknown[] }>;
  on(type: "error", fn: () => void): void;
  end(): Promise<void>;
}
const { Client } = pgModule as unknown as { Client: new (options: object) => Client };

/** A superuser's session, made anew whenever it is lost. */
export class Admin {
  #url: string;
  #client: Promise<Client> | null = null;
  /** Changes when nobody wants the connection any more that is being opened. */
  #attempt: object | null = null;

  /** Connects at the first statement. */
  constructor(url: string) {
    this.#url = url;
  }

  /** Goes to another server from now on. */
  async moveTo(url: string): Promise<void> {
    await this.end();
    this.#url = url;
  }

  /** Runs one statement. */
  async rows<T = Record<string, unknown>>(text: string, ...values: unknown[]): Promise<T[]> {
    const own = this.#client ??= this.#connect();
    try {
      return (await (await own).query(text, values)).rows as T[];
    } catch (error) {
      // A server's own word has five characters, and one that ends the session begins with 57P.
      const { code } = error as { code?: string };
      if (!/^\w{5}$/.test(code ?? "") || code!.startsWith("57P")) await this.#drop(own);
      throw error;
    }
  }

  /** Ends the session. */
  async end(): Promise<void> {
    if (this.#client !== null) await this.#drop(this.#client);
  }

  /** A server may start, and many connect at once on few cores: a judge must not fall by that. */
  async #connect(): Promise<Client> {
    const attempt = this.#attempt = {};
    for (const end = performance.now() + PATIENCE;;) {
      try {
        return await this.#connectOnce();
      } catch (error) {
        if (this.#attempt !== attempt || performance.now() > end) throw error;
        await pause(50);
      }
    }
  }

  async #connectOnce(): Promise<Client> {
    const client = new Client({
      connectionString: this.#url,
      connectionTimeoutMillis: ATTEMPT,
      application_name: "admin of the soak",
      // No fault is for us; and no statement of ours waits for a standby.
      options: "-c synchronous_commit=local -c statement_timeout=0 " +
        "-c idle_in_transaction_session_timeout=0",
    });
    client.on("error", () => {});
    await client.connect();
    return client;
  }

  async #drop(client: Promise<Client>): Promise<void> {
    if (this.#client === client) {
      this.#client = null;
      this.#attempt = null;
    }
    await client.then((one) => one.end()).catch(() => {});
  }
}
