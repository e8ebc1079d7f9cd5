import { assertEquals, assertThrows } from "@std/assert";
import process from "node:process";
import { localArgs, seal, unseal } from "../src/workers/handle.ts";
import { parseSettings } from "../src/postgres/options.ts";
import { osUser } from "../src/runtime.ts";
import { spawnSync } from "node:child_process";
import { test } from "./support/harness.ts";

test("a function in place of the connection string is given anew where a worker joins", async () => {
  const dsn = () => "postgres://u@h/d";
  for (const args of [[dsn], [dsn, { prepare: false }], [{ dsn, prepare: false }]]) {
    const { sealed, missing } = seal(args, {});
    assertEquals(missing, ["dsn"]);
    const cargo = unseal(sealed);
    assertThrows(() => localArgs(cargo, {}), TypeError, "join() must be given dsn");
    const there = localArgs(cargo, { dsn }).map((arg) => {
      const { pool: _, ...rest } = (arg ?? {}) as Record<string, unknown>;
      return arg === undefined ? undefined : rest;
    });
    const connect = await parseSettings(there).next();
    assertEquals([connect.user, connect.targets[0]!.host, connect.database], ["u", "h", "d"]);
  }
});

test("without a name the operating system's user is meant, whatever USER says", () => {
  const { stdout } = spawnSync("id", ["-un"], { encoding: "utf8" });
  const kept = process.env["USER"];
  try {
    process.env["USER"] = "somebody_else";
    assertEquals(osUser(), stdout.trim());
    delete process.env["USER"];
    assertEquals(osUser(), stdout.trim());
  } finally {
    if (kept === undefined) delete process.env["USER"];
    else process.env["USER"] = kept;
  }
});
