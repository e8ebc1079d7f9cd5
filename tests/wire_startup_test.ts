/** From a connection to the first ReadyForQuery: what is sent, what is accepted, and what never is. */

import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { PoolError, SimpleConnectionPool } from "../mod.ts";
import { isPermanent } from "../src/postgres/wire/connect_error.ts";
import { misfit } from "../src/postgres/wire/startup.ts";
import { openSocket } from "../src/sockets.ts";
import type { TransportTarget } from "../src/postgres/wire/transport.ts";
import { dial, type DialSettings, Refused, TCP } from "./support/dial.ts";
import {
  auth,
  fakePostgres,
  int16,
  int32,
  key,
  message,
  parameter,
  type Peer,
  ready,
  refusal,
  rowOf,
  scram,
  type ScramFaults,
  type StartupMessage,
  welcome,
} from "./support/fake_postgres.ts";
import { test } from "./support/harness.ts";
import { within } from "./support/postgres.ts";
import { testServer } from "./support/server.ts";

type Script = (peer: Peer, startup: StartupMessage) => unknown;

/** Starts with a server of this script; what came of it, and the password messages that the server got. */
async function start(script: Script, given: DialSettings = {}) {
  await using server = await fakePostgres(async (peer) => {
    await script(peer, await peer.startup());
  });
  const outcome = await within(
    dial({ port: server.port, maxProtocol: "3.0", ...given }).then(
      (started) => {
        started.transport.destroy();
        return started;
      },
      (error: Error & { code?: string }) => error,
    ),
  );
  assertEquals(server.failures, []);
  return outcome;
}

/** The failure, as one text. */
async function refused(script: Script, given: DialSettings = {}): Promise<string> {
  const outcome = await start(script, given);
  assertInstanceOf(outcome, Error);
  return `${(outcome as { code?: string }).code} ${outcome.message}`;
}

async function accepted(script: Script, given: DialSettings = {}) {
  const outcome = await start(script, given);
  if (outcome instanceof Error) throw outcome;
  return outcome;
}

/** Lets in whoever answers once to this request. */
function askOnce(request: Buffer, answers: string[]): Script {
  return async (peer) => {
    peer.send(request);
    answers.push((await peer.next()).body.toString());
    peer.send(welcome());
  };
}

test("startup: user, database and settings are sent as they are, empty ones too, and no NUL passes", async () => {
  let seen: StartupMessage | undefined;
  const started = await accepted((peer, startup) => {
    seen = startup;
    peer.send(welcome());
  }, { parameters: { application_name: "", search_path: "0", "my.flag": "false" } });
  assertEquals(seen?.parameters, [
    ["user", "bob"],
    ["database", "db"],
    ["client_encoding", "UTF8"],
    ["application_name", ""],
    ["search_path", "0"],
    ["my.flag", "false"],
  ]);
  assertEquals(started.key, { pid: 4242, secret: Uint8Array.of(1, 2, 3, 4) });
  assertEquals(started.parameters.get("server_version"), "18.0");
  assertEquals([started.rest, started.encrypted], [null, false]);

  const odd: DialSettings[] = [
    { user: "bob\0options\0-c x=y" },
    { database: "db\0role\0root" },
    { parameters: { application_name: "a\0b" } },
    { parameters: { "a\0b": "c" } },
    { parameters: { "": "c" } },
  ];
  for (const given of odd) {
    const outcome = await start((peer) => peer.send(welcome()), given);
    assertInstanceOf(outcome, TypeError);
    assert(isPermanent(outcome));
  }
});

test("startup: the frames may come cut at any place, and what follows them is kept", async () => {
  const more = message("N", "SNOTICE\0C00000\0Mlate\0\0");
  const whole = Buffer.concat([welcome(), more]);
  for (let cut = 1; cut < whole.length; cut += 7) {
    const started = await accepted(async (peer) => {
      peer.socket.setNoDelay(true);
      peer.send(whole.subarray(0, cut));
      await new Promise((resolve) => setTimeout(resolve, 2));
      peer.send(whole.subarray(cut));
    });
    // What has not come by then waits in the transport, which is paused; on a busy machine both parts come as one.
    const rest = Buffer.from(started.rest ?? []);
    assert(
      rest.length >= cut - (whole.length - more.length),
      `${rest.length} bytes, cut at ${cut}`,
    );
    assertEquals(rest, more.subarray(0, rest.length));
  }
});

