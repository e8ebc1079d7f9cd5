/**
 * The words with which a connection is described: libpq's keywords, as PostgreSQL 18 documents them
 * (https://www.postgresql.org/docs/18/libpq-connect.html), the driver's names for the same things, and
 * the words of other programs that are met in connection URLs, with what to write in their place.
 */

/** Tells what is wrong with a value, as a rule that goes after "must be"; null when nothing is. */
type Rule = (value: string) => string | null;

/** One keyword of libpq. All values are text, as in libpq. */
export interface Keyword {
  /** The environment variable that counts when neither argument, string nor service has it. */
  readonly variable?: string;
  /** Its value must not be shown. */
  readonly secret?: true;
  /** It takes a list: commas between the values of several hosts. */
  readonly list?: true;
  readonly rule?: Rule;
  /** Not to be had here, and what to do. */
  readonly refused?: string;
}

function oneOf(...words: string[]): Rule {
  return (value) => words.includes(value) ? null : `one of ${words.join(", ")}`;
}

/** libpq's integers: blanks around them are no matter, and they fit into 32 bits. */
function integer(value: string): string | null {
  const sane = /^\s*[+-]?\d+\s*$/.test(value) && Math.abs(Number(value)) <= 2_147_483_647;
  return sane ? null : "an integer";
}

function natural(value: string): string | null {
  return integer(value) === null && Number(value) >= 0 ? null : "an integer of 0 or more";
}

/** Fractions, too, which libpq does not take. */
function seconds(value: string): string | null {
  return /^\s*\d+\.\d+\s*$/.test(value) || integer(value) === null ? null : "a number of seconds";
}

function flag(value: string): string | null {
  return integer(value) === null ? null : "1 or 0";
}

function tlsVersion(value: string): string | null {
  return value === "" || versionOf(value) !== undefined
    ? null
    : `one of ${TLS_VERSIONS.join(", ")}`;
}

const TLS_VERSIONS = ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"] as const;

/** A version of TLS however its letters are written; undefined for anything else. */
export function versionOf(value: string): typeof TLS_VERSIONS[number] | undefined {
  return TLS_VERSIONS.find((version) => version.toLowerCase() === value.toLowerCase());
}

function unicode(value: string): string | null {
  return /^(|auto|utf-?8|unicode)$/i.test(value)
    ? null
    : "UTF8: strings are Unicode here, and the server converts from and to the database's encoding";
}

const protocol = oneOf("3.0", "3.2", "latest");
const NO_OAUTH = "OAuth is not supported; a token is given as password, also by a function";
const NO_KEYS = "SCRAM keys in place of a password are not supported: give password";

