/** How an object says what console.log shall print of it. */

/** Under these names console.log asks an object for its text: in Deno, and in Bun and Node. */
const INSPECT = [Symbol.for("Deno.customInspect"), Symbol.for("nodejs.util.inspect.custom")];

/** Makes console.log print what `text` says. */
export function inspectable<T extends object>(target: T, text: (shown: T) => string): void {
  const value = function (this: T): string {
    return text(this);
  };
  for (const key of INSPECT) Object.defineProperty(target, key, { value, configurable: true });
}
