// Rows of integers to the texels that the shader reads (drawing/shaders.js has the other side).

import { meanOf, movingValue, spreadOrder } from "../egs/rows.js";
import * as layout from "./row_layout.js";

const { STILL_WORDS, short } = layout;

/** Where the other numbers of a row lie, two a word from word 3 on: t, R; scales, rotation; G, B. */
const HALVES = Uint8Array.of(0, 10, 1, 2, 3, 7, 8, 9, 11, 12);
const ROTATION_SHIFT = 1; // a rotation may reach 4, which 16 bits hold in steps of 2^-13
const WAY = 1; // bit of the flags of Gaussians that move
const MIDDLE = 0.5; // the time that Gaussians without a life have as their own

/**
 * Texels of the rows of several chunks `{ rows, flags }` in the order of drawing: words [n, `rowWords`], and what sorting
 * needs of each, floats [n, `placeWidth`] that begin with the mean.
 */
export function packRows(chunks, { numbers, motion }) {
  const { stride } = numbers;
  const size = layout.rowWords(motion);
  const width = layout.placeWidth(motion);
  const count = chunks.reduce((sum, { rows }) => sum + rows.length / stride, 0);
  const words = new Uint32Array(count * size);
  const floats = new Float32Array(words.buffer);
  const halves = new Int16Array(words.buffer);
  const places = new Float32Array(width * count);
  const packer = motion ? new MotionPacker(motion, floats, halves, places) : null;
  let row = 0;
  for (const { rows, flags } of chunks) {
    const order = spreadOrder(rows.length / stride);
    for (let i = 0; i < order.length; i++, row++) {
      const coded = order[i];
      const place = coded * stride;
      packStill(rows, place, numbers, floats, halves, row * size);
      for (let axis = 0; axis < 3; axis++) places[width * row + axis] = floats[row * size + axis];
      packer?.pack(rows, place, flags?.[coded] ?? 0, row * size + STILL_WORDS, row * width + 3);
    }
  }
  return { words, places };
}

/** What is drawn of a still row, at a word of the texels that `floats` and `halves` are views of. */
function packStill(rows, place, numbers, floats, halves, word) {
  for (let axis = 0; axis < 3; axis++) floats[word + axis] = meanOf(rows, place, axis, numbers);
  const at = 2 * (word + 3);
  for (let half = 0; half < HALVES.length; half++) {
    const column = HALVES[half];
    const turned = column >= 7 && column < 10;
    halves[at + half] = short(turned ? rows[place + column] >> ROTATION_SHIFT : rows[place + column]);
  }
}

/** Writes motion of Gaussians into texels, and what sorting needs of it. */
class MotionPacker {
  /** Writes into `floats` and `halves`, two views of rows' words, and `places`, sorting's floats. */
  constructor(motion, floats, halves, places) {
    this.motion = motion;
    this.floats = floats;
    this.halves = halves;
    this.places = places;
    this.size = layout.motionLayout(motion).floats;
    this.numbers = new Float64Array(this.size);
  }

  /** The motion of the row at `place`, at a word of the texels, and at a float of sorting's. */
  pack(rows, place, flags, word, at) {
    const { motion, size, numbers, places } = this;
    const { path, places: columns } = motion;
    const [first] = columns.motion ?? columns.coefficients ?? [0];
    for (let i = 0; i < size; i++) numbers[i] = movingValue(rows, place, first + i, motion);
    if (path === "bases") mixture(numbers, (flags & WAY) !== 0);
    for (let i = 0; i < size; i++) {
      this.floats[word + i] = numbers[i];
      places[at + i] = numbers[i];
    }
    let half = 2 * (word + size);
    if (path === "polynomial") {
      for (const k of [1, 2, 3, 0]) {
        this.halves[half++] = short(movingValue(rows, place, columns.omega[0] + k, motion) / layout.TURNING_UNIT);
      }
    } else if (path === "free_bases") {
      this.halves[half] = short(movingValue(rows, place, columns.real_parts[0], motion) / layout.REAL_UNIT);
      half += 2;
    }
    this.packLife(rows, place, half, at + size);
  }

  packLife(rows, place, half, at) {
    const { motion, halves, places } = this;
    if (!motion.lives) {
      places[at] = MIDDLE;
      places[at + 1] = Infinity;
      return;
    }
    const centre = movingValue(rows, place, motion.places.time_centers[0], motion);
    const scale = movingValue(rows, place, motion.places.time_scales[0], motion);
    halves[half] = short(centre / layout.CENTRE_UNIT);
    halves[half + 1] = short(scale / layout.WIDTH_UNIT);
    const t = Math.min(Math.max(rows[place] / 4096, 0), 1);
    const room = Math.log((t * t * (3 - 2 * t)) / motion.least); // of an opacity of 0 it is -Infinity
    places[at] = centre;
    places[at + 1] = room < 0 ? -1 : Math.exp(scale) * Math.sqrt(room);
  }
}

/** Weights of rigid motions: softmax of the coefficients, or none of a Gaussian that stays where it is. */
function mixture(numbers, moves) {
  if (!moves) return numbers.fill(0);
  const largest = numbers.reduce((most, value) => Math.max(most, value), -Infinity);
  let sum = 0;
  for (let i = 0; i < numbers.length; i++) sum += numbers[i] = Math.exp(numbers[i] - largest);
  for (let i = 0; i < numbers.length; i++) numbers[i] /= sum;
  return numbers;
}

/**
 * Words of a chunk's other spherical harmonics in the order of drawing: signed bytes, and behind them in the
 * upper three bytes of a word the float that they are multiples of.
 */
export function packHarmonics({ sums, steps }, numbers) {
  const { width, scales } = numbers;
  const size = layout.harmonicWords(width);
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
