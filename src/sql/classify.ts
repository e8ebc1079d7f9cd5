/** Which statements may run beside others on one session, by their text. */

import { isQuery, type Query } from "../postgres/language.ts";

/**
 * - `shared`: leaves nothing behind, so it may run between other people's statements.
 * - `alone`: needs a session of its own while it runs.
 * - `stateful`: the same, and the session is closed after it, as others must not inherit what it did.
 */
export type Kind = "shared" | "alone" | "stateful";

/** Space and comments, then the first word. */
const FIRST_WORD = /^(?:\s|--[^\n]*\n|\/\*[\s\S]*?\*\/)*([a-z_]+)/i;

const STATEFUL = new Set([
  "deallocate",
  "declare",
  "discard",
  "listen",
  "load",
  "prepare",
  "reset",
  "set",
  "unlisten",
]);

const ALONE = new Set(["begin", "copy", "start"]);

/** Functions and tables that belong to a session. A lock of a transaction ends with its statement. */
const SESSION_STATE = /\bpg_(?:try_)?advisory_(?:un)?lock|\bset_config\b|\btemp(?:orary)?\b/i;

/** The driver compiles nothing, so a template's texts are the same object at each call. */
const known = new WeakMap<object, Kind>();

/** Texts that were looked at: those of query builders come again and again. Emptied when it is full. */
const knownTexts = new Map<string, Kind>();
const MOST_TEXTS = 1_000;
const LONGEST_TEXT = 4_000;

/** What kind of statement this is. */
export function kindOf(query: Query): Kind {
  const { strings, args, options, tagged } = query;
  if (query.cursorFn !== undefined || query.streaming === true) {
    return kindOfText(strings) === "stateful" ? "stateful" : "alone";
  }
  // Several statements in one: nobody knows what is between them.
  if (options.simple === true && isScript(strings, args)) return scriptKind(strings);
  const kind = tagged ? kindOfTemplate(strings) : kindOfOneText(strings[0] ?? "");
  if (kind !== "shared" || args.length === 0) return kind;
  return kindOfParts(strings, args);
}

function kindOfTemplate(strings: readonly string[]): Kind {
  let kind = known.get(strings);
  if (kind === undefined) known.set(strings, kind = kindOfText(strings));
  return kind;
}

function kindOfOneText(text: string): Kind {
  if (text.length > LONGEST_TEXT) return kindOfText([text]);
  let kind = knownTexts.get(text);
  if (kind === undefined) {
    if (knownTexts.size >= MOST_TEXTS) knownTexts.clear();
    knownTexts.set(text, kind = kindOfText([text]));
  }
  return kind;
}

function kindOfText(strings: readonly string[]): Kind {
  const word = FIRST_WORD.exec(strings[0] ?? "")?.[1]?.toLowerCase();
  if (word !== undefined && STATEFUL.has(word)) return "stateful";
  if (strings.some((text) => SESSION_STATE.test(text))) return "stateful";
  return word !== undefined && ALONE.has(word) ? "alone" : "shared";
}

function isScript(strings: readonly string[], args: readonly unknown[]): boolean {
  if (strings.length > 1 && args.some((arg) => partsOf(arg).length > 0)) return true;
  return strings.some((text) => {
    const at = text.indexOf(";");
    return at >= 0 && text.slice(at + 1).trim() !== "";
  });
}

/** A script is free to open and end a transaction; only what outlives that closes the session. */
function scriptKind(strings: readonly string[]): Kind {
  for (const text of strings) {
    if (SESSION_STATE.test(text)) return "stateful";
    for (const part of text.split(";")) {
      const word = FIRST_WORD.exec(part)?.[1]?.toLowerCase();
      if (word !== undefined && STATEFUL.has(word)) return "stateful";
    }
  }
  return "alone";
}

/** Fragments are statements too, and may hold the first word. */
function kindOfParts(strings: readonly string[], args: readonly unknown[]): Kind {
  let first = strings[0]!.trim() === "";
  for (const arg of args) {
    for (const part of partsOf(arg)) {
      const kind = kindOf(part);
      if (kind === "stateful" || (first && kind === "alone")) return kind;
      first = false;
    }
  }
  return "shared";
}

function partsOf(arg: unknown): Query[] {
  if (isQuery(arg)) return [arg];
  return Array.isArray(arg) && isQuery(arg[0]) ? arg : [];
}
