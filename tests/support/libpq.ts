/** The real libpq beside ours: psql, and a server that writes down who comes, and lets nobody in. */

import { Buffer } from "node:buffer";
import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import process from "node:process";
import { prepareBinaries, sharedTemp } from "./embedded_postgres_setup.ts";

/** Who has come to a server, and where. */
export interface Visit {
  /** The port, and on TCP the address that was connected to; or the name of the Unix socket. */
  readonly place: string;
  /** True when TLS was asked for first. */
  readonly tls: boolean;
  /** The startup message; its `client_encoding` is left out. */
  readonly parameters: Readonly<Record<string, string>>;
  /** Null when none was given. */
  readonly password: string | null;
}

/** Writes down who comes, asks for the password, and refuses. */
export class GuestBook {
  readonly visits: Visit[] = [];
  readonly #servers: net.Server[] = [];
  readonly #sockets: Set<net.Socket> = new Set();

  /** Listens on a free TCP port of all addresses; gives the port. */
  async listen(): Promise<number> {
    const server = await this.#open({ port: 0, host: "0.0.0.0" });
    return (server.address() as net.AddressInfo).port;
  }

  /** Listens on a Unix socket. */
  async listenAt(path: string): Promise<void> {
    await this.#open({ path });
  }

  /** Resolves when nobody is there: all that have come are in the book. */
  async quiet(): Promise<void> {
    while (this.#sockets.size > 0) await new Promise((resolve) => setTimeout(resolve, 1));
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await Promise.all(
      this.#servers.map((server) => new Promise((resolve) => server.close(resolve))),
    );
  }

  #open(where: net.ListenOptions): Promise<net.Server> {
    return new Promise((resolve, reject) => {
      const server = net.createServer((socket) => this.#serve(socket, where.path));
      this.#servers.push(server);
      server.once("error", reject);
      server.listen(where, () => resolve(server));
    });
  }

  #serve(socket: net.Socket, path: string | undefined): void {
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
    socket.on("error", () => {});
    const place = path ?? `${socket.localAddress}:${socket.localPort}`;
    let [tls, buffer] = [false, Buffer.alloc(0)];
    let parameters: Record<string, string> | null = null;
    const done = (password: string | null) => {
      if (parameters === null) return;
      this.visits.push({ place, tls, parameters, password });
      parameters = null;
      socket.end(message("E", "SFATAL\0VFATAL\0C28P01\0Mwritten down\0\0"));
    };
    socket.on("end", () => {
      done(null);
      socket.end();
    });
    socket.on("close", () => done(null));
    socket.on("data", (chunk) => {
      buffer = Buffer.concat([buffer, chunk as Buffer]);
      if (parameters !== null) {
        if (buffer.length < 5 || buffer.length < buffer.readInt32BE(1) + 1) return;
        const password = buffer.toString("utf8", 5, buffer.readInt32BE(1));
        return done(password === "" ? null : password);
      }
      while (buffer.length >= 8 && buffer.length >= buffer.readInt32BE(0)) {
        const code = buffer.readInt32BE(4);
        const body = buffer.toString("utf8", 8, buffer.readInt32BE(0));
        buffer = buffer.subarray(buffer.readInt32BE(0));
        if (code === 80877103) {
          tls = true;
          socket.write("N");
          continue;
        }
        const words = body.split("\0");
        parameters = {};
        for (let i = 0; words[i]; i += 2) parameters[words[i]!] = words[i + 1]!;
        delete parameters["client_encoding"];
        socket.write(message("R", "\0\0\0\x03"));
      }
    });
  }
}

function message(type: string, body: string): Buffer {
  const frame = Buffer.from(`${type}\0\0\0\0${body}`, "latin1");
  frame.writeInt32BE(frame.length - 1, 1);
  return frame;
}

/** The psql of this machine, with the libpq of the tests' server where there is one. */
export interface Psql {
  /** What it says of itself. */
  readonly version: string;
  /** True when it runs with the libpq of PostgreSQL 18. */
  readonly modern: boolean;
  /** Runs it with nothing but these variables; gives what it says when it fails. */
  run(conninfo: string, env: Readonly<Record<string, string>>): Promise<string>;
  /** The same for the value that a query gives; null when it fails. */
  ask(
    conninfo: string,
    env: Readonly<Record<string, string>>,
    query: string,
  ): Promise<string | null>;
}

/** Null when the machine has no psql. */
export async function findPsql(): Promise<Psql | null> {
  const found = spawnSync("psql", ["--version"], { encoding: "utf8" });
  if (found.error || found.status !== 0) return null;
  const base: Record<string, string> = { PATH: process.env["PATH"] ?? "" };
  const libraries = join(await prepareBinaries(await sharedTemp()), "lib");
  if (existsSync(join(libraries, "libpq.so.5"))) base["LD_LIBRARY_PATH"] = libraries;
  // Known to libpq 18 only.
  const probe = spawnSync("psql", ["-X", "-w", "host=/nowhere max_protocol_version=3.0"], {
    encoding: "utf8",
    env: base,
  });
  return {
    version: found.stdout.trim(),
    modern: probe.stderr.includes("/nowhere/.s.PGSQL.5432"),
    run: async (conninfo, env) => (await run(conninfo, env, "select 1")).said,
    ask: async (conninfo, env, query) => (await run(conninfo, env, query)).value,
  };

  function run(
    conninfo: string,
    env: Readonly<Record<string, string>>,
    query: string,
  ): Promise<{ said: string; value: string | null }> {
    return new Promise((resolve, reject) => {
      const child = spawn("psql", ["-X", "-w", "-At", "-c", query, conninfo], {
        env: { ...base, ...env },
        stdio: ["ignore", "pipe", "pipe"],
      });
      let [said, value] = ["", ""];
      child.stderr.on("data", (chunk) => said += chunk);
      child.stdout.on("data", (chunk) => value += chunk);
      child.on("error", reject);
      child.on("close", (code) => resolve({ said, value: code === 0 ? value.trim() : null }));
    });
  }
}
