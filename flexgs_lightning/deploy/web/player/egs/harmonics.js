// Decoding of the other spherical harmonics (docs/elastic_file.md, section 7).

import { magnitude, plainBits } from "./rans.js";
import { ROW, STEP_SIZES, ruleConstant, stepClass } from "./rows.js";

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
  const { width, components, basis } = numbers;
  const count = rows.length / ROW;
  const sums = new Int32Array(count * width);
  const steps = new Int32Array(count);
  const constant = ruleConstant(numbers, RULE, offset);
  for (let i = 0; components > 0 && i < count; i++) {
    const step = stepClass(rows, i * ROW, RULE, constant, numbers);
    steps[i] = STEP_SIZES[step];
    const coded = magnitude(stream, tables, step >> 1);
    if (stream.failed || coded > components) {
      stream.failed = true;
      break;
    }
    let first = 3;
    let second = 2;
    let third = 2;
    for (let j = 0; j < coded; j++) {
      const table = FIRST_TABLE + (4 * GROUPS[j] + remaining(coded - 1 - j)) * 12;
      const size = magnitude(stream, tables, table + activity(2 * first + second + third));
      if (size >= 32768) {
        stream.failed = true;
        break;
      }
      if (size > 0) {
        const factor = plainBits(stream, 1) ? -size : size;
        const at = i * width;
        const from = j * width;
        for (let d = 0; d < width; d++) sums[at + d] += Math.imul(factor, basis[from + d]);
      }
      third = second;
      second = first;
      first = size;
    }
  }
  if (components === 0) for (let i = 0; i < count; i++) steps[i] = 1;
  return { sums, steps };
}

function activity(sum) {
  if (sum < 8) return sum;
  const octave = 6 + 32 - Math.clz32(sum >> 2);
  return octave < 11 ? octave : 11;
}

function remaining(left) {
  return left === 0 ? 0 : left < 4 ? 1 : left < 12 ? 2 : 3;
}
