/**
 * The simulated server's inside: tables, transactions, locks and what a session keeps. It knows no
 * bytes, and of time only what it is given.
 */

/** What a statement came to. */
export interface Outcome {
  readonly columns: readonly Column[];
  readonly rows: readonly (readonly (string | null)[])[];
  /** CommandComplete's words. */
  readonly tag: string;
  /** A COPY goes on with its own messages. */
  readonly copy?: "in" | "out";
}

export interface Column {
  readonly name: string;
  readonly type: number;
}

/** An error as the server tells it. */
export class SqlError {
  constructor(
    readonly code: string,
    readonly message: string,
    readonly severity: "ERROR" | "FATAL" = "ERROR",
  ) {}
}

/** The states of a transaction, in ReadyForQuery's letters. */
export type TransactionState = "I" | "T" | "E";

const INT4 = 23, INT8 = 20, TEXT = 25, VOID = 2278, BYTEA = 17, BOOL = 16, OID = 26, NUMERIC = 1700;

const TYPE_NAMES: Readonly<Record<number, string>> = {
  [INT4]: "int4",
  [INT8]: "int8",
  [TEXT]: "text",
  [BOOL]: "bool",
  [BYTEA]: "bytea",
  [OID]: "oid",
};
/** So many texts are kept of which is known what they mean. */
const MOST_REMEMBERED = 10_000;
/** How many accounts there are, numbered from 0. */
export const ACCOUNTS = 8;

interface Changes {
  /** Added to an account. */
  readonly accounts: Map<number, number>;
  readonly entries: Set<string>;
  /** Large objects that were made or written, whole. */
  readonly objects: Map<number, Uint8Array>;
}

interface Kept {
  readonly settings: ReadonlyMap<string, string>;
  readonly temporary: ReadonlySet<string>;
}

interface Savepoint {
  readonly name: string;
  readonly changes: Changes;
  readonly kept: Kept;
  /** How many notifications, and changes of what is listened to, were made before. */
  readonly pending: number;
  readonly hears: number;
}

interface Lock {
  holder: Session;
  times: number;
  readonly waiters: Wait[];
}

interface Wait {
  readonly session: Session;
  readonly granted: () => void;
}

/** Something that a statement waits for; cancelled by a cancel request or the session's end. */
interface Suspension {
  readonly cancel: () => void;
  readonly fail: (error: SqlError) => void;
}

/** The cluster's data: what survives sessions and, once committed, crashes. */
export class Database {
  readonly accounts: number[] = new Array(ACCOUNTS).fill(0);
  readonly entries: Set<string> = new Set();
  readonly objects: Map<number, Uint8Array> = new Map();
  /** Changes with each DDL: plans that were made before it are stale. */
  schema = 1;
  #oid = 16_384;
  readonly #locks = new Map<string, Lock>();
  readonly #listeners = new Map<string, Set<Session>>();

  /** A number for a large object. */
  nextOid(): number {
    return ++this.#oid;
  }

  /** Calls `then` once `session` has the lock; an error when it is chosen to break a deadlock. */
  lock(session: Session, key: string, then: (error?: SqlError) => void, wait = true): void {
    const lock = this.#locks.get(key);
    if (lock === undefined) {
      this.#locks.set(key, { holder: session, times: 1, waiters: [] });
      session.locks.add(key);
      return then();
    }
    if (lock.holder === session) {
      lock.times++;
      return then();
    }
    if (!wait) return then(new SqlError("55P03", "lock not available"));
    if (this.#waitsFor(lock.holder, session)) {
      return then(new SqlError("40P01", "deadlock detected"));
    }
    const waiter: Wait = {
      session,
      granted: () => {
        session.suspended = null;
        session.waitsFor = null;
        session.locks.add(key);
        then();
      },
    };
    lock.waiters.push(waiter);
    session.waitsFor = lock;
    session.suspended = {
      cancel: () => {
        lock.waiters.splice(lock.waiters.indexOf(waiter), 1);
        session.waitsFor = null;
      },
      fail: then,
    };
  }