test("startup: protocol 3.2 is asked for, and an older one is taken from who says so", async () => {
  const secret = Uint8Array.from({ length: 256 }, (_, i) => i);
  const long = Buffer.concat([auth(0), key(7, secret), ready()]);
  const newer = await accepted((peer, { version }) => {
    assertEquals(version, "3.2");
    peer.send(long);
  }, { maxProtocol: "3.2" });
  assertEquals([newer.protocol, newer.key.secret], ["3.2", secret]);

  const negotiate = (version: number, ...options: string[]) =>
    message(
      "v",
      Buffer.concat([
        int32(version),
        int32(options.length),
        Buffer.from(options.map((o) => `${o}\0`).join("")),
      ]),
    );
  for (const version of [3 << 16, 0]) {
    const older = await accepted((peer) => peer.send(negotiate(version), welcome()), {
      maxProtocol: "3.2",
    });
    assertEquals([older.protocol, older.key.secret.length], ["3.0", 4]);
  }
  const asked: DialSettings = { maxProtocol: "3.2" };
  const cases: [Buffer, DialSettings, string][] = [
    [negotiate(3 << 16), { ...asked, minProtocol: "3.2" }, "min_protocol_version is 3.2"],
    [negotiate((3 << 16) | 2), asked, "and was asked for 3.2"],
    [negotiate((3 << 16) | 9), asked, "and was asked for 3.2"],
    [negotiate(2 << 16), asked, "it wants version 2.0"],
    [negotiate(3 << 16, "_pq_.x"), asked, "were not asked for"],
    [negotiate(3 << 16), {}, "and was asked for 3.0"],
    [Buffer.concat([negotiate(3 << 16), negotiate(3 << 16)]), asked, 'a message of type "v"'],
    [message("v", int32(0)), asked, "too short"],
    [message("v", Buffer.concat([int32(3 << 16), int32(0), int32(0)])), asked, "too long"],
  ];
  for (const [bytes, given, words] of cases) {
    assertStringIncludes(await refused((peer) => peer.send(bytes, welcome()), given), words);
  }
});

test("startup: a server that refuses protocol 3.2, or hangs up at it, is asked for 3.0", async () => {
  for (
    const no of [
      refusal("0A000", "unsupported frontend protocol 3.2"),
      refusal("08P01", "bad packet header"),
      null,
    ]
  ) {
    const versions: string[] = [];
    const started = await accepted((peer, { version }) => {
      versions.push(version);
      if (version === "3.0") return peer.send(welcome());
      if (no !== null) peer.send(no);
      peer.socket.end();
    }, { maxProtocol: "3.2" });
    assertEquals(started.protocol, "3.0");
    assertEquals(versions, ["3.2", "3.0"]);
  }
  const words = await refused((peer) => peer.send(refusal("28P01", "no")), { maxProtocol: "3.2" });
  assertEquals(words, "28P01 no");
});

test("startup: a cancel key is as long as the protocol has it, and comes once", async () => {
  const cases: [Buffer, "3.0" | "3.2", string][] = [
    [key(1, new Uint8Array(3)), "3.0", "3 bytes"],
    [key(1, new Uint8Array(5)), "3.0", "5 bytes"],
    [key(1, new Uint8Array(3)), "3.2", "3 bytes"],
    [key(1, new Uint8Array(257)), "3.2", "257 bytes"],
    [message("K", ""), "3.2", "-4 bytes"],
    [Buffer.concat([key(), key()]), "3.2", 'type "K"'],
  ];
  for (const [bytes, maxProtocol, words] of cases) {
    const said = await refused((peer) => peer.send(auth(0), bytes, ready()), { maxProtocol });
    assertStringIncludes(said, words);
    assertStringIncludes(said, "PROTOCOL_VIOLATION");
  }
  const without = await accepted((peer) => peer.send(auth(0), ready()));
  assertEquals(without.key, { pid: 0, secret: new Uint8Array(0) });
});

