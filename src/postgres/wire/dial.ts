/** Which server: hosts, their addresses, encryption and protocol, tried as libpq does until there is a session. */

import type { After } from "../../clock.ts";
import { ignore } from "../../pool/safely.ts";
import { settled, underLimit, untilAborted } from "../../pool/timeout.ts";
import { codeOf, ConnectError, isPermanent, isServerError, lateBy } from "./connect_error.ts";
import { ProtocolError } from "./frames.ts";
import { ScramKeys } from "./scram.ts";
import type { ConnectSettings, Target, TargetSessionAttrs } from "./settings.ts";
import {
  type Attempt,
  isAddress,
  LINGER,
  placeOf,
  type Started,
  Startup,
  type StartupWorld,
} from "./startup.ts";
import type { OpenTransport, Transport } from "./transport.ts";

/** What dialling needs of the world around it; a simulation brings its own. */
export interface DialWorld extends Omit<StartupWorld, "keys"> {
  /** Opens a transport to a name, an address, or a Unix socket. */
  readonly open: OpenTransport;
  /** The addresses of a name, or null where `open` takes care of names. */
  readonly lookup: ((host: string, port: number) => Promise<readonly string[]>) | null;
  /** Its timers. */
  readonly after: After;
  /** A number from 0 to below 1. */
  readonly random: () => number;
}

/** Where a session is, for a cancel request that has to go the same way. */
type Place = Pick<Started, "target" | "encrypted" | "key">;

type Attrs = Exclude<TargetSessionAttrs, "any"> | null;

/** What came to light in an attempt. */
interface Seen {
  /** The server's first message has come: it knows the protocol's version. */
  heard: boolean;
  /** It went on without TLS of ours. */
  plain: boolean;
}

/** How long an address has for itself before the next one is tried beside it, in milliseconds; as RFC 8305 has it. */
const HEAD_START = 250;

/** No address of a host could be connected to; the failures are in the order of the addresses. */
class NoneAnswered extends AggregateError {}

/** Opens the sessions of one pool. */
export class Dialer {
  readonly #settings: ConnectSettings;
  readonly #world: DialWorld & StartupWorld;
  /** What is known of places: whether they take a newer protocol than 3.0. */
  readonly #protocols: Map<string, "3.0" | "3.2"> = new Map();
  /** Places whose report of their kind was wrong: poolers repeat what they have heard once. */
  readonly #disbelieved: Set<string> = new Set();

  /** Does no I/O. */
  constructor(settings: ConnectSettings, world: DialWorld) {
    this.#settings = settings;
    this.#world = { ...world, keys: new ScramKeys() };
  }

  /**
   * Opens a session. Rejects with the only failure, or with an AggregateError that names all; with the signal's reason when
   * it aborts. Then nothing is left open.
   */
  async connect(signal: AbortSignal): Promise<Started> {
    const { attrs, targets } = this.#settings;
    const failures: { readonly where: string; readonly error: unknown }[] = [];
    const hosts = this.#ordered(targets);
    // prefer-standby takes what there is when there is no standby.
    const rounds = attrs === "prefer-standby" ? ["standby", null] as const : [attrs];
    for (const wanted of rounds) {
      for (const target of hosts) {
        const places = await this.#addresses(target, signal, failures);
        while (places.length > 0) {
          // Of several addresses the first that answers is tried, then that of the rest.
          const tried = { at: places.length > 1 ? -1 : 0 };
          try {
            return await this.#at(places, tried, wanted, signal);
          } catch (error) {
            signal.throwIfAborted();
            const { at } = tried;
            const gone = at < 0 ? places.splice(0) : places.splice(at, 1);
            gone.forEach((place, i) => {
              const where = placeOf({ ...place, host: place.hostaddr ?? place.host });
              const own = error instanceof NoneAnswered ? error.errors[i] : error;
              failures.push({ where, error: own });
            });
            // As in libpq: who is refused by one host does not try his password at the others.
            if (isServerError(error) && isPermanent(error)) throw failure(failures);
          }
        }
      }
    }
    throw failure(failures);
  }

  /** From now on this place is asked of what kind it is; what it reports is not believed. */
  disbelieve(target: Target): void {
    this.#disbelieved.add(placeOf(target));
  }