  /** Gives a lock back once; true when the session had it. */
  unlock(session: Session, key: string, whole = true): boolean {
    const lock = this.#locks.get(key);
    if (lock === undefined || lock.holder !== session) return false;
    if (!whole && --lock.times > 0) return true;
    session.locks.delete(key);
    const next = lock.waiters.shift();
    if (next === undefined) this.#locks.delete(key);
    else {
      lock.holder = next.session;
      lock.times = 1;
      next.granted();
    }
    return true;
  }

  #waitsFor(from: Session, to: Session): boolean {
    for (let one: Session | undefined = from; one !== undefined;) {
      if (one === to) return true;
      one = one.waitsFor?.holder;
    }
    return false;
  }

  listen(session: Session, channel: string): void {
    let all = this.#listeners.get(channel);
    if (all === undefined) this.#listeners.set(channel, all = new Set());
    all.add(session);
    session.channels.add(channel);
  }

  unlisten(session: Session, channel: string | null): void {
    for (const name of channel === null ? [...session.channels] : [channel]) {
      this.#listeners.get(name)?.delete(session);
      session.channels.delete(name);
    }
  }

  notify(from: Session, channel: string, payload: string): void {
    for (const session of this.#listeners.get(channel) ?? []) {
      session.onnotify(from.pid, channel, payload);
    }
  }

  /** How many sessions hold or wait for locks: nothing may be left in the end. */
  get lockCount(): number {
    return this.#locks.size;
  }
}

/** What a session asks of the world around it. */
export interface SessionHost {
  /** True for a standby: nothing can be written. */
  readonly standby?: boolean;
  /** Calls back after so many milliseconds; returns how to call that off. */
  after(ms: number, fn: () => void): () => void;
}

const noChanges = (): Changes => ({ accounts: new Map(), entries: new Set(), objects: new Map() });

/** Statements that a standby refuses. */
const WRITES =
  /^(?:insert|update|delete|merge|alter|create|copy \S+(?: \([^)]*\))? from|listen|notify|select (?:lo_creat|lowrite|lo_truncate|pg_notify)|select .* for update)/i;

/** One backend. One statement runs at a time: `run` calls back when it is done. */
export class Session {
  state: TransactionState = "I";
  readonly locks: Set<string> = new Set();
  readonly channels: Set<string> = new Set();
  readonly settings: Map<string, string> = new Map();
  readonly temporary: Set<string> = new Set();
  /** Statements prepared by name, with the schema that they were planned for. */
  waitsFor: Lock | null = null;
  suspended: Suspension | null = null;
  onnotify: (pid: number, channel: string, payload: string) => void = () => {};
  /** True while a transaction that nobody asked for stands around one request. */
  #implicit = false;
  readonly pid: number;
  readonly database: Database;
  readonly #host: SessionHost;
  #changes: Changes = noChanges();
  #savepoints: Savepoint[] = [];
  /** Large objects that the transaction has open. */
  readonly #open = new Map<number, { readonly oid: number; at: number }>();
  #pending: [string, string][] = [];
  /** What it will listen to, and not, once the transaction is committed: `null` is everything. */
  #hears: [channel: string | null, on: boolean][] = [];
  /** What there was before the transaction changed it. */
  #before: Kept | null = null;

  constructor(database: Database, pid: number, host: SessionHost) {
    this.database = database;
    this.pid = pid;
    this.#host = host;
  }

  /** True when nothing of an earlier user is left in it. */
  get clean(): boolean {
    return this.state === "I" && this.channels.size === 0 && this.temporary.size === 0 &&
      this.locks.size === 0 && this.settings.size === 0;
  }

  /** What is left in it, for people. */
  get leftovers(): string {
    return [
      ...this.state === "I" ? [] : [`transaction ${this.state}`],
      ...[...this.channels].map((name) => `listens to ${name}`),
      ...[...this.temporary].map((name) => `temporary table ${name}`),
      ...[...this.locks].map((name) => `lock ${name}`),
      ...[...this.settings].map(([name, value]) => `${name} = ${value}`),
    ].join(", ");
  }

  /** A cancel request: only what waits can be cancelled, everything else is done in no time. */
  cancel(): boolean {
    return this.#interrupt(new SqlError("57014", "canceling statement due to user request"));
  }