test("login: a password in clear and by MD5", async () => {
  const answers: string[] = [];
  await accepted(askOnce(auth(3), answers));
  await accepted(askOnce(auth(5, "salt"), answers));
  const md5 = (text: string) => createHash("md5").update(text).digest("hex");
  assertEquals(answers, ["secret\0", `md5${md5(`${md5("secretbob")}salt`)}\0`]);
});

test("login: SCRAM-SHA-256, by whoever knows the password", async () => {
  let knew: boolean | undefined;
  const login = (password: string, faults: ScramFaults = {}): Script => async (peer) => {
    knew = await scram(peer, password, faults);
    peer.send(knew ? welcome() : refusal("28P01", "wrong password"));
  };
  await accepted(login("secret"));
  assertEquals(knew, true);
  await accepted(
    login("secret", { mechanisms: "SCRAM-SHA-256-PLUS\0OAUTHBEARER\0SCRAM-SHA-256\0\0" }),
  );
  assertEquals(knew, true);
  // A server that does not know the password cannot pass for one that does, even to let us in.
  const said = await refused(async (peer) => {
    await scram(peer, "another");
    peer.send(welcome());
  });
  assertStringIncludes(said, "signature is wrong");
});

test("login: SCRAM that is not as it must be ends the attempt", async () => {
  const challenge = (text: string) => ({ challenge: () => auth(11, text) });
  const cases: [ScramFaults, string][] = [
    [
      { challenge: ({ salt }) => auth(11, `r=attackerchosen,s=${salt},i=4096`) },
      "not for our nonce",
    ],
    [
      { challenge: ({ nonce, salt }) => auth(11, `r=${nonce.slice(0, -6)},s=${salt},i=4096`) },
      "our nonce",
    ],
    [
      { challenge: ({ nonce, salt }) => auth(11, `r=${nonce},s=${salt},i=10000000`) },
      "10000000 rounds",
    ],
    [
      { challenge: ({ nonce, salt }) => auth(11, `r=${nonce},s=${salt},i=100001`) },
      "100001 rounds",
    ],
    [{ challenge: ({ nonce, salt }) => auth(11, `r=${nonce},s=${salt},i=0`) }, "malformed"],
    [{ challenge: ({ nonce, salt }) => auth(11, `r=${nonce},s=${salt},i=1e3`) }, "malformed"],
    [{ challenge: ({ nonce }) => auth(11, `r=${nonce},s=,i=4096`) }, "malformed"],
    [{ challenge: ({ nonce }) => auth(11, `r=${nonce},s=!!!!,i=4096`) }, "malformed"],
    [{ challenge: ({ nonce, salt }) => auth(11, `m=x,r=${nonce},s=${salt},i=4096`) }, "malformed"],
    [challenge(""), "malformed"],
    [challenge("r=x"), "malformed"],
    [{ challenge: () => auth(12, "v=x") }, "challenge of SCRAM is missing"],
    [{ challenge: () => auth(0) }, "challenge of SCRAM is missing"],
    [{ challenge: () => auth(3) }, "challenge of SCRAM is missing"],
    [{ challenge: () => refusal("28P01", "gone") }, "28P01 gone"],
    [{ final: () => auth(12, "v=AAAA") }, "signature is wrong"],
    [{ final: () => auth(12, "e=invalid-proof") }, "invalid-proof"],
    [{ final: () => auth(12, "") }, "signature is wrong"],
    [{ final: () => Buffer.alloc(0) }, "last message of SCRAM is missing"],
    [{ final: (s) => Buffer.concat([auth(12, `v=${s}`), auth(12, `v=${s}`)]) }, "again"],
    [{ final: (s) => Buffer.concat([auth(12, `v=${s}`), auth(10, "SCRAM-SHA-256\0\0")]) }, "again"],
    [{ final: (s) => Buffer.concat([auth(12, `v=${s}`), auth(3)]) }, "again"],
    [{ mechanisms: "SCRAM-SHA-256-PLUS\0\0" }, "not supported (SCRAM-SHA-256-PLUS)"],
    [{ mechanisms: "OAUTHBEARER\0\0" }, "not supported (OAUTHBEARER)"],
    [{ mechanisms: "\0" }, "not supported (none)"],
    [{ mechanisms: "SCRAM-SHA-256\0" }, "text without its end"],
    [{ mechanisms: "SCRAM-SHA-256\0\0x\0" }, "behind its end"],
  ];
  for (const [faults, words] of cases) {
    const outcome = await start(async (peer) => {
      await scram(peer, "secret", faults);
      peer.send(welcome());
    });
    assertInstanceOf(outcome, Error);
    assertStringIncludes(`${(outcome as { code?: string }).code} ${outcome.message}`, words);
    // Whoever is at the other end does not heal by being asked again. Behind the login it is the wire that is broken.
    const behind = /^again$|its end$/.test(words);
    assertEquals([words, isPermanent(outcome)], [words, !behind]);
  }
});

