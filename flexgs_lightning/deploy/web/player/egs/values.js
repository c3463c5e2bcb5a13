// Rows of integers to the values that they mean (docs/elastic_file.md, sections 7, 8 and 10.5).

import { ROW, WIDTH } from "./rows.js";

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

/**
 * Values [n, 13 + M] float32 of a chunk's rows in the order of drawing, as docs/elastic_file.md means them; those of
 * motion stand behind.
 */
export function valuesOf(rows, { numbers, motion }) {
  const { stride } = numbers;
  const width = stride - 1; // less the distance
  const units = unitsOf(numbers);
  const values = new Float32Array((rows.length / stride) * width);
  spreadOrder(rows.length / stride).forEach((coded, i) => {
    const place = coded * stride;
    for (let c = 0; c < WIDTH; c++) {
      const value = Math.fround(Math.fround(rows[place + c]) * units[c]);
      values[i * width + c] = c >= 4 && c < 7 ? meanOf(rows, place, c - 4, numbers) : value;
    }
    for (let c = ROW; c < stride; c++) values[i * width + c - 1] = movingValue(rows, place, c, motion);
  });
  return values;
}

/** Value of a column of motion of the row at `place`. */
export function movingValue(rows, place, column, motion) {
  return Math.fround(Math.fround(rows[place + column]) * motion.units[column - ROW]);
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
