/** Which statements share a session: by example, and beside PostgreSQL's own parser. */
import { assert, assertEquals } from "@std/assert";
import process from "node:process";
import fc from "fast-check";
import { loadModule, parseSync } from "libpg-query";
import { test } from "./support/harness.ts";
import { classify, type Kind } from "../src/postgres/classify.ts";

const EXAMPLES: Record<Kind, readonly string[]> = {
  shared: [
    "select 1",
    "  (select 1)",
    "SELECT 1;",
    "select 1 ; -- and no more",
    "values (1)",
    "with x as (select 1) select * from x",
    "with gone as (delete from t returning *) insert into kept select * from gone",
    "insert into t values ($1) on conflict do update set n = 1",
    "update t set n = 1",
    "delete from t",
    "merge into t using s on t.id = s.id when matched then do nothing",
    "select temp, t.temp, 'temp' /* temp */ from temp -- temp",
    "insert into temp values (1)",
    "select 'begin; set_config(' as \"select; begin\"",
    "select $$ ; begin $$, $x$ $$; begin $x$",
    "select E'\\'; begin --'",
    "select 'it''s'",
    "select pg_advisory_xact_lock(1)",
    "select setting from pg_settings",
    "select set_config from t",
    "/* one /* two */ still one */ select 1",
  ],
  alone: [
    "",
    ";",
    "begin",
    ";begin",
    "-- one line\rbegin",
    "/* /* */ */ begin",
    "start transaction",
    "commit and chain",
    "rollback",
    "savepoint a",
    "call p()",
    "create table t (id int)",
    "copy t from stdin",
    "explain select 1",
    "select 1; select 2",
    "select 1; begin",
    "select 'never closed",
    "select $$ never closed",
    "select 1 /* never closed",
    // With standard_conforming_strings = off this begins a transaction.
    "select 'x\\' ; begin --'",
    "select E'a'\n'b\\'; begin --'",
  ],
  stateful: [
    "set x.y = 1",
    "reset all",
    "listen a",
    "prepare p as select 1",
    "declare c cursor with hold for select 1",
    "discard all",
    "load 'x'",
    "select 1; set x.y = 1",
    // Its text is not read.
    "do $$ begin set x.y = 1; end $$",
    "do 'begin end'",
    "import foreign schema s from server f into pg_temp",
    "select set_limit(0.9)",
    "select pg_backup_start('x')",
    "select pg_create_logical_replication_slot('s', 'pgoutput', true)",
    "select pg_copy_physical_replication_slot('s', 't', true)",
    "select pg_replication_origin_session_setup('o')",
    "select hypopg_create_index('create index on t (a)')",
    "create temp table t (id int)",
    "create or replace temporary view v as select 1",
    "create local temp sequence s",
    "create table pg_temp.t (id int)",
    "create function pg_temp.f() returns int language sql as 'select 1'",
    "select 1 into temp t",
    "select * into local temporary table t from s",
    "select set_config('a.b', 'c', false)",
    "select pg_catalog . \"set_config\" /* */ ('a.b', 'c', false)",
    "with x as (select setseed(0.5)) select * from x",
    "select pg_try_advisory_lock_shared(1)",
    "select pg_advisory_unlock_all()",
    "update pg_settings set setting = '1' where name = 'work_mem'",
    // Spells set_config.
    "select U&\"set\\005fconfig\"('a.b', 'c', false)",
    "what nobody has thought of",
  ],
};

for (const [kind, texts] of Object.entries(EXAMPLES)) {
  test(`a statement is ${kind} by its text`, () => {
    for (const text of texts) assertEquals(classify(text), kind, text);
  });
}

await loadModule();

interface Tree {
  readonly stmts?: readonly { readonly stmt: Record<string, Record<string, unknown>> }[];
}

/** What PostgreSQL's parser makes of a text; null when it makes nothing of it. */
function parsed(text: string): NonNullable<Tree["stmts"]> | null {
  try {
    return (parseSync(text) as unknown as Tree).stmts ?? [];
  } catch {
    return null;
  }
}

const PLAIN = new Set(["SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"]);
const STATEFUL_FUNCTION =
  /"funcname":\[(?:\{"String":\{"sval":"pg_catalog"\}\},)?\{"String":\{"sval":"(?:set_config|setseed|pg_advisory_lock|pg_try_advisory_lock)"\}\}\]/;

/** Whether the parser's tree is one plain statement that keeps nothing in its session. */
function isPlain(statements: NonNullable<Tree["stmts"]>): boolean {
  if (statements.length !== 1) return false;
  const { stmt } = statements[0]!;
  if (!PLAIN.has(Object.keys(stmt)[0]!)) return false;
  const tree = JSON.stringify(stmt);
  if (STATEFUL_FUNCTION.test(tree) || tree.includes('"schemaname":"pg_temp"')) return false;
  if (stmt["UpdateStmt"] && tree.includes('"relname":"pg_settings"')) return false;
  const { intoClause } = (stmt["SelectStmt"] ?? {}) as {
    intoClause?: { rel: { relpersistence: string } };
  };
  return intoClause?.rel.relpersistence !== "t";
}