test("login: a server that does not know the password is told to whoever waits, at once, with a hint", async () => {
  await using server = await fakePostgres(async (peer) => {
    await peer.startup();
    await scram(peer, "another");
    peer.send(welcome());
  });
  await using pool = new SimpleConnectionPool(0, 1, {
    host: "127.0.0.1",
    port: server.port,
    user: "bob",
    password: "secret",
    sslmode: "disable",
    // Far longer than the test may take.
    pool: { timeout: 600_000 },
  });
  const error = await assertRejects(() => pool.getconn(), PoolError);
  assertEquals(error.code, "CONNECT_FAILED");
  assertStringIncludes(error.message, "SCRAM signature is wrong");
  const { code, hint } = error.cause as { code?: string; hint?: string };
  assertEquals(code, "AUTH_REFUSED");
  assertStringIncludes(hint ?? "", "is nobody between");
});

test("login: the bound of SCRAM's rounds can be raised", async () => {
  const script: Script = async (peer) => {
    assert(await scram(peer, "secret", { iterations: 120_000 }));
    peer.send(welcome());
  };
  assertStringIncludes(await refused(script), "120000 rounds");
  await accepted(script, { auth: { maxScramIterations: 120_000 } });
});

test("login: one exchange only, of the right length, and nothing odd around it", async () => {
  const cases: [Buffer[], string][] = [
    [[auth(3), auth(3), auth(0)], "again"],
    [[auth(3), auth(10, "SCRAM-SHA-256\0\0")], "again"],
    [[auth(3), ready()], 'type "Z" before the login was over'],
    [[auth(5, "abc")], "wrong length"],
    [[auth(5, "abcde")], "wrong length"],
    [[auth(3, "x")], "wrong length"],
    [[auth(0, "x")], "wrong length"],
    [[message("R", "")], "too short"],
    [[auth(11, "r=x,s=AAAA,i=4096")], "not supported (11)"],
    [[auth(12, "v=x")], "not supported (12)"],
    [[auth(7)], "not supported (GSSAPI)"],
    [[auth(2)], "not supported (Kerberos 5)"],
    [[auth(99)], "not supported (99)"],
    [[ready()], "is no PostgreSQL server"],
    [[auth(0), auth(0)], 'type "R"'],
    [[auth(0), auth(3)], 'type "R"'],
    [[auth(0), message("v", Buffer.concat([int32(3 << 16), int32(0)]))], 'type "v"'],
    [[auth(0), message("T", int16(0))], 'type "T"'],
    [[auth(0), message("A", "\0\0\0\0a\0b\0")], 'type "A"'],
    [[auth(0), ready("T")], "outside of a transaction"],
    [[auth(0), ready("")], "length 4; allowed is 5"],
    [[auth(0), message("S", "nope")], "without its end"],
    [[auth(0), message("S", "a\0b\0c")], "goes on behind"],
    [[auth(0), message("N", "SNOTICE")], "without its end"],
    [[auth(10, `SCRAM-SHA-256\0${"x".repeat(2_000)}\0\0`)], "too long"],
    [[message("E", "x".repeat(30_000))], "length 30004"],
    [[auth(0), message("S", `a\0${"x".repeat(30_000)}\0`)], "length 30007"],
    [[auth(0), message("D", "", 0x7fffffff)], "length 2147483647"],
    [[auth(0), message("Z", "", 2)], "length 2"],
    [[auth(0), message("~", "abc")], 'unknown type "~"'],
  ];
  for (const [frames, words] of cases) {
    const said = await refused((peer) => peer.send(...frames));
    assertStringIncludes(said, words);
  }
});

