// Chunks of a group, one after the other, to rows of integers (docs/elastic_file.md, sections 2 and 10.4).

import { splitHead } from "./header.js";
import { FileError, crc32 } from "./reader.js";
import { SH_TABLES, decodeHarmonics } from "./harmonics.js";
import { Stream, newTables } from "./rans.js";
import * as rowsOf from "./rows.js";

const WAY = 1; // bits of what of a motion is coded
const TURNING = 2;

/** Attributes of a group's rows in the order of their streams; those with a `bit` only of Gaussians that have it. */
function attributesOf({ numbers: { still, moving }, motion }) {
  const at = (first, stop) => ({ first, stop, set: still, moved: true });
  const moved = ([first, stop]) => ({ first, stop, set: moving, moved: true });
  const fixed = ([first, stop], bit) => ({ first, stop, set: moving, moved: false, bit });
  const { time_scales, time_centers, real_parts, motion: way, omega, coefficients } = motion?.places ?? {};
  return [
    at(0, 1),
    ...[time_scales, time_centers, real_parts].filter(Boolean).map(moved),
    ...[at(1, 4), at(4, 7), at(7, 10), at(10, 13)],
    ...[way, coefficients].filter(Boolean).map((place) => fixed(place, WAY)),
    ...[omega].filter(Boolean).map((place) => fixed(place, TURNING)),
  ];
}

/** Decodes the chunks of one group in order. After the last level has begun it keeps no rows of its own. */
export class Decoder {
  constructor(header, group) {
    this.header = header;
    this.group = group;
    this.cells = newTables(rowsOf.CELL_TABLES);
    this.moves = newTables(rowsOf.MOVES_TABLES);
    this.harmonics = newTables(SH_TABLES);
    this.chunks = []; // rows of each chunk so far, as long as updates may move them
    this.level = 0; // the level of the rows so far
    if (header.heads[group]) this.begin(header.heads[group]);
  }

  begin(head) {
    this.head = head;
    this.attributes = attributesOf(head);
    this.moved = this.attributes.filter(({ moved }) => moved);
  }

  /**
   * Decode the bytes of the group's next chunk, which has this entry in the header.
   *
   * Returns `{ first, stop, level, updated, rows, flags, sums, steps }`: the chunk's rows in the order of coding with
   * their harmonics and what of their motion is coded, and `updated`, rows and flags of every chunk before it at its
   * level if that has changed.
   */
  decode(bytes, entry) {
    this.index = entry.index;
    if (crc32(bytes) !== entry.checksum) this.fail("does not match its checksum");
    let rest = bytes;
    if (!this.head) {
      const [head, behind] = splitHead(bytes, this.header, this.group);
      this.begin(head);
      rest = behind;
    }
    const { counts } = this.head;
    const parts = new Parts(rest, () => this.fail("is shorter than its streams"));
    const last = counts.length - 1;
    let updated = null;
    if (this.level < last && entry.first === counts[this.level]) {
      this.level++;
      updated = this.update(parts);
      if (this.level === last) this.chunks = [];
    }
    if (entry.stop > counts[this.level]) this.fail("goes on behind its level");
    const found = this.add(parts, entry.stop - entry.first);
    if (rest.subarray(parts.place).some((byte) => byte !== 0)) this.fail("goes on behind its streams");
    if (this.level < last) this.chunks.push({ rows: found.rows, flags: found.flags });
    return { first: entry.first, stop: entry.stop, level: this.level, updated, ...found };
  }

  /** Move all rows so far to the next level. */
  update(parts) {
    const { numbers } = this.head;
    const { moved } = this;
    const offsets = parts.offsets(moved.length * this.chunks.length);
    const streams = parts.streams(moved.length);
    const after = this.chunks.map(({ rows, flags }) => ({ rows: rows.slice(), flags }));
    streams.forEach((stream, i) => {
      after.forEach(({ rows }, chunk) => {
        rowsOf.decodeUpdate(stream, moved[i], rows, offsets[moved.length * chunk + i], numbers);
      });
      this.check(stream);
    });
    this.chunks = [...after];
    return after;
  }

  /** Decode `count` new rows and their harmonics. */
  add(parts, count) {
    const { attributes, moved } = this;
    const { numbers, motion } = this.head;
    const moves = Boolean(motion) && motion.path !== "none";
    const offsets = parts.offsets(attributes.length + 1);
    const streams = parts.streams(attributes.length + (moves ? 3 : 2));
    const rows = rowsOf.decodeCells(streams[0], count, this.cells, numbers);
    this.check(streams.shift());
    let flags = null;
    attributes.forEach((attribute, i) => {
      if (moves && i === moved.length) {
        flags = rowsOf.decodeMoves(streams[0], count, this.moves);
        this.check(streams.shift());
      }
      rowsOf.decodeNew(streams[0], attribute, rows, offsets[i], numbers, flags);
      this.check(streams.shift());
    });
    const { sums, steps } = decodeHarmonics(streams[0], rows, offsets[attributes.length], numbers, this.harmonics);
    this.check(streams[0]);
    return { rows, flags, sums, steps };
  }

  check(stream) {
    if (!stream.endedWell) this.fail("holds what no encoder writes");
  }

  fail(what) {
    throw new FileError(`The elastic file is damaged: chunk ${this.index} ${what}.`);
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
