// The elastic file's frame: header, index and checksums (docs/elastic_file.md, sections 1 and 10.1).

import { readTraits, readGroupHead, readStillHead } from "./head.js";
import { FileError, Reader, check, crc32 } from "./reader.js";

export { FileError, crc32 };

const MAGIC = [0x89, 0x45, 0x47, 0x53, 0x0d, 0x0a, 0x1a, 0x0a];
const MOST_HEADER = 1 << 24;
const LEAST_BYTES_OF_A_MOVING_GAUSSIAN = 4;

/** Bytes that say how long the header is. */
export const START_BYTES = 20;

/** Length of the whole header, from the file's first `START_BYTES` bytes. */
export function headerLength(start) {
  if (start.length < START_BYTES || MAGIC.some((byte, i) => start[i] !== byte)) {
    throw new FileError("This is no elastic file (.egs).");
  }
  const view = new DataView(start.buffer, start.byteOffset);
  const version = view.getUint16(8, true);
  if ((version !== 1 && version !== 2) || view.getUint16(10, true) !== 0) {
    throw new FileError(`The elastic file has version ${version}, which this player does not read.`);
  }
  const length = view.getUint32(12, true);
  check(length <= MOST_HEADER, "length", length);
  return START_BYTES + length;
}

/**
 * Read a header, given at least all of its bytes; every field is checked before it is used.
 *
 * Returns `{ moves, degree, antialiased, background, seconds, frames, bounds, totals, entries, heads }`: the film's
 * times at which groups begin and end, each group's Gaussians, the chunks of all groups in the order of the file, and
 * the heads of groups that are known by now, those of a scene that stands still.
 */
export function readHeader(bytes) {
  const end = headerLength(bytes);
  const body = bytes.subarray(START_BYTES, end);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  if (body.length < end - START_BYTES || crc32(body) !== view.getUint32(16, true)) {
    throw new FileError("The elastic file is damaged: its header does not match its checksum.");
  }
  const reader = new Reader(body);
  return view.getUint16(8, true) === 1 ? readScene(reader, end) : readFilm(reader, end);
}

/** The header of version 1: of one group, which stands still. */
function readScene(reader, end) {
  const total = reader.number("Uint32");
  check(total >= 1, "Gaussians", total);
  const { head, ...look } = readStillHead(reader, total);
  skipFacts(reader);
  const entries = readIndex(reader, end, 1, false);
  const found = entries[entries.length - 1].stop;
  check(found === total, "Gaussians in all chunks", found);
  return { moves: false, ...look, seconds: 0, frames: 0, bounds: [0, 1], totals: [total], entries, heads: [head] };
}

/** The header of version 2: of a film of groups, whose heads stand in their first chunks. */
function readFilm(reader, end) {
  const look = readTraits(reader);
  const seconds = reader.number("Float64");
  const frames = reader.number("Uint32");
  const count = reader.number("Uint16");
  check(seconds >= 0 && Number.isFinite(seconds), "seconds", seconds);
  check(count >= 1, "groups", count);
  const bounds = reader.array("Float64", count + 1);
  const ascending = bounds.every((time, i) => i === 0 || time > bounds[i - 1]);
  check(ascending && bounds[0] === 0 && bounds[count] === 1, "times of groups", bounds);
  skipFacts(reader);
  const entries = readIndex(reader, end, count, true);
  const totals = bounds.slice(1).map((_, group) => {
    const own = entries.filter((entry) => entry.group === group);
    check(own.length > 0, `chunks of group ${group}`, 0);
    return own[own.length - 1].stop;
  });
  return { moves: true, ...look, seconds, frames, bounds, totals, entries, heads: bounds.slice(1).map(() => null) };
}

/** The head of a group of a film, and the rest of its first chunk's bytes. */
export function splitHead(bytes, header, group) {
  const reader = new Reader(bytes);
  const length = reader.number("Uint32");
  check(length <= reader.left, "length of a group's head", length);
  const head = readGroupHead(new Reader(bytes.subarray(4, 4 + length)), header, header.totals[group]);
  return [head, bytes.subarray(4 + length)];
}

/** Facts are for people. */
function skipFacts(reader) {
  reader.array("Uint8", reader.number("Uint32"));
}

/** Entries of all chunks as they stand in the file; `first` and `stop` count the Gaussians of a chunk's own group. */
function readIndex(reader, offset, groups, moving) {
  const count = reader.number("Uint32");
  check(count >= 1 && (moving ? 16 : 12) * count === reader.left, "chunks", count);
  const entries = [];
  const stops = new Array(groups).fill(0);
  for (let index = 0; index < count; index++) {
    const group = moving ? reader.number("Uint32") : 0;
    check(group < groups, `group of chunk ${index}`, group);
    const [stop, length, checksum] = reader.array("Uint32", 3);
    const first = stops[group];
    const most = moving ? length / LEAST_BYTES_OF_A_MOVING_GAUSSIAN : length;
    check(stop > first && stop - first <= most, `end of chunk ${index}`, stop);
    entries.push({ index, group, first, stop, offset, end: offset + length, checksum });
    stops[group] = stop;
    offset += length;
  }
  return entries;
}
