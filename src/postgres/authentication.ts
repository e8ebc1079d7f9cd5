/**
 * Looks at the server's authentication requests before the driver does, which hangs or fails where
 * nobody can catch it when a request is not what it expects.
 */

import type { Buffer } from "node:buffer";

const SASL_CONTINUE = 11;
/** What the driver can answer: Ok, password, MD5, SASL and its two steps. */
const KNOWN = new Set([0, 3, 5, 10, SASL_CONTINUE, 12]);
/** A server could stop this process for minutes by asking for more; PostgreSQL's default is 4096. */
const MOST_ITERATIONS = 10_000_000;

/** What is wrong with the body of an Authentication message, or null. */
export function authenticationFault(body: Buffer): string | null {
  const code = body.length < 4 ? -1 : body.readInt32BE(0);
  if (!KNOWN.has(code)) {
    return `the server asks for an authentication method that is not supported (${code})`;
  }
  if (code !== SASL_CONTINUE) return null;
  const { r, s, i } = Object.fromEntries(
    body.toString("utf8", 4).split(",").map((part) => [part.charAt(0), part.slice(2)]),
  );
  const iterations = Number(i);
  const sane = r && s && Number.isInteger(iterations) && iterations > 0 &&
    iterations <= MOST_ITERATIONS;
  return sane ? null : "the server's SCRAM challenge is malformed";
}
