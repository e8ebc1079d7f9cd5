/** Puts the wire watcher between a transport and the driver. */

import type { Buffer } from "node:buffer";
import type { Duplex } from "node:stream";
import type { Wire } from "./wire.ts";

/** What is told of the traffic. */
export interface TapEvents {
  /** The driver has written all that it had built. */
  written(): void;
  /** Something came, which the driver is about to see. */
  delivering(): void;
  /** The driver has seen all that came. */
  delivered(): void;
  /** Brackets an end of rows that the server did not send. */
  endingRows(now: boolean): void;
}

type OnData = (bytes: Buffer) => void;
type Listen = (event: string, listener: (...args: never[]) => void) => Duplex;

/**
 * Lets `wire` see, and complete, what goes through `stream` in both directions. The driver's `data`
 * listener is kept here instead of at the stream, and its writes pass through an own `write`.
 */
export function tap(stream: Duplex, wire: Wire, events: TapEvents): void {
  let driver: OnData | null = null;
  const receiver = {
    deliver(bytes: Buffer): void {
      driver?.(bytes);
    },
    endRows(bytes: Buffer): void {
      events.endingRows(true);
      driver?.(bytes);
      events.endingRows(false);
    },
  };
  stream.on("data", (bytes: Uint8Array) => {
    events.delivering();
    wire.received(bytes, receiver);
    events.delivered();
  });

  const on = stream.on.bind(stream) as Listen;
  const off = stream.removeListener.bind(stream) as Listen;
  const write = stream.write.bind(stream) as (bytes: Uint8Array, done?: () => void) => boolean;
  const own: Record<"on" | "removeListener", Listen> & { write: typeof write } = {
    on(event, listener) {
      if (event !== "data") return on(event, listener);
      driver = listener as unknown as OnData;
      return stream;
    },
    removeListener(event, listener) {
      if (event !== "data") return off(event, listener);
      if (driver === listener as unknown as OnData) driver = null;
      return stream;
    },
    write(bytes, done) {
      if (wire.mute) {
        done?.();
        return true;
      }
      const room = write(wire.sending(bytes), done);
      events.written();
      return room;
    },
  };
  Object.assign(stream, own);
}
