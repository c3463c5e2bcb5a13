// Rows of integers to the texels that the shader reads (drawing/shaders.js has the other side).

import { meanOf, spreadOrder } from "../egs/values.js";
import { MotionPacker } from "./motion_packing.js";
import { STILL_WORDS, harmonicWords, placeWidth, rowWords, short } from "./row_layout.js";

/** Where the other numbers of a row lie, two a word from word 3 on: t, R; scales, rotation; G, B. */
const HALVES = [0, 10, 1, 2, 3, 7, 8, 9, 11, 12];
const ROTATION_SHIFT = 1; // a rotation may reach 4, which 16 bits hold in steps of 2^-13

/**
 * Texels of the rows of several chunks `{ rows, flags }` in the order of drawing: words [n, `rowWords`], and what sorting
 * needs of each, floats [n, `placeWidth`] that begin with the mean.
 */
export function packRows(chunks, { numbers, motion }) {
  const { stride } = numbers;
  const size = rowWords(motion);
  const width = placeWidth(motion);
  const count = chunks.reduce((sum, { rows }) => sum + rows.length / stride, 0);
  const words = new Uint32Array(count * size);
  const floats = new Float32Array(words.buffer);
  const halves = new Int16Array(words.buffer);
  const places = new Float32Array(width * count);
  const packer = motion ? new MotionPacker(motion, floats, halves, places) : null;
  let row = 0;
  for (const { rows, flags } of chunks) {
    for (const coded of spreadOrder(rows.length / stride)) {
      const place = coded * stride;
      for (let axis = 0; axis < 3; axis++) {
        const mean = meanOf(rows, place, axis, numbers);
        floats[row * size + axis] = mean;
        places[width * row + axis] = mean;
      }
      for (let half = 0; half < HALVES.length; half++) {
        const column = HALVES[half];
        const turned = column >= 7 && column < 10;
        halves[2 * (row * size + 3) + half] = short(turned ? rows[place + column] >> ROTATION_SHIFT : rows[place + column]);
      }
      packer?.pack(rows, place, flags?.[coded] ?? 0, row * size + STILL_WORDS, row * width + 3);
      row++;
    }
  }
  return { words, places };
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
