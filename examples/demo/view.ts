/** What the user sees while the load runs: a picture on a terminal, else one line a second. */

import process from "node:process";
import { count, duration } from "./format.ts";
import { type Histogram, type Metrics, quantile } from "./metrics.ts";
import { INTERVAL, type PoolView, type Scene, type SourceView } from "./scene.ts";
import { Canvas, isTerminal, type Paint, paint } from "./terminal.ts";

/** Shows scenes. */
export interface View {
  /** To be called ten times a second. */
  show(scene: Scene): void;
  /** Shows the last one, and leaves the terminal as it was. */
  end(scene: Scene): void;
}

const WIDTH = 78;
const SPARKS = "▁▂▃▄▅▆▇█";
const SPARKLINE = 32;
/** What there is to see of each worker, and how wide. */
const COLUMNS = { leased: 8, idle: 6, connecting: 12, closing: 9, waiting: 9 } as const;
const NAME_COLUMN = 12;
const RATE_COLUMN = 10;
/** Lines of the picture beside those of the workers. */
const OTHER_LINES = 18;
/** What a line is about: a worker, some, or all of them. */
type Part = Pick<SourceView, "pool" | "commits">;
/** Errors that deserve a word. */
const WORDS: Readonly<Record<string, string>> = { "57P01": "backend terminated" };

/** The view for where standard output leads to. */
export function newView(): View {
  return isTerminal ? new LiveView() : new LineView();
}

class LiveView implements View {
  readonly #canvas = new Canvas();

  show(scene: Scene): void {
    this.#canvas.draw(picture(scene, paint, process.stdout.rows || undefined));
  }

  end(scene: Scene): void {
    this.show(scene);
    this.#canvas.end();
  }
}

class LineView implements View {
  #next = 1;