  #interrupt(error: SqlError): boolean {
    const { suspended } = this;
    if (suspended === null) return false;
    this.suspended = null;
    suspended.cancel();
    suspended.fail(error);
    return true;
  }

  /** The session is over: what it has not committed is gone. */
  end(): void {
    this.suspended?.cancel();
    this.suspended = null;
    this.waitsFor = null;
    this.#changes = noChanges();
    this.#savepoints = [];
    this.#pending = [];
    this.state = "I";
    this.database.unlisten(this, null);
    for (const key of [...this.locks]) this.database.unlock(this, key);
  }

  /** Runs one statement, within the transaction that stands or one of its own until `settle`. */
  run(
    text: string,
    params: readonly (string | null)[],
    done: (result: Outcome | SqlError) => void,
  ): void {
    const sql = tidy(text);
    const finish = (result: Outcome | SqlError): void => {
      if (result instanceof SqlError) this.#fail();
      done(result);
    };
    const control = this.#control(sql);
    if (control !== null) return finish(control);
    if (this.state === "E") {
      return finish(
        new SqlError(
          "25P02",
          "current transaction is aborted, commands ignored until end of transaction block",
        ),
      );
    }
    if (this.#host.standby && WRITES.test(sql)) {
      const what = sql.split(" ")[0]!.toUpperCase();
      return finish(new SqlError("25006", `cannot execute ${what} in a read-only transaction`));
    }
    if (this.state === "I") this.#implicit = true;
    try {
      this.#statement(sql, params, finish);
    } catch (error) {
      if (!(error instanceof SqlError)) throw error;
      finish(error);
    }
  }

  /** The end of a request (Sync, or of a simple query): a transaction that nobody opened is committed. */
  settle(): void {
    if (this.state === "I") this.#commit();
  }

  /** Something has failed beside a statement. */
  abort(): void {
    this.#fail();
  }

  #fail(): void {
    if (this.state === "T") this.state = "E";
    else if (this.state === "I") this.#rollback();
  }

  #commit(): void {
    const { accounts, entries, objects } = this.database;
    for (const [id, sum] of this.#changes.accounts) accounts[id]! += sum;
    for (const [oid, bytes] of this.#changes.objects) objects.set(oid, bytes);
    for (const entry of this.#changes.entries) entries.add(entry);
    const pending = this.#pending;
    for (const [channel, on] of this.#hears) {
      if (on) this.database.listen(this, channel!);
      else this.database.unlisten(this, channel);
    }
    this.#clear();
    for (const [channel, payload] of pending) this.database.notify(this, channel, payload);
  }

  #rollback(): void {
    if (this.#before !== null) this.#restore(this.#before);
    this.#clear();
  }

  #keep(): Kept {
    return { settings: new Map(this.settings), temporary: new Set(this.temporary) };
  }

  #restore({ settings, temporary }: Kept): void {
    this.settings.clear();
    for (const [name, value] of settings) this.settings.set(name, value);
    this.temporary.clear();
    for (const name of temporary) this.temporary.add(name);
  }

  #clear(): void {
    this.#implicit = false;
    this.#changes = noChanges();
    this.#savepoints = [];
    this.#pending = [];
    this.#hears = [];
    this.#before = null;
    this.#open.clear();
    for (const key of [...this.locks]) {
      if (!key.startsWith("advisory ")) this.database.unlock(this, key);
    }
    this.state = "I";
  }

  /** begin, commit and their kind; null when it is something else. */
  #control(sql: string): Outcome | SqlError | null {
    const word = /^[a-z]+/i.exec(sql)?.[0]?.toLowerCase();
    switch (word) {
      case "begin":
      case "start": {
        if (this.state === "E") return null;
        this.state = "T";
        this.#implicit = false;
        return tag(word === "begin" ? "BEGIN" : "START TRANSACTION");
      }
      case "commit":
      case "end": {
        const failed = this.state === "E";
        if (failed) this.#rollback();
        else this.#commit();
        return tag(failed ? "ROLLBACK" : "COMMIT");
      }
      case "abort":
      case "rollback": {
        const name = /^rollback (?:work |transaction )?to (?:savepoint )?(\S+)$/i.exec(sql)?.[1];
        if (name === undefined) {
          this.#rollback();
          return tag("ROLLBACK");
        }
        if (this.state === "I") return noBlock("ROLLBACK TO SAVEPOINT");
        const at = this.#savepointAt(name);
        if (at < 0) return noSavepoint(name);
        const { changes, kept, pending, hears } = this.#savepoints[at]!;
        this.#savepoints.length = at + 1;
        this.#changes = copyOf(changes);
        this.#restore(kept);
        this.#pending.length = pending;
        this.#hears.length = hears;
        this.state = "T";
        return tag("ROLLBACK");
      }
      case "savepoint": {
        if (this.state === "E") return null;
        if (this.state === "I") return noBlock("SAVEPOINT");
        this.#savepoints.push({
          name: sql.slice(10).trim(),
          changes: copyOf(this.#changes),
          kept: this.#keep(),
          pending: this.#pending.length,
          hears: this.#hears.length,
        });
        return tag("SAVEPOINT");
      }
      case "release": {
        if (this.state === "E") return null;
        if (this.state === "I") return noBlock("RELEASE SAVEPOINT");
        const name = sql.replace(/^release (?:savepoint )?/i, "");
        const at = this.#savepointAt(name);
        if (at < 0) return noSavepoint(name);
        this.#savepoints.length = at;
        return tag("RELEASE");
      }
      default:
        return null;
    }
  }

  #savepointAt(name: string): number {
    return this.#savepoints.findLastIndex((savepoint) => savepoint.name === name);
  }

  #statement(
    sql: string,
    params: readonly (string | null)[],
    done: (result: Outcome | SqlError) => void,
  ): void {
    const { database } = this;
    let found: RegExpExecArray | null;
    const value = (term: string): string | null => {
      const at = /^\$(\d+)/.exec(term)?.[1];
      if (at === undefined) return term.replace(/^'(.*)'$/, "$1");
      const given = params[Number(at) - 1];
      if (given === undefined) throw new SqlError("42P02", `there is no parameter ${term}`);
      return given;
    };
    if (sql === "") return done({ columns: [], rows: [], tag: "" });
    if (
      (found = /^insert into ledger(?: \(id\))? values \(([^)]+)\)( returning id)?$/i.exec(sql))
    ) {
      const id = value(found[1]!)!;
      const returning = found[2] !== undefined;
      return database.lock(this, `ledger ${id}`, (error) => {
        if (error !== undefined) return done(error);
        if (database.entries.has(id) || this.#changes.entries.has(id)) {
          return done(
            new SqlError(
              "23505",
              'duplicate key value violates unique constraint "ledger_pkey"',
            ),
          );
        }
        this.#changes.entries.add(id);
        done({
          columns: returning ? [{ name: "id", type: TEXT }] : [],
          rows: returning ? [[id]] : [],
          tag: "INSERT 0 1",
        });
      });
    }
    if (
      (found =
        /^update account set balance = balance \+ (\S+) where id = (\S+)( returning balance)?$/i
          .exec(sql))
    ) {
      const sum = Number(value(found[1]!)), id = Number(value(found[2]!));
      const returning = found[3] !== undefined;
      const columns = returning ? [{ name: "balance", type: INT8 }] : [];
      if (!(id >= 0 && id < ACCOUNTS)) return done({ columns, rows: [], tag: "UPDATE 0" });
      return database.lock(this, `account ${id}`, (error) => {
        if (error !== undefined) return done(error);
        this.#changes.accounts.set(id, (this.#changes.accounts.get(id) ?? 0) + sum);
        done({
          columns,
          rows: returning ? [[String(this.#balance(id))]] : [],
          tag: "UPDATE 1",
        });
      });
    }
    if ((found = /^select balance from account where id = (\S+)( for update)?$/i.exec(sql))) {
      const id = Number(value(found[1]!));
      const rows = (): Outcome => {
        const known = id >= 0 && id < ACCOUNTS;
        return select(
          [{ name: "balance", type: INT8 }],
          known ? [[String(this.#balance(id))]] : [],
        );
      };
      if (found[2] === undefined) return done(rows());
      return database.lock(this, `account ${id}`, (error) => done(error ?? rows()));
    }
    if (/^select sum\(balance\) from account$/i.test(sql)) {
      let sum = 0;
      for (let id = 0; id < ACCOUNTS; id++) sum += this.#balance(id);
      return done(select([{ name: "sum", type: NUMERIC }], [[String(sum)]]));
    }
    if ((found = /^select id from ledger where id = (\S+)$/i.exec(sql))) {
      const id = value(found[1]!)!;
      const known = database.entries.has(id) || this.#changes.entries.has(id);
      return done(select([{ name: "id", type: TEXT }], known ? [[id]] : []));
    }
    if ((found = /^select n from generate_series\(1, ([^)]+)\) n$/i.exec(sql))) {
      const most = Number(value(found[1]!.replace(/::\w+$/, "")));
      const rows = Array.from({ length: most }, (_, i) => [String(i + 1)]);
      return done(select([{ name: "n", type: INT4 }], rows));
    }
    if (/ from (?:pg_catalog\.)?pg_type\b/i.test(sql)) {
      return done(
        select([
          { name: "oid", type: OID },
          { name: "typarray", type: OID },
          { name: "pid", type: INT4 },
        ], [[null, null, String(this.pid)]]),
      );
    }
    if ((found = /^copy ledger(?: \(id\))? (from stdin|to stdout)$/i.exec(sql))) {
      if (/^from/i.test(found[1]!)) return done({ columns: [], rows: [], tag: "COPY", copy: "in" });
      const rows = [...database.entries, ...this.#changes.entries].map((id) => [id]);
      return done({ columns: [], rows, tag: `COPY ${rows.length}`, copy: "out" });
    }
    if ((found = /^create temp(?:orary)? table (\w+)/i.exec(sql))) {
      const name = found[1]!;
      if (this.temporary.has(name)) {
        return done(new SqlError("42P07", `relation "${name}" already exists`));
      }
      this.#before ??= this.#keep();
      this.temporary.add(name);
      return done(tag("CREATE TABLE"));
    }
    if (/^alter table ledger\b/i.test(sql)) {
      database.schema++;
      return done(tag("ALTER TABLE"));
    }
    if ((found = /^set (?!local)(?:session )?([\w.]+) (?:=|to) '?([^']*)'?$/i.exec(sql))) {
      this.#before ??= this.#keep();
      this.settings.set(found[1]!.toLowerCase(), found[2]!);
      return done(tag("SET"));
    }
    if ((found = /^reset ([\w.]+)$/i.exec(sql))) {
      this.#before ??= this.#keep();
      if (found[1]!.toLowerCase() === "all") this.settings.clear();
      else this.settings.delete(found[1]!.toLowerCase());
      return done(tag("RESET"));
    }
    if ((found = /^show ([\w.]+)$/i.exec(sql))) {
      const name = found[1]!.toLowerCase();
      const shown = this.settings.get(name) ?? (name === "transaction_read_only" ? "off" : "");
      return done({ ...select([{ name, type: TEXT }], [[shown]]), tag: "SHOW" });
    }
    if (/^discard all$/i.test(sql)) {
      if (!this.#implicit) {
        return done(new SqlError("25001", "DISCARD ALL cannot run inside a transaction block"));
      }
      this.settings.clear();
      this.temporary.clear();
      database.unlisten(this, null);
      for (const key of [...this.locks]) database.unlock(this, key);
      this.ondiscard();
      return done(tag("DISCARD ALL"));
    }
    if ((found = /^listen "?(\w+)"?$/i.exec(sql))) {
      this.#hears.push([found[1]!, true]);
      return done(tag("LISTEN"));
    }
    if ((found = /^unlisten (?:"?(\w+)"?|\*)$/i.exec(sql))) {
      this.#hears.push([found[1] ?? null, false]);
      return done(tag("UNLISTEN"));
    }
    if ((found = /^notify "?(\w+)"?(?:, '([^']*)')?$/i.exec(sql))) {
      this.#notify(found[1]!, found[2] ?? "");
      return done(tag("NOTIFY"));
    }
    if ((found = /^select (.+)$/i.exec(sql))) return this.#select(found[1]!, value, done);
    done(syntaxError(sql));
  }

  /** Prepared statements are the protocol's; it hears of their end. */
  ondiscard: () => void = () => {};

  /** Of the same ones in one transaction one is sent. */
  #notify(channel: string, payload: string): void {
    if (this.#pending.some((one) => one[0] === channel && one[1] === payload)) return;
    this.#pending.push([channel, payload]);
  }

  #object(oid: number): Uint8Array | undefined {
    return this.#changes.objects.get(oid) ?? this.database.objects.get(oid);
  }

  #balance(id: number): number {
    return this.database.accounts[id]! + (this.#changes.accounts.get(id) ?? 0);
  }

  /** A list of terms without a table. */
  #select(
    list: string,
    value: (term: string) => string | null,
    done: (result: Outcome | SqlError) => void,
  ): void {
    const terms = termsOf(list);
    if (terms instanceof SqlError) return done(terms);
    const columns = terms.map(({ column }) => column);
    const row: (string | null)[] = [];
    const next = (at: number): void => {
      if (at === terms.length) return done(select(columns, [row]));
      this.#term(terms[at]!.text, value, (result) => {
        if (result instanceof SqlError) return done(result);
        row.push(result.value);
        next(at + 1);
      });
    };
    next(0);
  }

  #term(
    term: string,
    value: (term: string) => string | null,
    done: (result: { value: string | null } | SqlError) => void,
  ): void {
    const { database } = this;
    if (/^1 ?\/ ?0$/.test(term)) return done(new SqlError("22012", "division by zero"));
    const plain = term.replace(/::\w+$/, "");
    const call = /^(?:pg_catalog\.)?(\w+)\((.*)\)$/i.exec(plain);
    if (call === null) return done({ value: /^null$/i.test(plain) ? null : value(plain) });
    const name = call[1]!.toLowerCase();
    const args = call[2] === ""
      ? []
      : call[2]!.split(",").map((arg) => value(arg.trim().replace(/::\w+$/, "")));
    const say = (text: string | null) => done({ value: text });
    switch (name) {
      case "pg_backend_pid":
        return say(String(this.pid));
      case "pg_sleep": {
        const stop = this.#host.after(Number(args[0]) * 1000, () => {
          this.suspended = null;
          say("");
        });
        this.suspended = { cancel: stop, fail: done };
        return;
      }
      case "current_setting": {
        const found = this.settings.get(args[0]!.toLowerCase());
        if (found === undefined && args[1] !== "true") {
          return done(
            new SqlError("42704", `unrecognized configuration parameter "${args[0]}"`),
          );
        }
        return say(found ?? null);
      }
      case "set_config":
        this.#before ??= this.#keep();
        this.settings.set(args[0]!.toLowerCase(), args[1]!);
        return say(args[1]!);
      case "pg_advisory_lock":
        return database.lock(this, `advisory ${args[0]}`, (error) => {
          if (error !== undefined) done(error);
          else say("");
        });
      case "pg_try_advisory_lock":
        return database.lock(
          this,
          `advisory ${args[0]}`,
          (error) => say(error === undefined ? "t" : "f"),
          false,
        );
      case "pg_advisory_unlock":
        return say(database.unlock(this, `advisory ${args[0]}`, false) ? "t" : "f");
      case "pg_notify":
        this.#notify(args[0]!, args[1]!);
        return say("");
      case "pg_is_in_recovery":
        return say(this.#host.standby ? "t" : "f");
      case "lo_creat": {
        const oid = database.nextOid();
        this.#changes.objects.set(oid, new Uint8Array(0));
        return say(String(oid));
      }
      case "lo_open": {
        const oid = Number(args[0]);
        if (this.#object(oid) === undefined) {
          return done(new SqlError("42704", `large object ${oid} does not exist`));
        }
        const fd = this.#open.size;
        this.#open.set(fd, { oid, at: 0 });
        return say(String(fd));
      }
      case "loread":
      case "lowrite":
      case "lo_lseek64":
      case "lo_tell64":
      case "lo_close": {
        const fd = Number(args[0]);
        const file = this.#open.get(fd);
        if (file === undefined) {
          return done(new SqlError("42704", `invalid large-object descriptor: ${fd}`));
        }
        if (name === "lo_tell64") return say(String(file.at));
        if (name === "lo_close") {
          this.#open.delete(fd);
          return say("0");
        }
        const bytes = this.#object(file.oid)!;
        if (name === "lo_lseek64") {
          file.at = Number(args[1]) + [0, file.at, bytes.length][Number(args[2] ?? 0)]!;
          return say(String(file.at));
        }
        if (name === "loread") {
          const part = bytes.subarray(file.at, file.at + Number(args[1]));
          file.at += part.length;
          return say(`\\x${hexOf(part)}`);
        }
        const data = bytesOf(args[1]!);
        const all = new Uint8Array(Math.max(bytes.length, file.at + data.length));
        all.set(bytes);
        all.set(data, file.at);
        file.at += data.length;
        this.#changes.objects.set(file.oid, all);
        return say(String(data.length));
      }
      default:
        return done(new SqlError("42883", `function ${name}() does not exist`));
    }
  }
}

