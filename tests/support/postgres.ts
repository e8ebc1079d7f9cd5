/** What the tests of the connector have in common: a fake lease, and opening by a connector. */

import { assert } from "@std/assert";
import type { Connection } from "../../src/postgres/connection.ts";
import { PostgresConnector } from "../../src/postgres/connector.ts";
import type { Session } from "../../src/postgres/session.ts";
import type { Lease } from "../../src/pool/types.ts";
import { testServer } from "./server.ts";

/** A lease that the test ends. */
export class FakeLease implements Lease {
  open = true;
  holder: object | null = null;
  readonly #watchers = new Set<(lost: { readonly reason: unknown } | null) => void>();
  whenOver(fn: (lost: { readonly reason: unknown } | null) => void): () => void {
    this.#watchers.add(fn);
    return () => this.#watchers.delete(fn);
  }
  expectLoss(): void {}
  assertOpen(): void {
    if (!this.open) throw this.returned();
  }
  returned(): Error {
    return Object.assign(new Error("put back"), { code: "CONNECTION_RETURNED" });
  }
  error(message: string, code: string, cause?: unknown): Error {
    return Object.assign(new Error(message, { cause }), { code });
  }
  putconn(): Promise<void> {
    this.open = false;
    for (const fn of this.#watchers) fn(null);
    return Promise.resolve();
  }
}

/** One open session, lent. */
export interface Lent {
  readonly connector: PostgresConnector;
  readonly session: Session;
  readonly lease: FakeLease;
  readonly conn: Connection;
  /** What onlost was called with. */
  readonly lost: unknown[];
  [Symbol.asyncDispose](): Promise<void>;
}

/** A connector for these arguments. */
export function connectorFor(...args: unknown[]): PostgresConnector {
  const connector = new PostgresConnector();
  connector.accept(args);
  return connector;
}

/** Opens one session. */
export function openWith(
  connector: PostgresConnector,
  onlost: (reason: unknown) => void = () => {},
  signal: AbortSignal = new AbortController().signal,
): Promise<Session> {
  return connector.open({ args: [], signal, onlost, onshares: () => {} });
}

/** Opens a session at the test server, and lends it. */
export async function lent(options: Record<string, unknown> = {}, url?: string): Promise<Lent> {
  const connector = connectorFor(url ?? (await testServer()).url, options);
  const lost: unknown[] = [];
  const session = await openWith(connector, (reason) => lost.push(reason));
  const lease = new FakeLease();
  const conn = connector.lend(session, lease);
  return {
    connector,
    session,
    lease,
    conn,
    lost,
    [Symbol.asyncDispose]: () => connector.close(session),
  };
}

/** What a promise rejects with; fails when it resolves, or does not settle in time. */
export async function rejection(promise: PromiseLike<unknown>): Promise<Error & { code?: string }> {
  const done = Promise.resolve(promise).then(
    () => new Error("it resolved"),
    (error) => ({ error }),
  );
  const outcome = await within(done);
  if (outcome instanceof Error) throw outcome;
  return outcome.error as Error;
}

/** Gives up on what does not settle: every statement must. */
export async function within<T>(promise: PromiseLike<T>, milliseconds = 90_000): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error("it did not settle")), milliseconds);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Does it until once it takes less than so many milliseconds: what waits for a limit is late each time, and a machine
 * that has other things to do makes one late.
 */
export async function promptly(
  milliseconds: number,
  once: () => Promise<number>,
  tries = 3,
): Promise<void> {
  const times: number[] = [];
  do times.push(await once()); while (times.at(-1)! >= milliseconds && times.length < tries);
  assert(times.at(-1)! < milliseconds, `milliseconds: ${times}`);
}

/** How long it takes, in milliseconds. */
export async function timeOf(work: () => PromiseLike<unknown>): Promise<number> {
  const begun = performance.now();
  await within(work());
  return performance.now() - begun;
}

/** A name under which the server shows a test's sessions. */
export function uniqueName(): string {
  return `test ${crypto.randomUUID()}`;
}
