/** One run from beginning to end: server, data, pool, load and chaos, audit. */

import {
  auditBalances,
  auditCap,
  auditClosed,
  auditLedger,
  auditLending,
  auditTasks,
} from "./audit.ts";
import { Chaos, killBackends } from "./chaos.ts";
import { Crew } from "./crew.ts";
import { openDatabase } from "./database.ts";
import { count } from "./format.ts";
import type { Interrupt } from "./interrupt.ts";
import type { DemoOptions } from "./options.ts";
import { type Check, runtime, step, table } from "./report.ts";
import { Sampler } from "./sampler.ts";
import { Camera } from "./scene.ts";
import { LocalSite, PATIENCE, type Site } from "./site.ts";
import { paint } from "./terminal.ts";
import { createTables, ROWS } from "./tpcb.ts";
import { newView } from "./view.ts";

/** How long the tasks may take to end, in milliseconds; after that they count as hanging. */
const END_LIMIT = 20_000;
/** Milliseconds between two pictures. */
const REFRESH = 100;

/** Runs the demo; true when every check of the audit has passed. */
export async function runDemo(options: DemoOptions, interrupt: Interrupt): Promise<boolean> {
  const { maxconn, scale, workers, seconds } = options;
  console.log();
  await using db = await openDatabase(maxconn);
  const admin = db.observer();
  await step(
    `loading ${count(scale * ROWS.accounts)} accounts into PostgreSQL ${db.version}`,
    interrupt.during(createTables(admin, scale)),
  );
  const sampler = new Sampler(db.observer(), db.watched);
  await sampler.look();
  sampler.start();

  await using site: Site = workers > 0 ? new Crew(db, options) : new LocalSite(db, options);
  const { pool, ledger } = site;
  const ready = interrupt.during(site.prepare());
  await (workers > 0 ? step(`starting ${workers} workers`, ready) : ready);
  const mischiefs = [killBackends(admin, db.watched.applicationName), ...site.mischiefs];
  const chaos = new Chaos(options.chaos ? mischiefs : []);
  const view = newView();
  const camera = new Camera({
    options,
    platform: `${runtime()}, PostgreSQL ${db.version}`,
    sessions: sampler,
    strikes: chaos.strikes,
    sources: site.sources,
    stats: () => pool.stats(),
  });

  site.start();
  chaos.start();
  const timer = setInterval(() => view.show(camera.take()), REFRESH);
  await interrupt.orAfter(seconds * 1_000);
  await endWithin(END_LIMIT, site.stop());
  await chaos.stop();
  clearInterval(timer);
  view.end(camera.take());

  const checks: Check[] = [auditTasks(site.tasks()), await auditLending(pool, maxconn)];
  await pool.close({ timeout: PATIENCE });
  checks.push(await auditClosed(sampler));
  await sampler.stop();
  checks.push(auditCap(sampler, maxconn));
  checks.push(...await auditBalances(admin), ...await auditLedger(admin, ledger));
  console.log(table(checks, paint));
  return checks.every(({ passed }) => passed);
}

async function endWithin(ms: number, work: Promise<void>): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const limit = new Promise<void>((resolve) => timer = setTimeout(resolve, ms));
  await Promise.race([work, limit]);
  clearTimeout(timer);
}
