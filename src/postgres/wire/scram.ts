/**
 * SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677, RFC 5929), the client's side. All hashing is
 * done by WebCrypto, which does it outside of the turn.
 */

import { ProtocolError } from "./frames.ts";

/** The mechanisms' names. */
export const SCRAM = "SCRAM-SHA-256";
/** The one that is bound to the TLS session. */
export const SCRAM_PLUS = "SCRAM-SHA-256-PLUS";

const utf8 = new TextEncoder();
const HMAC = { name: "HMAC", hash: "SHA-256" };

/** What a password becomes for one salt; enough to log in, so it is as secret as the password. */
interface Keys {
  readonly client: Uint8Array<ArrayBuffer>;
  readonly stored: CryptoKey;
  readonly server: CryptoKey;
}

/**
 * Keys by password, salt and rounds. All logins of a pool have the same, and to make them is nearly all that
 * a login costs both ends of time.
 */
export class ScramKeys {
  static readonly #MOST = 4;
  readonly #made: Map<string, Promise<Keys>> = new Map();

  /** The keys, made at the first call. */
  get(password: string, salt: Uint8Array<ArrayBuffer>, iterations: number): Promise<Keys> {
    const name = `${iterations} ${salt.toString()} ${password}`;
    let keys = this.#made.get(name);
    if (keys === undefined) {
      keys = makeKeys(password, salt, iterations);
      keys.catch(() => this.#made.delete(name));
    }
    // The one that was asked for last goes last.
    this.#made.delete(name);
    this.#made.set(name, keys);
    if (this.#made.size > ScramKeys.#MOST) this.#made.delete(this.#made.keys().next().value!);
    return keys;
  }
}

async function makeKeys(
  password: string,
  salt: Uint8Array<ArrayBuffer>,
  iterations: number,
): Promise<Keys> {
  const { subtle } = crypto;
  const prepared = await prepare(password);
  const base = await subtle.importKey("raw", utf8.encode(prepared), "PBKDF2", false, [
    "deriveBits",
  ]);
  const salted = await subtle.deriveBits(
    { name: "PBKDF2", hash: "SHA-256", salt, iterations },
    base,
    256,
  );
  const saltedKey = await hmacKey(salted);
  const client = await hmac(saltedKey, "Client Key");
  return {
    client,
    stored: await hmacKey(await subtle.digest("SHA-256", client)),
    server: await hmacKey(await hmac(saltedKey, "Server Key")),
  };
}

/** Passwords of plain ASCII are what they are; the tables for others are loaded when they are needed. */
async function prepare(password: string): Promise<string> {
  // deno-lint-ignore no-control-regex
  if (/^[\x00-\x7f]*$/.test(password)) return password;
  const { saslprep } = await import("./saslprep.ts");
  return saslprep(password);
}

function hmacKey(bytes: ArrayBuffer | Uint8Array<ArrayBuffer>): Promise<CryptoKey> {
  return crypto.subtle.importKey("raw", bytes, HMAC, false, ["sign"]);
}

async function hmac(key: CryptoKey, text: string): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await crypto.subtle.sign("HMAC", key, utf8.encode(text)));
}

/** Standard base64 with its padding, and nothing else; null for what is no such text. */
function fromBase64(text: string): Uint8Array<ArrayBuffer> | null {
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]+={0,2}$/.test(text)) return null;
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

function toBase64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes));
}

/** How a login is bound to the TLS session. */
export interface Binding {
  /** `n`: we cannot; `y`: we could, the server does not offer it; `p`: it is. */
  readonly kind: "n" | "y" | "p";
  /** For `p`: the hash of the server's certificate. */
  readonly data: Uint8Array | null;
}

/** What is asked of a login beside the password. */
export interface ScramOptions {
  /** How many rounds the server may ask for. */
  readonly maxIterations: number;
  /** Random bytes, at least 18. */
  readonly nonce: Uint8Array;
  /** How it is bound. */
  readonly binding: Binding;
}

/** One login, from our first message to the check of the server's last. */
export class Scram {
  readonly #options: ScramOptions;
  readonly #nonce: string;
  readonly #header: string;
  #signature: Uint8Array | null = null;

  constructor(options: ScramOptions) {
    this.#options = options;
    this.#nonce = toBase64(options.nonce);
    const { kind } = options.binding;
    this.#header = kind === "p" ? "p=tls-server-end-point,," : `${kind},,`;
  }

  /** The first message. The name is left out: the server takes the startup message's. */
  first(): string {
    return `${this.#header}n=,r=${this.#nonce}`;
  }