test("login: a server that never comes to an end of what it says of itself is left", async () => {
  const flood = Buffer.concat(
    Array.from({ length: 3_000 }, () => parameter("a", "x".repeat(1_000))),
  );
  const said = await refused((peer) => peer.send(auth(0), flood, flood, flood));
  assertStringIncludes(said, "too much before the session stood");
});

test("require_auth: only what it allows is answered, and nothing is sent otherwise", async () => {
  const answers: string[] = [];
  const ask = (request: Buffer): Script => async (peer) => {
    peer.send(request);
    answers.push((await peer.next()).body.toString());
    peer.send(welcome());
  };
  const only = (...methods: ("none" | "password" | "md5" | "scram-sha-256")[]): DialSettings => ({
    auth: { methods: new Set(methods) },
  });
  const scramOnly = only("scram-sha-256");
  assertStringIncludes(
    await refused(ask(auth(3)), scramOnly),
    "AUTH_REFUSED the server asks for the authentication method password",
  );
  assertStringIncludes(await refused(ask(auth(5, "salt")), scramOnly), "method md5");
  assertStringIncludes(
    await refused((peer) => peer.send(welcome()), scramOnly),
    "did not ask for authentication",
  );
  assertStringIncludes(
    await refused(ask(auth(10, "SCRAM-SHA-256\0\0")), only("md5")),
    "scram-sha-256",
  );
  assertEquals(answers, []);
  await accepted(ask(auth(3)), only("password", "md5"));
  await accepted((peer) => peer.send(welcome()), only("none"));
  await accepted(async (peer) => {
    await scram(peer, "secret");
    peer.send(welcome());
  }, scramOnly);
});

