// Decoding of the other spherical harmonics (docs/elastic_file.md, section 7).

import { magnitude, plainBits } from "./rans.js";
import { STEP_SIZES, ruleConstant, stepClass } from "./rows.js";

export const SH_TABLES = 528;
const RULE = 13;
const FIRST_TABLE = 48;
const GROUP_STARTS = [1, 2, 3, 4, 6, 8, 12, 16, 24];

/** Group of tables of each transformed coefficient: 0, 1, 2, 3 apart, then in octaves halved. */
const GROUPS = Uint8Array.from({ length: 45 }, (_, j) => GROUP_STARTS.filter((start) => start <= j).length);

/**
 * Harmonics of a chunk's rows as integers: `sums` [n, D] are multiples of each Gaussian's step and each
 * coefficient's scale.
 */
export function decodeHarmonics(stream, rows, offset, numbers, tables) {
  const { width, components, stride } = numbers;
  const count = rows.length / stride;
  const sums = new Int32Array(count * width);
  const steps = new Int32Array(count);
  const constant = ruleConstant(numbers, RULE, offset);
  const coded = new Coded(components);
  for (let i = 0; components > 0 && i < count; i++) {
    const step = stepClass(rows, i * stride, RULE, constant, numbers);
    steps[i] = STEP_SIZES[step];
    decodeCoefficients(stream, magnitude(stream, tables, step >> 1), components, tables, coded, width);
    if (stream.failed) break;
    transform(coded, numbers, sums, i * width);
  }
  if (components === 0) steps.fill(1);
  return { sums, steps };
}

/** The transformed coefficients of one Gaussian that are not 0. */
class Coded {
  constructor(components) {
    this.count = 0;
    this.places = new Int32Array(components);
    this.factors = new Int32Array(components);
  }
}

function decodeCoefficients(stream, number, components, tables, coded, width) {
  coded.count = 0;
  if (number > components) stream.failed = true;
  let first = 3;
  let second = 2;
  let third = 2;
  for (let j = 0; j < number && !stream.failed; j++) {
    const table = FIRST_TABLE + (4 * GROUPS[j] + remaining(number - 1 - j)) * 12;
    const size = magnitude(stream, tables, table + activity(2 * first + second + third));
    if (size >= 32768) stream.failed = true;
    if (size > 0) {
      coded.places[coded.count] = j * width;
      coded.factors[coded.count++] = plainBits(stream, 1) ? -size : size;
    }
    third = second;
    second = first;
    first = size;
  }
}

/** Coefficients times the transform: the hottest loop of a decoder. `columns` [components, width] */
function transform({ count, places, factors }, { width, columns }, sums, at) {
  for (let d = 0; d < width; d += 3) {
    let red = 0;
    let green = 0;
    let blue = 0;
    for (let k = 0; k < count; k++) {
      const factor = factors[k];
      const place = places[k] + d;
      red = (red + Math.imul(factor, columns[place])) | 0;
      green = (green + Math.imul(factor, columns[place + 1])) | 0;
      blue = (blue + Math.imul(factor, columns[place + 2])) | 0;
    }
    sums[at + d] = red;
    sums[at + d + 1] = green;
    sums[at + d + 2] = blue;
  }
}

function activity(sum) {
  if (sum < 8) return sum;
  const octave = 6 + 32 - Math.clz32(sum >> 2);
  return octave < 11 ? octave : 11;
}

function remaining(left) {
  return left === 0 ? 0 : left < 4 ? 1 : left < 12 ? 2 : 3;
}