  /**
   * Asks the server, on a connection of its own, to cancel what a session runs; encrypted where that is.
   * Resolves when the server has taken the request, or `due` has said that it is not wanted any more.
   */
  async cancel(place: Place, signal: AbortSignal, due: () => boolean): Promise<void> {
    if (place.key.secret.length === 0) {
      throw new ConnectError("UNSUPPORTED", "the server gave no key for cancel requests");
    }
    const attempt = {
      target: place.target,
      encryption: place.encrypted ? "required" : "none",
      protocol: "3.0",
      attrs: null,
      asks: false,
    } as const;
    await this.#within(place.target, signal, async (limit) => {
      const startup = new Startup(
        await this.#open(place.target, limit),
        attempt,
        this.#settings,
        this.#world,
      );
      const abort = (): void => startup.abort(limit.reason);
      limit.addEventListener("abort", abort, { once: true });
      try {
        limit.throwIfAborted();
        await startup.secure();
        if (due()) await startup.requestCancel(place.key);
      } finally {
        limit.removeEventListener("abort", abort);
        startup.abort(null);
      }
    });
  }

  /** In the order in which they are tried. */
  #ordered<T>(list: readonly T[]): T[] {
    const order = [...list];
    if (!this.#settings.loadBalance) return order;
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(this.#world.random() * (i + 1));
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }

  /** One target for each address of the host; none, and one more failure, when it has none. */
  async #addresses(
    target: Target,
    signal: AbortSignal,
    failures: { where: string; error: unknown }[],
  ): Promise<Target[]> {
    const { host, hostaddr, path } = target;
    const { lookup } = this.#world;
    if (this.#settings.transport !== null || lookup === null) return [target];
    if (path !== null || hostaddr !== null || isAddress(host)) return [target];
    let looking: Promise<readonly string[]> | null = null;
    try {
      const addresses = await this.#within(target, signal, (limit) => {
        looking = lookup(host, target.port);
        return untilAborted(limit, looking);
      });
      // None is for whoever may connect to the name but not to its addresses.
      if (addresses.length === 0) return [target];
      return this.#ordered(addresses).map((hostaddr) => ({ ...target, hostaddr }));
    } catch (error) {
      // It cannot be called off.
      if (signal.aborted && looking !== null) await settled(this.#world.after, LINGER, looking);
      signal.throwIfAborted();
      const late = lateBy(error, "its name was not resolved in time", "does the resolver answer?");
      failures.push({ where: placeOf(target), error: late });
      return [];
    }
  }

  /** At the first of these addresses that answers: in each of the ways that may do. */
  #at(
    places: readonly Target[],
    tried: { at: number },
    attrs: Attrs,
    signal: AbortSignal,
  ): Promise<Started> {
    return this.#within(places[0]!, signal, async (limit) => {
      let ready: Transport | null = null;
      if (places.length > 1) [tried.at, ready] = await this.#firstOf(places, limit);
      const target = places[tried.at]!;
      const open = async (): Promise<Transport> => {
        const transport = ready ?? await this.#open(target, limit);
        ready = null;
        return transport;
      };
      const { mode } = this.#settings.tls;
      // There is no TLS on Unix sockets, in the server neither.
      if (mode === "disable" || target.path !== null) {
        return await this.#speak(target, "none", attrs, limit, open);
      }
      if (mode !== "allow" && mode !== "prefer") {
        return await this.#speak(target, "required", attrs, limit, open);
      }
      const [first, second] = mode === "allow"
        ? ["none", "required"] as const
        : ["optional", "none"] as const;
      const seen: Seen = { heard: false, plain: false };
      try {
        return await this.#speak(target, first, attrs, limit, open, seen);
      } catch (error) {
        if (limit.aborted) throw error;
        if (mode === "prefer" && seen.plain || !mayDependOnTls(error)) throw error;
        try {
          return await this.#speak(target, second, attrs, limit, open);
        } catch (other) {
          if (limit.aborted) throw other;
          // "No entry in pg_hba.conf" says less than what the other way was refused for.
          throw codeOf(other) === "28000" || codeOf(error) === "28P01" ? error : other;
        }
      }
    });
  }

  /** In one of the ways; with the newest protocol that the place is not known to refuse. */
  async #speak(
    target: Target,
    encryption: "none" | "optional" | "required",
    attrs: Attrs,
    limit: AbortSignal,
    open: () => Promise<Transport>,
    seen: Seen = { heard: false, plain: false },
  ): Promise<Started> {
    const { maxProtocol, minProtocol } = this.#settings;
    const name = placeOf(target);
    const known = this.#protocols.get(name);
    const protocol = maxProtocol === "3.2" && known !== "3.0" ? "3.2" : "3.0";
    const asks = this.#disbelieved.has(name);
    const attempt = { target, encryption, protocol, attrs, asks } as const;
    try {
      const started = await this.#try(attempt, limit, open, seen);
      this.#protocols.set(name, protocol);
      return started;
    } catch (error) {
      if (limit.aborted) throw error;
      // Poolers and old servers do not all know how to say that they have 3.0 only: they refuse, or hang up.
      const old = protocol === "3.2" && minProtocol === "3.0" && known === undefined;
      if (!old || seen.heard || !mayDependOnProtocol(error)) throw error;
      const started = await this.#try({ ...attempt, protocol: "3.0" }, limit, open, seen);
      this.#protocols.set(name, "3.0");
      return started;
    }
  }

  async #try(
    attempt: Attempt,
    limit: AbortSignal,
    open: () => Promise<Transport>,
    seen: Seen,
  ): Promise<Started> {
    const startup = new Startup(await open(), attempt, this.#settings, this.#world);
    const abort = (): void => startup.abort(limit.reason);
    limit.addEventListener("abort", abort, { once: true });
    try {
      limit.throwIfAborted();
      seen.plain = !(await startup.secure());
      return await startup.open();
    } catch (error) {
      // There may be a session, which counts until the server has let go of it.
      const polite = startup.authenticated && !limit.aborted && !(error instanceof ProtocolError);
      if (polite) await startup.leave(this.#world.after);
      else await startup.giveUp(error, this.#world.after);
      throw error;
    } finally {
      seen.heard = startup.heard;
      limit.removeEventListener("abort", abort);
    }
  }

  /**
   * A transport to one of several addresses: each is tried a moment after the one before, or as soon as that has
   * failed, and the first that stands counts (RFC 8305). So an address that swallows packets costs that moment only.
   */
  #firstOf(places: readonly Target[], limit: AbortSignal): Promise<[number, Transport]> {
    return new Promise((resolve, reject) => {
      const others = places.map(() => new AbortController());
      const errors: unknown[] = [];
      let failed = 0;
      let next = 0;
      let over = false;
      let cancel = ignore;
      const end = (winner: number): void => {
        over = true;
        cancel();
        limit.removeEventListener("abort", abort);
        others.forEach((other, i) => i !== winner && other.abort(limit.reason));
      };
      const abort = (): void => {
        end(-1);
        reject(limit.reason);
      };
      const begin = (): void => {
        cancel();
        const i = next++;
        cancel = next < places.length ? this.#world.after(HEAD_START, begin) : ignore;
        this.#open(places[i]!, others[i]!.signal).then((transport) => {
          if (over) return transport.destroy();
          end(i);
          resolve([i, transport]);
        }, (error) => {
          errors[i] = error;
          failed++;
          if (over) return;
          if (failed === places.length) {
            end(-1);
            reject(new NoneAnswered(errors));
          } else if (next < places.length) begin();
        });
      };
      limit.addEventListener("abort", abort, { once: true });
      if (limit.aborted) abort();
      else begin();
    });
  }

  async #open(target: Target, limit: AbortSignal): Promise<Transport> {
    limit.throwIfAborted();
    const { transport } = this.#settings;
    const { host, hostaddr, port, path } = target;
    const opening = transport === null
      ? this.#world.open({ host: hostaddr ?? host, port, path }, limit)
      : transport({ host, port, path }, limit);
    if (!(opening instanceof Promise)) return opening;
    try {
      return await untilAborted(limit, opening, (late) => late.destroy());
    } catch (error) {
      throw transport === null ? error : lateBy(
        error,
        "the function socket gave no connection in time",
        "does the function that was given as socket answer?",
      );
    }
  }

  /** One limit over all that `fn` does, and the caller's signal, as one signal. */
  async #within<T>(
    target: Target,
    signal: AbortSignal,
    fn: (limit: AbortSignal) => Promise<T>,
  ): Promise<T> {
    signal.throwIfAborted();
    const late = () =>
      new ConnectError("CONNECT_TIMEOUT", `write CONNECT_TIMEOUT ${placeOf(target)}`);
    const { connectTimeout } = this.#settings;
    return await underLimit(this.#world.after, connectTimeout, late, signal, async (limit) => {
      try {
        return await fn(limit);
      } catch (error) {
        // Whatever the end of the time has broken; but the error may say itself what took so long.
        if (codeOf(error) !== "CONNECT_TIMEOUT") limit.throwIfAborted();
        throw error;
      }
    });
  }
}

