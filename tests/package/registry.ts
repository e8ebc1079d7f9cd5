/**
 * JSR on loopback, in both of its shapes: the registry that Deno reads (`JSR_URL`), with exactly the
 * files that `deno publish` would send, and the npm registry `npm.jsr.io` for everybody else.
 *
 * @module
 */
import { assert } from "@std/assert";
import { createHash } from "node:crypto";
import { deno, Folder, root, run, succeed, tarball, version } from "./install.ts";

const manifest = JSON.parse(Deno.readTextFileSync(`${root}jsr.json`));

/** The paths that `deno publish` would send, as it says itself. */
export async function publishedFiles(): Promise<string[]> {
  const args = ["publish", "--dry-run", "--allow-dirty", "--no-lock", "--config", "jsr.json"];
  const { code, stdout, stderr } = await run(deno, args, { cwd: root });
  assert(code === 0, stderr);
  const prefix = `file://${root}`;
  return [...(stdout + stderr).matchAll(/^\s*(file:\/\/\S+) \(/gm)].map(([, url]) => {
    assert(url!.startsWith(prefix), `${url} lies outside of the project`);
    return url!.slice(prefix.length);
  });
}

/** The text as it is sent: names from the manifest's imports give way to what they stand for. */
function unfurl(path: string): string {
  let text = Deno.readTextFileSync(root + path);
  if (!path.endsWith(".ts")) return text;
  for (const [name, target] of Object.entries(manifest.imports as Record<string, string>)) {
    text = text.replaceAll(`from "${name}"`, `from "${target}"`);
  }
  return text;
}

async function jsrAnswers(): Promise<Map<string, string>> {
  const base = `/${manifest.name}`;
  const answers = new Map<string, string>();
  const files: Record<string, { size: number; checksum: string }> = {};
  for (const path of await publishedFiles()) {
    const text = unfurl(path);
    const digest = createHash("sha256").update(text).digest("hex");
    files[`/${path}`] = {
      size: new TextEncoder().encode(text).length,
      checksum: `sha256-${digest}`,
    };
    answers.set(`${base}/${version}/${path}`, text);
  }
  const exports = { ".": manifest.exports };
  answers.set(`${base}/${version}_meta.json`, JSON.stringify({ manifest: files, exports }));
  const [scope, name] = manifest.name.slice(1).split("/");
  const meta = { scope, name, latest: version, versions: { [version]: {} } };
  answers.set(`${base}/meta.json`, JSON.stringify(meta));
  return answers;
}

/** The tarball under the name that JSR gives it: JSR compiles just as `deno pack` does. */
async function jsrTarball(): Promise<Uint8Array<ArrayBuffer>> {
  await using folder = new Folder();
  await Deno.writeFile(`${folder.path}/in.tgz`, await tarball());
  await succeed("tar", ["xzf", "in.tgz"], { cwd: folder.path });
  const path = `${folder.path}/package/package.json`;
  const fields = JSON.parse(await Deno.readTextFile(path));
  await Deno.writeTextFile(path, JSON.stringify({ ...fields, name: "@jsr/getconn__pool" }));
  await succeed("tar", ["czf", "out.tgz", "package"], { cwd: folder.path });
  return await Deno.readFile(`${folder.path}/out.tgz`);
}

/** A registry until it is disposed. */
export class Registry implements AsyncDisposable {
  /** `http://127.0.0.1:PORT` */
  readonly url: string;
  /** The paths that were asked for. */
  readonly asked: string[] = [];
  readonly #server: Deno.HttpServer<Deno.NetAddr>;

  private constructor(answers: Map<string, string>, archive: Uint8Array<ArrayBuffer>) {
    this.#server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen: () => {} },
      (request) => {
        const path = decodeURIComponent(new URL(request.url).pathname);
        this.asked.push(path);
        if (path.endsWith(".tgz")) return new Response(archive);
        const answer = path === "/@jsr/getconn__pool"
          ? this.#packument(archive)
          : answers.get(path);
        if (answer === undefined) return new Response("not found", { status: 404 });
        const type = path.endsWith(".ts") ? "text/typescript" : "application/json";
        return new Response(answer, { headers: { "content-type": type } });
      },
    );
    this.url = `http://127.0.0.1:${this.#server.addr.port}`;
  }

  /** Starts one. */
  static async start(): Promise<Registry> {
    return new Registry(await jsrAnswers(), await jsrTarball());
  }

  #packument(archive: Uint8Array): string {
    const name = "@jsr/getconn__pool";
    const integrity = `sha512-${createHash("sha512").update(archive).digest("base64")}`;
    const dist = { tarball: `${this.url}/getconn__pool-${version}.tgz`, integrity };
    const dependencies = { postgres: manifest.imports.postgres.replace("npm:postgres@", "") };
    const versions = { [version]: { name, version, dependencies, dist } };
    return JSON.stringify({ name, "dist-tags": { latest: version }, versions });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }
}
