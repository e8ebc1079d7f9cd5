/**
 * What isolates that share a pool have between them: shared memory, and signs of each other's deaths. It is
 * the runtime's; a simulation, which lets many isolates live in one, brings another.
 */

import { deathSign, holdLife, onExit, onLifeEnd, ownThread, threadOf } from "../runtime.ts";
import { AtomicWords } from "./shared_permits.ts";

/** Between isolates. What the functions of a death do stands at those of `runtime.ts` that have their names. */
export interface Isolates {
  /** The words in a buffer, as the isolate at hand works on them. */
  words(buffer: SharedArrayBuffer): AtomicWords;
  readonly deathSign: typeof deathSign;
  readonly onExit: typeof onExit;
  readonly holdLife: typeof holdLife;
  readonly onLifeEnd: typeof onLifeEnd;
  readonly threadOf: typeof threadOf;
  readonly ownThread: typeof ownThread;
}

const runtimeIsolates: Isolates = {
  words: (buffer) => new AtomicWords(buffer),
  deathSign,
  onExit,
  holdLife,
  onLifeEnd,
  threadOf,
  ownThread,
};

let current = (): Isolates => runtimeIsolates;

/** Those among which a pool is made now; it keeps them for its life. */
export function currentIsolates(): Isolates {
  return current();
}

/** Gives pools that are made from now on others, as `setCurrentClock` does; returns how to undo it. */
export function setCurrentIsolates(source: () => Isolates): () => void {
  const before = current;
  current = source;
  return () => {
    current = before;
  };
}
