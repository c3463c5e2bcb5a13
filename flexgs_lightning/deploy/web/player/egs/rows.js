// Decoding of a chunk's rows: places, columns of a level (docs/elastic_file.md, sections 4 to 6 and 10.4).
// Integers that may exceed 32 bits are kept in doubles, which hold them exactly; `>>` is used below that only.

import { longBits, magnitude, newTables, plainBits, symbol } from "./rans.js";

/** Numbers of a still row that are drawn; a row has one more, its distance, and then those of its motion. */
export const WIDTH = 13;
export const ROW = WIDTH + 1;
/** Weights of a rule where opacity is constant, rules of a still row, and step classes. */
export const FEATURES = 7;
export const RULES = 14;
export const STEPS = 96;

export const CELL_TABLES = 80;
export const MOVES_TABLES = 16;
const CONTEXTS = 144; // tables of a column's magnitudes: step classes halved, and columns before it that are not 0
const SIGNS = 4;

const MEANS = 4;
const ROTATIONS = 7;

/** Columns of one kind, still ones or those of motion: `width` of them from `origin` on, with tables of their own. */
export class ColumnSet {
  /** `mixing` are the weights of the prediction, a row of `width` + 1 for each column. */
  constructor(origin, width, mixing) {
    this.origin = origin;
    this.width = width;
    this.tables = newTables((CONTEXTS + SIGNS) * width);
    this.updates = newTables((CONTEXTS + SIGNS) * width);
    this.means = new Float64Array(width); // of what was predicted wrongly
    this.mixing = predictors(origin, width, mixing);
  }
}

const BASES = [16, 19, 23, 27];
const LARGEST = 16777215;

/** Step of each class: 16, 19, 23, 27 times a power of two, sixteenths rounded down, at least 1. */
export const STEP_SIZES = Int32Array.from({ length: STEPS }, (_, step) =>
  Math.max(1, Math.floor((BASES[step & 3] * 2 ** (step >> 2)) / 16)),
);

function clamp(value, low, high) {
  return value < low ? low : value > high ? high : value;
}

/** Binary digits of a non-negative integer below 2^32. */
function bitLength(value) {
  return 32 - Math.clz32(value);
}

/** Step class of rule `c` for the row at `place`: weights times what the row says so far. */
export function stepClass(rows, place, c, constant, numbers) {
  const { weights, bounds, features } = numbers;
  const w = features * c;
  const t = clamp(rows[place], 0, 4096);
  let sum =
    constant +
    weights[w + 1] * t +
    weights[w + 2] * ((t * t) >> 12) +
    weights[w + 3] * clamp(rows[place + 1], -32768, 32767) +
    weights[w + 4] * clamp(rows[place + 2], -32768, 32767) +
    weights[w + 5] * clamp(rows[place + 3], -32768, 32767) +
    weights[w + 6] * rows[place + WIDTH];
  if (features > FEATURES) sum += weights[w + 7] * clamp(rows[place + ROW], -32768, 32767); // width of the life
  return clamp(Math.floor((sum + 32768) / 65536), bounds[2 * c], bounds[2 * c + 1]) | 0;
}

/** What of the rule `c` is the same for all rows of a chunk. */
export function ruleConstant(numbers, c, offset) {
  return 1024 * offset + 4096 * numbers.weights[numbers.features * c];
}

/** Rows of `count` Gaussians, all zero but for means and distance: their cells, as gaps of Morton codes. */
export function decodeCells(stream, count, tables, numbers) {
  const { stride } = numbers;
  const rows = new Int32Array(count * stride);
  const bits = 3 * numbers.cellBits;
  const shift = 24 - numbers.cellBits;
  const half = (1 << shift) >> 1;
  const most = 2 ** bits;
  let code = 0;
  let before = 0;
  for (let i = 0; i < count; i++) {
    before = symbol(stream, tables, before);
    const length = 4 * before + (symbol(stream, tables, 16 + before) & 3);
    let gap = length;
    if (length > 1) {
      const rest = length - 1;
      const top = rest < 3 ? rest : 3;
      const part = length > bits ? 0 : symbol(stream, tables, 31 + length) & ((1 << top) - 1);
      gap = ((1 << top) + part) * 2 ** (rest - top) + (length > bits ? 0 : longBits(stream, rest - top));
    }
    code += gap;
    if (stream.failed || length > bits || code >= most) {
      stream.failed = true;
      return rows;
    }
    placeRow(rows, i * stride, code, shift, half, numbers.centre);
  }
  return rows;
}

/** Means of a row in the middle of its cell, and the distance from the centre in column 13. */
function placeRow(rows, place, code, shift, half, centre) {
  const high = Math.floor(code / 16777216);
  const low = code - high * 16777216;
  let distance = 1;
  for (let axis = 0; axis < 3; axis++) {
    const cell = (everyThird(high >> (2 - axis)) << 8) | everyThird(low >> (2 - axis));
    const middle = (cell << shift) + half;
    rows[place + MEANS + axis] = middle;
    distance = Math.max(distance, Math.abs(middle - centre[axis]));
  }
  const octave = bitLength(distance) - 1;
  const mantissa = octave < 10 ? distance << (10 - octave) : distance >> (octave - 10);
  rows[place + WIDTH] = 1024 * octave + mantissa - 1024;
}

