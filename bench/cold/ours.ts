/** Prints the milliseconds from here to the first row. */
import process from "node:process";

const began = performance.now();
const { SimpleConnectionPool } = await import("@getconn/pool");
const pool = new SimpleConnectionPool(0, 1, process.env["DATABASE_URL"]!);
const conn = await pool.getconn();
const [row] = await conn<{ x: number }[]>`select ${42}::int as x`;
console.log(row?.x === 42 ? performance.now() - began : "wrong");
process.exit(0);
