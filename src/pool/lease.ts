/** What the borrower holds: a fresh, revocable handle for each lease. */

import { PoolError, type PoolErrorContext } from "./errors.ts";
import type { Clock } from "../clock.ts";
import type { Timer } from "../runtime.ts";
import { isThenable } from "./safely.ts";
import { isLoss } from "./transactions.ts";
import type { Lease } from "./types.ts";

/** Under this symbol a handle shows its lease to the pool, and to nobody else. */
export const LEASE: unique symbol = Symbol("lease");

/** What a lease needs of the pool that made it. */
export interface Lender {
  /** The pool's name and counts, for errors. */
  errorContext(): PoolErrorContext;
  /** Why a lease that was put back, or whose pool was closed, refuses. */
  refusal(): Error;
  /** Takes the connection back. */
  takeBack(lease: PoolLease): Promise<void>;
}

/** The leases behind handles that a connector made without knowing the symbol. */
const LEASES = new WeakMap<object, PoolLease>();

/** Makes `leaseOf` find the lease of a handle that a connector made. */
export function mark(handle: object, lease: PoolLease): object {
  if ((handle as { [LEASE]?: unknown })[LEASE] !== lease) LEASES.set(handle, lease);
  return handle;
}

/** In place of a key that may become garbage; a WeakRef of the program's own may be a key itself. */
class WeakKey {
  readonly ref: WeakRef<object>;
  constructor(key: object) {
    this.ref = new WeakRef(key);
  }
}

/** One lease of one connection. `open` goes from true to false once and never back. */
export class PoolLease implements Lease {
  open = true;
  /** What the borrower holds; kept for getconn of the same key, and until the pool looks for leaks. */
  handle: object | null = null;
  /** Where getconn was called, when leaks are looked for. */
  stack: string | null = null;
  /** Whether the lease was reported as a leak. */
  reported = false;
  /** Whether its handle's end is watched for. */
  watched = false;
  /** After how many milliseconds it was taken from its holder; null when it was not. */
  reclaimedAfter: number | null = null;
  /** True for what the pool holds by itself, for as long as it takes: it is never taken back. */
  own = false;
  holder: object | null = null;
  /** True while the pool's own begin, commit or rollback is under way: put back now, the connection is in the middle of it. */
  busy = false;
  /** Who wants to know of its end; null while nobody does. */
  #watchers: Set<(lost: { readonly reason: unknown } | null) => void> | null = null;
  #lossExpected = false;
  /** The pool's record of the connection. */
  readonly entry: object;
  /** Under what it was lent; null for none, and a WeakRef of its own once the pool does not keep the key any more. */
  #key: unknown;
  readonly since: number;
  readonly lender: Lender;

  constructor(lender: Lender, entry: object, key: unknown, since: number) {
    this.lender = lender;
    this.entry = entry;
    this.#key = key;
    this.since = since;
  }

  /** Whether it was lent under a key, which may be garbage by now. */
  get keyed(): boolean {
    return this.#key !== null;
  }

  /** Under what it was lent; null for none, or when that is garbage. */
  get key(): unknown {
    const key = this.#key;
    return key instanceof WeakKey ? key.ref.deref() ?? null : key;
  }

  /** The pool does not keep the key any more. */
  weaken(key: object): void {
    this.#key = new WeakKey(key);
  }

  /** What the connector opened. */
  get resource(): object {
    return (this.entry as { readonly resource: object }).resource;
  }

  assertOpen(): void {
    if (!this.open) throw this.returned();
  }

  returned(): Error {
    if (this.reclaimedAfter === null) return this.lender.refusal();
    return new PoolError(
      `connection was taken back: it was lent for longer than reclaimAfter, ${this.reclaimedAfter} ms; ` +
        "borrow another one, and for less time",
      "LEASE_RECLAIMED",
      this.lender.errorContext(),
    );
  }

  error(message: string, code: Parameters<Lease["error"]>[1], cause?: unknown): Error {
    return new PoolError(message, code, { ...this.lender.errorContext(), cause });
  }

  putconn(): Promise<void> {
    return this.open ? this.lender.takeBack(this) : Promise.resolve();
  }

  whenOver(fn: (lost: { readonly reason: unknown } | null) => void): () => void {
    const watchers = this.#watchers ??= new Set();
    watchers.add(fn);
    return () => watchers.delete(fn);
  }

  expectLoss(): void {
    this.#lossExpected = true;
  }