/** What a second attempt without, or with, TLS can change: the server's refusals, but not that it is full or starting. */
function mayDependOnTls(error: unknown): boolean {
  const code = codeOf(error);
  if (isServerError(error)) return !/^(?:53|57|3D)/.test(String(code));
  // A setting that cannot be obeyed, such as a file that is named and is not there.
  if (error instanceof TypeError) return false;
  return code !== "CONNECT_TIMEOUT" && code !== "UNFIT_SERVER" && !isDialFailure(error);
}

/** Refused, unreachable and the like: nothing that was said had a part in it. */
function isDialFailure(error: unknown): boolean {
  return /^E[A-Z]+$/.test(String(codeOf(error))) && codeOf(error) !== "ECONNRESET" &&
    codeOf(error) !== "EPIPE";
}

function mayDependOnProtocol(error: unknown): boolean {
  const code = codeOf(error);
  return code === "CONNECTION_CLOSED" || code === "ECONNRESET" ||
    (isServerError(error) && (code === "0A000" || code === "08P01" || code === undefined));
}

function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.message !== "") return error.message;
  // Some runtimes give several addresses' failures without a message of their own.
  return error instanceof AggregateError ? error.errors.map(messageOf).join(", ") : error.name;
}

/** The only failure, or all in one; it has their code, when that is the same. */
function failure(
  failures: readonly { readonly where: string; readonly error: unknown }[],
): unknown {
  const first = failures[0]!.error;
  if (failures.length === 1) return first;
  const error = new AggregateError(
    failures.map(({ error }) => error),
    "no host could be connected to: " +
      failures.map(({ where, error }) => `${where}: ${messageOf(error)}`).join("; "),
  );
  const code = codeOf(first);
  const same = code !== undefined && failures.every(({ error }) => codeOf(error) === code);
  return same ? Object.assign(error, { code }) : error;
}
