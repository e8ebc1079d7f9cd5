/** The callbacks of a statement. */

import { report } from "../pool/errors.ts";
import { isThenable } from "../pool/safely.ts";
import { bindContext } from "../runtime.ts";
import type { Query } from "./query.ts";

/**
 * Lets a statement's callbacks run in the async context of the call that gave them: what comes from the wire runs in
 * that of whoever opened the socket, or in none. To be called in the turn in which the statement is executed.
 */
export function bindCallbacks(query: Query): void {
  const { forEachFn, cursorFn } = query;
  if (forEachFn !== undefined) {
    const bound = bindContext(forEachFn);
    query.forEachFn = (row, result) => {
      const returned = bound(row, result);
      if (isThenable(returned)) failWith(query, returned);
      return returned;
    };
  }
  if (cursorFn !== undefined) query.cursorFn = bindContext(cursorFn);
}

/** Nobody waits for what a callback of single rows returns; a rejection of it fails the statement, or is reported. */
function failWith(query: Query, returned: PromiseLike<unknown>): void {
  Promise.resolve(returned).then(undefined, (error) => {
    query.reject(error);
    const late = (): void => report("the callback of forEach() failed after its statement:", error);
    // The native `then`, as the statement's own would execute it.
    Promise.prototype.then.call(query, late, (reason) => {
      if (reason !== error) late();
    });
  });
}
