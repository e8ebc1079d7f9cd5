/** Prints the milliseconds from here to the first row. */
import process from "node:process";

const began = performance.now();
const { default: postgres } = await import("postgres");
const sql = postgres(process.env["DATABASE_URL"]!, { max: 1 });
const [row] = await sql<{ x: number }[]>`select ${42}::int as x`;
console.log(row?.x === 42 ? performance.now() - began : "wrong");
process.exit(0);
