/** What the tests of opening a session have in common. */

import { Dialer, type DialWorld } from "../../src/postgres/wire/dial.ts";
import type {
  AuthSettings,
  ConnectSettings,
  Target,
  TcpSettings,
  TlsSettings,
} from "../../src/postgres/wire/settings.ts";
import type { Started } from "../../src/postgres/wire/startup.ts";
import { realWorld } from "../../src/sockets.ts";

/** Nothing asked of the socket. */
export const TCP: TcpSettings = {
  keepalives: true,
  keepalivesIdle: 0,
  keepalivesInterval: 0,
  keepalivesCount: 0,
};

/** What may differ from a plain connection without TLS; a password of null is none. */
export type DialSettings = Partial<Omit<ConnectSettings, "tls" | "auth" | "targets">> & {
  readonly targets?: readonly Partial<Target>[];
  readonly port?: number;
  readonly tls?: Partial<TlsSettings>;
  readonly auth?: Partial<AuthSettings>;
  readonly password?: string | null;
};

/** Whole settings. */
export function settingsOf(given: DialSettings): ConnectSettings {
  const { targets = [{}], port = 5432, tls, auth, password = "secret", ...more } = given;
  return {
    targets: targets.map((target) => ({
      host: "127.0.0.1",
      hostaddr: null,
      port,
      path: null,
      ...target,
    })),
    loadBalance: false,
    attrs: null,
    connectTimeout: 10_000,
    tcp: TCP,
    tls: {
      mode: "disable",
      negotiation: "postgres",
      sni: true,
      certmode: "allow",
      minVersion: "TLSv1.2",
      maxVersion: null,
      files: () => Promise.resolve({}),
      options: {},
      ...tls,
    },
    auth: {
      channelBinding: "prefer",
      methods: null,
      maxScramIterations: 100_000,
      password: () => Promise.resolve(password),
      ...auth,
    },
    minProtocol: "3.0",
    maxProtocol: "3.2",
    user: "bob",
    database: "db",
    parameters: {},
    transport: null,
    ...more,
  };
}

/** The server's word as an error, as the tests read it. */
export class Refused extends Error {
  readonly code: string | undefined;
  constructor(fields: { message?: string; code?: string }) {
    super(fields.message);
    this.code = fields.code;
  }
}

/** Something that opens sessions with such settings. */
export function dialer(given: DialSettings, world: Partial<DialWorld> = {}): Dialer {
  return new Dialer(settingsOf(given), {
    ...realWorld(TCP),
    serverError: (fields) => new Refused(fields as { message?: string; code?: string }),
    ...world,
  });
}

/** Opens one session. */
export function dial(given: DialSettings, world: Partial<DialWorld> = {}): Promise<Started> {
  return dialer(given, world).connect(new AbortController().signal);
}

/** Says goodbye and waits for the server's end. */
export function hangUp({ transport }: Started): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      transport.destroy();
      resolve();
    };
    transport.receive({ data() {}, end: done, close: done, drain() {} });
    transport.resume();
    transport.write(Uint8Array.of(0x58, 0, 0, 0, 4));
    transport.end();
  });
}

/** Runs one statement by the simple protocol; gives what the server sends until it is ready, as one text of Latin 1. */
export function ask(started: Started, text: string): Promise<string> {
  const { transport } = started;
  return new Promise((resolve, reject) => {
    let heard = "";
    transport.receive({
      data(bytes) {
        heard += String.fromCharCode(...bytes);
        if (!/Z\0{3}.[ITE]$/s.test(heard)) return;
        transport.pause();
        resolve(heard);
      },
      end: () => reject(new Error("ended")),
      close: (error) => reject(error ?? new Error("closed")),
      drain() {},
    });
    transport.resume();
    const query = new TextEncoder().encode(`${text}\0`);
    const frame = new Uint8Array(5 + query.length);
    frame[0] = 0x51;
    new DataView(frame.buffer).setUint32(1, 4 + query.length);
    frame.set(query, 5);
    transport.write(frame);
  });
}
