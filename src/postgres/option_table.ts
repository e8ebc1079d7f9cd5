/** The driver's options that a pool takes, and what their values must be. */

/** What kind of server will do, in libpq's words. */
export type TargetSessionAttrs =
  | "any"
  | "read-write"
  | "read-only"
  | "primary"
  | "standby"
  | "prefer-standby";

const ATTRS = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"];
const SSL_WORDS = ["require", "allow", "prefer", "verify-full", "verify-ca"];

/** Options that the pool owns, or that could have no effect, and what to use in their place. */
export const OWNED: Readonly<Record<string, string>> = {
  max: "the pool's maxconn is the maximum",
  idle_timeout: "use the pool's option maxIdle (milliseconds)",
  timeout: "use the pool's option maxIdle (milliseconds)",
  max_lifetime: "use the pool's option maxLifetime (milliseconds)",
  backoff: "use the pool's option reconnectTimeout (milliseconds)",
  publications: "a pool's connections do not subscribe",
  no_subscribe: "a pool's connections do not subscribe",
};

/** Throws when the value is no good; `show` is false where the value may be a secret. */
interface Rule {
  readonly ok: (value: unknown) => boolean;
  readonly rule: string;
  readonly range?: boolean;
  readonly secret?: boolean;
}

const text: Rule = {
  ok: (v) => typeof v === "string" && v !== "",
  rule: "a string that is not empty",
};
const flag: Rule = { ok: (v) => typeof v === "boolean", rule: "true or false" };
const callback: Rule = { ok: (v) => typeof v === "function", rule: "a function" };
const record: Rule = { ok: isRecord, rule: "an object" };
const secret: Rule = {
  ok: (v) => typeof v === "string" || typeof v === "function",
  rule: "a string or a function",
  secret: true,
};
const hosts: Rule = {
  ok: (v) => text.ok(v) || (Array.isArray(v) && v.length > 0 && v.every(text.ok)),
  rule: "a string or a list of strings",
};
const seconds: Rule = {
  ok: (v) => typeof v === "number" && v >= 0 && v <= 2_147_483,
  rule: "a number of seconds from 0 to 2147483",
  range: true,
};

function isRecord(value: unknown): boolean {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

const RULES: Readonly<Record<string, Rule>> = {
  host: hosts,
  hostname: hosts,
  port: { ok: () => true, rule: "a port" },
  path: text,
  database: text,
  db: text,
  user: text,
  username: text,
  password: secret,
  pass: secret,
  ssl: {
    ok: (v) => typeof v === "boolean" || SSL_WORDS.includes(v as string) || isRecord(v),
    rule: `true, false, an object of TLS options, or one of ${SSL_WORDS.join(", ")}`,
    range: true,
  },
  sslnegotiation: {
    ok: (v) => v === null || v === "postgres" || v === "direct",
    rule: "postgres or direct",
    range: true,
  },
  connect_timeout: seconds,
  keep_alive: seconds,
  max_pipeline: {
    ok: (v) => Number.isInteger(v) && (v as number) > 0,
    rule: "an integer above 0",
    range: true,
  },
  prepare: flag,
  no_prepare: flag,
  fetch_types: flag,
  debug: {
    ok: (v) => typeof v === "boolean" || typeof v === "function",
    rule: "true, false or a function",
  },
  types: record,
  transform: record,
  connection: record,
  target_session_attrs: {
    ok: (v) => ATTRS.includes(v as string),
    rule: `one of ${ATTRS.join(", ")}`,
    range: true,
  },
  onnotice: callback,
  onnotify: callback,
  onclose: callback,
  onparameter: callback,
  socket: callback,
};

/** Options that may be null, which means that they are off. */
const NULLABLE = new Set([
  "connect_timeout",
  "keep_alive",
  "path",
  "sslnegotiation",
  "target_session_attrs",
]);

/** Throws a TypeError or RangeError that names the first option that is no good. */
export function check(options: Readonly<Record<string, unknown>>): void {
  for (const [key, value] of Object.entries(options)) {
    const instead = OWNED[key];
    if (instead !== undefined) {
      throw new TypeError(`the option ${key} has no effect here: ${instead}`);
    }
    const rule = RULES[key];
    if (rule === undefined) {
      throw new TypeError(`unknown option ${key}; known are: ${Object.keys(RULES).join(", ")}`);
    }
    if (rule.ok(value) || (value === null && NULLABLE.has(key))) continue;
    const known = rule.range === true && typeof value !== "object" && typeof value !== "function";
    const message = `the option ${key} must be ${rule.rule}` +
      (rule.secret ? "" : `, not ${show(value)}`);
    throw known ? new RangeError(message) : new TypeError(message);
  }
}

function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  if (value === null || typeof value !== "object") return String(value);
  return Array.isArray(value) ? "a list" : "an object";
}