test("channel_binding=require: no login that is not bound, and no password is sent", async () => {
  const bound: DialSettings = { auth: { channelBinding: "require" } };
  let answered = 0;
  const ask = (request: Buffer): Script => async (peer) => {
    peer.send(request);
    await peer.next();
    answered++;
  };
  for (
    const request of [
      auth(3),
      auth(5, "salt"),
      auth(10, "SCRAM-SHA-256\0\0"),
      auth(10, "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
      welcome(),
    ]
  ) {
    assertStringIncludes(
      await refused(ask(request), bound),
      "AUTH_REFUSED channel_binding=require",
    );
  }
  assertEquals(answered, 0);
});

test("a password is asked for when the server wants one, and its failure is the connect's", async () => {
  let asked = 0;
  const password = () => {
    asked++;
    return Promise.resolve("secret");
  };
  await accepted((peer) => peer.send(welcome()), { auth: { password } });
  assertEquals(asked, 0);
  await accepted(askOnce(auth(3), []), { auth: { password } });
  assertEquals(asked, 1);
  const failing = { auth: { password: () => Promise.reject(new Error("vault")) } };
  assertStringIncludes(await refused(askOnce(auth(3), []), failing), "vault");
  for (const none of [null, ""]) {
    assertStringIncludes(await refused(askOnce(auth(3), []), { password: none }), "none was given");
  }
  assertStringIncludes(await refused(askOnce(auth(3), []), { password: "a\0b" }), "U+0000");
});

test("the server's own word is the error, and what it says of itself is told as it was", async () => {
  const outcome = await start((peer) =>
    peer.send(refusal("53300", "sorry, too many clients already"))
  );
  assertInstanceOf(outcome, Refused);
  assertEquals([outcome.code, outcome.message], ["53300", "sorry, too many clients already"]);
  const late = await start((peer) =>
    peer.send(auth(0), refusal("3D000", 'database "db" does not exist'))
  );
  assertEquals((late as Refused).code, "3D000");
  // Before 2003, and still where there is no memory for a proper message.
  const old = await refused((peer) => peer.socket.end("Ecould not fork new process\n\0"));
  assertStringIncludes(old, "could not fork new process");
  const http = await refused((peer) => peer.socket.end("HTTP/1.1 400 Bad Request\r\n\r\n"));
  assertStringIncludes(http, "is no PostgreSQL server; it says: HTTP/1.1 400 Bad Request");
});

test("a server that closes before the session stands is told of at once", async () => {
  const scripts: Script[] = [
    (peer) => peer.socket.end(),
    (peer) => peer.socket.end(auth(0)),
    (peer) => peer.socket.end(Buffer.concat([auth(0), key()])),
    (peer) => peer.socket.end(auth(3)),
  ];
  for (const script of scripts) {
    assertStringIncludes(await refused(script), "CONNECTION_CLOSED");
  }
  assertStringIncludes(await refused((peer) => peer.socket.resetAndDestroy()), "ECONNRESET");
});

test("one limit holds for all steps together", async () => {
  const scripts: Script[] = [
    () => {},
    (peer) => peer.send(auth(0)),
    (peer) => peer.send(auth(3)),
    (peer) => peer.send(Buffer.concat([auth(0), key()])),
    // Each byte is a sign of life, and none of them counts.
    async (peer) => {
      for (const byte of welcome()) {
        peer.send(Uint8Array.of(byte));
        await new Promise((resolve) => setTimeout(resolve, 20));
        if (peer.socket.destroyed) return;
      }
    },
    (peer) => scram(peer, "secret", { challenge: () => Buffer.alloc(0) }),
  ];
  for (const script of scripts) {
    const before = performance.now();
    const said = await refused(script, { connectTimeout: 150 });
    assertStringIncludes(said, "CONNECT_TIMEOUT write CONNECT_TIMEOUT 127.0.0.1:");
    assert(performance.now() - before < 15_000);
  }
  const hangs = { connectTimeout: 100, auth: { password: () => new Promise<string>(() => {}) } };
  assertStringIncludes(await refused((peer) => peer.send(auth(3)), hangs), "CONNECT_TIMEOUT");
});

test("formats of dates and intervals that a role has of its own are set right, and others left alone", async () => {
  const asked: string[] = [];
  const script = (...more: Buffer[]): Script => async (peer) => {
    peer.send(welcome(...more));
    const { type, body } = await peer.next();
    asked.push(type + body.toString());
    peer.send(
      message("C", "SET\0"),
      parameter("DateStyle", "ISO, DMY"),
      parameter("IntervalStyle", "postgres"),
      ready(),
    );
  };
  const german = await accepted(
    script(parameter("DateStyle", "German, DMY"), parameter("IntervalStyle", "iso_8601")),
  );
  assertEquals(asked.splice(0), ["Qset datestyle = 'ISO'; set intervalstyle = 'postgres'\0"]);
  assertEquals(german.parameters.get("DateStyle"), "ISO, DMY");
  const usual = [parameter("DateStyle", "ISO, MDY"), parameter("IntervalStyle", "postgres")];
  await accepted(script(...usual));
  await accepted(script(parameter("DateStyle", "SQL, MDY")), { parameters: { DateStyle: "SQL" } });
  assertEquals(asked, []);
  const latin = await refused((peer) => peer.send(welcome(parameter("client_encoding", "LATIN1"))));
  assertStringIncludes(latin, "client_encoding is LATIN1");
});

test("target_session_attrs asks a server that does not tell, and believes one that does", async () => {
  const old = Buffer.concat([auth(0), key(), ready()]);
  const server = (standby: string, readOnly: string): Script => async (peer) => {
    peer.send(old);
    const { body } = await peer.next();
    assertStringIncludes(body.toString(), "pg_is_in_recovery");
    peer.send(rowOf(standby, readOnly), ready());
    await peer.gone();
    peer.socket.end();
  };
  await accepted(server("f", "off"), { attrs: "read-write" });
  await accepted(server("f", "off"), { attrs: "primary" });
  await accepted(server("t", "on"), { attrs: "standby" });
  await accepted(server("f", "on"), { attrs: "read-only" });
  assertStringIncludes(
    await refused(server("t", "on"), { attrs: "primary" }),
    "UNFIT_SERVER server is in hot standby mode",
  );
  assertStringIncludes(
    await refused(server("f", "on"), { attrs: "read-write" }),
    "session is read-only",
  );
  const broken: Script = async (peer) => {
    peer.send(old);
    await peer.next();
    peer.send(message("D", int16(3)), ready());
  };
  assertStringIncludes(await refused(broken, { attrs: "primary" }), "too short");
});

test("misfit: the rule for living sessions", () => {
  const told = (hot: string, readOnly: string) =>
    new Map([["in_hot_standby", hot], ["default_transaction_read_only", readOnly]]);
  assertEquals(misfit(null, told("on", "on")), null);
  assertEquals(misfit("any", told("on", "on")), null);
  assertEquals(misfit("read-write", new Map()), null);
  const cases: [Parameters<typeof misfit>[0], string, string, boolean][] = [
    ["read-write", "off", "off", true],
    ["read-write", "off", "on", false],
    ["read-write", "on", "off", false],
    ["read-only", "off", "off", false],
    ["read-only", "off", "on", true],
    ["read-only", "on", "off", true],
    ["primary", "off", "on", true],
    ["primary", "on", "off", false],
    ["standby", "on", "off", true],
    ["standby", "off", "on", false],
    ["prefer-standby", "on", "off", true],
    ["prefer-standby", "off", "off", false],
  ];
  for (const [attrs, hot, readOnly, fits] of cases) {
    assertEquals(misfit(attrs, told(hot, readOnly)) === null, fits, `${attrs} ${hot} ${readOnly}`);
  }
});

test("isPermanent tells what somebody has to change from what may heal", async () => {
  const of = async (code: string, text = "x") =>
    isPermanent(await start((peer) => peer.send(refusal(code, text))));
  for (const code of ["28P01", "28000", "3D000", "42704", "22023", "42501"]) {
    assertEquals(await of(code), true, code);
  }
  for (const code of ["53300", "57P03", "57P01", "08006", "XX000"]) {
    assertEquals(await of(code), false, code);
  }
  assertEquals(await of("08P01", "no such database: db"), true);
  assertEquals(await of("08P01", "unsupported startup parameter: bytea_output"), true);
  assertEquals(
    await of(
      "08P01",
      "server login has been failing, cached error: password authentication failed",
    ),
    false,
  );
  assertEquals(isPermanent(await start((peer) => peer.send(auth(7)))), true);
  assertEquals(isPermanent(await start((peer) => peer.socket.end())), false);
  assertEquals(isPermanent(await start(() => {}, { connectTimeout: 50 })), false);
  assertEquals(isPermanent(await assertRejects(() => dial({ port: 1 }))), false);
  assertEquals(isPermanent(new TypeError("x")), true);
  assertEquals(isPermanent(undefined), false);
  assertEquals(isPermanent(new AggregateError([])), false);
});

test("startup: what was read is the transport's again at once, as where all reads go into one buffer", async () => {
  const { user, password } = { user: "postgres", password: "postgres" };
  const { url } = await testServer();
  const { hostname, port } = new URL(url);
  const started = await dial({
    targets: [{ host: hostname, port: Number(port) }],
    user,
    password,
    database: "postgres",
    transport: async (target, signal) => {
      const transport = await openSocket(target as TransportTarget, signal, TCP);
      const receive = transport.receive.bind(transport);
      transport.receive = (handlers) =>
        receive({
          data(bytes) {
            const lent = Buffer.from(bytes);
            handlers.data(lent);
            lent.fill(0xff);
          },
          end: () => handlers.end(),
          close: (error) => handlers.close(error),
          drain: () => handlers.drain(),
        });
      return transport;
    },
  });
  assertEquals(started.parameters.get("client_encoding"), "UTF8");
  started.transport.destroy();
});
