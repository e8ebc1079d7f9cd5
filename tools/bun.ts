/** Where Bun is. */

/**
 * `bun` where it is installed, else the one from npm (`deno run npm:bun` does not work); asked for
 * its own path, for a deadline that ended `npx` would leave the Bun under it running.
 */
export async function bunCommand(): Promise<string> {
  const ask = ["-e", "console.log(process.execPath)"];
  for (const [program, ...args] of [["bun", ...ask], ["npx", "-y", "bun", ...ask]]) {
    try {
      const { success, stdout } = await new Deno.Command(program!, { args }).output();
      const path = new TextDecoder().decode(stdout).trim();
      if (success && path !== "") return path;
    } catch { /* Not installed. */ }
  }
  throw new Error("there is neither bun nor an npx that brings it");
}
