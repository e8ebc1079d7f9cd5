/** What SCRAM makes of passwords and certificates, beside what PostgreSQL makes of them. */

import { assertEquals, assertGreaterOrEqual, assertStrictEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import { createHash, createHmac, pbkdf2Sync } from "node:crypto";
import process from "node:process";
import type postgres from "postgres";
import { saslprep } from "../src/postgres/wire/saslprep.ts";
import { endPoint, ScramKeys, signatureHash } from "../src/postgres/wire/scram.ts";
import { dial, hangUp } from "./support/dial.ts";
import { Dice } from "./support/dice.ts";
import { test } from "./support/harness.ts";
import { asAdmin, testServer } from "./support/server.ts";

/** What the server keeps of each password: salt, and the keys that SASLprep's result gives with it. */
async function verifiers(sql: postgres.Sql, role: string, passwords: string[]): Promise<string[]> {
  await sql`set password_encryption = 'scram-sha-256'`;
  // Quicker, where the server can (PostgreSQL 16).
  await sql`select set_config(name, '1', false) from pg_settings where name = 'scram_iterations'`;
  const kept: string[] = [];
  for (let i = 0; i < passwords.length; i += 500) {
    const some = passwords.slice(i, i + 500).map((text) => `'${text.replaceAll("'", "''")}'`);
    const block = `do $block$
      declare one text; kept text[] := '{}'; now text;
      begin
        foreach one in array array[${some.join(",")}] loop
          execute format('alter role ${role} password %L', one);
          select rolpassword into now from pg_authid where rolname = '${role}';
          kept := kept || now;
        end loop;
        perform set_config('test.kept', array_to_string(kept, ' '), false);
      end $block$`;
    await sql.unsafe("set standard_conforming_strings = on");
    await sql.unsafe(block);
    const [row] = await sql.unsafe("select current_setting('test.kept') as kept");
    kept.push(...(row!["kept"] as string).split(" "));
  }
  return kept;
}

function fits(password: string, verifier: string): boolean {
  const [, rounds, salt, stored] = /^SCRAM-SHA-256\$(\d+):([^$]*)\$([^:]*):/.exec(verifier)!;
  const bytes = Buffer.from(salt!, "base64");
  const salted = pbkdf2Sync(saslprep(password), bytes, Number(rounds), 32, "sha256");
  const client = createHmac("sha256", salted).update("Client Key").digest();
  return createHash("sha256").update(client).digest("base64") === stored;
}

const KNOWN = [
  "plain",
  "pässwörd",
  "pa\u0308ssword",
  "ⅷ",
  "a\u00a0b",
  "soft\u00adhyphen",
  "ﬁ ligature",
  "ªº",
  "日本語",
  " lead and trail ",
  "😀ⅷ",
  "\u00ad",
  "a\u0340b",
  "a\u0340ⅷ",
  "\u05d0",
  "\u05d0a",
  "\u05d0ⅷ\u05d0",
  "\u05d01\u05d0",
  "\u05d0ª1\u05d0",
  "a\u200bⅷ",
  "\u2000ⅷ",
  "\u0007ⅷ",
  "\ue000ⅷ",
  "\ufeffⅷ",
  "\ufdfa",
  "\u1e9eⅷ",
];

test("SASLprep: known and random passwords give the keys that the server keeps", async () => {
  const seed = Number(process.env["MODEL_SEED"] ?? Date.now() % 1_000_000);
  const dice = new Dice(seed);
  // From tables and planes where rules meet: Latin, Hebrew, Arabic, spaces, compatibility forms, anything.
  const ranges = [
    [0x20, 0x7f],
    [0xa0, 0x250],
    [0x300, 0x370],
    [0x590, 0x700],
    [0x1680, 0x1681],
    [
      0x2000,
      0x2200,
    ],
    [0x3000, 0x3100],
    [0xf900, 0xffff],
    [0xa0, 0xd800],
    [0x10000, 0x11000],
    [0x1d000, 0x20000],
  ];
  const random = Array.from({ length: 3_000 }, () => {
    const codes = Array.from({ length: dice.from(1, 4) }, () => {
      const [low, high] = dice.of(ranges);
      return low! + dice.below(high! - low!);
    });
    return String.fromCodePoint(...codes);
  });
  const role = `prep_${crypto.randomUUID().slice(0, 8)}`;
  await asAdmin(async (sql) => {
    await sql.unsafe(`create role ${role}`);
    try {
      // With the 4,096 rounds of older servers each takes two milliseconds, there and here.
      const [quick] = await sql`select from pg_settings where name = 'scram_iterations'`;
      const passwords = [...KNOWN, ...random.slice(0, quick === undefined ? 300 : undefined)];
      const kept = await verifiers(sql, role, passwords);
      const wrong = passwords.filter((password, i) => !fits(password, kept[i]!));
      assertEquals(wrong.map((text) => escape(text)), [], `MODEL_SEED=${seed}`);
    } finally {
      await sql.unsafe(`drop role ${role}`);
    }
  });
});

test("SASLprep: a half of a surrogate pair is left as it is", () => {
  assertEquals(saslprep("\ud800ⅷ"), "\ud800ⅷ");
});

test("passwords that SASLprep changes log in", async () => {
  const { url } = await testServer();
  const { hostname: host, port } = new URL(url);
  const role = `login_${crypto.randomUUID().slice(0, 8)}`;
  const passwords = [
    'p%w@/:?#[]& +"é😀\\',
    "ⅷ a\u00a0b",
    "{json}",
    "a,b=c",
    "n,,n=x,r=y",
    "x".repeat(900),
  ];
  await asAdmin(async (sql) => {
    await sql.unsafe(`create role ${role} login`);
    try {
      await sql.unsafe("set password_encryption = 'scram-sha-256'");
      for (const password of passwords) {
        await sql.unsafe(`alter role ${role} password '${password.replaceAll("'", "''")}'`);
        const targets = [{ host, port: Number(port) }];
        await hangUp(await dial({ targets, user: role, database: "postgres", password }));
      }
    } finally {
      await sql.unsafe(`drop role ${role}`);
    }
  });
});

test("SCRAM's keys are made once for all logins with one password and salt", async () => {
  const keys = new ScramKeys();
  const salt = Uint8Array.of(1, 2, 3);
  const made = keys.get("a", salt, 1);
  assertStrictEquals(keys.get("a", Uint8Array.of(1, 2, 3), 1), made);
  const others = [
    keys.get("b", salt, 1),
    keys.get("a", Uint8Array.of(1), 1),
    keys.get("a", salt, 2),
  ];
  assertEquals(new Set([made, ...others]).size, 4);
  assertStrictEquals(keys.get("a", salt, 1), made);
  // The one that was not asked for longest makes room.
  await keys.get("c", salt, 1);
  assertStrictEquals(keys.get("a", salt, 1), made);
  assertEquals(keys.get("b", salt, 1) === others[0], false);
  await Promise.all([made, ...others]);
});

test("SCRAM's keys are made beside the turn, which goes on meanwhile", async () => {
  let turns = 0;
  // On a busy machine we may be late for the first turns, though not each time.
  for (let tries = 0; tries < 10 && turns < 10; tries++) {
    turns = 0;
    let made = false;
    // Some tenths of a second, of another thread.
    new ScramKeys().get("secret", Uint8Array.of(1), 1_000_000).then(() => made = true);
    for (; !made; turns++) await new Promise((resolve) => setTimeout(resolve));
  }
  assertGreaterOrEqual(turns, 10);
});

/** A certificate's shell: a body, the identifier of the signature's algorithm with its parameters, a signature. */
function certificate(id: number[], parameters: number[] = [5, 0]): Uint8Array {
  const seq = (...body: number[]) => [0x30, 0x81, body.length, ...body];
  return Uint8Array.from(seq(...seq(2, 1, 1), ...seq(6, id.length, ...id, ...parameters), 3, 1, 0));
}

test("tls-server-end-point takes the hash of the certificate's signature", async () => {
  const rsa = (last: number) => [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last];
  const ecdsa = (last: number) => [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last];
  const sha = (last: number) => [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, last];
  const pss = (last: number) => [0x30, 17, 0xa0, 15, 0x30, 13, 6, 9, ...sha(last), 5, 0];
  const cases: [Uint8Array, string | null][] = [
    [certificate(rsa(4)), "SHA-256"],
    [certificate(rsa(5)), "SHA-256"],
    [certificate(rsa(11)), "SHA-256"],
    [certificate(rsa(12)), "SHA-384"],
    [certificate(rsa(13)), "SHA-512"],
    [certificate(ecdsa(2), []), "SHA-256"],
    [certificate(ecdsa(3), []), "SHA-384"],
    [certificate(ecdsa(4), []), "SHA-512"],
    [certificate(rsa(10), pss(1)), "SHA-256"],
    [certificate(rsa(10), pss(3)), "SHA-512"],
    [certificate(rsa(10), [0x30, 0]), "SHA-256"],
    // Ed25519 has no hash function of its own.
    [certificate([0x2b, 0x65, 0x70], []), null],
    [certificate(rsa(11)).subarray(0, 12), null],
    [new Uint8Array(0), null],
    [Uint8Array.of(0x30, 0x80, 0, 0), null],
  ];
  for (const [der, hash] of cases) {
    assertEquals(signatureHash(der), hash);
    const data = await endPoint(der);
    const expected = hash === null
      ? null
      : createHash(hash.replace("-", "").toLowerCase()).update(der).digest();
    assertEquals(
      data === null ? null : Buffer.from(data).toString("hex"),
      expected?.toString("hex") ?? null,
    );
  }
});
