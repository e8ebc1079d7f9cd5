/**
 * `deno doc --lint mod.ts`, for what we wrote: the driver's types leave through mod.ts too, and what
 * its declarations lack is not ours to mend.
 *
 * @module
 */
const { stderr, success } = await new Deno.Command(Deno.execPath(), {
  args: ["doc", "--lint", "mod.ts"],
  cwd: new URL("..", import.meta.url),
  env: { NO_COLOR: "1" },
  stdin: "null",
  stdout: "null",
}).output();
const problems = new TextDecoder().decode(stderr).split(/^(?=error)/m)
  .filter((text) => text.startsWith("error["));
const ours = problems.filter((text) => !/^\s*-->.*\bnode_modules\b/m.test(text));
for (const problem of ours) console.error(problem);
// A failure without a problem to show is one of the command itself.
if (ours.length > 0 || (!success && problems.length === 0)) Deno.exit(1);
