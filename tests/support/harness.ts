/**
 * One way to write a test for all runners: `Deno.test` with its leak sanitizers, `bun:test`, and `node:test` for what
 * `tests/package/` has Node run.
 *
 * A test that hangs, exits, or leaves an unhandled rejection behind fails under its own name.
 * Assertions come from `@std/assert`.
 *
 * @module
 */
import process from "node:process";

/** What a test may ask for. */
export interface TestOptions {
  /** Milliseconds after which the test has failed. @default {180_000} */
  readonly timeout?: number;
  /** Why the test does not run here; with `GETCONN_NO_SKIP` set this is a failure. */
  readonly skip?: string | false | undefined;
  /** Deno: `false` lifts the sanitizers of ops and resources; say why beside it. @default {true} */
  readonly sanitize?: boolean;
}

/** Which runner this is. */
export const runner: "deno" | "bun" | "node" = "Bun" in globalThis
  ? "bun"
  : "Deno" in globalThis
  ? "deno"
  : "node";

// Taken now: a test may put a fake clock into its place.
const { setTimeout } = globalThis;

type Run = () => void | Promise<void>;
interface BunTest {
  test: ((name: string, fn: Run, timeout: number) => void) & {
    skip(name: string, fn: Run): void;
  };
}

type NodeTest = (
  name: string,
  options: { timeout: number; skip: string | false },
  fn: Run,
) => Promise<void>;

// A name that is no literal, for Deno must not try to resolve it.
const bunTest = "bun:test";
const bun = runner === "bun" ? await import(bunTest) as BunTest : undefined;
const nodeTest = "node:test";
const node = runner === "node" ? (await import(nodeTest)).test as NodeTest : undefined;

/** Registers a test under the runner at hand. */
export function test(name: string, fn: Run, options: TestOptions = {}): void {
  const { timeout = 180_000, sanitize = true } = options;
  let { skip } = options;
  if (skip && process.env["GETCONN_NO_SKIP"]) {
    const reason = skip;
    skip = undefined;
    fn = () => {
      throw new Error(`skipped where no test may be skipped: ${reason}`);
    };
  }
  if (skip) console.log(`skipped: ${name}: ${skip}`);
  if (node !== undefined) {
    void node(name, { timeout, skip: skip || false }, () => withoutExit(fn));
  } else if (bun === undefined) {
    const sanitizers = { sanitizeExit: true, sanitizeOps: sanitize, sanitizeResources: sanitize };
    Deno.test({ name, timeout, ignore: Boolean(skip), ...sanitizers, fn: () => guarded(fn) });
  } else if (skip) {
    bun.test.skip(name, fn);
  } else {
    bun.test(name, () => withoutExit(fn), timeout);
  }
}

/** Deno would end the whole file at an unhandled error; here it fails the test that made it. */
async function guarded(fn: Run): Promise<void> {
  const unhandled: unknown[] = [];
  const onUnhandled = (event: Event) => {
    event.preventDefault();
    unhandled.push((event as PromiseRejectionEvent).reason ?? (event as ErrorEvent).error);
  };
  for (const type of ["unhandledrejection", "error"]) addEventListener(type, onUnhandled);
  try {
    await fn();
    // A rejection is reported after the microtasks of its turn.
    await new Promise((resolve) => setTimeout(resolve));
  } finally {
    for (const type of ["unhandledrejection", "error"]) removeEventListener(type, onUnhandled);
  }
  if (unhandled.length > 0) throw new AggregateError(unhandled, "unhandled in this test");
}

/** Bun would end the run at `process.exit` with no report and success; Deno has sanitizeExit. */
async function withoutExit(fn: Run): Promise<void> {
  const exit = process.exit;
  process.exit = (code) => {
    throw new Error(`process.exit(${code ?? ""}) in a test`);
  };
  try {
    await fn();
    // Bun blames whichever test runs when a rejection is found: let that be this one.
    await new Promise((resolve) => setTimeout(resolve));
  } finally {
    process.exit = exit;
  }
}