/** What the types of a statement's parameters are, as the planner would say. */
export const parameterTypes: (text: string) => readonly number[] = remembered((text) => {
  const types: number[] = [];
  const number = /\b(?:account|balance|generate_series|lo_?\w+)\b/i.test(text);
  for (const [, at, cast] of text.matchAll(/\$(\d+)(?:::(\w+))?/g)) {
    types[Number(at) - 1] = cast === undefined ? number ? INT4 : TEXT : castTo(cast);
  }
  if (/\blowrite\(/.test(text)) types[1] = BYTEA;
  if (/\bbalance \+ \$1\b/.test(text)) types[0] = INT8;
  return Array.from(types, (type) => type ?? TEXT);
});

/** The types of what functions give. */
const FUNCTIONS: Readonly<Record<string, number>> = {
  pg_backend_pid: INT4,
  pg_sleep: VOID,
  current_setting: TEXT,
  set_config: TEXT,
  pg_advisory_lock: VOID,
  pg_try_advisory_lock: BOOL,
  pg_advisory_unlock: BOOL,
  pg_notify: VOID,
  pg_is_in_recovery: BOOL,
  lo_creat: OID,
  lo_open: INT4,
  lo_lseek64: INT8,
  lo_tell64: INT8,
  lo_close: INT4,
  loread: BYTEA,
  lowrite: INT4,
};

/** What a term of a select without a table gives, and how that is called. */
function shapeOf(term: string): Column | SqlError {
  const [, plain, cast] = /^(.*?)(?:::(\w+))?$/.exec(term)!;
  if (/^1 ?\/ ?0$/.test(term)) return { name: "?column?", type: INT4 };
  const named = cast === undefined ? "?column?" : TYPE_NAMES[castTo(cast)]!;
  if (/^null$/i.test(plain!)) {
    return { name: named, type: cast === undefined ? TEXT : castTo(cast) };
  }
  if (/^(?:'[^']*'|\$\d+|-?\d+)$/.test(plain!)) {
    const type = cast === undefined ? /^-?\d+$/.test(plain!) ? INT4 : TEXT : castTo(cast);
    return { name: named, type };
  }
  const name = /^(?:pg_catalog\.)?(\w+)\(.*\)$/i.exec(plain!)?.[1]?.toLowerCase();
  if (name === undefined) return new SqlError("42703", `column "${plain}" does not exist`);
  const type = FUNCTIONS[name];
  return type === undefined
    ? new SqlError("42883", `function ${name}() does not exist`)
    : { name, type };
}

interface Term {
  readonly text: string;
  readonly column: Column;
}

/** The terms of a select without a table. */
function termsOf(list: string): readonly Term[] | SqlError {
  const terms: Term[] = [];
  for (const part of list.split(/,(?![^(]*\))/)) {
    const [, text, alias] = /^(.*?)(?: as "?(\w+)"?)?$/i.exec(part.trim())!;
    const shape = shapeOf(text!);
    if (shape instanceof SqlError) return shape;
    terms.push({ text: text!, column: alias === undefined ? shape : { ...shape, name: alias } });
  }
  return terms;
}

const TABLES: readonly (readonly [RegExp, readonly Column[]])[] = [
  [/^insert into ledger.* returning id$/i, [{ name: "id", type: TEXT }]],
  [/^update account .* returning balance$/i, [{ name: "balance", type: INT8 }]],
  [/^select balance from account\b/i, [{ name: "balance", type: INT8 }]],
  [/^select sum\(balance\) from account$/i, [{ name: "sum", type: NUMERIC }]],
  [/^select id from ledger\b/i, [{ name: "id", type: TEXT }]],
  [/^select n from generate_series/i, [{ name: "n", type: INT4 }]],
  [/ from (?:pg_catalog\.)?pg_type\b/i, [{ name: "oid", type: OID }, {
    name: "typarray",
    type: OID,
  }]],
];

/** The columns of a statement's rows, without running it: null when it has none, an error when it cannot be planned. */
export const columnsOf: (text: string) => readonly Column[] | SqlError | null = remembered((text) =>
  describe(tidy(text))
);

function describe(sql: string): readonly Column[] | SqlError | null {
  if (sql === "") return null;
  for (const [pattern, columns] of TABLES) if (pattern.test(sql)) return columns;
  const shown = /^show ([\w.]+)$/i.exec(sql)?.[1];
  if (shown !== undefined) return [{ name: shown.toLowerCase(), type: TEXT }];
  const list = /^select (.+)$/i.exec(sql)?.[1];
  if (list !== undefined) {
    const terms = termsOf(list);
    return terms instanceof SqlError ? terms : terms.map(({ column }) => column);
  }
  return KNOWN.test(sql) ? null : syntaxError(sql);
}

/** First words of what is understood. */
const KNOWN =
  /^(?:abort|alter|begin|commit|copy|create|deallocate|discard|end|insert|listen|notify|release|reset|rollback|savepoint|set|start|unlisten|update)\b/i;

function syntaxError(sql: string): SqlError {
  return new SqlError("42601", `syntax error at or near "${sql.split(" ")[0]}"`);
}

/** Without comments, a semicolon at the end, and more white space than needed. */
const tidy = remembered((text) =>
  text.replace(/\/\*[\s\S]*?\*\/|--[^\n]*/g, " ").replace(/\s+/g, " ").trim()
    .replace(/;$/, "").trim()
);

/** What the server refuses before it looks at what a statement is about. */
export const syntaxFault: (text: string) => SqlError | null = remembered((text) => {
  const sql = tidy(text);
  return sql === "" || KNOWN.test(sql) || /^(?:select|show)\b/i.test(sql) ? null : syntaxError(sql);
});

/** True for what is done also in a transaction that has failed. */
export const endsTransaction: (text: string) => boolean = remembered((text) =>
  /^(?:commit|end|abort|rollback)\b/i.test(tidy(text))
);

/** Of a text what was made of it the last time: there are few texts, and each comes many times. */
function remembered<T>(make: (text: string) => T): (text: string) => T {
  const known = new Map<string, T>();
  return (text) => {
    let made = known.get(text);
    if (made === undefined) {
      if (known.size > MOST_REMEMBERED) known.clear();
      known.set(text, made = make(text));
    }
    return made;
  };
}

function tag(words: string): Outcome {
  return { columns: [], rows: [], tag: words };
}

function select(
  columns: readonly Column[],
  rows: readonly (readonly (string | null)[])[],
): Outcome {
  return { columns, rows, tag: `SELECT ${rows.length}` };
}

function noBlock(what: string): SqlError {
  return new SqlError("25P01", `${what} can only be used in transaction blocks`);
}

function noSavepoint(name: string): SqlError {
  return new SqlError("3B001", `savepoint "${name}" does not exist`);
}

function copyOf({ accounts, entries, objects }: Changes): Changes {
  return { accounts: new Map(accounts), entries: new Set(entries), objects: new Map(objects) };
}

function hexOf(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function bytesOf(hex: string): Uint8Array {
  return Uint8Array.from(hex.slice(2).match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

function castTo(name: string): number {
  switch (name.toLowerCase()) {
    case "int":
    case "int4":
      return INT4;
    case "bigint":
    case "int8":
      return INT8;
    case "bool":
    case "boolean":
      return BOOL;
    default:
      return TEXT;
  }
}