  /**
   * The answer to the server's challenge. Throws a ProtocolError when that is not as it must be, or
   * asks for too many rounds.
   */
  async respond(challenge: string, password: string, keys: ScramKeys): Promise<string> {
    const { nonce, salt, iterations } = this.#read(challenge);
    const { client, stored, server } = await keys.get(password, salt, iterations);
    const { data } = this.#options.binding;
    const header = utf8.encode(this.#header);
    const bound = new Uint8Array(header.length + (data?.length ?? 0));
    bound.set(header);
    if (data !== null) bound.set(data, header.length);
    const withoutProof = `c=${toBase64(bound)},r=${nonce}`;
    const message = `n=,r=${this.#nonce},${challenge},${withoutProof}`;
    const proof = await hmac(stored, message);
    for (let i = 0; i < proof.length; i++) proof[i]! ^= client[i]!;
    this.#signature = await hmac(server, message);
    return `${withoutProof},p=${toBase64(proof)}`;
  }

  #read(challenge: string): { nonce: string; salt: Uint8Array<ArrayBuffer>; iterations: number } {
    const parts = /^r=([\x21-\x2b\x2d-\x7e]+),s=([^,]*),i=([1-9]\d{0,9})(?:,.*)?$/s.exec(challenge);
    const salt = parts === null ? null : fromBase64(parts[2]!);
    if (parts === null || salt === null) {
      throw new ProtocolError("the server's SCRAM challenge is malformed");
    }
    const nonce = parts[1]!;
    if (!nonce.startsWith(this.#nonce) || nonce.length === this.#nonce.length) {
      throw new ProtocolError("the server's SCRAM challenge is malformed: it is not for our nonce");
    }
    const iterations = Number(parts[3]);
    if (iterations > this.#options.maxIterations) {
      throw new ProtocolError(
        `the server asks for ${iterations} rounds of hashing, more than the ` +
          `${this.#options.maxIterations} that are allowed here`,
      );
    }
    return { nonce, salt, iterations };
  }

  /** Checks the server's last message, which shows that it knows the password, too. Throws a ProtocolError. */
  finish(message: string): void {
    const signature = this.#signature;
    this.#signature = null;
    if (message.startsWith("e=")) {
      throw new ProtocolError(`the server ended SCRAM with the error ${message.slice(2, 100)}`);
    }
    const parts = /^v=([^,]*)(?:,.*)?$/s.exec(message);
    const given = parts === null ? null : fromBase64(parts[1]!);
    if (signature === null || given === null || !same(given, signature)) {
      throw new ProtocolError(
        "the server's SCRAM signature is wrong: it does not know the password",
      );
    }
  }
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  let differs = a.length ^ b.length;
  for (let i = 0; i < b.length; i++) differs |= (a[i] ?? 0) ^ b[i]!;
  return differs === 0;
}

/** By the bytes of a signature algorithm's identifier, the hash for the binding; MD5 and SHA-1 become SHA-256. */
const HASHES: Readonly<Record<string, string>> = {
  // sha1WithRSAEncryption, md5WithRSAEncryption, ecdsa-with-SHA1
  "2a864886f70d010105": "SHA-256",
  "2a864886f70d010104": "SHA-256",
  "2a8648ce3d0401": "SHA-256",
  // sha256-, sha384-, sha512WithRSAEncryption
  "2a864886f70d01010b": "SHA-256",
  "2a864886f70d01010c": "SHA-384",
  "2a864886f70d01010d": "SHA-512",
  // ecdsa-with-SHA256, -SHA384, -SHA512
  "2a8648ce3d040302": "SHA-256",
  "2a8648ce3d040303": "SHA-384",
  "2a8648ce3d040304": "SHA-512",
  // SHA-1, SHA-256, -384, -512 as parameters of RSASSA-PSS
  "2b0e03021a": "SHA-256",
  "608648016503040201": "SHA-256",
  "608648016503040202": "SHA-384",
  "608648016503040203": "SHA-512",
};
const RSASSA_PSS = "2a864886f70d01010a";

/**
 * The data of the binding `tls-server-end-point` (RFC 5929): the certificate's hash, by the hash function that it
 * was signed with. Null when that has none, as Ed25519, or the certificate cannot be read.
 */
export async function endPoint(certificate: Uint8Array): Promise<Uint8Array | null> {
  const hash = signatureHash(certificate);
  if (hash === null) return null;
  return new Uint8Array(await crypto.subtle.digest(hash, certificate as Uint8Array<ArrayBuffer>));
}

/** The hash function of a certificate's signature, as WebCrypto names it. */
export function signatureHash(certificate: Uint8Array): string | null {
  try {
    const whole = element(certificate, 0);
    const signed = element(certificate, whole.at);
    const algorithm = element(certificate, signed.end);
    const name = element(certificate, algorithm.at);
    const id = hex(certificate.subarray(name.at, name.end));
    if (id !== RSASSA_PSS) return HASHES[id] ?? null;
    // The parameters: [0] holds the hash function; without it, it is SHA-1.
    const parameters = element(certificate, name.end);
    if (parameters.at === parameters.end || certificate[parameters.at] !== 0xa0) return "SHA-256";
    const tagged = element(certificate, parameters.at);
    const inner = element(certificate, tagged.at);
    const hash = element(certificate, inner.at);
    return HASHES[hex(certificate.subarray(hash.at, hash.end))] ?? null;
  } catch {
    return null;
  }
}

/** Where the contents of the DER element at `at` begin and end. */
function element(der: Uint8Array, at: number): { at: number; end: number } {
  let length = der[at + 1] ?? 0x80;
  let start = at + 2;
  if (length >= 0x80) {
    const bytes = length & 0x7f;
    if (bytes === 0 || bytes > 4) throw new RangeError("no length");
    length = 0;
    for (let i = 0; i < bytes; i++) length = length * 256 + der[start++]!;
  }
  const end = start + length;
  if (!(end <= der.length)) throw new RangeError("too short");
  return { at: start, end };
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
