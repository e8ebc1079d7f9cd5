/**
 * For Node, with `--import`: a test of the project runs as it stands, but whatever it takes from `mod.ts` and `src/`
 * comes from the package as users get it, whose folder is in GETCONN_PACKAGE.
 */
import { registerHooks } from "node:module";
import process from "node:process";
import { pathToFileURL } from "node:url";

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