  show(scene: Scene): void {
    if (scene.elapsed < this.#next) return;
    this.#next = Math.floor(scene.elapsed) + 1;
    console.log(line(scene));
  }

  end(scene: Scene): void {
    console.log(summary(scene));
  }
}

/** The picture of a scene, line by line, for a terminal of this height. */
export function picture(scene: Scene, paint: Paint, height = 24): string[] {
  const { options, sessions, metrics, pool, workers } = scene;
  const sizes = [`${options.tasks} tasks`, `${options.maxconn} connections`];
  if (workers.length > 0) sizes.splice(1, 0, `${workers.length} workers`);
  else sizes.push(`scale ${options.scale}`);
  const title = sizes.join(", ");
  const row = (label: string, text: string): string => `  ${paint("dim", label.padEnd(17))}${text}`;
  const number = (value: number): string => paint("bold", count(value));
  const over = sessions.most > options.maxconn;
  // The terminal needs the last line for the cursor.
  const mostWorkers = Math.max(2, height - 1 - OTHER_LINES);
  const most = paint(over ? "red" : "green", `never more than ${count(sessions.most)}`);
  const strikes = Object.entries(scene.strikes);
  return [
    "",
    `  ${paint("bold", "TPC-B")}  ${title}` +
    paint("dim", scene.platform.padStart(WIDTH - 9 - title.length)),
    `  ${progress(scene, paint)}`,
    "",
    row("at the server", `${number(sessions.now)} ${dots(sessions.now, options.maxconn, paint)}`),
    row("", `${most} of ${count(options.maxconn)} allowed, in ${count(sessions.looks)} looks`),
    ...(workers.length > 0
      ? crew(scene, paint, mostWorkers)
      : [row("in the pool", inPool(pool, number))]),
    "",
    row(
      "commits",
      `${number(rate(scene.commits))} a second  ${sparkline(scene.commits, paint)}`,
    ),
    row("", `${number(metrics.committed)} so far`),
    row("transaction", times(metrics.transaction, paint)),
    row("getconn", times(metrics.wait, paint)),
    "",
    row("chaos", strikes.map(([name, times]) => struck(name, times, paint)).join("   ") || "none"),
    row("transactions", failures(metrics, paint)),
    row("errors", errors(metrics)),
  ];
}

/** A scene in one line. */
export function line(scene: Scene): string {
  const { sessions, metrics, pool } = scene;
  const strikes = Object.entries(scene.strikes).map(([name, times]) => `${name} ${times}`);
  const p = (histogram: Histogram, share: number): string => duration(quantile(histogram, share));
  return [
    `${scene.elapsed.toFixed(0).padStart(3)} s`,
    `sessions ${sessions.now} (most ${sessions.most} of ${scene.options.maxconn})`,
    `leased ${pool.leased} idle ${pool.idle} waiting ${pool.waiting}`,
    `${count(rate(scene.commits))} commits/s`,
    `transaction p50 ${p(metrics.transaction, 0.5)} p99 ${p(metrics.transaction, 0.99)}`,
    `getconn p50 ${p(metrics.wait, 0.5)} p99 ${p(metrics.wait, 0.99)}`,
    ...strikes,
    `retries ${metrics.retries}`,
  ].join(" | ");
}

/** The run in a few words. */
export function summary(scene: Scene): string {
  const { options, elapsed, metrics, strikes, sessions } = scene;
  const { committed, failed, retries, unknown, transaction, wait } = metrics;
  const times = [transaction, wait].map((histogram) =>
    [0.5, 0.99].map((share) => duration(quantile(histogram, share))).join(" / ")
  );
  const chaos = Object.entries(strikes).map(([name, times]) => `${name}: ${count(times)}`);
  const { tasks, workers } = options;
  const where = workers > 0 ? `${tasks} tasks in ${workers} workers` : `${tasks} tasks`;
  return [
    `  ${count(committed)} transfers committed in ${elapsed.toFixed(1)} s: ` +
    `${count(committed / elapsed)} a second, by ${where}.`,
    `  p50 / p99 of a transaction ${times[0]}, of getconn ${times[1]}.`,
    `  Chaos: ${chaos.join("; ") || "none"}.`,
    `  Transactions failed: ${count(failed)}; tried again: ${count(retries)}; ` +
    `of unknown outcome: ${count(unknown)}.`,
    `  At most ${sessions.most} sessions at the server, in ${count(sessions.looks)} looks.`,
  ].join("\n");
}

function progress({ elapsed, options }: Scene, paint: Paint): string {
  const clock = `${Math.min(elapsed, options.seconds).toFixed(1)} of ${options.seconds} s`;
  const width = WIDTH - 4 - clock.length;
  const done = Math.round(width * Math.min(1, elapsed / options.seconds));
  return paint("cyan", "━".repeat(done)) + paint("dim", "─".repeat(width - done)) + `  ${clock}`;
}

/** One dot for each session that may be; those above the cap in red. */
function dots(now: number, maxconn: number, paint: Paint): string {
  if (Math.max(now, maxconn) > 50) return "";
  const free = "○".repeat(Math.max(0, maxconn - now));
  const excess = "●".repeat(Math.max(0, now - maxconn));
  return paint("green", "●".repeat(Math.min(now, maxconn))) + paint("dim", free) +
    paint("red", excess);
}

function struck(name: string, times: number, paint: Paint): string {
  return `${paint("yellow", count(times))} ${name}`;
}

function inPool(pool: PoolView, number: (value: number) => string): string {
  const states = ["leased", "idle", "connecting", "closing", "waiting"] as const;
  return states.map((state) => `${number(pool[state])} ${state}`).join("  ");
}

/** A line for each worker, as far as there is room; the last ones share one. */
function crew(scene: Scene, paint: Paint, most: number): string[] {
  const { workers } = scene;
  const states = Object.entries(COLUMNS) as [keyof PoolView, number][];
  const row = (name: string, { pool, commits }: Part, note = ""): string => {
    const cell = (value: number, width: number): string =>
      paint(value > 0 ? "bold" : "dim", count(value).padStart(width));
    const cells = states.map(([state, width]) => cell(pool[state], width)).join("");
    return `  ${paint("dim", name.padEnd(NAME_COLUMN))}${cells}${
      cell(rate(commits), RATE_COLUMN)
    }` +
      paint("yellow", note && `  ${note}`);
  };
  const heads = states.map(([state, width]) => state.padStart(width)).join("");
  const head = " ".repeat(NAME_COLUMN) + heads + "commits/s".padStart(RATE_COLUMN);
  const shown = workers.length > most ? workers.slice(0, most - 1) : workers;
  const others = workers.slice(shown.length);
  return [
    "",
    `  ${paint("dim", head)}`,
    ...shown.map((worker) => row(worker.name, worker, worker.note)),
    ...(others.length > 0 ? [row(`${others.length} others`, sumOf(others))] : []),
    row("all together", scene),
  ];
}

function sumOf(workers: readonly SourceView[]): Part {
  const pool = { leased: 0, idle: 0, connecting: 0, closing: 0, waiting: 0 };
  const commits: number[] = [];
  for (const worker of workers) {
    for (const state of Object.keys(pool) as (keyof PoolView)[]) pool[state] += worker.pool[state];
    worker.commits.forEach((each, at) => commits[at] = (commits[at] ?? 0) + each);
  }
  return { pool, commits };
}

/** Commits in the last whole second; the interval that has just begun says nothing yet. */
function rate(commits: readonly number[]): number {
  const last = commits.slice(-3, -1);
  const whole = last.length > 0 ? last : commits;
  return whole.reduce((sum, each) => sum + each, 0) / (whole.length * INTERVAL || 1);
}

function sparkline(commits: readonly number[], paint: Paint): string {
  const last = commits.slice(0, -1).slice(-SPARKLINE);
  const top = Math.max(1, ...last);
  const spark = (value: number): string => SPARKS[Math.round((value / top) * (SPARKS.length - 1))]!;
  return paint("cyan", last.map(spark).join(""));
}

function times(histogram: Histogram, paint: Paint): string {
  const cell = (share: number): string => {
    const text = duration(quantile(histogram, share)).padEnd(9);
    return `${paint("dim", `p${share * 100}`)} ${paint("bold", text)}`;
  };
  return `${cell(0.5)}  ${cell(0.99)}`;
}

function failures({ failed, retries, unknown }: Metrics, paint: Paint): string {
  const parts = [`${count(failed)} failed`, `${count(retries)} retried`];
  return parts.join("   ") + "   " +
    paint(unknown > 0 ? "yellow" : "dim", `${count(unknown)} of unknown outcome`);
}

function errors({ errors }: Metrics): string {
  const kinds = Object.entries(errors).sort(([, a], [, b]) => b - a);
  if (kinds.length === 0) return "none";
  const texts = kinds.map(([kind, times]) => `${times} × ${kind} ${WORDS[kind] ?? ""}`.trim());
  const text = texts.join(", ");
  return text.length <= WIDTH - 19 ? text : text.slice(0, WIDTH - 20) + "…";
}
