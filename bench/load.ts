/** The load driver: so many tasks, each does its work over and over, for so long. */

import process from "node:process";
import type { Sample } from "./contest.ts";
import { percentile } from "./stats.ts";

/**
 * Operations per second; in `more` the median and 99th percentile of one, and the time of the
 * processor that this process spent on one, all in microseconds.
 */
export async function load(
  tasks: number,
  span: number,
  work: (turn: number) => Promise<unknown>,
): Promise<Sample> {
  let turn = 0;
  let end = Infinity;
  const times: number[] = [];
  async function task(): Promise<void> {
    while (true) {
      const began = performance.now();
      if (began >= end) return;
      await work(turn++);
      times.push(performance.now() - began);
    }
  }
  const before = process.cpuUsage();
  const began = performance.now();
  end = began + span;
  await Promise.all(Array.from({ length: tasks }, task));
  const took = performance.now() - began;
  const { user, system } = process.cpuUsage(before);
  return {
    value: times.length / took * 1e3,
    more: {
      p50: percentile(times, 0.5) * 1e3,
      p99: percentile(times, 0.99) * 1e3,
      cpu: (user + system) / times.length,
    },
  };
}
