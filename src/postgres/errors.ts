/** Errors in the driver's own shape. */

/** An error that is no connection's fault. */
export function genericError(code: string, message: string): Error {
  return Object.assign(new Error(`${code}: ${message}`), { code });
}
