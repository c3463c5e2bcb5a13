// Rows of integers to the texels that the shader reads (drawing/shaders.js has the other side).

import { meanOf, spreadOrder } from "../egs/decoder.js";
import { ROW } from "../egs/rows.js";

/** 32-bit words of a row: means as floats, the other ten numbers as 16-bit integers. */
export const ROW_WORDS = 8;
/** Where the other numbers of a row lie, two a word from word 3 on: t, R; scales, rotation; G, B. */
const HALVES = [0, 10, 1, 2, 3, 7, 8, 9, 11, 12];
const ROTATION_SHIFT = 1; // a rotation may reach 4, which 16 bits hold in steps of 2^-13

/** Words of a Gaussian's other spherical harmonics: a byte each, and a scale; a multiple of a texel's four. */
export function harmonicWords(width) {
  return width === 0 ? 0 : 4 * Math.ceil(((width >> 2) + 1) / 4);
}

/** Words [n, 8] of the rows of several chunks in the order of drawing, and their means [n, 3] as floats. */
export function packRows(chunks, numbers) {
  const count = chunks.reduce((sum, rows) => sum + rows.length / ROW, 0);
  const words = new Uint32Array(count * ROW_WORDS);
  const floats = new Float32Array(words.buffer);
  const halves = new Int16Array(words.buffer);
  const means = new Float32Array(3 * count);
  let row = 0;
  for (const rows of chunks) {
    for (const coded of spreadOrder(rows.length / ROW)) {
      const place = coded * ROW;
      for (let axis = 0; axis < 3; axis++) {
        const mean = meanOf(rows, place, axis, numbers);
        floats[row * ROW_WORDS + axis] = mean;
        means[3 * row + axis] = mean;
      }
      for (let half = 0; half < HALVES.length; half++) {
        const column = HALVES[half];
        const turned = column >= 7 && column < 10;
        const value = turned ? rows[place + column] >> ROTATION_SHIFT : rows[place + column];
        halves[2 * (row * ROW_WORDS + 3) + half] = value < -32768 ? -32768 : value > 32767 ? 32767 : value;
      }
      row++;
    }
  }
  return { words, means };
}

/**
 * Words of a chunk's other spherical harmonics in the order of drawing: signed bytes, and behind them in the
 * upper three bytes of a word the float that they are multiples of.
 */
export function packHarmonics({ sums, steps }, numbers) {
  const { width, scales } = numbers;
  const size = harmonicWords(width);
  const words = new Uint32Array(steps.length * size);
  const bytes = new Int8Array(words.buffer);
  const values = new Float64Array(width);
  const scale = new Float32Array(1);
  const scaleBits = new Uint32Array(scale.buffer);
  const order = spreadOrder(steps.length);
  for (let i = 0; i < order.length && width > 0; i++) {
    const from = order[i] * width;
    let largest = 0;
    for (let d = 0; d < width; d++) {
      const value = sums[from + d] * scales[d];
      values[d] = value;
      if (value > largest) largest = value;
      else if (-value > largest) largest = -value;
    }
    if (largest === 0) continue;
    scale[0] = (largest * steps[order[i]]) / 127;
    scaleBits[0] = (scaleBits[0] + 255) & ~255;
    const factor = steps[order[i]] / scale[0];
    const to = 4 * i * size;
    for (let d = 0; d < width; d++) bytes[to + d] = ((values[d] * factor + 128.5) | 0) - 128;
    words[i * size + (width >> 2)] |= scaleBits[0];
  }
  return words;
}
