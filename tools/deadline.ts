/** Programs that may hang. */

/** Waits for its end; kills it when that takes longer than `ms` milliseconds, which is then `late`. */
export async function ended(
  child: Deno.ChildProcess,
  ms: number,
): Promise<{ success: boolean; late: boolean }> {
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill("SIGKILL");
  }, ms);
  const { success } = await child.status;
  clearTimeout(timer);
  return { success, late };
}