  /** Tells that it is over: put back, or with a reason lost. To be called when `open`, or the entry, says so. */
  tellOver(lost: { readonly reason: unknown } | null): void {
    if (this.#watchers === null || (lost !== null && this.#lossExpected)) return;
    const watchers = this.#watchers;
    this.#watchers = null;
    for (const fn of watchers) fn(lost);
  }
}

/**
 * Settles as `fn` does, or rejects when the connection is lost or the pool closed while `fn` is at work, which may
 * never notice. It has the rest of the turn to settle by itself: it may have an answer to the failure of its statement.
 */
export async function unlessLost<T>(
  clock: Clock,
  lease: PoolLease,
  fn: () => T | Promise<T>,
): Promise<T> {
  const result = fn();
  // Nothing can be lost in the turn in which it was called.
  if (!isThenable(result)) return result;
  let timer: Timer | undefined;
  let forget!: () => void;
  try {
    // By hand: Promise.race costs twice as much.
    return await new Promise<T>((resolve, reject) => {
      let reclaimed: PoolError | null = null;
      forget = lease.whenOver((why) => {
        if (why === null) return;
        const { reason } = why;
        if (lease.reclaimedAfter !== null) reclaimed = reason as PoolError;
        const error = reason instanceof PoolError
          ? reason
          : lease.error("the connection was lost while it was lent", "CONNECTION_LOST", reason);
        timer = clock.setTimeout(() => reject(error), 0);
      });
      // What fails by that is told as that.
      result.then(resolve, (error) => reject(isLoss(error) ? reclaimed ?? error : error));
    });
  } finally {
    forget();
    if (timer !== undefined) clock.clearTimeout(timer);
  }
}

/** The lease behind a handle; undefined for anything that no pool has lent. */
export function leaseOf(handle: unknown): PoolLease | undefined {
  if (handle === null || (typeof handle !== "object" && typeof handle !== "function")) {
    return undefined;
  }
  try {
    const lease = (handle as { [LEASE]?: unknown })[LEASE];
    return lease instanceof PoolLease ? lease : LEASES.get(handle);
  } catch {
    // A revoked proxy, for one, throws whatever it is asked.
    return undefined;
  }
}

/**
 * The handle for connectors without `lend`: the resource itself, seen through a view that ends with
 * the lease. Methods run on the resource, so that private fields work.
 *
 * Whatever is done to the view (reading, writing, calling, listing, defining, deleting) is done to the
 * resource, and refused after the lease. Where the resource itself comes out, as a property's value, a
 * method's result, or what a promise of the runtime's own resolves with, the view stands in its place.
 * What else refers to the resource is not looked through: an array or an object that holds it, an
 * argument of a callback, an event's target. A connector of such things brings its own `lend`.
 */
export function guard<R extends object>(resource: R, lease: PoolLease): R {
  // The view's target is a stand-in: a frozen resource would forbid a proxy to wrap its methods.
  const target = typeof resource === "function"
    ? () => {}
    : Object.create(Object.getPrototypeOf(resource));
  const guarding = new Guard(resource, lease);
  return guarding.view = new Proxy(target, guarding) as R;
}

class Guard<R extends object> implements ProxyHandler<object> {
  /** What the borrower holds; set when it is made. */
  view: R | null = null;
  readonly #resource: R;
  readonly #lease: PoolLease;

  constructor(resource: R, lease: PoolLease) {
    this.#resource = resource;
    this.#lease = lease;
  }

  get(_target: object, key: string | symbol): unknown {
    const lease = this.#lease;
    if (key === LEASE) return lease;
    if (key === Symbol.asyncDispose) return (): Promise<void> => lease.putconn();
    // A lease is a value that can be awaited, also after its end.
    if (key === "then" && !lease.open) return undefined;
    const resource = this.#open();
    const value: unknown = Reflect.get(resource, key, resource);
    if (typeof value !== "function") return this.#seen(value);
    return (...args: unknown[]): unknown => this.#seen(Reflect.apply(value, this.#open(), args));
  }

  set(_target: object, key: string | symbol, value: unknown): boolean {
    const resource = this.#open();
    return Reflect.set(resource, key, value, resource);
  }

  has(_target: object, key: string | symbol): boolean {
    return Reflect.has(this.#open(), key);
  }

  deleteProperty(_target: object, key: string | symbol): boolean {
    return Reflect.deleteProperty(this.#open(), key);
  }

  ownKeys(target: object): (string | symbol)[] {
    // A proxy has to tell of what its target cannot lose.
    const fixed = Reflect.ownKeys(target).filter((key) =>
      Reflect.getOwnPropertyDescriptor(target, key)?.configurable === false
    );
    return [...new Set([...fixed, ...Reflect.ownKeys(this.#open())])];
  }

  getOwnPropertyDescriptor(target: object, key: string | symbol): PropertyDescriptor | undefined {
    const found = Reflect.getOwnPropertyDescriptor(this.#open(), key);
    if (found === undefined) return undefined;
    const { enumerable = false, writable, set } = found;
    const settable = writable === true || set !== undefined;
    // As a value, so that a getter runs on the resource; and never as fixed, which its target is not.
    return {
      value: this.get(target, key),
      writable: settable,
      enumerable,
      configurable: true,
    };
  }

  defineProperty(_target: object, key: string | symbol, descriptor: PropertyDescriptor): boolean {
    // What would be fixed in the resource cannot be fixed in a view of it.
    if (descriptor.configurable === false) return false;
    return Reflect.defineProperty(this.#open(), key, { configurable: true, ...descriptor });
  }

  setPrototypeOf(): boolean {
    return false;
  }

  preventExtensions(): boolean {
    return false;
  }

  apply(_target: object, receiver: unknown, args: unknown[]): unknown {
    return this.#seen(Reflect.apply(this.#open() as () => unknown, receiver, args));
  }

  #open(): R {
    this.#lease.assertOpen();
    return this.#resource;
  }

  /** What the borrower sees of a value: of the resource, the view. */
  #seen(value: unknown): unknown {
    const { view } = this;
    const resource: unknown = this.#resource;
    if (value === resource) return view;
    // A promise of another kind, such as a query, may begin its work when it is asked.
    if (!isPlainPromise(value)) return value;
    return value.then((result) => result === resource ? view : result);
  }
}

function isPlainPromise(value: unknown): value is Promise<unknown> {
  try {
    return typeof value === "object" && value !== null &&
      Object.getPrototypeOf(value) === Promise.prototype;
  } catch {
    return false;
  }
}
