/** Which server: hosts, addresses, order, limits, and what is left open (nothing). */

import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { spawn } from "node:child_process";
import { once } from "node:events";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { isPermanent } from "../src/postgres/wire/connect_error.ts";
import type {
  Transport,
  TransportHandlers,
  TransportTarget,
} from "../src/postgres/wire/transport.ts";
import { openSocket } from "../src/sockets.ts";
import { dial, dialer, type DialSettings, hangUp, TCP } from "./support/dial.ts";
import { outcome } from "./support/checks.ts";
import {
  auth,
  type FakePostgres,
  fakePostgres,
  parameter,
  type Peer,
  refusal,
  scram,
  welcome,
} from "./support/fake_postgres.ts";
import { settle } from "./support/fake.ts";
import { runner, test } from "./support/harness.ts";
import { noPgBouncer, startPgBouncer } from "./support/pgbouncer.ts";
import { within } from "./support/postgres.ts";
import { testServer } from "./support/server.ts";

function serving(answer: (peer: Peer) => unknown): Promise<FakePostgres> {
  return fakePostgres(async (peer) => {
    await peer.startup();
    await answer(peer);
    await peer.gone();
    peer.socket.end();
  });
}

const standby = (peer: Peer) =>
  peer.send(
    welcome(parameter("in_hot_standby", "on"), parameter("default_transaction_read_only", "off")),
  );
const primary = (peer: Peer) => peer.send(welcome());

/** The port of the host that was taken, or what was wrong. */
async function taken(given: DialSettings, world = {}): Promise<number | Error> {
  try {
    const started = await within(dial({ maxProtocol: "3.0", ...given }, world));
    await hangUp(started);
    return started.target.port;
  } catch (error) {
    return error as Error;
  }
}

test("hosts are tried in order: what may heal goes on to the next, a refusal does not", async () => {
  await using full = await serving((peer) => peer.send(refusal("53300", "too many clients")));
  await using starting = await serving((peer) => peer.send(refusal("57P03", "starting up")));
  await using wrong = await serving((peer) => peer.send(refusal("28P01", "no such password")));
  await using good = await serving(primary);
  const at = (...servers: (FakePostgres | number)[]) =>
    taken({ targets: servers.map((s) => ({ port: typeof s === "number" ? s : s.port })) });
  assertEquals(await at(1, full, starting, good), good.port);
  assertEquals(good.count, 1);
  const refused = await at(wrong, good);
  assertEquals((refused as { code?: string }).code, "28P01");
  assertEquals(good.count, 1);
  const both = await at(1, wrong, good);
  assertInstanceOf(both, AggregateError);
  assert(isPermanent(both));
  const all = await at(1, full);
  assertInstanceOf(all, AggregateError);
  assertStringIncludes(all.message, `127.0.0.1:1: `);
  assertStringIncludes(all.message, `127.0.0.1:${full.port}: too many clients`);
  assert(!isPermanent(all));
});

test("target_session_attrs looks at all hosts; prefer-standby takes what there is in a second round", async () => {
  await using one = await serving(primary);
  await using two = await serving(standby);
  const find = (attrs: DialSettings["attrs"], ...servers: FakePostgres[]) =>
    taken({ attrs: attrs ?? null, targets: servers.map(({ port }) => ({ port })) });
  for (const order of [[one, two], [two, one]]) {
    assertEquals(await find("primary", ...order), one.port);
    assertEquals(await find("read-write", ...order), one.port);
    assertEquals(await find("standby", ...order), two.port);
    assertEquals(await find("read-only", ...order), two.port);
    assertEquals(await find("prefer-standby", ...order), two.port);
    assertEquals(await find(null, ...order), order[0]!.port);
  }
  assertEquals(await find("prefer-standby", one), one.port);
  const preferred = await dial({ attrs: "prefer-standby", port: one.port });
  assertEquals(preferred.attrs, null);
  await hangUp(preferred);
  const real = await dial({ attrs: "prefer-standby", port: two.port });
  assertEquals(real.attrs, "standby");
  await hangUp(real);
  const none = await find("standby", one, one);
  assertEquals((none as { code?: string }).code, "UNFIT_SERVER");
});

