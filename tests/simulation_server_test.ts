/** The simulated server answers as the real one does: the same random dialogues on both. */

import { assert, assertEquals } from "@std/assert";
import process from "node:process";
import type { Started } from "../src/postgres/wire/startup.ts";
import { dial } from "./support/dial.ts";
import { Dice } from "./support/dice.ts";
import { test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";
import { realTurn } from "./simulation/clock.ts";
import { ACCOUNTS } from "./simulation/database.ts";
import { World } from "./simulation/world.ts";

const DIALOGUES = Number(process.env["SIMULATION_DIALOGUES"] ?? 10);
const REQUESTS = 30;

/** What the simulated tables are, for a session of the real server. */
const TABLES = [
  "create temp table account (id int primary key, balance bigint not null)",
  `insert into account select n, 0 from generate_series(0, ${ACCOUNTS - 1}) n`,
  "create temp table ledger (id text primary key)",
  // A notification says who sent it, and a warning nothing that matters here.
  "set client_min_messages = error",
];

const encoder = new TextEncoder();

/** A message of the client. */
function message(
  type: string,
  ...parts: (string | number | readonly (string | null)[])[]
): number[] {
  const body: number[] = [];
  const int = (n: number, size: number): void => {
    for (let shift = 8 * (size - 1); shift >= 0; shift -= 8) body.push((n >> shift) & 255);
  };
  for (const part of parts) {
    if (typeof part === "string") body.push(...encoder.encode(part), 0);
    else if (typeof part === "number") int(part, 2);
    else {
      int(part.length, 2);
      for (const value of part) {
        const bytes = encoder.encode(value ?? "");
        int(value === null ? -1 : bytes.length, 4);
        if (value !== null) body.push(...bytes);
      }
    }
  }
  const length = body.length + 4;
  return [
    type.charCodeAt(0),
    length >> 24,
    length >> 16 & 255,
    length >> 8 & 255,
    length & 255,
    ...body,
  ];
}

const SYNC = message("S");

interface Statement {
  readonly text: string;
  readonly params: readonly (string | null)[];
}

/** A statement that both understand. */
function statement(dice: Dice): Statement {
  const entry = `e${dice.below(6)}`;
  const account = String(dice.below(ACCOUNTS + 2));
  const n = String(dice.below(100));
  return dice.of<Statement>([
    { text: "select $1::int as n", params: [n] },
    { text: "select $1::int as n, $2 as t", params: [n, dice.chance(0.3) ? null : "x"] },
    { text: `select ${n}, 'text', null`, params: [] },
    { text: "select 1/0", params: [] },
    { text: "selec", params: [] },
    { text: "select no_such_function()", params: [] },
    { text: "", params: [] },
    { text: "begin", params: [] },
    { text: "begin", params: [] },
    { text: "commit", params: [] },
    { text: "rollback", params: [] },
    { text: "savepoint a", params: [] },
    { text: "rollback to a", params: [] },
    { text: "release a", params: [] },
    { text: "insert into ledger (id) values ($1)", params: [entry] },
    { text: "insert into ledger (id) values ($1) returning id", params: [entry] },
    { text: "update account set balance = balance + $1 where id = $2", params: [n, account] },
    {
      text: "update account set balance = balance + $1 where id = $2 returning balance",
      params: [n, account],
    },
    { text: "select balance from account where id = $1", params: [account] },
    { text: "select balance from account where id = $1 for update", params: [account] },
    { text: "select sum(balance) from account", params: [] },
    { text: "select id from ledger where id = $1", params: [entry] },
    { text: "select n from generate_series(1, $1) n", params: [n] },
    { text: "set application_name = 'one'", params: [] },
    { text: "show application_name", params: [] },
    { text: "select current_setting('no.such', true)", params: [] },
    { text: "select set_config('a.b', 'c', false)", params: [] },
    { text: "select pg_try_advisory_lock(5)", params: [] },
    { text: "select pg_is_in_recovery()", params: [] },
    { text: "listen x", params: [] },
    { text: "unlisten *", params: [] },
    { text: "notify x, 'hello'", params: [] },
    { text: "copy ledger to stdout", params: [] },
  ]);
}

function inlined({ text, params }: Statement): string {
  return text.replace(/\$(\d+)/g, (_, at) => {
    const value = params[Number(at) - 1];
    return value === null || value === undefined
      ? "null"
      : /^\d+$/.test(value)
      ? value
      : `'${value}'`;
  });
}

/** What is sent up to one ReadyForQuery. */
function request(dice: Dice): { said: string; bytes: number[] } {
  const one = statement(dice);
  const { text, params } = one;
  const named = dice.of(["", "", "p0", "p1"]);
  const bind = message("B", "", named, [], params as string[], 0);
  const execute = (most: number): number[] => message("E", "", 0, most);
  switch (dice.below(8)) {
    case 0:
    case 1:
      return { said: `Query ${inlined(one)}`, bytes: message("Q", inlined(one)) };
    case 2: {
      const both = `${inlined(one)}; ${inlined(statement(dice))}`;
      return { said: `Query ${both}`, bytes: message("Q", both) };
    }
    case 3:
      return { said: `Bind ${named} again`, bytes: [...bind, ...execute(0), ...SYNC] };
    case 4:
      return { said: `Close ${named}`, bytes: [...message("C", `S${named}`), ...SYNC] };
    case 5: {
      const bytes = [
        ...message("P", named, text, 0),
        ...message("D", `S${named}`),
        ...bind,
        ...message("D", "P"),
        ...execute(3),
        ...execute(2),
        ...SYNC,
      ];
      return { said: `Parse ${named}, two Executes: ${text} ${params}`, bytes };
    }
    default: {
      const bytes = [
        ...message("P", named, text, 0),
        ...message("D", `S${named}`),
        ...bind,
        ...execute(0),
        ...SYNC,
      ];
      return { said: `Parse ${named}: ${text} ${params}`, bytes };
    }
  }
}

/** The server's messages in words: without times, numbers of processes and tables, and the words of errors. */
function inWords(bytes: Uint8Array): string[] {
  const words: string[] = [];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const decoder = new TextDecoder();
  for (let at = 0; at < bytes.length;) {
    const type = String.fromCharCode(bytes[at]!);
    const end = at + 1 + view.getInt32(at + 1);
    let place = at + 5;
    const text = (): string => {
      const stop = bytes.indexOf(0, place);
      const found = decoder.decode(bytes.subarray(place, stop));
      place = stop + 1;
      return found;
    };
    const int16 = (): number => view.getInt16((place += 2) - 2);
    const int32 = (): number => view.getInt32((place += 4) - 4);
    if (type === "T") {
      const columns = Array.from({ length: int16() }, () => {
        const name = text();
        place += 6;
        const found = `${name} ${int32()}`;
        place += 8;
        return found;
      });
      words.push(`T ${columns.join(", ")}`);
    } else if (type === "D") {
      const values = Array.from({ length: int16() }, () => {
        const length = int32();
        if (length < 0) return "null";
        place += length;
        return decoder.decode(bytes.subarray(place - length, place));
      });
      words.push(`D ${values.join(", ")}`);
    } else if (type === "E") {
      let code = "";
      while (bytes[place] !== 0) {
        const field = String.fromCharCode(bytes[place++]!);
        const said = text();
        if (field === "C") code = said;
      }
      words.push(`E ${code}`);
    } else if (type === "t") {
      words.push(`t ${Array.from({ length: int16() }, int32)}`);
    } else if (type === "A") {
      place += 4;
      words.push(`A ${text()} ${text()}`);
    } else if (type === "C" || type === "Z" || type === "d") {
      words.push(`${type} ${decoder.decode(bytes.subarray(place, type === "C" ? end - 1 : end))}`);
    } else if (type !== "S" && type !== "N") words.push(type);
    at = end + 0;
  }
  // What others are told of comes before or after the answer.
  return words;
}

/** Somebody who speaks with a server. */
interface Speaker {
  say(bytes: readonly number[]): Promise<Uint8Array>;
}

/** `step` lets something happen in a world that does not go on by itself; in the real one it is waited for. */
function speaker({ transport }: Started, step: (() => Promise<void>) | null): Speaker {
  let heard: number[] = [];
  let over = false;
  let tell = (): void => {};
  const news = (): Promise<void> => new Promise((resolve) => tell = resolve);
  const ended = (): void => {
    over = true;
    tell();
  };
  transport.receive({
    data: (bytes) => {
      heard.push(...bytes);
      tell();
    },
    end: ended,
    close: ended,
    drain() {},
  });
  transport.resume();
  return {
    say: async (bytes) => {
      heard = [];
      transport.write(Uint8Array.from(bytes));
      while (!over && !(heard.length >= 6 && heard.at(-6) === 0x5a && heard.at(-5) === 0)) {
        await (step ?? news)();
      }
      assert(!over, "the server has ended the session");
      return Uint8Array.from(heard);
    },
  };
}

test("the simulated server gives the same answers as the real one", async () => {
  const { hostname, port, username, password, pathname } = new URL((await testServer()).url);
  const from = Number(process.env["SIMULATION_FROM"] ?? 1);
  for (let seed = from; seed < from + DIALOGUES; seed++) {
    const real = await dial({
      targets: [{ host: hostname }],
      port: Number(port),
      user: decodeURIComponent(username),
      database: pathname.slice(1),
      password: decodeURIComponent(password),
    });
    const world = new World(seed, { faults: new Set() });
    world.calm();
    try {
      const isolate = world.isolates.make(null);
      let started: Started | null = null;
      isolate.run(() => {
        dial({ targets: [{ host: "db0" }] }, {
          open: world.network.connect(isolate),
          lookup: () => Promise.resolve([]),
        }).then((given) => started = given);
      });
      const step = async (): Promise<void> => {
        await realTurn();
        world.clock.step();
      };
      while (started === null) await step();
      const simulated = speaker(started, step);
      const existing = speaker(real, null);
      for (const text of TABLES) await existing.say(message("Q", text));
      const dice = new Dice(seed);
      const said: string[] = [];
      for (let i = 0; i < REQUESTS; i++) {
        const { said: words, bytes } = request(dice);
        said.push(words);
        const expected = inWords(await existing.say(bytes));
        const found = inWords(await simulated.say(bytes));
        assertEquals(found, expected, `seed ${seed}:\n${said.slice(-30).join("\n")}`);
      }
    } finally {
      world.dispose();
      real.transport.destroy();
    }
  }
}, { timeout: 300_000 });
