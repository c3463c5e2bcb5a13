// The elastic file's frame: header, index and checksums (docs/elastic_file.md, section 1).

import { FEATURES, RULES, STEPS, WIDTH } from "./rows.js";

const MAGIC = [0x89, 0x45, 0x47, 0x53, 0x0d, 0x0a, 0x1a, 0x0a];
const VERSION = 1;
const MOST_HEADER = 1 << 24;
const MOST_LEVELS = 32;
const MOST_WEIGHT = 1 << 20;
const ROUNDING = 1e-12; // 0.29 * 100 is 28.999999999999996 in floating point

/** Bytes that say how long the header is. */
export const START_BYTES = 20;

/** What is wrong with a file, in words for people. */
export class FileError extends Error {}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** CRC-32 of bytes, the one of zlib. */
export function crc32(bytes) {
  let crc = -1;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** floor(ratio * total), where the product may fall short of an integer by rounding. */
export function countAt(ratio, total) {
  return Math.min(Math.floor(ratio * total * (1 + ROUNDING)), total);
}

/** Length of the whole header, from the file's first `START_BYTES` bytes. */
export function headerLength(start) {
  if (start.length < START_BYTES || MAGIC.some((byte, i) => start[i] !== byte)) {
    throw new FileError("This is no elastic file (.egs).");
  }
  const view = new DataView(start.buffer, start.byteOffset);
  const version = view.getUint16(8, true);
  if (version !== VERSION || view.getUint16(10, true) !== 0) {
    throw new FileError(`The elastic file has version ${version}, which this player does not read.`);
  }
  const length = view.getUint32(12, true);
  check(length <= MOST_HEADER, "length", length);
  return START_BYTES + length;
}

/** Read a header, given at least all of its bytes; every field is checked before it is used. */
export function readHeader(bytes) {
  const end = headerLength(bytes);
  const body = bytes.subarray(START_BYTES, end);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  if (body.length < end - START_BYTES || crc32(body) !== view.getUint32(16, true)) {
    throw new FileError("The elastic file is damaged: its header does not match its checksum.");
  }
  const reader = new Reader(body);
  const total = reader.number("Uint32");
  const [degree, antialiased, levels, cellBits] = reader.array("Uint8", 4);
  check(total >= 1, "Gaussians", total);
  check(degree <= 3, "SH degree", degree);
  check(antialiased <= 1, "antialiased", antialiased);
  check(levels >= 1 && levels <= MOST_LEVELS, "levels", levels);
  check(cellBits >= 1 && cellBits <= 16, "bits of a cell", cellBits);
  const width = 3 * ((degree + 1) ** 2 - 1);
  const background = reader.floats(3);
  const components = reader.number("Int32");
  check(components >= 0 && components <= width, "components", components);
  const origin = reader.floats(3);
  const meansUnit = reader.floats(1)[0];
  const centre = reader.array("Int32", 3);
  const ratios = reader.array("Float64", levels);
  const numbers = {
    width,
    components,
    cellBits,
    origin: Float32Array.from(origin),
    meansUnit,
    centre,
    weights: Float64Array.from(reader.array("Int32", RULES * FEATURES)),
    bounds: reader.array("Uint8", 2 * RULES),
    mixing: reader.array("Int16", WIDTH * (WIDTH + 1)),
    scales: Float32Array.from(reader.floats(width)),
    columns: transposed(reader.array("Int8", components * width), width), // of the SH transform
  };
  checkNumbers(numbers);
  reader.array("Uint8", reader.number("Uint32")); // facts for people
  const entries = readIndex(reader, end, total);
  const counts = ratios.map((ratio) => countAt(ratio, total));
  checkLevels(ratios, counts, total);
  return { total, degree, antialiased: antialiased === 1, background, ratios, counts, numbers, entries };
}

function transposed(values, width) {
  const height = values.length / width;
  return Int8Array.from(values, (_, i) => values[(i % height) * width + Math.floor(i / height)]);
}

function readIndex(reader, offset, total) {
  const count = reader.number("Uint32");
  check(count >= 1 && 12 * count === reader.left, "chunks", count);
  const entries = [];
  let before = 0;
  for (let i = 0; i < count; i++) {
    const [stop, length, checksum] = reader.array("Uint32", 3);
    check(stop > before && stop <= total && stop - before <= length, `end of chunk ${i}`, stop);
    entries.push({ first: before, stop, offset, end: offset + length, checksum });
    before = stop;
    offset += length;
  }
  check(before === total, "Gaussians in all chunks", before);
  return entries;
}

function checkNumbers(numbers) {
  const floats = [...numbers.origin, ...numbers.scales, numbers.meansUnit];
  check(floats.every(Number.isFinite) && numbers.meansUnit > 0, "units", numbers.meansUnit);
  for (let rule = 0; rule < RULES; rule++) {
    const [low, high] = numbers.bounds.slice(2 * rule, 2 * rule + 2);
    check(low <= high && high < STEPS, "step classes", high);
  }
  check(numbers.centre.every((place) => Math.abs(place) < 1 << 26), "centre", numbers.centre);
  check(numbers.weights.every((weight) => Math.abs(weight) <= MOST_WEIGHT), "rule", "a larger weight");
}

function checkLevels(ratios, counts, total) {
  const ascending = counts.every((count, i) => count > (i ? counts[i - 1] : 0));
  check(ascending && ratios[ratios.length - 1] === 1, "ratios", ratios);
  const rows = counts.reduce((sum, count) => sum + count, 0);
  check(rows <= 3 * total, "rows of all levels", rows);
}

function check(good, name, found) {
  if (!good) throw new FileError(`The elastic file is damaged: ${name} out of range (${found}).`);
}

/** Takes little-endian numbers from a header, and never more than are there. */
class Reader {
  constructor(bytes) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.place = 0;
  }

  get left() {
    return this.view.byteLength - this.place;
  }

  array(kind, count) {
    const size = parseInt(kind.match(/\d+/)[0], 10) / 8;
    check(count * size <= this.left, "header", "it ends early");
    const found = [];
    for (let i = 0; i < count; i++, this.place += size) {
      found.push(this.view[`get${kind}`](this.place, true));
    }
    return found;
  }

  number(kind) {
    return this.array(kind, 1)[0];
  }

  floats(count) {
    return this.array("Float32", count);
  }
}
