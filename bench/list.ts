/** All rows and curves, in the order in which they run. */

import type { Curve, Row } from "./contest.ts";
import { FAKE_CURVES } from "./curves/fakes.ts";
import { LOAD_CURVES, SHARE_CURVES } from "./curves/load.ts";
import { borrow, borrowAny } from "./rows/borrow.ts";
import { cold } from "./rows/cold.ts";
import { leasedQuery, leases, poolSql } from "./rows/statements.ts";
import { cursor, stream } from "./rows/stream.ts";
import {
  WORKER_CURVES,
  workersCrowd16,
  workersCrowd32,
  workersEven,
  workersSkewed,
} from "./rows/workers.ts";

/** The comparisons. */
export const ROWS: readonly Row[] = [
  borrow,
  borrowAny,
  leasedQuery,
  leases,
  poolSql,
  stream,
  cursor,
  cold,
  workersEven,
  workersSkewed,
  workersCrowd16,
  workersCrowd32,
];

/** The charts of scale. */
export const CURVES: readonly Curve[] = [
  ...FAKE_CURVES,
  ...LOAD_CURVES,
  ...SHARE_CURVES,
  ...WORKER_CURVES,
];
