/** What a pool tells those who listen; it costs nothing while nobody does. */

import type { RemoveReason } from "./types.ts";

/** What each type of event carries as `detail`. Times in milliseconds. */
export interface PoolEventDetails {
  /** A connection was opened (and configured). */
  connect: { readonly took: number };
  /** A connection could not be opened. `retryIn`: the pause before the next attempt in the background. */
  connectfailed: { readonly error: unknown; readonly attempt: number; readonly retryIn: number };
  /** Connecting failed for longer than `reconnectTimeout`: the background gives up until the next getconn. */
  reconnectfailed: { readonly error: unknown; readonly after: number };
  /** A connection was lent. */
  acquire: { readonly conn: object; readonly key: unknown };
  /** A connection was put back. */
  release: { readonly key: unknown; readonly used: number };
  /** A connection left the pool, and its permit is free. */
  remove: { readonly reason: RemoveReason };
  /** A connection closed by itself. */
  lost: { readonly error: unknown };
  /** getconn failed because all connections are lent. */
  exhausted: { readonly waiting: number };
  /** getconn gave up waiting. */
  timeout: { readonly waited: number };
  /**
   * A lease is held for longer than `leakAfter`, or (`returned`) has come back after all; `collected`:
   * its handle was garbage, so that nobody could put it back, and the pool took it back by itself.
   */
  leak: {
    readonly held: number;
    readonly stack: string;
    readonly returned: boolean;
    readonly collected: boolean;
  };
}

/** The types of events. */
export type PoolEventType = keyof PoolEventDetails;

/** An event of a pool. */
export class PoolEvent<T extends PoolEventType = PoolEventType> extends Event {
  /** Which pool. */
  readonly pool: string;
  /** What happened. */
  readonly detail: PoolEventDetails[T];

  /** Made by pools. */
  constructor(type: T, pool: string, detail: PoolEventDetails[T]) {
    super(type);
    this.pool = pool;
    this.detail = detail;
  }
}

/** An EventTarget whose listeners cannot harm it, and that knows which events are worth making. */
export class PoolEvents extends EventTarget {
  readonly #heard = new Set<string>();
  readonly #wrapped = new WeakMap<EventListenerOrEventListenerObject, EventListener>();

  /**
   * As EventTarget's own, but for one thing: what a listener throws goes to console.error and harms
   * neither the pool nor the process.
   */
  override addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void {
    if (listener === null) return;
    this.#heard.add(type);
    super.addEventListener(type, this.#wrap(listener), options);
  }

  /** As EventTarget's own. */
  override removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void {
    if (listener === null) return;
    super.removeEventListener(type, this.#wrapped.get(listener) ?? listener, options);
  }

  /** Calls `fn` at each event of this type; for hosts that expect an emitter. */
  on<T extends PoolEventType>(type: T, fn: (event: PoolEvent<T>) => void): this {
    this.addEventListener(type, fn as unknown as EventListener);
    return this;
  }

  /** Ends what `on` began. */
  off<T extends PoolEventType>(type: T, fn: (event: PoolEvent<T>) => void): this {
    this.removeEventListener(type, fn as unknown as EventListener);
    return this;
  }

  /** True when someone has ever listened to this type: only then is an event worth making. */
  protected heard(type: PoolEventType): boolean {
    return this.#heard.has(type);
  }

  /** Calls the listeners, whose failures harm nobody; nor does a subclass's own dispatchEvent. */
  protected send(event: PoolEvent): void {
    try {
      this.dispatchEvent(event);
    } catch (error) {
      report(error);
    }
  }

  #wrap(listener: EventListenerOrEventListenerObject): EventListener {
    let wrapped = this.#wrapped.get(listener);
    if (wrapped === undefined) {
      wrapped = (event) => callSafely(listener, event);
      this.#wrapped.set(listener, wrapped);
    }
    return wrapped;
  }
}

function callSafely(listener: EventListenerOrEventListenerObject, event: Event): void {
  try {
    const result: unknown = typeof listener === "function"
      ? listener.call(event.currentTarget as EventTarget, event)
      : listener.handleEvent(event);
    if (result instanceof Promise) result.catch(report);
  } catch (error) {
    report(error);
  }
}

function report(error: unknown): void {
  console.error("A listener of a connection pool failed:", error);
}
