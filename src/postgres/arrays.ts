/**
 * Arrays in PostgreSQL's notation, to the letter as the driver reads and writes them. The driver has
 * functions for that, but makes them only by a query of its own whose failure nobody can catch.
 */

import { genericError } from "./driver.ts";

/** Reads an element; undefined leaves it as text. */
export type ParseElement = ((text: string) => unknown) | undefined;
/** Writes an element; undefined writes it as text. */
export type SerializeElement = ((value: unknown) => string) | undefined;

/** In an array of boxes, and in no other, a semicolon stands between the elements. */
const BOXES = 1020;

class Reader {
  readonly #text: string;
  readonly #parse: ParseElement;
  readonly #delimiter: string;
  #at = 0;
  /** Where the element at hand begins. */
  #from = 0;
  #last = "";
  #quoted = false;
  /** What was read of a quoted element. */
  #element = "";

  constructor(text: string, parse: ParseElement, typarray: number) {
    this.#text = text;
    this.#parse = parse;
    this.#delimiter = typarray === BOXES ? ";" : ",";
  }

  /** Reads up to the closing brace. */
  array(): unknown[] {
    const text = this.#text;
    const elements: unknown[] = [];
    for (; this.#at < text.length; this.#at++) {
      let char = text[this.#at]!;
      if (this.#quoted) {
        if (char === "\\") this.#element += text[++this.#at];
        else if (char !== '"') this.#element += char;
        else {
          elements.push(this.#value(this.#element));
          this.#element = "";
          this.#quoted = text[this.#at + 1] === '"';
          this.#from = this.#at + 2;
        }
      } else if (char === '"') this.#quoted = true;
      else if (char === "{") {
        this.#from = ++this.#at;
        elements.push(this.array());
        char = "}";
      } else if (char === "}") {
        if (this.#from < this.#at) elements.push(this.#value(text.slice(this.#from, this.#at)));
        this.#from = this.#at + 1;
        break;
      } else if (char === this.#delimiter && this.#last !== "}" && this.#last !== '"') {
        elements.push(this.#value(text.slice(this.#from, this.#at)));
        this.#from = this.#at + 1;
      }
      this.#last = char;
    }
    if (this.#from < this.#at) elements.push(this.#value(text.slice(this.#from, this.#at + 1)));
    return elements;
  }

  #value(text: string): unknown {
    return this.#parse ? this.#parse(text) : text;
  }
}

/** Reads an array's text, which the driver gives without the first brace. */
export function parseArray(text: string, parse: ParseElement, typarray: number): unknown[] {
  return new Reader(text, parse, typarray).array();
}

/** Writes an array; `absent` stands for elements that are undefined. */
export function serializeArray(
  values: unknown,
  serialize: SerializeElement,
  absent: unknown,
  typarray: number,
): unknown {
  if (!Array.isArray(values)) return values;
  if (values.length === 0) return "{}";
  const [first] = values;
  const write = Array.isArray(first) && !(first as { type?: unknown }).type
    ? (value: unknown) => serializeArray(value, serialize, absent, typarray)
    : (value: unknown) => writeElement(value, serialize, absent);
  return `{${values.map(write).join(typarray === BOXES ? ";" : ",")}}`;
}

function writeElement(value: unknown, serialize: SerializeElement, absent: unknown): string {
  const given = value === undefined ? absent : value;
  if (given === undefined) {
    throw genericError("UNDEFINED_VALUE", "Undefined values are not allowed");
  }
  if (given === null) return "null";
  // A value with a type, as sql.typed makes it.
  const typed = given as { type?: unknown; value?: unknown };
  const text = serialize ? serialize(typed.type ? typed.value : given) : "" + given;
  return `"${text.replace(/\\/g, "\\\\").replace(/"/g, '\\"')}"`;
}
