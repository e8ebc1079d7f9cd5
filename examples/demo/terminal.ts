/** The terminal: colours, and a picture that is redrawn in its place. */

import process from "node:process";

/** Ways to mark a text. */
export type Style = "bold" | "dim" | "red" | "green" | "yellow" | "cyan";

/** Marks a text, or leaves it as it is where there are no colours. */
export type Paint = (style: Style, text: string) => string;

const CODES: Readonly<Record<Style, readonly [on: number, off: number]>> = {
  bold: [1, 22],
  dim: [2, 22],
  red: [31, 39],
  green: [32, 39],
  yellow: [33, 39],
  cyan: [36, 39],
};

/** True when there is a terminal that can move its cursor. */
export const isTerminal: boolean = process.stdout.isTTY === true && process.env["TERM"] !== "dumb";

/** Colours for a person's eyes: only on a terminal, and not against NO_COLOR. */
export const paint: Paint = isTerminal && !process.env["NO_COLOR"]
  ? (style, text) => `\x1b[${CODES[style][0]}m${text}\x1b[${CODES[style][1]}m`
  : (_style, text) => text;

/** Draws one picture over the other. */
export class Canvas {
  #height = 0;

  /**
   * Replaces the picture. All in one write, each line over the old one and cleared only behind its end, as one
   * update for terminals that know such: so nothing flickers. Without line wrap a narrow terminal cuts lines off.
   */
  draw(lines: readonly string[]): void {
    const visible = lines.slice(0, Math.max(1, (process.stdout.rows || 24) - 1));
    const up = this.#height > 0 ? `\x1b[${this.#height}F` : "";
    const text = visible.map((line) => `${line}\x1b[K\n`).join("");
    process.stdout.write(`\x1b[?2026h\x1b[?25l\x1b[?7l${up}${text}\x1b[J\x1b[?7h\x1b[?2026l`);
    this.#height = visible.length;
  }

  /** Leaves the picture where it is and gives the cursor back. */
  end(): void {
    process.stdout.write("\x1b[?25h");
  }
}
