/** Which statements may run beside others on one session, by their text as PostgreSQL's lexer reads it. */

/**
 * - `shared`: one plain statement that leaves nothing behind, so it may run between other people's.
 * - `alone`: needs a session of its own while it runs.
 * - `stateful`: the same, and the session is closed after it, as others must not inherit what it did.
 */
export type Kind = "shared" | "alone" | "stateful";

/** What may share. Decided closed: a word that is not known here has a session of its own. */
const SHARED = new Set(["select", "values", "insert", "update", "delete", "merge", "with"]);

/**
 * What has a session of its own, and leaves nothing there that the rollback after it would not take.
 * Everything else (`set`, `listen`, `prepare`, `declare`, `load`, what is yet to be invented) may.
 */
const ALONE = new Set(
  ("abort alter analyse analyze begin call checkpoint close cluster comment commit copy create do drop end " +
    "execute explain fetch grant import lock move notify reassign refresh reindex release revoke " +
    "rollback savepoint security show start table truncate vacuum").split(" "),
);

/** Functions that change their session. Those of `pg_advisory_xact_lock`'s kind end with their statement. */
const STATEFUL_CALL =
  /^(?:set_config|setseed|pg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?|dblink_(?:connect|disconnect|open|exec|send_query)\w*)$/;

const TEMPORARY_SCHEMA = /^pg_temp(?:_\d+)?$/;

/** A word, a quoted name (`name`), one other character, or the end (empty). */
interface Token {
  readonly kind: "word" | "name" | "sign" | "end";
  readonly text: string;
}

const END: Token = { kind: "end", text: "" };

/**
 * What kind of statement a text holds: the whole text, with its fragments and names put together.
 * Where a text could be read in two ways, or is cut off, it does not share.
 */
export function classify(text: string): Kind {
  const lexer = new Lexer(text);
  let kind: Kind = "shared";
  let statements = 0;
  for (let token = lexer.next(); token !== END;) {
    if (token.text === ";" && token.kind === "sign") {
      token = lexer.next();
      continue;
    }
    if (++statements === 2) kind = worse(kind, "alone");
    kind = worse(kind, kindOfStatement(token, lexer));
    token = lexer.last;
  }
  if (lexer.hidden) return "stateful";
  // An empty text does nothing, but nobody knows what the next version of a server says to it.
  if (statements === 0 || lexer.doubtful) kind = worse(kind, "alone");
  return kind;
}

function worse(a: Kind, b: Kind): Kind {
  if (a === "stateful" || b === "stateful") return "stateful";
  return a === "alone" || b === "alone" ? "alone" : "shared";
}

/** Reads one statement, up to its semicolon or the end, which is then the lexer's last token. */
function kindOfStatement(first: Token, lexer: Lexer): Kind {
  let token = first;
  while (token.kind === "sign" && token.text === "(") token = lexer.next();
  const command = token.kind === "word" ? token.text : "";
  let kind: Kind = SHARED.has(command) ? "shared" : ALONE.has(command) ? "alone" : "stateful";
  let updates = false;
  let settings = false;
  let before = END;
  while (token !== END && !(token.kind === "sign" && token.text === ";")) {
    const { text } = token;
    const next = lexer.next();
    if (token.kind !== "sign") {
      if (next.kind === "sign") {
        if (next.text === "(" && STATEFUL_CALL.test(text)) kind = "stateful";
        if (next.text === "." && TEMPORARY_SCHEMA.test(text)) kind = "stateful";
      }
      if (text === "pg_settings") settings = true;
      if (text === "update" && token.kind === "word") updates = true;
    }
    if (isTemporary(next) && makesTable(before, token, command)) kind = "stateful";
    before = token;
    token = next;
  }
  return settings && updates ? "stateful" : kind;
}

function isTemporary(token: Token): boolean {
  return token.kind === "word" && (token.text === "temp" || token.text === "temporary");
}

