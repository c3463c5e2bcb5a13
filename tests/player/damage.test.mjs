// Damaged and hostile elastic files: one message of ours each, in little time and memory.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { Decoder } from "../../flexgs_lightning/deploy/web/player/egs/decoder.js";
import { FileError, crc32, readHeader } from "../../flexgs_lightning/deploy/web/player/egs/header.js";
import { Stream, longBits, newTables, symbol } from "../../flexgs_lightning/deploy/web/player/egs/rans.js";

const FILES = ["levels", "film"].map((name) => {
  const file = new Uint8Array(readFileSync(new URL(`../known_answers/${name}.egs`, import.meta.url)));
  return { name, file, header: readHeader(file) };
});
let seed = 3;
const next = (below) => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) % below;

/** Decode all, with checksums that agree with the bytes when `forged`. */
function decode(bytes, forged) {
  const found = readHeader(bytes);
  const decoders = found.totals.map((_, group) => new Decoder(found, group));
  for (const entry of found.entries) {
    const chunk = bytes.subarray(entry.offset, entry.end);
    if (forged) entry.checksum = crc32(chunk);
    decoders[entry.group].decode(chunk, entry);
  }
}

for (const { name, file, header } of FILES) {
  test(`${name}: every damaged byte of chunks is found by its checksum`, () => {
    for (let i = 0; i < 100; i++) {
      const bytes = file.slice();
      bytes[header.entries[0].offset + next(bytes.length - header.entries[0].offset)] ^= 1 << next(8);
      assert.throws(() => decode(bytes, false), FileError);
    }
  });

  test(`${name}: chunks whose checksum was forged are refused or decoded, and nothing else`, () => {
    let refused = 0;
    for (let i = 0; i < 100; i++) {
      const bytes = file.slice();
      bytes[header.entries[0].offset + next(bytes.length - header.entries[0].offset)] ^= 1 << next(8);
      try {
        decode(bytes, true);
      } catch (error) {
        assert.ok(error instanceof FileError, String(error));
        refused++;
      }
    }
    assert.ok(refused > 75);
  });

  test(`${name}: headers whose checksum was forged are refused or read, and nothing else`, () => {
    const end = header.entries[0].offset;
    for (let i = 0; i < 200; i++) {
      const bytes = file.slice();
      bytes[20 + next(i % 2 ? 60 : end - 20)] = next(256);
      new DataView(bytes.buffer).setUint32(16, crc32(bytes.subarray(20, end)), true);
      try {
        decode(bytes, false);
      } catch (error) {
        assert.ok(error instanceof FileError, String(error.stack));
      }
    }
  });
}

test("streams that end early, or begin as none does, give symbols all the same and have not ended well", () => {
  for (const bytes of [[], [0], [127, 255, 255], [0, 0, 0, 0], [255, 255, 255, 255], [1, 0, 0, 0], [127, 255, 255, 255]]) {
    const stream = new Stream(Uint8Array.from(bytes));
    const tables = newTables(1);
    for (let i = 0; i < 1000; i++) assert.ok(symbol(stream, tables, 0) < 16);
    assert.ok(Number.isSafeInteger(longBits(stream, 48)));
    assert.ok(!stream.endedWell);
  }
  assert.ok(new Stream(new Uint8Array(0)).endedWell);
});

test("files that are cut off, empty or something else are refused", () => {
  for (const bytes of [FILES[0].file.subarray(0, 0), FILES[0].file.subarray(0, 19), FILES[0].file.subarray(0, 300), new Uint8Array(500)]) {
    assert.throws(() => readHeader(bytes), FileError);
  }
});
