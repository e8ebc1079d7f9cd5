/** What the doc tests cannot run: the README's example of two files, and its links. */

import { assert, assertEquals } from "@std/assert";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { runner, test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const DOCUMENTS = [
  "README.md",
  "CONTRIBUTING.md",
  "docs/architecture.md",
  "docs/conninfo.md",
  "docs/decisions.md",
  "docs/lifecycle.md",
  "docs/observability.md",
  "docs/psycopg2.md",
];

function read(path: string): string {
  return readFileSync(join(root, path), "utf8");
}

test("the README's example of a pool for Web Workers runs", async () => {
  const fences = [...read("README.md").matchAll(/```ts ignore\n([\s\S]*?)```/g)];
  assertEquals(fences.length, 1, "the only example that is no doc test");
  const [main = "", worker = ""] = (fences[0]?.[1] ?? "").split("// worker.ts\n");
  // Within the repository, where the package's name leads to its source.
  mkdirSync(join(root, ".tmp"), { recursive: true });
  const folder = mkdtempSync(join(root, ".tmp", "readme-"));
  try {
    writeFileSync(join(folder, "main.ts"), main);
    writeFileSync(join(folder, "worker.ts"), worker);
    const { url } = await testServer();
    const args = runner === "deno" ? ["run", "-A", "main.ts"] : ["main.ts"];
    const child = spawn(process.execPath, args, {
      cwd: folder,
      env: { ...process.env, DATABASE_URL: url },
      stdio: ["ignore", "pipe", "inherit"],
    });
    let output = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => output += text);
    const [code] = await once(child, "close");
    assertEquals([code, output.trim()], [0, "3"]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("links between the documents lead somewhere", () => {
  for (const path of DOCUMENTS) {
    for (const [, link = ""] of read(path).matchAll(/\]\(([^)#]+)[^)]*\)/g)) {
      if (/^https?:/.test(link)) continue;
      const target = fileURLToPath(new URL(link, new URL(`../${path}`, import.meta.url)));
      assert(existsSync(target), `${path}: ${link}`);
    }
  }
});

test("docs/observability.md names every statistic and every event", () => {
  const text = read("docs/observability.md");
  for (
    const [file, start] of [
      ["pool/types.ts", "PoolStats extends PoolTotals"],
      ["pool/types.ts", "PoolTotals"],
      ["pool/events.ts", "PoolEventDetails"],
    ]
  ) {
    const source = read(`src/${file}`);
    const body = source.slice(source.indexOf(`export interface ${start} {`)).split("\n}")[0] ?? "";
    const names = [...body.matchAll(/^ {2}(?:readonly )?(\w+): /gm)].map((match) => match[1]);
    assert(names.length >= 10, `${names.length} names in ${start}`);
    for (const name of names) assert(text.includes(`\`${name}\``), `${start}: ${name}`);
  }
});