const gap = fc.constantFrom(
  " ",
  "\n",
  "\t\r\n",
  " /* ; begin */ ",
  " /* a /* ' */ \" */ ",
  " -- ; begin '\n",
  ' --" $$\r',
  "\f",
);
const literal = fc.constantFrom(
  "1",
  "'a'",
  "'it''s ; begin'",
  "$$ ' ; begin $$",
  "$a$ $$ ; set x.y = 1 $a$",
  "E'\\' ; begin'",
  "E'\\\\'",
  "B'01'",
  "N'x'",
  "U&'\\0061'",
  "$1",
  "1e5",
  '"; begin"',
  "f(1)",
  "set_config",
  "set_config('a.b', 'c', false)",
  "\"set_config\"('a.b', 'c', true)",
  "pg_catalog . setseed (0)",
  "pg_advisory_lock(1)",
  "pg_advisory_xact_lock(1)",
);
const table = fc.constantFrom("t", "temp", '"temp"', "pg_temp.x", "pg_settings", "a.temporary");
const start = fc.constantFrom(
  ["select", "L", "from", "T"],
  ["select", "L", ",", "L", "from", "T"],
  ["(", "select", "L", ")"],
  ["values", "(", "L", ")"],
  ["insert", "into", "T", "values", "(", "L", ")"],
  ["update", "T", "set", "a", "=", "L"],
  ["delete", "from", "T", "where", "L", "=", "L"],
  ["with", "x", "as", "(", "select", "L", ")", "select", "L", "from", "x"],
  ["with", "x", "as", "(", "update", "T", "set", "a", "=", "L", "returning", "*", ")", "table x"],
  ["select", "L", "into", "T"],
  ["select", "L", "into", "temp", "t2"],
  ["select", "L", "into", "temporary table", "t2", "from", "T"],
  ["create temp table", "t2", "as", "select", "L"],
  ["create table", "T", "(a int)"],
  ["create or replace local temporary view", "v", "as", "select", "L"],
  ["begin"],
  ["set x.y =", "1"],
  ["commit"],
  ["table", "T"],
  ["explain", "select", "L"],
  ["do", "$$ begin end $$"],
  ["call", "f(1)"],
);
const statement = start.chain((words) =>
  fc.tuple(
    ...words.map((word) =>
      fc.tuple(word === "L" ? literal : word === "T" ? table : fc.constant(word), gap)
    ),
  ).map((parts) => parts.flat().join(""))
);
const script = fc.tuple(gap, fc.array(statement, { minLength: 1, maxLength: 3 })).map(
  ([lead, all]) => lead + all.join(";"),
);
const scrap = fc.array(
  fc.oneof(
    gap,
    literal,
    table,
    fc.constantFrom("'", '"', "$$", "$a$", "/*", "*/", "--", ";", "\\", "E'", 'U&"', "select"),
    fc.constantFrom("begin", "set", "into", "update", "(", ")", "insert", "1", "a$b", "\u00a0"),
  ),
  { maxLength: 12 },
).map((parts) => parts.join(""));

const RUNS = Number(process.env["GETCONN_SLOW"] ? 20_000 : 3_000);

test("what shares is one plain statement to PostgreSQL's own parser, too", () => {
  const seen = { shared: 0, plain: 0 };
  fc.assert(
    fc.property(fc.oneof(script, scrap), (text) => {
      const statements = parsed(text);
      const kind = classify(text);
      if (statements === null) return;
      const plain = isPlain(statements);
      if (kind === "shared") {
        seen.shared++;
        assert(plain, `shared: ${JSON.stringify(text)}`);
      }
      if (plain) seen.plain++;
    }),
    { numRuns: RUNS },
  );
  assert(seen.shared > RUNS / 50, `only ${seen.shared} were shared`);
});

test("a plain statement is not taken for another by what stands in its literals and comments", () => {
  const clear = fc.constantFrom(
    "1",
    "'temp'",
    "'it''s ; begin'",
    "$$ create temp table $$",
    "E'\\' ; begin'",
    '"set_config; ("',
  );
  const plain = fc.tuple(fc.array(clear, { minLength: 1, maxLength: 4 }), gap, gap).map(
    ([all, a, b]) => `${a}select${b}${all.join(`${b},${a}`)}${a};${b}`,
  );
  fc.assert(
    fc.property(plain, (text) => {
      assert(parsed(text) !== null, text);
      assertEquals(classify(text), "shared", text);
    }),
    { numRuns: RUNS / 10 },
  );
});
