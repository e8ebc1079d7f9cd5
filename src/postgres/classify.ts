/** Which statements may run beside others on one session, by their text as PostgreSQL's lexer reads it. */

import { END, Lexer, type Token } from "./lexer.ts";

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
 * Everything else may: `set`, `listen`, `prepare`, `declare`, `load`, what is yet to be invented; and `do`, whose
 * program is not read.
 */
const ALONE = new Set(
  ("abort alter analyse analyze begin call checkpoint close cluster comment commit copy create drop end " +
    "execute explain fetch grant import lock move notify reassign refresh reindex release revoke " +
    "rollback savepoint security show start table truncate vacuum").split(" "),
);

/**
 * Functions that change their session: PostgreSQL's own, and what is known of extensions. Those of
 * `pg_advisory_xact_lock`'s kind end with their statement.
 */
const STATEFUL_CALL = new RegExp(
  "^(?:set_config|setseed|pg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?|pg_backup_start|" +
    "pg_(?:create|copy)_(?:physical|logical)_replication_slot|" +
    "pg_replication_origin_(?:session|xact)_(?:setup|reset)|" +
    "dblink_(?:connect|disconnect|open|exec|send_query)\\w*|set_limit|hypopg_\\w+)$",
);

const TEMPORARY_SCHEMA = /^pg_temp(?:_\d+)?$/;

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
      }
      // Of a plain statement only as a schema: a column may have that name.
      if (
        TEMPORARY_SCHEMA.test(text) &&
        (!SHARED.has(command) || next.kind === "sign" && next.text === ".")
      ) kind = "stateful";
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
