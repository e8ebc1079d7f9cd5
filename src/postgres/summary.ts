/** What may be told of a statement: its text without values, and what it does to which tables. */

import { END, Lexer, type Stretch, type Token } from "./lexer.ts";

/** What is told of a text; the same for all who execute it. */
export interface Summary {
  /** With its placeholders; where it has none, each literal is a `?` and comments are gone. */
  readonly text: string;
  /** Its operations and their tables, such as `select orders customers`, as they are written in it. */
  readonly summary: string;
  /** Its one operation; null when there are several. */
  readonly operation: string | null;
  /** The one table of its one operation; null where there are none or several. */
  readonly collection: string | null;
  /** How many statements are in it. */
  readonly statements: number;
}

/** The conventions' limit, in characters. */
const LONGEST_SUMMARY = 255;
/** A longer text is cut off before it is told. */
const LONGEST_TEXT = 16_384;

/** Operations that are read to their end: others can be within them. */
const QUERIES = new Set(["select", "insert", "update", "delete", "merge", "values"]);
/** Operations on one table, which is named behind them. */
const ON_TABLES = new Set(["truncate", "lock", "copy", "vacuum", "analyze", "analyse", "cluster"]);
/** Operations whose object is of a kind that is a part of their name. */
const ON_OBJECTS = new Set(["create", "alter", "drop"]);
/** What may stand between the operation and the kind of its object. */
const MODIFIERS = new Set(
  "or replace temp temporary unlogged unique global local recursive foreign constraint default event"
    .split(" "),
);
/** What may stand before a name. */
const BEFORE_NAMES = new Set(
  "only lateral table concurrently if not exists into verbose analyze full freeze".split(" "),
);
/** Kinds of two words. */
const LONG_KINDS = new Set(["materialized", "access", "operator", "text", "user"]);
/** What ends the list of tables behind `from`. */
const BEHIND_TABLES = new Set(
  "where group order having limit offset fetch for window union intersect except returning set when"
    .split(" "),
);
/** What makes a keyword behind it something else than an operation: `for update`, `do update`, `then insert`. */
const NO_OPERATION_BEHIND = new Set(["for", "key", "do", "then", "on", "or", "of", ".", "as"]);

/** What is known of a part of a statement between parentheses, or of the whole. */
interface Level {
  /** What it does; empty for an expression. */
  operation: string;
  /** True where tables are named one after the other. */
  tables: boolean;
  /** True where `with` names queries. */
  names: boolean;
}

/**
 * Reads a text. `parameters`: how many values are sent beside it. With some, it is told as it is, as the
 * conventions want it: who passes values apart leaves none in the text.
 *
 * @see https://opentelemetry.io/docs/specs/semconv/db/database-spans/#generating-a-summary-of-the-query
 */
export function summaryOf(text: string, parameters: number): Summary {
  const passed: Stretch[] = [];
  const reader = new Reader(text, passed);
  reader.read();
  const { operations, targets, statements } = reader;
  const [operation] = operations;
  const single = operations.length === 1 && statements === 1;
  const told = parameters > 0 ? text : withoutLiterals(text, passed, reader.doubtAt);
  return Object.freeze({
    text: told.length > LONGEST_TEXT ? `${told.slice(0, LONGEST_TEXT)}…` : told,
    summary: reader.summary(),
    operation: single
      ? operation!
      : statements < 2
      ? null
      : new Set(operations).size === 1
      ? `BATCH ${operation}`
      : "BATCH",
    collection: single && targets.size === 1 && reader.onTables ? [...targets][0]! : null,
    statements,
  });
}

/** Each literal becomes a `?`. What stands behind one whose end is not certain may be a part of it, and is left out. */
function withoutLiterals(text: string, passed: readonly Stretch[], doubtAt: number): string {
  let told = "";
  let from = 0;
  for (const { at, end } of passed) {
    if (at >= doubtAt) break;
    const first = text[at]!;
    const second = text[at + 1];
    told += text.slice(from, at);
    from = end;
    if (first === "-" || first === "/") told += " ";
    else if (first === "$" && second !== undefined && second >= "0" && second <= "9") {
      told += text.slice(at, end);
    } else told += "?";
  }
  return (doubtAt === Infinity ? told + text.slice(from) : `${told}${text.slice(from, doubtAt)}?`)
    .trim();
}

