/** Large objects on a leased session, with the driver's interface. */

import type { Buffer } from "node:buffer";
import { Readable, Writable } from "node:stream";
import type postgres from "postgres";
import { ignore } from "../pool/safely.ts";

const READ_AND_WRITE = 0x00020000 | 0x00040000;
const CHUNK = 16_384;

interface ReadOptions {
  readonly highWaterMark?: number | undefined;
  readonly start?: number | undefined;
  readonly end?: number | undefined;
}

/** Opens or makes a large object in a transaction of its own, which `close` commits, or rolls back when something in it has failed. */
export function largeObject(
  conn: postgres.Sql,
  oid?: number,
  mode: number = READ_AND_WRITE,
): Promise<postgres.LargeObject> {
  return new Promise((resolve, reject) => {
    const transaction = conn.begin(async (sql) => {
      const id = oid || (await sql`select lo_creat(-1) as oid`)[0]!["oid"];
      const [row] = await sql`select lo_open(${id}, ${mode}) as fd`;
      // The transaction is open until `close` says that it is done.
      await new Promise<void>((done) => {
        const finish = async (): Promise<void> => {
          done();
          await transaction;
        };
        resolve(operations(sql, row!["fd"], finish));
      });
    });
    transaction.catch(reject);
  });
}

function operations(
  sql: postgres.TransactionSql,
  fd: number,
  finish: () => Promise<void>,
): postgres.LargeObject {
  const lo = {
    close: async () => {
      // When it fails, or anything has before, the transaction tells so; it must end in any case.
      await sql`select lo_close(${fd})`.catch(ignore);
      await finish();
    },
    tell: () => sql`select lo_tell64(${fd})`,
    read: (size: number) => sql`select loread(${fd}, ${size}) as data`,
    write: (data: Uint8Array) => sql`select lowrite(${fd}, ${data})`,
    truncate: (size: number) => sql`select lo_truncate64(${fd}, ${size})`,
    seek: (offset: number, whence = 0) => sql`select lo_lseek64(${fd}, ${offset}, ${whence})`,
    size: () =>
      sql`select lo_lseek64(${fd}, location, 0) as position, seek.size from (
        select lo_lseek64(${fd}, 0, 2) as size, tell.location
        from (select lo_tell64(${fd}) as location) tell) seek`,
    readable: async ({ highWaterMark = CHUNK, start = 0, end = Infinity }: ReadOptions = {}) => {
      if (start > 0) await lo.seek(start);
      let left = end - start;
      return new Readable({
        highWaterMark,
        read(size) {
          const wanted = Math.min(size, left);
          lo.read(wanted).then((rows) => {
            const data = rows[0]!["data"] as Buffer;
            left -= data.length;
            if (data.length > 0) this.push(data);
            if (data.length < wanted || left <= 0) this.push(null);
          }, (error) => this.destroy(error));
        },
      });
    },
    writable: async ({ highWaterMark = CHUNK, start = 0 }: ReadOptions = {}) => {
      if (start > 0) await lo.seek(start);
      return new Writable({
        highWaterMark,
        write(chunk, _encoding, callback) {
          lo.write(chunk).then(() => callback(), callback);
        },
      });
    },
  };
  return lo as unknown as postgres.LargeObject;
}