/** Whether `temp` behind these words is what `create temp table` and `select … into temp` mean by it. */
function makesTable(before: Token, token: Token, command: string): boolean {
  if (token.kind !== "word") return false;
  switch (token.text) {
    case "create":
      return true;
    case "replace":
      return command === "create" && before.text === "or";
    case "local":
    case "global":
      return before.text === "create" || before.text === "replace" || before.text === "into";
    case "into":
      // `insert into temp` and `merge into temp` name a table.
      return before.text !== "insert" && before.text !== "merge";
    default:
      return false;
  }
}

const SPACE = /[ \t\n\r\f\v]+/y;
const WORD = /[A-Za-z_\u0080-\uffff][A-Za-z0-9_$\u0080-\uffff]*/y;
const LINE_COMMENT = /--[^\n\r]*/y;
const DOLLAR_TAG = /\$(?:[A-Za-z_\u0080-\uffff][A-Za-z0-9_\u0080-\uffff]*)?\$/y;
const CONTINUED = /\s*(?:--[^\n\r]*[\n\r]\s*)*'/y;
const PARAMETER_OR_NUMBER = /\$?[0-9]+/y;

/** PostgreSQL's lexer (scan.l), as far as it decides where a token ends. */
class Lexer {
  /** The token that `next` gave last. */
  last: Token = END;
  /** True when the text is cut off, or its meaning hangs on a setting of the session. */
  doubtful = false;
  /** True when it has a name that can only be read by following its code points. */
  hidden = false;
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  /** The next token outside of comments and literals. */
  next(): Token {
    return this.last = this.#read();
  }

  #read(): Token {
    const text = this.#text;
    while (this.#at < text.length) {
      if (this.#take(SPACE) || this.#take(LINE_COMMENT)) continue;
      if (text.startsWith("/*", this.#at)) {
        this.#comment();
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
          return { kind: "word", text: word.toLowerCase() };
        }
        continue;
      }
      const sign = text[this.#at]!;
      if (sign === "'") this.#literal(false);
      else if (sign === '"') return { kind: "name", text: this.#name() };
      else if (sign === "$" && this.#dollar()) continue;
      else if (this.#take(PARAMETER_OR_NUMBER) === null) {
        this.#at++;
        return { kind: "sign", text: sign };
      }
    }
    return END;
  }

  #take(pattern: RegExp): string | null {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text);
    if (found === null) return null;
    this.#at = pattern.lastIndex;
    return found[0];
  }

  /** Everything to the end belongs to something that was never closed. */
  #cut(): void {
    this.doubtful = true;
    this.#at = this.#text.length;
  }

  #comment(): void {
    let depth = 0;
    do {
      if (this.#text.startsWith("/*", this.#at)) {
        depth++;
        this.#at += 2;
      } else if (this.#text.startsWith("*/", this.#at)) {
        depth--;
        this.#at += 2;
      } else if (++this.#at >= this.#text.length) return this.#cut();
    } while (depth > 0);
  }

  /** A string literal from its quote on. */
  #literal(escapes: boolean): void {
    const text = this.#text;
    for (this.#at++; this.#at < text.length; this.#at++) {
      const c = text[this.#at];
      if (c === "\\") {
        if (escapes) this.#at++;
        // With standard_conforming_strings = off the literal would go on behind the quote.
        else if (text[this.#at + 1] === "'" || text[this.#at + 1] === "\\") this.doubtful = true;
      } else if (c === "'") {
        if (text[++this.#at] === "'") continue;
        // A literal that goes on in another line keeps its escapes: too rare to follow.
        CONTINUED.lastIndex = this.#at;
        if (escapes && CONTINUED.test(text)) this.doubtful = true;
        return;
      }
    }
    this.#cut();
  }

  #name(): string {
    const start = this.#at + 1;
    for (let at = start;; at += 2) {
      at = this.#text.indexOf('"', at);
      if (at < 0) {
        this.#cut();
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
    const tag = this.#take(DOLLAR_TAG);
    if (tag === null) return false;
    const end = this.#text.indexOf(tag, this.#at);
    if (end < 0) this.#cut();
    else this.#at = end + tag.length;
    return true;
  }
}
