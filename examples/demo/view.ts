/** What the user sees while the load runs: a picture on a terminal, else one line a second. */

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
/** Of more workers than this the last ones share a line. */
const MOST_WORKERS = 8;
/** What there is to see of each worker, and how wide. */
const COLUMNS = { leased: 6, idle: 6, connecting: 12, closing: 9, waiting: 9 } as const;
const RATE_COLUMN = 11;
/** Errors that deserve a word. */
const WORDS: Readonly<Record<string, string>> = { "57P01": "backend terminated" };

/** The view for where standard output leads to. */
export function newView(): View {
  return isTerminal ? new LiveView() : new LineView();
}

class LiveView implements View {
  readonly #canvas = new Canvas();

  show(scene: Scene): void {
    this.#canvas.draw(picture(scene, paint));
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

/** The picture of a scene, line by line. */
export function picture(scene: Scene, paint: Paint): string[] {
  const { options, sessions, metrics, pool, workers } = scene;
  const sizes = [`${options.tasks} tasks`, `${options.maxconn} connections`];
  if (workers.length > 0) sizes.splice(1, 0, `${workers.length} workers`);
  else sizes.push(`scale ${options.scale}`);
  const title = sizes.join(", ");
  const row = (label: string, text: string): string => `  ${paint("dim", label.padEnd(17))}${text}`;
  const number = (value: number): string => paint("bold", count(value));
  const over = sessions.most > options.maxconn;
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
    ...(workers.length > 0 ? crew(scene, row, paint) : [row("in the pool", inPool(pool, number))]),
    "",
    row(
      "commits",
      `${number(rate(scene.commits))} a second  ${sparkline(scene.commits, paint)}`,
    ),
    row("", `${number(metrics.committed)} so far`),
    row("transaction", times(metrics.transaction, paint)),
    row("getconn", times(metrics.wait, paint)),
    "",
    ...strikes.map(([name, times]) => row(name, paint("yellow", count(times)))),
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
export function summary({ elapsed, metrics, strikes, sessions }: Scene): string {
  const { committed, failed, retries, unknown, transaction, wait } = metrics;
  const times = [transaction, wait].map((histogram) =>
    [0.5, 0.99].map((share) => duration(quantile(histogram, share))).join(" / ")
  );
  const struck = Object.entries(strikes).map(([name, times]) => `${name}: ${count(times)}; `);
  return [
    `  ${count(committed)} transfers committed in ${elapsed.toFixed(1)} s: ` +
    `${count(committed / elapsed)} a second.`,
    `  p50 / p99 of a transaction ${times[0]}, of getconn ${times[1]}.`,
    `  ${struck.join("")}transactions failed: ${count(failed)}; tried again: ${count(retries)}; ` +
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

function inPool(pool: PoolView, number: (value: number) => string): string {
  const states = ["leased", "idle", "connecting", "closing", "waiting"] as const;
  return states.map((state) => `${number(pool[state])} ${state}`).join("  ");
}

/** A line for each worker. */
function crew(scene: Scene, row: (label: string, text: string) => string, paint: Paint): string[] {
  const { workers } = scene;
  const cells = ({ pool, commits }: Omit<SourceView, "name" | "note">): string => {
    const cell = (value: number, width: number): string => {
      const text = count(value).padStart(width);
      return value > 0 ? paint("bold", text) : paint("dim", text);
    };
    const states = Object.entries(COLUMNS) as [keyof PoolView, number][];
    return states.map(([state, width]) => cell(pool[state], width)).join("") +
      cell(rate(commits), RATE_COLUMN);
  };
  const heads = Object.entries(COLUMNS).map(([state, width]) => state.padStart(width));
  const many = workers.length > MOST_WORKERS;
  const shown = many ? workers.slice(0, MOST_WORKERS - 1) : workers;
  const lines = shown.map((worker) =>
    row(worker.name, `${cells(worker)}  ${paint("yellow", worker.note)}`)
  );
  if (many) {
    const others = workers.slice(shown.length);
    lines.push(row(`${others.length} others`, cells(sumOf(others))));
  }
  return [
    "",
    row("", paint("dim", heads.join("") + "commits/s".padStart(RATE_COLUMN))),
    ...lines,
    row("all together", cells(scene)),
  ];
}

function sumOf(workers: readonly SourceView[]): Pick<SourceView, "pool" | "commits"> {
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
