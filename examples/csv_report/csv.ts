/**
 * CSV as RFC 4180 has it: https://www.rfc-editor.org/rfc/rfc4180
 *
 * @module
 */

/** A field: in quotes when it must be, null as nothing, a date as YYYY-MM-DD. */
export function field(value: unknown): string {
  if (value === null || value === undefined) return "";
  const text = value instanceof Date ? value.toISOString().slice(0, 10) : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function line(values: readonly unknown[]): string {
  return values.map(field).join(",") + "\r\n";
}

/** The text of batches of rows, piece by piece: the names of the columns come with the first. */
export async function* csv(
  columns: readonly string[],
  batches: AsyncIterable<readonly Record<string, unknown>[]>,
): AsyncGenerator<string, void, undefined> {
  let text = line(columns);
  for await (const rows of batches) {
    for (const row of rows) text += line(columns.map((name) => row[name]));
    yield text;
    text = "";
  }
  if (text !== "") yield text;
}