/** Reads a text for its operations and their tables. */
class Reader {
  readonly operations: string[] = [];
  /** Tables and the like, each once. */
  readonly targets = new Set<string>();
  /** How many statements there are. */
  statements = 0;
  /** True as long as what was found are tables. */
  onTables = true;
  readonly #text: string;
  readonly #lexer: Lexer;
  /** In the order in which they stand. */
  readonly #parts: string[] = [];
  /** Names that `with` gave to queries. */
  readonly #named = new Set<string>();
  #levels: Level[] = [];
  /** The last word or name before the token at hand. */
  #lastName = "";
  #token: Token = END;
  #before: Token = END;

  constructor(text: string, passed: Stretch[]) {
    this.#text = text;
    this.#lexer = new Lexer(text, passed);
  }

  get doubtAt(): number {
    return this.#lexer.doubtAt;
  }

  /** The parts, as many as there is room for. */
  summary(): string {
    let summary = "";
    for (const part of this.#parts) {
      const longer = summary === "" ? part : `${summary} ${part}`;
      if (longer.length > LONGEST_SUMMARY) break;
      summary = longer;
    }
    return summary;
  }

  read(): void {
    this.#next();
    while (this.#token !== END) {
      if (this.#is(";")) {
        this.#next();
        continue;
      }
      this.statements++;
      this.#named.clear();
      this.#levels = [newLevel()];
      this.#statement();
      while (this.#token !== END && !this.#is(";")) this.#next();
    }
  }

  #statement(): void {
    while (this.#is("(")) this.#open();
    const { text, kind } = this.#token;
    if (kind !== "word") return;
    if (text === "with" || QUERIES.has(text)) return this.#query();
    if (text === "explain") {
      this.#operation();
      while (this.#token !== END && !this.#is(";")) {
        if (this.#isWord("with") || this.#startsQuery()) return this.#query();
        this.#next();
      }
      return;
    }
    if (ON_TABLES.has(text)) {
      this.#operation();
      this.#passWords(BEFORE_NAMES);
      if (!this.#is("(")) return this.#targetList();
      this.#open();
      return this.#query();
    }
    if (ON_OBJECTS.has(text)) return this.#object();
    const named = text === "call" || text === "set" || text === "reset" || text === "table";
    this.#operation();
    if (text === "set") this.#passWords(new Set(["local", "session"]));
    this.onTables = text === "table";
    if (named) this.#target();
  }

  /** `create table orders`: the kind is a part of the operation, as it is written. */
  #object(): void {
    const { at } = this.#token;
    let { end } = this.#token;
    const words = [this.#text.slice(at, end)];
    this.#next();
    this.#passWords(MODIFIERS);
    const kind = this.#token.text;
    for (let left = LONG_KINDS.has(kind) ? 2 : 1; left > 0 && this.#token.kind === "word"; left--) {
      end = this.#token.end;
      words.push(this.#text.slice(this.#token.at, end));
      this.#next();
      if (kind === "user" && !this.#isWord("mapping")) break;
    }
    this.#add(words.join(" "));
    this.onTables = kind === "table";
    this.#passWords(BEFORE_NAMES);
    this.#targetList();
  }

  #targetList(): void {
    this.#target();
    while (this.#is(",")) {
      this.#next();
      this.#target();
    }
  }

  /** Reads on to the end of the statement. */
  #query(): void {
    while (this.#token !== END && !this.#is(";")) {
      const level = this.#levels.at(-1)!;
      const { text, kind } = this.#token;
      if (kind === "sign") {
        if (text === "(") {
          this.#open();
          continue;
        }
        if (text === ")" && this.#levels.length > 1) this.#levels.pop();
        else if (text === "," && level.tables) {
          this.#next();
          this.#table(level);
          continue;
        }
        this.#next();
        continue;
      }
      if (kind !== "word" || this.#before.text === ".") {
        this.#next();
        continue;
      }
      if (text === "with" && level.operation === "") {
        level.names = true;
        this.#next();
        continue;
      }
      // Behind the name stand its columns, if it has some.
      if (level.names && text === "as") this.#named.add(this.#lastName.toLowerCase());
      if (this.#startsQuery()) {
        level.operation = text;
        level.names = level.tables = false;
        // With others it only says what they insert, or is one of their tables.
        if (text === "values" && this.operations.length > 0) this.#next();
        else this.#operation();
        if (text === "update") this.#table(level);
        continue;
      }
      this.#clause(level, text);
    }
  }

  #clause(level: Level, text: string): void {
    const before = this.#before;
    this.#next();
    if (level.operation === "" && !level.tables) return;
    if (text === "into" && (level.operation === "insert" || level.operation === "merge")) {
      this.#passWords(BEFORE_NAMES);
      return this.#target();
    }
    const lists = text === "from" && before.text !== "distinct" ||
      text === "using" && level.operation !== "select" && level.operation !== "insert";
    if (lists || text === "join") {
      level.tables = level.tables || lists;
      return this.#table(level);
    }
    if (BEHIND_TABLES.has(text)) level.tables = false;
  }

  /** Where a table is expected. */
  #table(level: Level): void {
    this.#passWords(BEFORE_NAMES);
    if (this.#is("(")) {
      this.#open();
      const inner = this.#levels.at(-1)!;
      if (this.#isWord("with") || this.#startsQuery()) return;
      // Tables joined within parentheses.
      inner.operation = level.operation;
      inner.tables = true;
      return this.#table(inner);
    }
    if (this.#token.kind === "sign" || this.#token === END) return;
    const name = this.#name();
    // A function's rows are no table's.
    if (!this.#is("(") && !this.#named.has(name.toLowerCase())) this.#addTarget(name);
  }

  /** The name at hand, if there is one. */
  #target(): void {
    if (this.#token.kind === "word" || this.#token.kind === "name") this.#addTarget(this.#name());
  }

  /** A name with its schema, as it is written. */
  #name(): string {
    const { at } = this.#token;
    let { end } = this.#token;
    this.#next();
    while (this.#is(".")) {
      this.#next();
      if (this.#token.kind === "sign" || this.#token === END) break;
      ({ end } = this.#token);
      this.#next();
    }
    return this.#text.slice(at, end);
  }

  #startsQuery(): boolean {
    return this.#token.kind === "word" && QUERIES.has(this.#token.text) &&
      !NO_OPERATION_BEHIND.has(this.#before.text) &&
      (this.#token.text !== "values" || this.#levels.at(-1)!.operation === "");
  }

  /** The token at hand is an operation. */
  #operation(): void {
    this.#add(this.#text.slice(this.#token.at, this.#token.end));
    this.#next();
  }

  #add(operation: string): void {
    this.operations.push(operation);
    this.#parts.push(operation);
  }

  #addTarget(name: string): void {
    this.targets.add(name);
    this.#parts.push(name);
  }

  #open(): void {
    const { operation, names } = this.#levels.at(-1)!;
    // Columns behind the name that `with` gives.
    const { kind, text } = this.#before;
    const isQuery = text === "as" || text === "materialized";
    if (names && operation === "" && kind !== "sign" && !isQuery) {
      const name = this.#lastName;
      while (this.#token !== END && !this.#is(")")) this.#next();
      this.#next();
      this.#lastName = name;
      return;
    }
    this.#levels.push(newLevel());
    this.#next();
  }

  #passWords(words: ReadonlySet<string>): void {
    while (this.#token.kind === "word" && words.has(this.#token.text)) this.#next();
  }

  #is(sign: string): boolean {
    return this.#token.kind === "sign" && this.#token.text === sign;
  }

  #isWord(word: string): boolean {
    return this.#token.kind === "word" && this.#token.text === word;
  }

  #next(): void {
    this.#before = this.#token;
    if (this.#token.kind === "word" || this.#token.kind === "name") {
      this.#lastName = this.#text.slice(this.#token.at, this.#token.end);
    }
    this.#token = this.#lexer.next();
  }
}

function newLevel(): Level {
  return { operation: "", tables: false, names: false };
}
