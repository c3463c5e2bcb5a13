// Chunks of an elastic file, one after the other, to rows of integers and to the values that they mean.

import { FileError, crc32 } from "./header.js";
import { SH_TABLES, decodeHarmonics } from "./harmonics.js";
import { Stream, newTables } from "./rans.js";
import * as rowsOf from "./rows.js";

const { COLUMNS, ROW, WIDTH } = rowsOf;
const ATTRIBUTES = COLUMNS.length - 1; // opacities, scales, means, rotations, sh0

/** Decodes chunks in order. After the last level has begun it keeps no rows of its own. */
export class Decoder {
  constructor(header) {
    this.header = header;
    this.cells = newTables(rowsOf.CELL_TABLES);
    this.columns = newTables(rowsOf.COLUMN_TABLES);
    this.updates = newTables(rowsOf.COLUMN_TABLES);
    this.harmonics = newTables(SH_TABLES);
    this.means = new Float64Array(WIDTH);
    this.mixing = rowsOf.predictors(header.numbers);
    this.chunks = []; // rows of each chunk so far, as long as updates may move them
    this.next = 0; // the chunk that comes next
    this.level = 0; // the level of the rows so far
  }

  /**
   * Decode the next chunk's bytes.
   *
   * Returns `{ first, stop, level, updated, rows, sums, steps }`: the chunk's rows in the order of coding with
   * their harmonics, and `updated`, the rows of every chunk before it at its level if that has changed.
   */
  decode(bytes) {
    const { header, next } = this;
    const entry = header.entries[next];
    if (crc32(bytes) !== entry.checksum) this.fail("does not match its checksum");
    const parts = new Parts(bytes, () => this.fail("is shorter than its streams"));
    const last = header.counts.length - 1;
    let updated = null;
    if (this.level < last && entry.first === header.counts[this.level]) {
      this.level++;
      updated = this.update(parts);
      if (this.level === last) this.chunks = [];
    }
    const found = this.add(parts, entry.stop - entry.first);
    if (bytes.subarray(parts.place).some((byte) => byte !== 0)) this.fail("goes on behind its streams");
    if (this.level < last) this.chunks.push(found.rows);
    this.next++;
    return { first: entry.first, stop: entry.stop, level: this.level, updated, ...found };
  }

  /** Move all rows so far to the next level. */
  update(parts) {
    const { numbers } = this.header;
    const offsets = parts.offsets(ATTRIBUTES * this.chunks.length);
    const streams = parts.streams(ATTRIBUTES);
    const moved = this.chunks.map((rows) => rows.slice());
    streams.forEach((stream, attribute) => {
      const [first, stop] = COLUMNS.slice(attribute, attribute + 2);
      moved.forEach((rows, chunk) => {
        const offset = offsets[ATTRIBUTES * chunk + attribute];
        rowsOf.decodeUpdate(stream, first, stop, rows, offset, numbers, this.updates);
      });
      this.check(stream);
    });
    this.chunks = [...moved];
    return moved;
  }

  /** Decode `count` new rows and their harmonics. */
  add(parts, count) {
    const { numbers } = this.header;
    const offsets = parts.offsets(ATTRIBUTES + 1);
    const [cells, ...streams] = parts.streams(ATTRIBUTES + 2);
    const rows = rowsOf.decodeCells(cells, count, this.cells, numbers);
    this.check(cells);
    for (let attribute = 0; attribute < ATTRIBUTES; attribute++) {
      const [first, stop] = COLUMNS.slice(attribute, attribute + 2);
      const [stream, offset] = [streams[attribute], offsets[attribute]];
      rowsOf.decodeNew(stream, first, stop, rows, offset, numbers, this.mixing, this.means, this.columns);
      this.check(stream);
    }
    const stream = streams[ATTRIBUTES];
    const { sums, steps } = decodeHarmonics(stream, rows, offsets[ATTRIBUTES], numbers, this.harmonics);
    this.check(stream);
    return { rows, sums, steps };
  }

  check(stream) {
    if (!stream.endedWell) this.fail("holds what no encoder writes");
  }

  fail(what) {
    throw new FileError(`The elastic file is damaged: chunk ${this.next} ${what}.`);
  }
}

/** A chunk's tables of offsets and lengths, and its streams. */
class Parts {
  constructor(bytes, fail) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.place = 0;
    this.fail = fail;
  }

  offsets(count) {
    return this.numbers(count, 2, (place) => this.view.getInt16(place, true));
  }

  streams(count) {
    const lengths = this.numbers(count, 4, (place) => this.view.getUint32(place, true));
    return lengths.map((length) => {
      const start = this.place;
      if (start + length > this.bytes.length) this.fail();
      this.place += length;
      return new Stream(this.bytes.subarray(start, this.place));
    });
  }

  numbers(count, size, read) {
    if (this.place + count * size > this.bytes.length) this.fail();
    this.place += count * size;
    return Array.from({ length: count }, (_, i) => read(this.place + (i - count) * size));
  }
}

/**
 * The order in which a chunk's n rows are drawn: by their places' bits reversed, so that each part of them
 * covers the scene. Element i is the coded place of the i-th row.
 */
export function spreadOrder(n) {
  const bits = n > 1 ? 32 - Math.clz32(n - 1) : 0;
  const order = new Uint32Array(n);
  let found = 0;
  for (let i = 0; i < 2 ** bits; i++) {
    let place = 0;
    for (let bit = 0; bit < bits; bit++) place |= ((i >> bit) & 1) << (bits - 1 - bit);
    if (place < n) order[found++] = place;
  }
  return order;
}

/** Unit of each column, in float32. */
export function unitsOf(numbers) {
  const units = [2 ** -12, 2 ** -10, 2 ** -10, 2 ** -10, 0, 0, 0];
  units.push(2 ** -14, 2 ** -14, 2 ** -14, 2 ** -10, 2 ** -10, 2 ** -10);
  units.fill(numbers.meansUnit, 4, 7);
  return Float32Array.from(units);
}

/** Coordinate `axis` of the mean of the row at `place`, in world units: float32 operations as specified. */
export function meanOf(rows, place, axis, numbers) {
  return Math.fround(
    Math.fround(Math.fround(rows[place + 4 + axis]) * numbers.meansUnit) + numbers.origin[axis],
  );
}

/** Values [n, 13] float32 of a chunk's rows in the order of drawing, as docs/elastic_file.md means them. */
export function valuesOf(rows, numbers) {
  const units = unitsOf(numbers);
  const values = new Float32Array((rows.length / ROW) * WIDTH);
  spreadOrder(rows.length / ROW).forEach((coded, i) => {
    for (let c = 0; c < WIDTH; c++) {
      const value = Math.fround(Math.fround(rows[coded * ROW + c]) * units[c]);
      values[i * WIDTH + c] = c >= 4 && c < 7 ? meanOf(rows, coded * ROW, c - 4, numbers) : value;
    }
  });
  return values;
}

/** Spherical harmonics [n, D] float32 of a chunk in the order of drawing. */
export function harmonicsOf({ sums, steps }, numbers) {
  const { width, scales } = numbers;
  const values = new Float32Array(sums.length);
  spreadOrder(steps.length).forEach((coded, i) => {
    const step = Math.fround(steps[coded]);
    for (let d = 0; d < width; d++) {
      const sum = Math.fround(sums[coded * width + d]);
      values[i * width + d] = sum * Math.fround(step * scales[d]);
    }
  });
  return values;
}
