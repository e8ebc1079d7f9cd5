/** What the doc tests cannot run: the README's example of two files, and its links. */

import { assert, assertEquals } from "@std/assert";
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { resolveOptions } from "../src/pool/options.ts";
import { runner, test } from "./support/harness.ts";
import { testServer } from "./support/server.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const DOCUMENTS = [
  "README.md",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
  "SECURITY.md",
  "examples/README.md",
  ...readdirSync(join(root, "docs")).filter((name) => name.endsWith(".md"))
    .map((name) => `docs/${name}`),
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
    if (runner === "deno") {
      // With its types; the folder is outside of what the repository's own check looks at.
      const config = { imports: { "@getconn/pool": "../../mod.ts", postgres: "npm:postgres" } };
      writeFileSync(join(folder, "deno.json"), JSON.stringify({ ...config, lock: false }));
      const check = spawn(process.execPath, ["check", "-q", "main.ts", "worker.ts"], {
        cwd: folder,
        stdio: ["ignore", "ignore", "inherit"],
      });
      assertEquals((await once(check, "close"))[0], 0, "its types");
    }
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
      ["pool/types.ts", "PoolStats extends PoolTotals, PoolGauges"],
      ["pool/types.ts", "PoolTotals"],
      ["pool/types.ts", "PoolGauges"],
      ["pool/events.ts", "PoolEventDetails"],
    ]
  ) {
    const source = read(`src/${file}`);
    const body = source.slice(source.indexOf(`export interface ${start} {`)).split("\n}")[0] ?? "";
    const names = [...body.matchAll(/^ {2}(?:readonly )?(\w+): /gm)].map((match) => match[1]);
    assert(names.length >= 6, `${names.length} names in ${start}`);
    for (const name of names) assert(text.includes(`\`${name}\``), `${start}: ${name}`);
  }
});

test("docs/observability.md tells what each event carries", () => {
  const source = read("src/pool/events.ts");
  const details = source.slice(source.indexOf("export interface PoolEventDetails")).split(
    "\n}",
  )[0]!;
  const events = details.split(/^ {2}(?=\w+: \{)/m).slice(1);
  const table = read("docs/observability.md").split("## Events")[1]!.split("\n## ")[0]!;
  assert(events.length >= 14);
  for (const event of events) {
    const type = event.split(":")[0]!;
    const row = table.split("\n").find((line) => line.startsWith(`| \`${type}\``)) ?? "";
    const told = [...row.split("|")[2]!.matchAll(/`(\w+)`/g)].map(([, name]) => name!);
    const carried = [...event.matchAll(/readonly (\w+):/g)].map(([, name]) => name!);
    // What is told of a statement has a table of its own.
    if (type !== "statement") assertEquals(told.toSorted(), carried.toSorted(), type);
  }
});

test("the README is short, and docs/README.md names every page", () => {
  const words = read("README.md").trim().split(/\s+/).length;
  assert(words <= 1_600, `${words} words`);
  const index = read("docs/README.md");
  for (const path of DOCUMENTS) {
    const name = /^docs\/(?!README)(.+)$/.exec(path)?.[1];
    if (name !== undefined) assert(index.includes(`](${name})`), name);
  }
});

test("the README's table has every option of the pool, with its default", () => {
  const table = read("README.md").split("| `pool: { … }`")[1]!.split("\n\n")[0]!;
  const told: Record<string, unknown> = {};
  for (const row of table.split("\n").slice(2)) {
    const [, names = "", defaults = ""] = row.split("|");
    const values = defaults.split(", ").map((text) => text.replaceAll(" ", ""));
    [...names.matchAll(/`(\w+)`/g)].forEach(([, name], i) => {
      const value = values[i] ?? values[0]!;
      told[name!] = /^\d+$/.test(value) ? Number(value) : undefined;
    });
  }
  assertEquals(told, { ...resolveOptions({}), name: undefined });
});

test("docs/lifecycle.md draws every move of a connection, and no other", () => {
  const source = read("src/pool/entry.ts");
  const table = source.slice(source.indexOf("const NEXT")).split("\n};")[0] ?? "";
  const moves = [...table.matchAll(/^ {2}(\w+): \[(.*)\]/gm)].flatMap(([, from, list = ""]) =>
    [...list.matchAll(/\w+/g)].map(([to]) => `${from} --> ${to}`)
  );
  const drawn = [...read("docs/lifecycle.md").matchAll(/^ {4}(\w+ --> \w+)/gm)]
    .map(([, move]) => move!);
  assert(moves.length > 20);
  assertEquals(drawn.toSorted(), moves.toSorted());
});

test("docs/troubleshooting.md names every code of PoolError", () => {
  const source = read("src/pool/errors.ts");
  const type = source.slice(source.indexOf("export type PoolErrorCode")).split(";")[0] ?? "";
  const codes = [...type.matchAll(/"(\w+)"/g)].map(([, code]) => code);
  assert(codes.length >= 16);
  const text = read("docs/troubleshooting.md");
  for (const code of codes) assert(text.includes(`\`${code}\``), code);
});

test("the files that docs/architecture.md names are there, and what it names in them", () => {
  const text = read("docs/architecture.md");
  for (const [, path = ""] of text.matchAll(/`(src\/[\w/]+\.ts)`/g)) {
    assert(existsSync(join(root, path)), path);
  }
  const sources = readdirSync(join(root, "src"), { recursive: true }) as string[];
  const table = text.split("## Where is …?")[1]!.split("\n\nAnd ")[0]!;
  const rows = table.split("\n").filter((line) => line.includes("`src/"));
  assert(rows.length >= 10, `${rows.length} questions`);
  for (const row of rows) {
    const quoted = [...row.matchAll(/`([^`]+)`/g)].map(([, one = ""]) => one);
    const files = quoted.filter((one) => one.endsWith(".ts")).flatMap((one) =>
      sources.map((name) => `src/${name.replaceAll("\\", "/")}`).filter((path) =>
        path.endsWith(one)
      )
    );
    const code = files.map(read).join("\n");
    for (const one of quoted) {
      if (!one.endsWith(".ts")) assert(new RegExp(`(?<![\\w#])${one}\\b`).test(code), row);
    }
  }
});