/** All keywords of libpq 18, and `servicefile` of 19. */
export const KEYWORDS: Readonly<Record<string, Keyword>> = {
  service: { variable: "PGSERVICE" },
  servicefile: { variable: "PGSERVICEFILE" },
  host: { variable: "PGHOST", list: true },
  hostaddr: { variable: "PGHOSTADDR", list: true },
  port: { variable: "PGPORT", list: true },
  dbname: { variable: "PGDATABASE" },
  user: { variable: "PGUSER" },
  password: { variable: "PGPASSWORD", secret: true },
  passfile: { variable: "PGPASSFILE" },
  require_auth: { variable: "PGREQUIREAUTH" },
  channel_binding: {
    variable: "PGCHANNELBINDING",
    rule: oneOf("disable", "prefer", "require"),
  },
  connect_timeout: { variable: "PGCONNECT_TIMEOUT", rule: seconds },
  client_encoding: { variable: "PGCLIENTENCODING", rule: unicode },
  options: { variable: "PGOPTIONS" },
  application_name: { variable: "PGAPPNAME" },
  fallback_application_name: {},
  keepalives: { rule: flag },
  keepalives_idle: { rule: natural },
  keepalives_interval: { rule: natural },
  keepalives_count: { rule: natural },
  tcp_user_timeout: { rule: natural },
  sslmode: {
    variable: "PGSSLMODE",
    rule: oneOf("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
  },
  sslnegotiation: { variable: "PGSSLNEGOTIATION", rule: oneOf("postgres", "direct") },
  // Without effect: no server compresses by TLS any more, and no runtime does.
  sslcompression: { variable: "PGSSLCOMPRESSION" },
  sslcert: { variable: "PGSSLCERT" },
  sslkey: { variable: "PGSSLKEY" },
  sslpassword: { secret: true },
  sslcertmode: {
    variable: "PGSSLCERTMODE",
    rule: (value) =>
      value === "require"
        ? "disable or allow: no runtime tells whether the server has asked for a certificate"
        : oneOf("disable", "allow")(value),
  },
  sslrootcert: { variable: "PGSSLROOTCERT" },
  sslcrl: { variable: "PGSSLCRL" },
  sslcrldir: { variable: "PGSSLCRLDIR" },
  sslsni: { variable: "PGSSLSNI", rule: flag },
  ssl_min_protocol_version: { variable: "PGSSLMINPROTOCOLVERSION", rule: tlsVersion },
  ssl_max_protocol_version: { variable: "PGSSLMAXPROTOCOLVERSION", rule: tlsVersion },
  min_protocol_version: { variable: "PGMINPROTOCOLVERSION", rule: protocol },
  max_protocol_version: { variable: "PGMAXPROTOCOLVERSION", rule: protocol },
  sslkeylogfile: { refused: "the keys of a session are written to no file" },
  requirepeer: { variable: "PGREQUIREPEER" },
  gssencmode: {
    variable: "PGGSSENCMODE",
    rule: (value) =>
      value === "require"
        ? "disable or prefer: there is no GSSAPI here"
        : oneOf("disable", "prefer", "require")(value),
  },
  // Without effect where no GSSAPI is.
  krbsrvname: { variable: "PGKRBSRVNAME" },
  gsslib: { variable: "PGGSSLIB" },
  gssdelegation: { variable: "PGGSSDELEGATION" },
  replication: {
    rule: (value) =>
      /^(|false|off|no|0)$/.test(value)
        ? null
        : "off: a pool's connections do not replicate; use a client that postgres() makes for it",
  },
  target_session_attrs: {
    variable: "PGTARGETSESSIONATTRS",
    rule: oneOf("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
  },
  load_balance_hosts: { variable: "PGLOADBALANCEHOSTS", rule: oneOf("disable", "random") },
  scram_client_key: { secret: true, refused: NO_KEYS },
  scram_server_key: { secret: true, refused: NO_KEYS },
  oauth_issuer: { refused: NO_OAUTH },
  oauth_client_id: { refused: NO_OAUTH },
  oauth_client_secret: { secret: true, refused: NO_OAUTH },
  oauth_scope: { refused: NO_OAUTH },
};

/** The driver's names for keywords of libpq. */
export const ALIASES: Readonly<Record<string, string>> = {
  hostname: "host",
  database: "dbname",
  db: "dbname",
  username: "user",
  pass: "password",
};

/** libpq's keyword for a name of either. */
export function keywordOf(name: string): string {
  return Object.hasOwn(ALIASES, name) ? ALIASES[name]! : name;
}

/** Variables that are settings of the session and no keywords, as libpq has them. */
export const SETTING_VARIABLES: Readonly<Record<string, string>> = {
  PGDATESTYLE: "datestyle",
  PGTZ: "timezone",
  PGGEQO: "geqo",
};

/** Options that the pool owns, or that could have no effect, and what to use in their place. */
export const OWNED: Readonly<Record<string, string>> = {
  max: "the pool's maxconn is the maximum",
  idle_timeout: "use the pool's option maxIdle (milliseconds): pool: { maxIdle }",
  timeout:
    "use the pool's options (milliseconds): pool: { maxIdle } for idle connections, pool: { timeout } for waiting",
  max_lifetime: "use the pool's option maxLifetime (milliseconds): pool: { maxLifetime }",
  backoff: "use the pool's option reconnectTimeout (milliseconds): pool: { reconnectTimeout }",
  publications: "a pool's connections do not subscribe",
  no_subscribe: "a pool's connections do not subscribe",
};

const BY_OPTIONS = "it is no parameter of a connection; a server's setting goes into options " +
  "(-c name=value), or into connection: { name: value }";
const BY_MAXCONN =
  "the pool's maxconn is the maximum: new SimpleConnectionPool(minconn, maxconn, …)";
const BY_TIMEOUT = "use the pool's option timeout (milliseconds): pool: { timeout }";

/** Words of other programs that stand in URLs and options which people bring along. */
const FOREIGN: Readonly<Record<string, string>> = {
  pgbouncer: "it is Prisma's: write prepare=false",
  statement_cache_size: "it is Prisma's and asyncpg's: write prepare=false for none",
  prepared_statement_cache_size: "it is asyncpg's: write prepare=false for none",
  prepareThreshold: "it is JDBC's: write prepare=false for no prepared statements",
  connection_limit: `it is Prisma's: ${BY_MAXCONN}`,
  pool_timeout: `it is Prisma's: ${BY_TIMEOUT}`,
  schema: "it is Prisma's: write options=-csearch_path=…",
  currentSchema: "it is JDBC's: write options=-csearch_path=…",
  uselibpqcompat: "it is pg's: leave it out, sslmode has libpq's meanings here",
  workaround: "it is another program's, and not needed here: leave it out",
  sslaccept: "it is Prisma's: write sslmode=require, or verify-full to check the certificate",
  sslidentity: "it is Prisma's: write sslcert and sslkey",
  socket_timeout: "it is Prisma's: write options=-cstatement_timeout=…",
  socketTimeout: "it is JDBC's: write options=-cstatement_timeout=…",
  loginTimeout: "it is JDBC's: write connect_timeout (seconds)",
  ApplicationName: "write application_name",
  connectionString: "give it as the third argument: (minconn, maxconn, conninfo)",
  connection_string: "give it as the third argument: (minconn, maxconn, conninfo)",
  url: "give it as the third argument: (minconn, maxconn, url)",
  conninfo: "give it as the third argument: (minconn, maxconn, conninfo)",
  connectionTimeoutMillis: "it is pg's: write connect_timeout (seconds), or pool: { timeout }",
  idleTimeoutMillis: "it is pg's: write pool: { maxIdle }",
  allowExitOnIdle: "it is pg's: idle connections never keep a process alive here",
  statement_timeout: "a server's setting goes into connection or options",
  query_timeout: "it is pg's: write queryTimeout (milliseconds)",
  min: `it is pg's: the pool's minconn is the minimum`,
  minconn: "it is the first argument: (minconn, maxconn, …)",
  maxconn: "it is the second argument: (minconn, maxconn, …)",
  cursor_factory: "it is psycopg2's: rows are objects here, with the columns as their keys",
  connection_factory: "it is psycopg2's: pool: { configure } prepares a connection",
  async_: "it is psycopg2's: everything is asynchronous here",
  async: "it is psycopg2's: everything is asynchronous here",
  row_factory: "it is psycopg's: rows are objects here, with the columns as their keys",
  autocommit: "it is psycopg's: there is no implicit transaction here; pool.transaction makes one",
  authtype: "libpq has it no more: leave it out",
  tty: "libpq has it no more: leave it out",
};

/** What is wrong with a name that nobody knows, and what might be meant. */
export function adviceOn(name: string, known: Iterable<string>): string {
  const owned = Object.hasOwn(OWNED, name) ? OWNED[name] : undefined;
  if (owned !== undefined) return owned;
  const foreign = Object.hasOwn(FOREIGN, name) ? FOREIGN[name] : undefined;
  if (foreign !== undefined) return foreign;
  const near = nearest(name, known);
  if (near !== null) return `did you mean ${near}?`;
  return BY_OPTIONS;
}

/** True for a word that is no secret's piece: somebody's parameter, or nearly one. */
export function isFamiliar(name: string, known: Iterable<string>): boolean {
  return Object.hasOwn(OWNED, name) || Object.hasOwn(FOREIGN, name) ||
    nearest(name, known) !== null;
}

/** The known name that differs least, when it differs by a slip or two; else null. */
export function nearest(name: string, known: Iterable<string>): string | null {
  const word = name.slice(0, 64).toLowerCase();
  let best: string | null = null;
  let least = Math.max(1, Math.floor(word.length / 3)) + 1;
  for (const candidate of known) {
    const apart = distance(word, candidate.toLowerCase());
    if (apart < least) [best, least] = [candidate, apart];
  }
  return best;
}

/** How many letters must be put in, taken out, changed or swapped with their neighbour. */
function distance(a: string, b: string): number {
  let [before, last] = [[] as number[], Array.from({ length: b.length + 1 }, (_, i) => i)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const change = a[i - 1] === b[j - 1] ? 0 : 1;
      row[j] = Math.min(row[j - 1]! + 1, last[j]! + 1, last[j - 1]! + change);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        row[j] = Math.min(row[j]!, before[j - 2]! + 1);
      }
    }
    [before, last] = [last, row];
  }
  return last[b.length]!;
}
