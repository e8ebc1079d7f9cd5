/**
 * Holds the layers of src/: a file imports only from files that stand in a line before its own in
 * docs/layers.txt, and no imports make a circle, also inside a folder; only src/postgres/ and src/sql/ know the driver, only src/runtime.ts
 * knows the runtime, and only src/clock.ts the runtime's timers and clocks.
 *
 * @module
 */
const root = new URL("..", import.meta.url);
const problems: string[] = [];

/** The layers: in each, files that know nothing of each other, or one folder whose files may. */
const order = (await Deno.readTextFile(new URL("docs/layers.txt", root))).split("\n")
  .map((line) => line.replace(/#.*/, "").trim().split(/\s+/))
  .filter(([first]) => first !== "");

/** The place of a file in the order; a folder's line holds for all files in it. */
function layer(path: string): number {
  return order.findIndex((entries) =>
    entries.some((entry) => path === entry || (entry.endsWith("/") && path.startsWith(entry)))
  );
}

async function* sources(folder: string): AsyncGenerator<string> {
  for await (const entry of Deno.readDir(new URL(folder, root))) {
    if (entry.isDirectory) yield* sources(`${folder}${entry.name}/`);
    else if (entry.name.endsWith(".ts")) yield folder + entry.name;
  }
}

/** The code without comments and the contents of strings; what it imports is looked for before. */
function withoutText(code: string): string {
  const text = /\/\*[\s\S]*?\*\/|\/\/.*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`/g;
  return code.replace(text, (found) => found.startsWith("/") ? "" : '""');
}

/** What a file imports or re-exports, types too. */
function imports(code: string): string[] {
  const withoutComments = code.replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, "");
  const pattern = /\bfrom\s*"([^"]+)"|\bimport\s*\(?\s*"([^"]+)"/g;
  return [...withoutComments.matchAll(pattern)].map((match) => match[1] ?? match[2]!);
}

/** What each file imports, by its path. */
const graph = new Map<string, string[]>();

/** Reads what a file imports of this repository. */
async function read(path: string): Promise<string> {
  const code = await Deno.readTextFile(new URL(path, root));
  const targets = imports(code).filter((name) => name.startsWith("."))
    .map((name) => new URL(name, new URL(path, root)).href.slice(root.href.length));
  graph.set(path, targets);
  return code;
}

async function checkSource(path: string): Promise<void> {
  const code = await read(path);
  const own = layer(path);
  if (own < 0) problems.push(`${path}: has no line in docs/layers.txt`);
  for (const name of imports(code)) {
    if (name === "postgres" || name.startsWith("postgres/") || name.startsWith("npm:postgres")) {
      if (!/^src\/(postgres|sql)\//.test(path)) problems.push(`${path}: imports the driver`);
    }
  }
  for (const target of graph.get(path)!) {
    const other = layer(target);
    if (other > own || (other === own && !order[own]?.[0]?.endsWith("/"))) {
      problems.push(`${path}: imports ${target}, which does not stand below it`);
    }
  }
  // A type may name them: `ReturnType<typeof setTimeout>`.
  const time =
    /(?<![\w$.#]|typeof )((?:set|clear)(?:Timeout|Interval|Immediate))(?![\w$]|\s*:)|\b(Date\.now|new Date\(\)|performance\.now|AbortSignal\.timeout)/;
  const timed = path === "src/clock.ts" ? null : time.exec(withoutText(code));
  if (timed) problems.push(`${path}: uses ${timed[1] ?? timed[2]}, which only src/clock.ts may`);
  if (path === "src/runtime.ts") return;
  // As a bare name, and as a property of globalThis; `x.process` and `{ self: 1 }` are nobody's.
  const bare = /(?<![\w$.#])(Deno|Bun|process|navigator|self)(?![\w$]|\s*\??:)/;
  const property = /\bglobalThis\s*\??\.?\[?\s*(Deno|Bun|process|navigator|self)\b/;
  const clean = withoutText(code);
  const named = bare.exec(clean) ?? property.exec(clean);
  if (named) problems.push(`${path}: names ${named[1]}, which only src/runtime.ts may`);
}

/** A folder's files stand together. */
const together = order.flat();
const folders = together.map((entry) => entry.slice(0, entry.lastIndexOf("/")));
for (const [i, folder] of folders.entries()) {
  // At the top there are the surroundings, real transports, and what users name.
  if (folder === "src" || folder === folders[i - 1] || folders.indexOf(folder) === i) continue;
  problems.push(`docs/layers.txt: ${together[i]} stands apart from the others of its folder`);
}

/** Files from which no import leads back to them. */
const free = new Set<string>();

/** Looks for circles among the imports, types too: none may stand on what stands on it. */
function lookForCircles(path: string, way: readonly string[]): void {
  const at = way.indexOf(path);
  if (at >= 0) problems.push(`imports go in a circle: ${[...way.slice(at), path].join(" > ")}`);
  if (at >= 0 || free.has(path)) return;
  for (const target of graph.get(path) ?? []) lookForCircles(target, [...way, path]);
  free.add(path);
}

for await (const path of sources("src/")) await checkSource(path);
for (const folder of ["bench/", "examples/", "tools/"]) {
  for await (const path of sources(folder)) await read(path);
}
for (const path of graph.keys()) lookForCircles(path, []);
for (const problem of problems) console.error(problem);
if (problems.length > 0) Deno.exit(1);