/** Bits 0, 3, 6, … 21 of a number, packed. */
function everyThird(value) {
  value &= 0x249249;
  value = (value | (value >> 2)) & 0x0c30c3;
  value = (value | (value >> 4)) & 0x00f00f;
  return (value | (value >> 8)) & 0xff;
}

/** Columns that the prediction of each column uses, and their weights: most are 0. */
function predictors(origin, width, mixing) {
  return Array.from({ length: width }, (_, i) => {
    const weights = mixing.slice(i * (width + 1), i * (width + 1) + i);
    const used = weights.flatMap((weight, d) => (weight ? [d] : []));
    return {
      columns: Int32Array.from(used, (d) => origin + d),
      weights: Float64Array.from(used, (d) => weights[d]),
      before: mixing[i * (width + 1) + width],
    };
  });
}

/**
 * What of each Gaussian's motion is coded, as bits: 1 its way or coefficients, 2 the change of its rotation. `tables`
 * know the two Gaussians before it.
 */
export function decodeMoves(stream, count, tables) {
  const flags = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    const context = 4 * (i > 0 ? flags[i - 1] : 0) + (i > 1 ? flags[i - 2] : 0);
    flags[i] = symbol(stream, tables, context) & 3;
  }
  return flags;
}

/**
 * Decode columns `first` to `stop` of new rows, in place; of those alone whose `flags` have the `bit`, if there is
 * one.
 */
export function decodeNew(stream, { first, stop, set, bit }, rows, offset, numbers, flags) {
  const { origin, width, tables, means, mixing } = set;
  const { stride } = numbers;
  const constants = constantsOf(numbers, first, stop, offset);
  const mixed = first < MEANS || first >= ROTATIONS;
  for (let place = 0, i = 0; place < rows.length; place += stride, i++) {
    if (bit && !(flags[i] & bit)) continue;
    let active = 0;
    for (let c = first; c < stop; c++) {
      const k = c - origin;
      const step = stepClass(rows, place, c, constants[c - first], numbers);
      const predicted = mixed ? predict(rows, place, c, mixing[k], means[k], stride) : rows[place + c];
      let steps = magnitude(stream, tables, (k * 48 + (step >> 1)) * 3 + (active < 2 ? active : 2));
      if (steps > 0) {
        active++;
        const sign = CONTEXTS * width + SIGNS * k + (steps < 4 ? steps : 4) - 1;
        if (symbol(stream, tables, sign) & 1) steps = -steps;
      }
      const value = clamp(predicted + steps * STEP_SIZES[step], -LARGEST, LARGEST);
      if (mixed) means[k] += 4 * (value - predicted);
      rows[place + c] = value;
    }
  }
}

function constantsOf(numbers, first, stop, offset) {
  return Float64Array.from({ length: stop - first }, (_, i) => ruleConstant(numbers, first + i, offset));
}

function predict(rows, place, c, mixing, mean, stride) {
  const { columns, weights } = mixing;
  let sum = place > 0 ? mixing.before * rows[place - stride + c] : 0;
  for (let k = 0; k < columns.length; k++) sum += weights[k] * rows[place + columns[k]];
  return clamp(Math.floor((sum + 2048) / 4096) + Math.floor((mean + 128) / 256), -LARGEST, LARGEST);
}

/** Bring columns `first` to `stop` of rows to the next level, in place. */
export function decodeUpdate(stream, { first, stop, set }, rows, offset, numbers) {
  const { origin, updates } = set;
  const { stride } = numbers;
  const constants = constantsOf(numbers, first, stop, offset);
  for (let place = 0; place < rows.length; place += stride) {
    let active = 0;
    for (let c = first; c < stop; c++) {
      const step = stepClass(rows, place, c, constants[c - first], numbers);
      let steps = magnitude(stream, updates, ((c - origin) * 48 + (step >> 2)) * 3 + (active < 2 ? active : 2));
      if (steps > 0) {
        active++;
        if (plainBits(stream, 1)) steps = -steps;
        rows[place + c] = clamp(rows[place + c] + steps * STEP_SIZES[step], -LARGEST, LARGEST);
      }
    }
  }
}

/**
 * The order in which a chunk's n rows are drawn: by their places' bits reversed, so that each part of them
 * covers the scene. Element i is the coded place of the i-th row.
 */
export function spreadOrder(n) {
  const order = new Uint32Array(n);
  const half = n > 1 ? 1 << (31 - Math.clz32(n - 1)) : 0; // the highest bit of a place
  for (let found = 0, place = 0; found < n; ) {
    if (place < n) order[found++] = place;
    let bit = half; // the next place: counting up from the highest bit
    for (; place & bit; bit >>= 1) place ^= bit;
    place |= bit;
  }
  return order;
}

/** Coordinate `axis` of the mean of the row at `place`, in world units: float32 operations as specified. */
export function meanOf(rows, place, axis, numbers) {
  return Math.fround(
    Math.fround(Math.fround(rows[place + 4 + axis]) * numbers.meansUnit) + numbers.origin[axis],
  );
}

/** Value of a column of motion of the row at `place`. */
export function movingValue(rows, place, column, motion) {
  return Math.fround(Math.fround(rows[place + column]) * motion.units[column - ROW]);
}
