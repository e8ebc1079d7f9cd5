/** Prints the milliseconds from here to the first row. */
import process from "node:process";

const began = performance.now();
const { default: pg } = await import("pg");
const pool = new pg.Pool({ connectionString: process.env["DATABASE_URL"]!, max: 1 });
const { rows } = await pool.query({ name: "one", text: "select $1::int as x", values: [42] });
console.log(rows[0].x === 42 ? performance.now() - began : "wrong");
process.exit(0);
