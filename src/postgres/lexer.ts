/** PostgreSQL's lexer (scan.l), as far as it decides where a token ends. */

/** A word, a quoted name (`name`), one other character, or the end (empty). */
export interface Token {
  readonly kind: "word" | "name" | "sign" | "end";
  /** A word in lower case; a name without its quotes. */
  readonly text: string;
  /** Where it begins in the text, and where it ends. */
  readonly at: number;
  readonly end: number;
}

/** The one token of its kind. */
export const END: Token = Object.freeze({ kind: "end", text: "", at: -1, end: -1 });

/** From where to where something stands in a text. */
export interface Stretch {
  readonly at: number;
  readonly end: number;
}

const SPACE = /[ \t\n\r\f\v]+/y;
const WORD = /[A-Za-z_\u0080-\uffff][A-Za-z0-9_$\u0080-\uffff]*/y;
const LINE_COMMENT = /--[^\n\r]*/y;
const DOLLAR_TAG = /\$(?:[A-Za-z_\u0080-\uffff][A-Za-z0-9_\u0080-\uffff]*)?\$/y;
const CONTINUED = /\s*(?:--[^\n\r]*[\n\r]\s*)*'/y;
const NUMBER =
  /0[xX][0-9A-Fa-f_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9][0-9_]*(?:\.[0-9_]+)?(?:[eE][+-]?[0-9]+)?/y;
const PARAMETER = /\$[0-9]+/y;

/** Words with which a statement ends a transaction, `prepare transaction` among them. */
const ENDS = /\b(?:commit|end|rollback|abort|prepare)\b/i;

/**
 * Whether a statement of the text may end a transaction, and not only a savepoint's part of it. A text whose meaning
 * hangs on a setting may, when one of the words is anywhere in it.
 */
export function mayEndTransaction(text: string): boolean {
  if (!ENDS.test(text)) return false;
  const lexer = new Lexer(text);
  let words: string[] = [];
  for (;;) {
    const { kind, text: word } = lexer.next();
    if (kind !== "end" && word !== ";") {
      if (words.length < 3) words.push(kind === "word" ? word : "");
      continue;
    }
    const [first = "", ...others] = words;
    if (first === "prepare" ? others[0] === "transaction" : ENDS.test(first)) {
      if (!others.includes("to")) return true;
    }
    if (kind === "end") return lexer.doubtful;
    words = [];
  }
}

/** Reads a text token by token. */
export class Lexer {
  /** The token that `next` gave last. */
  last: Token = END;
  /** Where the first thing begins whose end is not certain, as the text is cut off or its meaning hangs on a setting. */
  doubtAt: number = Infinity;
  /** True when it has a name that can only be read by following its code points. */
  hidden = false;
  readonly #text: string;
  readonly #passed: Stretch[] | null;
  #at = 0;

  /** `passed` gets where the comments and literals stand that are passed over. */
  constructor(text: string, passed: Stretch[] | null = null) {
    this.#text = text;
    this.#passed = passed;
  }

  /** True when the text is cut off, or its meaning hangs on a setting of the session. */
  get doubtful(): boolean {
    return this.doubtAt !== Infinity;
  }

  /** The next token outside of comments and literals. */
  next(): Token {
    return this.last = this.#read();
  }

  #read(): Token {
    const text = this.#text;
    while (this.#at < text.length) {
      if (this.#take(SPACE)) continue;
      const at = this.#at;
      if (this.#take(LINE_COMMENT)) {
        this.#pass(at);
        continue;
      }
      if (text.startsWith("/*", at)) {
        this.#comment();
        this.#pass(at);
        continue;
      }
      const word = this.#take(WORD);
      if (word !== null) {
        const quote = text[this.#at];
        if (quote === "'" && /^[bexn]$/i.test(word)) this.#literal(/^e$/i.test(word));
        else if (
          /^u$/i.test(word) && quote === "&" && /['"]/.test(text[this.#at + 1] ?? "")
        ) this.#unicode();
        else {
          // A name beyond ASCII is folded by the server's locale, and none of ours is one.
          return { kind: "word", text: word.toLowerCase(), at, end: this.#at };
        }
        this.#pass(at);
        continue;
      }
      const sign = text[at]!;
      if (sign === '"') return { kind: "name", text: this.#name(), at, end: this.#at };
      if (sign === "'") this.#literal(false);
      else if (
        !(sign === "$" && this.#dollar()) && this.#take(NUMBER) === null &&
        this.#take(PARAMETER) === null
      ) {
        this.#at++;
        return { kind: "sign", text: sign, at, end: at + 1 };
      }
      this.#pass(at);
    }
    return END;
  }

  #pass(at: number): void {
    this.#passed?.push({ at, end: this.#at });
  }

  #take(pattern: RegExp): string | null {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text);
    if (found === null) return null;
    this.#at = pattern.lastIndex;
    return found[0];
  }

  /** Everything to the end belongs to something that was never closed. */
  #cut(at: number): void {
    this.#doubt(at);
    this.#at = this.#text.length;
  }

  #doubt(at: number): void {
    this.doubtAt = Math.min(this.doubtAt, at);
  }

  #comment(): void {
    const start = this.#at;
    let depth = 0;
    do {
      if (this.#text.startsWith("/*", this.#at)) {
        depth++;
        this.#at += 2;
      } else if (this.#text.startsWith("*/", this.#at)) {
        depth--;
        this.#at += 2;
      } else if (++this.#at >= this.#text.length) return this.#cut(start);
    } while (depth > 0);
  }

  /** A string literal from its quote on. */
  #literal(escapes: boolean): void {
    const text = this.#text;
    const start = this.#at;
    for (this.#at++; this.#at < text.length; this.#at++) {
      const c = text[this.#at];
      if (c === "\\") {
        if (escapes) this.#at++;
        // With standard_conforming_strings = off the literal would go on behind the quote.
        else if (text[this.#at + 1] === "'" || text[this.#at + 1] === "\\") this.#doubt(start);
      } else if (c === "'") {
        if (text[++this.#at] === "'") continue;
        // A literal that goes on in another line keeps its escapes: too rare to follow.
        CONTINUED.lastIndex = this.#at;
        if (escapes && CONTINUED.test(text)) this.#doubt(start);
        return;
      }
    }
    this.#cut(start);
  }

  #name(): string {
    const start = this.#at + 1;
    for (let at = start;; at += 2) {
      at = this.#text.indexOf('"', at);
      if (at < 0) {
        this.#cut(start - 1);
        return "";
      }
      this.#at = at + 1;
      if (this.#text[at + 1] !== '"') return this.#text.slice(start, at).replaceAll('""', '"');
    }
  }

  /** `U&"…"` can spell any name by its code points, `uescape` chooses the sign for it: not followed. */
  #unicode(): void {
    this.#at++;
    if (this.#text[this.#at] === '"') {
      this.#name();
      this.hidden = true;
    } else this.#literal(false);
  }

  /** Passes over a dollar quoted literal; false when it is none. */
  #dollar(): boolean {
    const start = this.#at;
    const tag = this.#take(DOLLAR_TAG);
    if (tag === null) return false;
    const end = this.#text.indexOf(tag, this.#at);
    if (end < 0) this.#cut(start);
    else this.#at = end + tag.length;
    return true;
  }
}
