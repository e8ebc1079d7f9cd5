/** A startup whose frames are flipped, cut, repeated, reordered and mixed with others: it ends, in time, and quietly. */

import { assert } from "@std/assert";
import { Buffer } from "node:buffer";
import process from "node:process";
import { dialer } from "./support/dial.ts";
import { Dice } from "./support/dice.ts";
import {
  auth,
  fakePostgres,
  key,
  message,
  parameter,
  type Peer,
  ready,
  refusal,
  scram,
  welcome,
} from "./support/fake_postgres.ts";
import { test } from "./support/harness.ts";

/** What a frame is replaced by. */
type Fault = (frame: Buffer, dice: Dice) => { frames: Buffer[]; end?: boolean; hold?: boolean };

const FAULTS: Readonly<Record<string, Fault>> = {
  flip: (frame, dice) => {
    const bytes = Buffer.from(frame);
    bytes[dice.below(bytes.length)]! ^= 1 << dice.below(8);
    return { frames: [bytes] };
  },
  scramble: (frame, dice) => {
    const bytes = Buffer.from(frame);
    for (let n = dice.from(1, 8); n > 0; n--) bytes[dice.below(bytes.length)] = dice.below(256);
    return { frames: [bytes] };
  },
  cut: (frame, dice) => ({
    frames: [frame.subarray(0, dice.below(frame.length))],
    end: dice.chance(0.5),
  }),
  repeat: (frame, dice) => ({ frames: Array(dice.from(2, 5)).fill(frame) }),
  later: (frame) => ({ frames: [frame], hold: true }),
  drop: () => ({ frames: [] }),
  insert: (frame, dice) => {
    const odd = dice.of([
      auth(0),
      auth(3),
      auth(11, "r=x,s=AAAA,i=1"),
      ready(),
      key(),
      parameter("a", "b"),
      message("v", Buffer.alloc(8)),
      message("D", "\0\0"),
      refusal("28000", "odd"),
      refusal("00000", "odd", "ERROR"),
      message("N", "SNOTICE\0\0"),
      message("Z", "", dice.below(0xffffffff)),
      Buffer.from([dice.below(256)]),
    ]);
    return { frames: dice.chance(0.5) ? [odd, frame] : [frame, odd] };
  },
};

/** Frame by frame, the one of number `at` with the fault. */
function spoil(peer: Peer, fault: Fault, at: number, dice: Dice): void {
  let number = 0;
  let held: Buffer[] = [];
  const send = peer.send.bind(peer);
  peer.send = (...bytes) => {
    let rest = Buffer.concat(bytes);
    while (rest.length > 0) {
      const length = 1 + rest.readUInt32BE(1);
      const frame = rest.subarray(0, length);
      rest = rest.subarray(length);
      if (number++ !== at) {
        send(frame, ...held);
        held = [];
        continue;
      }
      const { frames, end = false, hold = false } = fault(frame, dice);
      if (hold) held = frames;
      else if (frames.length > 0) send(...frames);
      if (end) peer.socket.end();
    }
  };
}

const LOGINS: Readonly<Record<string, (peer: Peer) => Promise<unknown> | void>> = {
  trust() {},
  async clear(peer) {
    peer.send(auth(3));
    await peer.next();
  },
  async md5(peer) {
    peer.send(auth(5, "salt"));
    await peer.next();
  },
  scram: (peer) => scram(peer, "secret", { iterations: 1 }),
};

test(
  "startup: whatever happens to its frames, it ends in time, and nothing is uncaught",
  async () => {
    const seed = Number(process.env["MODEL_SEED"] ?? Date.now() % 1_000_000);
    const dice = new Dice(seed);
    const rounds = Number(process.env["FUZZ_ROUNDS"] ?? 400);
    let opened = 0;
    const reasons = new Map<string, number>();
    async function one(): Promise<void> {
      const login = dice.of(Object.keys(LOGINS));
      const kind = dice.of(Object.keys(FAULTS));
      const at = dice.below(8);
      const own = new Dice(dice.below(2 ** 31));
      await using server = await fakePostgres(async (peer) => {
        await peer.startup();
        spoil(peer, FAULTS[kind]!, at, own);
        await LOGINS[login]!(peer);
        peer.send(welcome());
      });
      const what = `MODEL_SEED=${seed} ${login} ${kind} ${at}`;
      const before = performance.now();
      try {
        const started = await dialer({ port: server.port, connectTimeout: 2_000 }).connect(
          new AbortController().signal,
        );
        opened++;
        // Nobody is let in by a login that was not completed.
        assert(started.key.secret.length === 0 || started.key.secret.length >= 4, what);
        started.transport.destroy();
      } catch (error) {
        assert(error instanceof Error && error.message !== "", `${what}: ${error}`);
        const code = String((error as { code?: unknown }).code);
        reasons.set(code, (reasons.get(code) ?? 0) + 1);
      }
      // One limit, one farewell of a second, and a busy machine.
      assert(
        performance.now() - before < 30_000,
        `${what}: it took ${performance.now() - before} ms`,
      );
    }
    for (let i = 0; i < rounds; i += 40) await Promise.all(Array.from({ length: 40 }, one));
    // It was no test if all, or none, of them had passed.
    assert(opened > rounds / 20 && opened < rounds, `${opened} of ${rounds} were opened`);
    assert((reasons.get("PROTOCOL_VIOLATION") ?? 0) > rounds / 20, JSON.stringify([...reasons]));
  },
  { timeout: 300_000 },
);
