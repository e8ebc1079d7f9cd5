/** All rows and curves, in the order in which they run. */

import type { Curve, Row } from "./contest.ts";
import { borrow, borrowAny } from "./rows/borrow.ts";

/** The comparisons. */
export const ROWS: readonly Row[] = [borrow, borrowAny];

/** The charts of scale. */
export const CURVES: readonly Curve[] = [];
