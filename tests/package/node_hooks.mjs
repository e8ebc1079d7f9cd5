/**
 * For Node, with `--import`: a test of the project runs as it stands, but whatever it takes from `mod.ts` and `src/`
 * comes from the package as users get it, whose folder is in GETCONN_PACKAGE.
 */
import { registerHooks } from "node:module";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { parentPort, Worker } from "node:worker_threads";

const root = new URL("../../", import.meta.url).href;
const built = pathToFileURL(`${process.env.GETCONN_PACKAGE}/`).href;

registerHooks({
  resolve(specifier, context, next) {
    if (specifier === "@getconn/pool") return next(`${built}mod.js`, context);
    if (specifier.startsWith("@std/")) {
      const name = specifier.slice("@std/".length).replace("/", "_");
      return next(`${root}tools/std/${name}.js`, context);
    }
    const resolved = next(specifier, context);
    const path = resolved.url.startsWith(root) ? resolved.url.slice(root.length) : "";
    if (path !== "mod.ts" && !/^src\/.*\.ts$/.test(path)) return resolved;
    return next(built + path.replace(/\.ts$/, ".js"), context);
  },
});

/** A web worker on Node's own, as far as the tests use it: `postMessage`, `onmessage`, `onerror`, `terminate`. */
class WebWorker extends Worker {
  onmessage = null;
  onerror = null;

  constructor(url) {
    super(new URL(url));
    this.on("message", (data) => this.onmessage?.({ data }));
    this.on("error", (error) => this.onerror?.({ error, preventDefault: () => {} }));
  }
}
globalThis.Worker = WebWorker;

if (parentPort !== null) {
  // It must be there before the worker's program sets `onmessage`; what was sent before that waits in the port.
  Object.defineProperty(globalThis, "onmessage", {
    set: (fn) => parentPort.on("message", (data) => fn({ data })),
  });
  globalThis.postMessage = (data) => parentPort.postMessage(data);
  globalThis.close = () => process.exit(0);
}
