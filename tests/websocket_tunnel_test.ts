/** The example of a transport without TCP, through a proxy of this test, to a real server. */

import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { connect, type Socket } from "node:net";
import { SimpleConnectionPool } from "../mod.ts";
import { webSocketTunnel } from "../examples/edge/websocket_tunnel.ts";
import { ask, dialer, hangUp } from "./support/dial.ts";
import { fakePostgres, scram } from "./support/fake_postgres.ts";
import { runner, test } from "./support/harness.ts";
import { within } from "./support/postgres.ts";
import { testServer } from "./support/server.ts";

/** What both runtimes' WebSockets have on the server's side. */
interface ServerSide {
  send(bytes: Uint8Array): unknown;
  close(): unknown;
}

/** Passes bytes on to the port, and back. */
class Bridge {
  readonly #socket: Socket;
  constructor(port: number, side: ServerSide) {
    this.#socket = connect(port, "127.0.0.1");
    this.#socket.on("data", (bytes) => side.send(new Uint8Array(bytes)));
    this.#socket.on("error", () => {});
    this.#socket.on("close", () => side.close());
  }
  take(bytes: Uint8Array): void {
    this.#socket.write(bytes);
  }
  end(): void {
    this.#socket.destroy();
  }
}

interface Proxy extends AsyncDisposable {
  readonly url: string;
}

/** A proxy for WebSockets, of the runtime that runs this. */
function proxy(port: number): Proxy {
  if (runner === "deno") {
    const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, (request) => {
      const { socket, response } = Deno.upgradeWebSocket(request);
      socket.binaryType = "arraybuffer";
      let bridge: Bridge | undefined;
      socket.onopen = () => bridge = new Bridge(port, socket as unknown as ServerSide);
      socket.onmessage = ({ data }) => bridge?.take(new Uint8Array(data));
      socket.onclose = () => bridge?.end();
      return response;
    });
    const close = () => server.shutdown();
    return { url: `ws://127.0.0.1:${server.addr.port}/`, [Symbol.asyncDispose]: close };
  }
  interface BunSocket extends ServerSide {
    data: { bridge?: Bridge };
  }
  // deno-lint-ignore no-explicit-any
  const { Bun } = globalThis as any;
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: (request: Request, self: { upgrade(r: Request, o: object): boolean }) =>
      self.upgrade(request, { data: {} }) ? undefined : new Response("no", { status: 400 }),
    websocket: {
      open: (socket: BunSocket) => void (socket.data.bridge = new Bridge(port, socket)),
      message: (socket: BunSocket, data: Uint8Array) => socket.data.bridge?.take(data),
      close: (socket: BunSocket) => socket.data.bridge?.end(),
    },
  });
  return {
    url: `ws://127.0.0.1:${server.port}/`,
    [Symbol.asyncDispose]: async () => await server.stop(true),
  };
}

test("a session through a WebSocket: it logs in, answers, is cancelled and closed", async () => {
  const { url } = await testServer();
  const { port, username: user, password } = new URL(url);
  await using tunnel = proxy(Number(port));
  const maker = dialer({
    targets: [{ host: "far.example", port: 5432 }],
    transport: webSocketTunnel(({ host, port }) => `${tunnel.url}?address=${host}:${port}`),
    user,
    password,
    database: "postgres",
    tls: { mode: "prefer" },
  });
  const { signal } = new AbortController();
  const started = await within(maker.connect(signal));
  assertEquals(started.encrypted, false);
  const rows = await ask(started, "select repeat('x', 1000) from generate_series(1, 3000)");
  assert(rows.length > 3_000_000);
  const running = ask(started, "select pg_sleep(60)");
  let over = false;
  running.then(() => over = true);
  while (!over) {
    await maker.cancel(started, signal, () => true);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assertStringIncludes(await running, "57014");
  await within(hangUp(started));
  assertEquals(started.transport.closed, true);
});

test("a tunnel whose proxy is not there, or an abort meanwhile, is a failure to connect", async () => {
  const there = dialer({ transport: webSocketTunnel(() => "ws://127.0.0.1:1/") });
  const error = await assertRejects(() => within(there.connect(new AbortController().signal)));
  assertStringIncludes((error as Error).message, "proxy did not answer");
  const why = new Error("given up");
  const controller = new AbortController();
  const opening = there.connect(controller.signal);
  queueMicrotask(() => controller.abort(why));
  await assertRejects(() => within(opening));
});

test("a pool's option transport opens all its sessions", async () => {
  const { url } = await testServer();
  await using tunnel = proxy(Number(new URL(url).port));
  const opened: string[] = [];
  const transport = webSocketTunnel(({ host, port }) => {
    opened.push(`${host}:${port}`);
    return tunnel.url;
  });
  const far = url.replace(/@[^/]*/, "@far.example:1234");
  await using pool = new SimpleConnectionPool(0, 2, far, { transport, pool: { timeout: 60_000 } });
  const sums = await Promise.all(
    [1, 2, 3].map((n) =>
      pool.use(async (conn) => (await conn<{ sum: number }[]>`select ${n}::int + 1 as sum`)[0]!.sum)
    ),
  );
  assertEquals(sums, [2, 3, 4]);
  assertEquals(new Set(opened), new Set(["far.example:1234"]));
  const socket = () => connect(1);
  assertThrows(
    () => new SimpleConnectionPool(0, 1, far, { transport, socket }),
    TypeError,
    "give one of them",
  );
  const wrong = { transport: "ws://x" } as unknown as { transport: typeof transport };
  assertThrows(
    () => new SimpleConnectionPool(0, 1, far, wrong),
    TypeError,
    "transport must be a function",
  );
});

test("a pool's option scram_max_iterations bounds and raises what a server may ask for", async () => {
  await using server = await fakePostgres(async (peer) => {
    await peer.startup();
    await scram(peer, "secret", { iterations: 100_001 });
  });
  const url = `postgres://bob:secret@127.0.0.1:${server.port}/db`;
  await using usual = new SimpleConnectionPool(0, 1, url, { sslmode: "disable" });
  assertStringIncludes(
    (await assertRejects(() => usual.getconn(), Error)).message,
    "100001 rounds",
  );
  for (const scram_max_iterations of [0, 1.5, "4096"]) {
    const options = { scram_max_iterations } as { scram_max_iterations: number };
    assertThrows(
      () => new SimpleConnectionPool(0, 1, url, options),
      Error,
      "scram_max_iterations must be",
    );
  }
});