test("load_balance_hosts: hosts and addresses are shuffled at each connect", async () => {
  await using one = await serving(primary);
  await using two = await serving(primary);
  const targets = [one, two].map(({ port }) => ({ port }));
  assertEquals(await taken({ targets, loadBalance: true }, { random: () => 0 }), two.port);
  assertEquals(await taken({ targets, loadBalance: true }, { random: () => 0.99 }), one.port);
  assertEquals(await taken({ targets }, { random: () => 0 }), one.port);
  const seen = new Set<unknown>();
  const maker = dialer({ targets, loadBalance: true });
  for (let i = 0; i < 40 && seen.size < 2; i++) {
    const started = await maker.connect(new AbortController().signal);
    seen.add(started.target.port);
    await hangUp(started);
  }
  assertEquals(seen.size, 2);
  const lookup = () => Promise.resolve(["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
  const named = { targets: [{ host: "db.example", port: one.port }], loadBalance: true };
  const opened: string[] = [];
  const open = (target: TransportTarget, signal: AbortSignal) => {
    opened.push(target.host);
    return openSocket({ ...target, host: "127.0.0.1" }, signal, TCP);
  };
  await taken(named, { lookup, open, random: () => 0 });
  assertEquals(opened, ["127.0.0.2"]);
});

test("all addresses of a name are tried, and one that swallows packets costs a moment", async () => {
  await using good = await serving(primary);
  const named = { targets: [{ host: "db.example", port: good.port }] };
  const addresses = ["10.255.255.1", "10.255.255.2", "127.0.0.1"];
  const lookup = () => Promise.resolve(addresses);
  const aborted: string[] = [];
  /** Addresses of 10.* hang or fail. */
  const open = (hang: boolean) =>
  (
    target: TransportTarget,
    signal: AbortSignal,
  ) => {
    if (!target.host.startsWith("10.")) return openSocket(target, signal, TCP);
    return new Promise<Transport>((_, reject) => {
      if (!hang) reject(Object.assign(new Error("no route"), { code: "EHOSTUNREACH" }));
      signal.addEventListener("abort", () => {
        aborted.push(target.host);
        reject(signal.reason);
      });
    });
  };
  let timers: (() => void)[] = [];
  const after = (milliseconds: number, fn: () => void) => {
    if (milliseconds === 250) timers.push(fn);
    return () => timers = timers.filter((other) => other !== fn);
  };
  const hanging = dial(named, { lookup, open: open(true), after });
  for (let i = 0; i < 2; i++) {
    while (timers.length === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    timers.shift()!();
  }
  const started = await within(hanging);
  assertEquals([started.target.host, started.target.hostaddr], ["db.example", "127.0.0.1"]);
  assertEquals(aborted, ["10.255.255.1", "10.255.255.2"]);
  await hangUp(started);
  assertEquals(await taken(named, { lookup, open: open(false), after }), good.port);
  assertEquals(timers, []);

  // An address that answers, but not as it should, is followed by the others.
  await using starting = await serving((peer) => peer.send(refusal("57P03", "starting up")));
  const mixed = (target: TransportTarget, signal: AbortSignal) => {
    const port = target.host === "127.0.0.1" ? starting.port : good.port;
    return openSocket({ ...target, host: "127.0.0.1", port }, signal, TCP);
  };
  const two = { lookup: () => Promise.resolve(["127.0.0.1", "127.0.0.2"]), open: mixed };
  const second = await within(dial({ ...named, maxProtocol: "3.0" }, two));
  assertEquals(second.target.hostaddr, "127.0.0.2");
  await hangUp(second);

  const none = await taken({ targets: [{ host: "db.example", port: 1 }] }, {
    lookup: () => Promise.resolve(["127.0.0.1", "127.0.0.2"]),
  });
  assertEquals([(none as AggregateError).errors.length, (none as { code?: string }).code], [
    2,
    "ECONNREFUSED",
  ]);
  const unknown = await taken({ targets: [{ host: "db.example", port: 1 }] }, {
    lookup: () =>
      Promise.reject(Object.assign(new Error("ENOTFOUND db.example"), { code: "ENOTFOUND" })),
  });
  assertStringIncludes((unknown as Error).message, "db.example");
});

test("an abort ends every step at once, and leaves nothing open", async () => {
  await using silent = await fakePostgres(() => {});
  await using half = await serving((peer) => peer.send(welcome().subarray(0, 30)));
  const why = new Error("closed meanwhile");
  for (const { port } of [silent, half]) {
    const controller = new AbortController();
    const opening = dialer({ port }).connect(controller.signal);
    setTimeout(() => controller.abort(why), 50);
    assertEquals(await assertRejects(() => within(opening)), why);
  }
  const aborted = AbortSignal.abort(why);
  assertEquals(await assertRejects(() => dialer({ port: 1 }).connect(aborted)), why);
  // What others open too late is closed.
  let late: Transport | undefined;
  const ready = Promise.withResolvers<void>();
  const controller = new AbortController();
  const opening = dialer({ port: silent.port }, {
    open: async (target) => {
      queueMicrotask(() => controller.abort(why));
      await ready.promise;
      return late = await openSocket(target, new AbortController().signal, TCP);
    },
  }).connect(controller.signal);
  assertEquals(await assertRejects(() => within(opening)), why);
  ready.resolve();
  while (!late?.closed) await new Promise((resolve) => setTimeout(resolve, 5));
});

test("an abort waits for hashing, which cannot be called off", async () => {
  const why = new Error("closed meanwhile");
  const controller = new AbortController();
  await using server = await fakePostgres(async (peer) => {
    await peer.startup();
    await scram(peer, "secret", {
      iterations: 200_000,
      challenge: ({ nonce, salt, iterations }) => {
        setTimeout(() => controller.abort(why), 5);
        return auth(11, `r=${nonce},s=${salt},i=${iterations}`);
      },
    }).catch(() => {});
    peer.socket.end();
  });
  const { port } = server;
  const auth200 = { maxScramIterations: 200_000 };
  const opening = dialer({ port, auth: auth200 }).connect(controller.signal);
  // That nothing runs on is seen by Deno's own watch over what a test leaves behind.
  assertEquals(await assertRejects(() => within(opening)), why);
});

test("an abort waits for the resolver, but not longer than a second", async () => {
  const why = new Error("closed meanwhile");
  const target = { targets: [{ host: "db.example", port: 1 }] };
  for (const answers of [true, false]) {
    const controller = new AbortController();
    const name = Promise.withResolvers<readonly string[]>();
    const limits: [number, () => void][] = [];
    const opening = outcome(
      dialer(target, {
        lookup: () => name.promise,
        after: (ms, fn) => {
          limits.push([ms, fn]);
          return () => {};
        },
      }).connect(controller.signal),
    );
    await settle();
    controller.abort(why);
    await settle();
    assertEquals(opening.settled, false);
    const [ms, end] = limits.at(-1)!;
    assertEquals(ms, 1_000);
    if (answers) name.resolve(["127.0.0.1"]);
    else end();
    await settle();
    assertEquals(opening.error, why);
  }
});

test("a session that will not do is taken leave of before the next host is asked", async () => {
  let left = false;
  await using one = await fakePostgres(async (peer) => {
    await peer.startup();
    standby(peer);
    assertEquals((await peer.next()).type, "X");
    await peer.gone();
    left = true;
    peer.socket.end();
  });
  await using two = await serving((peer) => {
    assert(left);
    primary(peer);
  });
  assertEquals(
    await taken({ attrs: "primary", targets: [one, two].map(({ port }) => ({ port })) }),
    two.port,
  );
  assertEquals([one.failures, two.failures], [[], []]);
});

test("a transport of the user's own: names are its affair, and encryption, too", async () => {
  await using server = await serving(primary);
  const targets: unknown[] = [];
  class Tunnel implements Transport {
    readonly encrypted = true;
    constructor(readonly inner: Transport) {}
    get closed(): boolean {
      return this.inner.closed;
    }
    receive(handlers: TransportHandlers): void {
      this.inner.receive(handlers);
    }
    write(bytes: Uint8Array): boolean {
      return this.inner.write(bytes);
    }
    end = () => this.inner.end();
    destroy = () => this.inner.destroy();
    pause = () => this.inner.pause();
    resume = () => this.inner.resume();
    ref = () => this.inner.ref();
    unref = () => this.inner.unref();
  }
  const tunnel = (encrypted: boolean): DialSettings["transport"] => async (target, signal) => {
    targets.push(target);
    const inner = await openSocket(
      { ...target, host: "127.0.0.1", port: server.port },
      signal,
      TCP,
    );
    return encrypted ? new Tunnel(inner) : Object.assign(new Tunnel(inner), { encrypted: false });
  };
  const given = {
    targets: [{ host: "far.example", port: 1234 }],
    tls: { mode: "require" as const },
  };
  const started = await dial({ ...given, transport: tunnel(true) ?? null });
  assertEquals(started.encrypted, true);
  assertEquals(targets, [{ host: "far.example", port: 1234, path: null }]);
  await hangUp(started);
  const plain = await taken({ ...given, transport: tunnel(false) ?? null });
  assertStringIncludes((plain as Error).message, "has no TLS, which sslmode=require asks for");
});

test("what is written is the transport's own: one may mask it in place, at each connect", async () => {
  const heard: string[] = [];
  await using server = await fakePostgres(async (peer) => {
    const { version } = await peer.startup();
    heard.push(version);
    peer.socket.write("N");
    await peer.startup();
    standby(peer);
    heard.push((await peer.next()).type);
    await peer.gone();
    peer.socket.end();
  });
  const masking: DialSettings["transport"] = async (target, signal) => {
    const inner = await openSocket(
      { ...target, host: "127.0.0.1", port: server.port },
      signal,
      TCP,
    );
    const write = inner.write.bind(inner);
    return Object.assign(inner, {
      write(bytes: Uint8Array): boolean {
        const room = write(bytes.slice());
        bytes.fill(0);
        return room;
      },
    });
  };
  const given = { attrs: "primary", tls: { mode: "prefer" }, transport: masking } as const;
  for (let i = 0; i < 2; i++) {
    assertStringIncludes((await taken(given) as Error).message, "hot standby");
  }
  assertEquals(heard, ["ssl", "X", "ssl", "X"]);
});

if (runner === "deno") {
  test("a program that may connect to a name only is not asked for more", async () => {
    const { url } = await testServer();
    const { port } = new URL(url);
    const fixture = fileURLToPath(new URL("./fixtures/dial_by_name.ts", import.meta.url));
    const cases = [
      [`--allow-net=localhost:${port}`, "by name"],
      ["--allow-net=localhost,127.0.0.1,[::1]", /^(127\.0\.0\.1|::1)$/],
      ["--allow-net=elsewhere.example", /^(EPERM|ERR_ACCESS_DENIED)$/],
    ] as const;
    for (const [permission, expected] of cases) {
      const child = spawn(process.execPath, [
        "run",
        "--no-prompt",
        "--no-check",
        permission,
        fixture,
        url,
      ]);
      let printed = "";
      child.stdout.on("data", (bytes) => printed += bytes);
      child.stderr.resume();
      await once(child, "close");
      if (typeof expected === "string") assertEquals(printed.trim(), expected, permission);
      else assertMatch(printed.trim(), expected, permission);
    }
  });
}

test(
  "PgBouncer: a pooler that refuses protocol 3.2 is spoken to in 3.0, and its words are told",
  async () => {
    await using pooler = await startPgBouncer("transaction", 2);
    const { port } = new URL(pooler.url);
    const given = {
      port: Number(port),
      user: "postgres",
      password: "postgres",
      database: "postgres",
      tls: { mode: "prefer" as const },
    };
    const started = await dial({ ...given, attrs: "read-write" });
    assertEquals(started.protocol, "3.0");
    await hangUp(started);
    for (
      const [more, words] of [
        [{ password: "wrong" }, "authentication failed"],
        [{ database: "nope" }, "no such database: nope"],
        [{ parameters: { bytea_output: "hex" } }, "unsupported startup parameter: bytea_output"],
      ] as const
    ) {
      const error = await assertRejects(() => dial({ ...given, ...more }), Error);
      assertStringIncludes(error.message, words);
      assert(isPermanent(error), words);
    }
  },
  { skip: noPgBouncer },
);
