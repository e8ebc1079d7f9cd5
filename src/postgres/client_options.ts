/** What the driver's client of one session is given. */

import type { Duplex } from "node:stream";
import { connectionError, type DriverOptions, guard } from "./driver.ts";
import type { Target } from "./hosts.ts";

/** What the client needs of its session. */
export interface ClientSide {
  /** The transport, once it stands. */
  readonly stream: Promise<Duplex>;
  /** Why the session is over, or null. */
  readonly reason: () => Error | null;
  /** The client has lost its transport. */
  readonly onclose: () => void;
  /** A notification has come. */
  readonly onnotify: (channel: string, payload: string) => void;
}

/** The pool's options, changed for one session at one place. */
export function clientOptions(
  base: DriverOptions,
  target: Target,
  pass: DriverOptions["pass"],
  side: ClientSide,
): DriverOptions {
  let given = false;
  const onclose = guard("onclose", base.onclose);
  const onnotify = guard("onnotify", base.onnotify);
  const onparameter = guard("onparameter", base.onparameter);
  return {
    ...base,
    host: [target.host],
    port: [target.port],
    path: target.path ?? false,
    pass,
    fetch_types: false,
    target_session_attrs: null,
    connect_timeout: null,
    parameters: {},
    shared: { retries: 0, typeArrayMap: base.shared.typeArrayMap },
    socket: async () => {
      // A second call is the driver's reconnect: session state would be gone without a word.
      const again = given;
      given = true;
      const stream = again ? null : await side.stream;
      const reason = side.reason();
      if (stream === null || reason !== null) {
        throw reason ?? connectionError("CONNECTION_CLOSED", target, "reconnect");
      }
      return stream;
    },
    onclose: (id) => {
      side.onclose();
      onclose?.(id);
    },
    onnotify: (channel, payload) => {
      side.onnotify(channel, payload);
      onnotify?.(channel, payload);
    },
    // Without a callback the driver prints notices; with one that throws it would fail a statement.
    onnotice: guard("onnotice", base.onnotice),
    onparameter: (key, value) => {
      // As with the driver's own pool: once for all connections, as long as they agree.
      if (base.parameters[key] === value) return;
      base.parameters[key] = value as string;
      onparameter?.(key, value);
    },
  };
}
