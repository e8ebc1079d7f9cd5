/** What is told of a statement's text: what it does to which tables, and no value. */

import { assert, assertEquals } from "@std/assert";
import { summaryOf } from "../src/postgres/summary.ts";
import { test } from "./support/harness.ts";

test("a text's summary: its operations and their tables, as they are written in it", () => {
  const cases: [text: string, summary: string, operation: string | null, table: string | null][] = [
    ["select * from orders", "select orders", "select", "orders"],
    ["SELECT * FROM Shop.Orders", "SELECT Shop.Orders", "SELECT", "Shop.Orders"],
    ['select * from "my table"', 'select "my table"', "select", '"my table"'],
    ["select * from orders o, customers as c", "select orders customers", "select", null],
    ["select * from a -- x\n, b", "select a b", "select", null],
    ["select extract(year from d) from a", "select a", "select", "a"],
    ["select a is distinct from b from c", "select c", "select", "c"],
    ["select * from a for update", "select a", "select", "a"],
    ["select * from generate_series(1, 3)", "select", "select", null],
    ["select * from a where x in (select y from b)", "select a select b", null, null],
    ["select a from b union select c from d", "select b select d", null, null],
    ["with x as (select * from a) select * from x join b on true", "select a select b", null, null],
    ["insert into orders select * from archive", "insert orders select archive", null, null],
    ["insert into a values (1) on conflict (id) do update set b = 1", "insert a", "insert", "a"],
    ["update only orders o set a = 1", "update orders", "update", "orders"],
    ["update orders set paid = true from payments", "update orders payments", "update", null],
    ["delete from orders using customers", "delete orders customers", "delete", null],
    ["merge into a using b on a.id = b.id when matched then delete", "merge a b", "merge", null],
    ["copy (select * from orders) to stdout", "copy select orders", null, null],
    ["copy orders (a, b) from stdin", "copy orders", "copy", "orders"],
    ["truncate table only a", "truncate a", "truncate", "a"],
    ["create table if not exists t (a int)", "create table t", "create table", "t"],
    [
      "create materialized view v as select 1",
      "create materialized view v",
      "create materialized view",
      null,
    ],
    ["create user bob with password 'x'", "create user bob", "create user", null],
    ["drop table if exists a, b", "drop table a b", "drop table", null],
    ["explain analyze select * from a", "explain select a", null, null],
    ["begin isolation level serializable", "begin", "begin", null],
    ["", "", null, null],
  ];
  for (const [text, summary, operation, table] of cases) {
    const found = summaryOf(text, 1);
    assertEquals([text, found.summary], [text, summary]);
    assertEquals([text, found.operation, found.collection], [text, operation, table]);
    assertEquals(found.text, text);
  }
  const batches: [text: string, summary: string, operation: string][] = [
    ["select 1; update a set b = 1;", "select update a", "BATCH"],
    ["update a set b = 1; update c set d = 1", "update a update c", "BATCH update"],
  ];
  for (const [text, summary, operation] of batches) {
    const found = summaryOf(text, 0);
    assertEquals([found.summary, found.operation, found.statements], [summary, operation, 2]);
  }
});

test("a text without parameters is told without its literals and comments, however they are written", () => {
  const cases: [text: string, told: string][] = [
    ["select 'secret', 'it''s secret', 5", "select ?, ?, ?"],
    ["select E'it\\'s secret' from t", "select ? from t"],
    ["select $tag$secret$tag$, $$secret$$", "select ?, ?"],
    ["select U&'secret' uescape '!', n'secret'", "select ? uescape ?, ?"],
    ["select x'5ec4e7', b'101', 1_000, 1e5", "select ?, ?, ?, ?"],
    ["/* secret */ select 1 -- secret", "select ?"],
    ["select interval '1 day' from secret_table", "select interval ? from secret_table"],
    ["alter role bob password 'secret'", "alter role bob password ?"],
    ["do $$ begin perform 'secret'; end $$", "do ?"],
    // What is cut off, and what hangs on standard_conforming_strings, hides the rest.
    ["select 1 /* secret", "select ? ?"],
    ["select 'secret", "select ?"],
    ["select '\\' secret --'", "select ?"],
  ];
  for (const [text, told] of cases) {
    const found = summaryOf(text, 0);
    assertEquals([text, found.text], [text, told]);
    assert(!/secret(?!_)|5ec4e7/.test(found.text + found.summary), text);
  }
});
