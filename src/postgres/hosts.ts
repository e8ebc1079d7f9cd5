/** Where the server is: hosts, ports and socket directories, and connection URLs. */

/** One place to connect to. */
export interface Target {
  /** Name or address, or the socket directory. */
  readonly host: string;
  /** TCP port, or the number in the socket's name. */
  readonly port: number;
  /** The Unix socket, or null for TCP. */
  readonly path: string | null;
}

/** What a connection URL says. */
export interface ParsedUrl {
  readonly user: string;
  readonly password: string;
  readonly hosts: readonly HostEntry[];
  readonly database: string;
  readonly query: Readonly<Record<string, string>>;
}

/** A host and, when it was written with it, its port. */
export interface HostEntry {
  readonly host: string;
  readonly port: number | null;
}

const SHAPE = /^postgres(?:ql)?:\/\/([^/?#]*)(?:\/([^?#]*))?(?:\?([^#]*))?(?:#.*)?$/;

// Messages never quote the URL or a part before its host: it may hold a password.
const RULE = "url must be like postgres://user:password@host:5432/database";

/** Takes a connection URL apart: several hosts, IPv6 in brackets, percent-encoded socket directories. */
export function parseUrl(url: string): ParsedUrl {
  const match = SHAPE.exec(url);
  if (match === null) throw new TypeError(RULE);
  const [, authority = "", path = "", search = ""] = match;
  const at = authority.lastIndexOf("@");
  const login = at === -1 ? "" : authority.slice(0, at);
  const colon = login.indexOf(":");
  return {
    user: decode(colon === -1 ? login : login.slice(0, colon)),
    password: colon === -1 ? "" : decode(login.slice(colon + 1)),
    hosts: splitHosts(authority.slice(at + 1)).map(({ host, port }) => ({
      host: decode(host),
      port,
    })),
    database: decode(path),
    query: search === "" ? {} : Object.fromEntries(new URLSearchParams(search)),
  };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new TypeError(`${RULE}: a part of it is not percent-encoded correctly`);
  }
}

/** Takes `a,b:5433,[::1]:5434,/directory` apart. */
export function splitHosts(list: string): HostEntry[] {
  if (list === "") return [];
  return list.split(",").map((entry) => splitHost(entry.trim()));
}

function splitHost(entry: string): HostEntry {
  if (entry.startsWith("/")) return { host: entry, port: null };
  const bracketed = /^\[([^\]]*)\](?::(.*))?$/.exec(entry);
  if (bracketed !== null) {
    return { host: bracketed[1]!, port: bracketed[2] ? parsePort(bracketed[2]) : null };
  }
  const first = entry.indexOf(":");
  // More than one colon without brackets is an IPv6 address.
  if (first === -1 || entry.indexOf(":", first + 1) !== -1) return { host: entry, port: null };
  const port = entry.slice(first + 1);
  return { host: entry.slice(0, first), port: port === "" ? null : parsePort(port) };
}

/** A port, or a RangeError that says what a port is. */
export function parsePort(value: unknown): number {
  const text = String(value);
  const port = typeof value === "number" || /^\d+$/.test(text) ? Number(text) : NaN;
  if (!Number.isInteger(port) || port < 1 || port > 65535) {
    // What stands in a port's place may be a piece of a password with an unescaped "/" or "@".
    const shown = typeof value === "number" ? `, not ${value}` : "";
    throw new RangeError(`port must be an integer from 1 to 65535${shown}`);
  }
  return port;
}

/** Joins hosts and ports: one port for all, or one for each. */
export function makeTargets(hosts: readonly HostEntry[], ports: readonly number[]): Target[] {
  if (ports.length > 1 && ports.length !== hosts.length) {
    throw new RangeError(
      `port must be one number, or one for each host: ${ports.length} ports for ${hosts.length} hosts`,
    );
  }
  return hosts.map(({ host, port }, i) => {
    if (host === "") throw new TypeError("host must not be empty");
    // Not shown: a password with an unescaped "@" would stand here.
    if (!host.startsWith("/") && /[\s@]/.test(host)) {
      throw new TypeError("host must be a name or an address without spaces and @, in url too");
    }
    const number = port ?? ports[ports.length > 1 ? i : 0] ?? 5432;
    return { host, port: number, path: host.startsWith("/") ? `${host}/.s.PGSQL.${number}` : null };
  });
}

/** A target for people's eyes. */
export function nameOf(target: Target): string {
  if (target.path !== null) return target.path;
  return target.host.includes(":")
    ? `[${target.host}]:${target.port}`
    : `${target.host}:${target.port}`;
}
