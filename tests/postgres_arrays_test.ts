import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { parseArray, serializeArray } from "../src/postgres/values.ts";
import { ARRAY_TYPES_QUERY } from "../src/postgres/array_types.ts";
import { test } from "./support/harness.ts";
import { asAdmin } from "./support/server.ts";

interface Driver {
  arrayParser(
    text: string,
    parse: ((text: string) => unknown) | undefined,
    typarray: number,
  ): unknown;
  arraySerializer(
    values: unknown,
    serialize: ((value: unknown) => string) | undefined,
    options: { transform: { undefined: unknown } },
    typarray: number,
  ): unknown;
}

const driver: Driver = await import(
  new URL("../node_modules/postgres/src/types.js", import.meta.url).href
);

const INTEGERS = 1007;
const BOXES = 1020;

/** Texts that need quoting, and texts that do not. */
const element = fc.oneof(
  fc.string({
    unit: fc.constantFrom("a", "N", "{", "}", ",", ";", '"', "\\", " ", "é"),
    maxLength: 5,
  }),
  fc.constantFrom("NULL", "null", "1", "", "(1,2),(3,4)"),
);
const nested: fc.Arbitrary<unknown[]> = fc.letrec<{ array: unknown[] }>((tie) => ({
  array: fc.oneof(
    { maxDepth: 3 },
    fc.array(fc.option(element), { maxLength: 4 }),
    fc.array(tie("array"), { minLength: 1, maxLength: 3 }),
  ),
})).array;

/** As the server writes it: an element is quoted where it must be. */
function written(values: unknown[], delimiter: string): string {
  const elements = values.map((value) =>
    Array.isArray(value)
      ? written(value, delimiter)
      : value === null
      ? "NULL"
      : /^$|^null$|[{}",;\\\s]/i.test(String(value))
      ? `"${String(value).replace(/["\\]/g, "\\$&")}"`
      : String(value)
  );
  return `{${elements.join(delimiter)}}`;
}

test("parseArray reads back every array, NULL as null", () => {
  const upper = (text: string): string => text.toUpperCase();
  const each = (values: unknown[], fn: (text: string) => unknown): unknown[] =>
    values.map((one) => Array.isArray(one) ? each(one, fn) : one === null ? null : fn(String(one)));
  fc.assert(
    fc.property(nested, fc.constantFrom(INTEGERS, BOXES), (values, typarray) => {
      const text = written(values, typarray === BOXES ? ";" : ",");
      assertEquals(parseArray(text, undefined, typarray), each(values, (one) => one), text);
      assertEquals(parseArray(text, upper, typarray), each(values, upper), text);
    }),
    { numRuns: 2_000 },
  );
});

test("parseArray reads bounds, and refuses what has no end", () => {
  assertEquals(parseArray("[0:2]={1,2}", Number, INTEGERS), [1, 2]);
  assertEquals(parseArray("[1:1][-2:-1]={{1,2}}", Number, INTEGERS), [[1, 2]]);
  for (const text of ["{", "{1", '{"a', "{1,"]) {
    assertThrows(() => parseArray(text, Number, INTEGERS), Error, "no end");
  }
});

test("serializeArray writes every array as the driver does", () => {
  const leaf = fc.oneof(
    element,
    fc.integer(),
    fc.boolean(),
    fc.constantFrom(null, undefined, 10n, new Date(0)),
  );
  const values = fc.oneof(fc.array(leaf), fc.array(fc.array(leaf), { minLength: 1 }), leaf);
  fc.assert(
    fc.property(values, fc.constantFrom(INTEGERS, BOXES), (values, typarray) => {
      for (const serialize of [undefined, (value: unknown) => `<${String(value)}\\>`]) {
        assertEquals(
          serializeArray(values, serialize, null, typarray),
          driver.arraySerializer(values, serialize, { transform: { undefined: null } }, typarray),
        );
      }
    }),
    { numRuns: 2_000 },
  );
});

test("serializeArray refuses an undefined element as the driver does", () => {
  const refused = (write: () => unknown): { message: string; code?: unknown } => {
    const { message, code } = assertThrows(write, Error) as Error & { code?: unknown };
    return { message, code };
  };
  assertEquals(
    refused(() => serializeArray([1, undefined], undefined, undefined, INTEGERS)),
    refused(() =>
      driver.arraySerializer(
        [1, undefined],
        undefined,
        { transform: { undefined: undefined } },
        INTEGERS,
      )
    ),
  );
});

test("the catalog query finds the array types that the driver's finds", () =>
  asAdmin(async (sql) => {
    await sql.begin(async (sql) => {
      await sql`create type pg_temp.mood as enum ('a')`;
      await sql`create type pg_temp.pair as (a int, b text[])`;
      await sql`create domain pg_temp.small as int`;
      await sql`create domain pg_temp.list as int[]`;
      const [row] = await sql.unsafe(ARRAY_TYPES_QUERY).values();
      const [oids, typarrays] = row as number[][];
      const ours = oids!.map((oid, i) => [oid, typarrays![i]]);
      // connection.js, fetchArrayTypes
      const drivers = await sql`
        select b.oid, b.typarray
        from pg_catalog.pg_type a
        left join pg_catalog.pg_type b on b.oid = a.typelem
        where a.typcategory = 'A'
        group by b.oid, b.typarray
        order by b.oid`.values();
      const sorted = (rows: readonly unknown[][]): string[] => rows.map(String).sort();
      // Domains over arrays have no element type, and give an empty row there.
      assertEquals(sorted(ours), sorted(drivers.filter(([oid]) => oid !== null)));
    });
  }));
