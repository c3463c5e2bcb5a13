// Motion of Gaussians to the texels that the shader reads, and to what sorting needs of it.

import { movingValue } from "../egs/values.js";
import { CENTRE_UNIT, REAL_UNIT, TURNING_UNIT, WIDTH_UNIT, motionLayout, short } from "./row_layout.js";

const WAY = 1; // bit of the flags of Gaussians that move
const MIDDLE = 0.5; // the time that Gaussians without a life have as their own

export class MotionPacker {
  /** Writes into `floats` and `halves`, two views of rows' words, and `places`, sorting's floats. */
  constructor(motion, floats, halves, places) {
    this.motion = motion;
    this.floats = floats;
    this.halves = halves;
    this.places = places;
    this.layout = motionLayout(motion);
    this.numbers = new Float64Array(this.layout.floats);
  }

  /** The motion of the row at `place`, at a word of the texels, and at a float of sorting's. */
  pack(rows, place, flags, word, at) {
    const { motion, layout, numbers, places } = this;
    const { path, places: columns } = motion;
    const [first] = columns.motion ?? columns.coefficients ?? [0];
    for (let i = 0; i < layout.floats; i++) numbers[i] = movingValue(rows, place, first + i, motion);
    if (path === "bases") mixture(numbers, (flags & WAY) !== 0);
    for (let i = 0; i < layout.floats; i++) {
      this.floats[word + i] = numbers[i];
      places[at + i] = numbers[i];
    }
    let half = 2 * (word + layout.floats);
    if (path === "polynomial") {
      for (const k of [1, 2, 3, 0]) {
        this.halves[half++] = short(movingValue(rows, place, columns.omega[0] + k, motion) / TURNING_UNIT);
      }
    } else if (path === "free_bases") {
      this.halves[half] = short(movingValue(rows, place, columns.real_parts[0], motion) / REAL_UNIT);
      half += 2;
    }
    this.packLife(rows, place, half, at + layout.floats);
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
    halves[half] = short(centre / CENTRE_UNIT);
    halves[half + 1] = short(scale / WIDTH_UNIT);
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
