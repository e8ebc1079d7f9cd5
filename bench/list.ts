/** All rows and curves, in the order in which they run. */

import { type Curve, type Row, runtime } from "./contest.ts";
import { FAKE_CURVES } from "./curves/fakes.ts";
import { LOAD_CURVES, SHARE_CURVES } from "./curves/load.ts";
import { borrow, borrowAny } from "./rows/borrow.ts";
import { cold } from "./rows/cold.ts";
import { COST_ROWS } from "./rows/costs.ts";
import { SHARED_ROWS } from "./rows/shared.ts";
import { leasedQuery, leases, transactions } from "./rows/statements.ts";
import { STREAM_ROWS } from "./rows/stream.ts";
import {
  WORKER_CURVES,
  workersCrowd16,
  workersCrowd32,
  workersEven,
  workersSkewed,
} from "./rows/workers.ts";

const ALL: readonly Row[] = [
  borrow,
  borrowAny,
  leasedQuery,
  leases,
  transactions,
  ...SHARED_ROWS,
  ...STREAM_ROWS,
  ...COST_ROWS,
  cold,
  workersEven,
  workersSkewed,
  workersCrowd16,
  workersCrowd32,
];

/** The comparisons of this runtime. */
export const ROWS: readonly Row[] = ALL.filter(({ only = runtime }) => only === runtime);

/** The charts of scale. */
export const CURVES: readonly Curve[] = [
  ...FAKE_CURVES,
  ...LOAD_CURVES,
  ...SHARE_CURVES,
  ...WORKER_CURVES,
];
