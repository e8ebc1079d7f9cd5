/**
 * Makes the tarball for npm: what `deno pack` makes of the files for JSR, with the fields of
 * `package.json` that `deno pack` does not know, and with documents whose links lead somewhere.
 *
 * @module
 */
import { gunzipSync, gzipSync } from "node:zlib";

const root = new URL("..", import.meta.url);
const BLOCK = 512;
/** The fields that the tarball's package.json has from ours. */
const FIELDS = ["description", "keywords", "engines", "sideEffects"] as const;

type Files = Map<string, Uint8Array>;

/** The files of a tarball, by name. Only what `deno pack` writes: files with short names. */
function untar(bytes: Uint8Array): Files {
  const files: Files = new Map();
  for (let at = 0; bytes[at] !== 0 && at < bytes.length;) {
    const name = text(bytes, at, 100);
    const prefix = text(bytes, at + 345, 155);
    const size = Number.parseInt(text(bytes, at + 124, 12), 8);
    const type = String.fromCharCode(bytes[at + 156]!);
    if (!/[0\0]/.test(type)) throw new Error(`${name} is no plain file in the tarball`);
    const from = at + BLOCK;
    files.set(prefix === "" ? name : `${prefix}/${name}`, bytes.slice(from, from + size));
    at = from + Math.ceil(size / BLOCK) * BLOCK;
  }
  return files;
}

function text(bytes: Uint8Array, at: number, length: number): string {
  return new TextDecoder().decode(bytes.subarray(at, at + length)).replace(/\0.*/s, "").trim();
}

/** The same files give the same bytes. */
function tar(files: Files): Uint8Array {
  const parts: Uint8Array[] = [];
  for (const [path, content] of files) {
    const header = new Uint8Array(BLOCK);
    const put = (at: number, value: string) => header.set(new TextEncoder().encode(value), at);
    if (path.length > 100) throw new Error(`${path} is too long for a plain tarball`);
    put(0, path);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, `${content.length.toString(8).padStart(11, "0")}\0`);
    // npm's own date for all files.
    put(136, `${(Date.UTC(1985, 9, 26, 8, 15) / 1000).toString(8).padStart(11, "0")}\0`);
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    const sum = header.reduce((all, byte) => all + byte, 0);
    put(148, `${sum.toString(8).padStart(6, "0")}\0 `);
    parts.push(header, content, new Uint8Array((BLOCK - content.length % BLOCK) % BLOCK));
  }
  parts.push(new Uint8Array(2 * BLOCK));
  const bytes = new Uint8Array(parts.reduce((all, part) => all + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** A document whose links to files that are not in the tarball are plain text. */
function withoutDeadLinks(document: string, has: (path: string) => boolean): string {
  return document
    .replace(/!\[[^\]]*\]\((?!https?:)([^)]+)\)\n*/g, (found, path) => has(path) ? found : "")
    .replace(/\[([^\]]+)\]\((?!https?:|#)([^)#]+)[^)]*\)/g, (found, label, path) => {
      if (has(path)) return found;
      return label === path ? `\`${path}\`` : `${label} (\`${path}\` of the repository)`;
    });
}

/** Throws for a declaration that imports what is not in the tarball: its types would silently be `any`. */
function checkDeclarations(files: Files): void {
  for (const [path, content] of files) {
    if (!path.endsWith(".d.ts")) continue;
    const code = new TextDecoder().decode(content);
    for (const [, name] of code.matchAll(/\b(?:from|import)\s*\(?\s*"(\.[^"]+)\.js"/g)) {
      const target = new URL(`${name}.d.ts`, `file:///${path}`).pathname.slice(1);
      if (!files.has(target)) throw new Error(`${path} imports ${target}, which was not made`);
    }
  }
}

async function improve(files: Files): Promise<void> {
  const read = (path: string) => new TextDecoder().decode(files.get(path));
  const write = (path: string, content: string) =>
    files.set(path, new TextEncoder().encode(content));
  const manifest = "package/package.json";
  const ours = JSON.parse(await Deno.readTextFile(new URL("package.json", root)));
  const theirs = JSON.parse(read(manifest));
  for (const field of FIELDS) theirs[field] = ours[field];
  write(manifest, JSON.stringify(theirs, null, 2) + "\n");
  for (const path of files.keys()) {
    if (!path.endsWith(".md")) continue;
    write(path, withoutDeadLinks(read(path), (other) => files.has(`package/${other}`)));
  }
}

const draft = await Deno.makeTempFile({ suffix: ".tgz" });
try {
  // The last one named counts; `deno pack` has its own name for the file, if we are given none.
  const asked = Deno.args.findLastIndex((arg) => arg === "-o" || arg === "--output");
  const rest = Deno.args.filter((_, i) => asked < 0 || (i !== asked && i !== asked + 1));
  const { name, version } = JSON.parse(await Deno.readTextFile(new URL("jsr.json", root)));
  const target = asked < 0
    ? `${name.slice(1).replace("/", "-")}-${version}.tgz`
    : Deno.args[asked + 1]!;
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["pack", "--config", "jsr.json", "--no-source-maps", ...rest, "--output", draft],
    cwd: root,
  }).output();
  if (!success) {
    await Deno.stderr.write(new Uint8Array([...stdout, ...stderr]));
    Deno.exit(1);
  }
  // What it says of a success are the modules without declarations: nearly all, as they are nobody's to import.
  const files = untar(gunzipSync(await Deno.readFile(draft)));
  checkDeclarations(files);
  await improve(files);
  await Deno.writeFile(target, gzipSync(tar(files), { level: 9 }));
  console.log(`${target}: ${files.size} files`);
} finally {
  await Deno.remove(draft);
}
