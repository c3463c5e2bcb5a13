// SHA-256 of every bit of a decoded elastic file, as elastic_arrays.digest (of a film: moving_arrays.film_digest) computes it: node digest.mjs FILE

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { Decoder } from "../../flexgs_lightning/deploy/web/player/egs/decoder.js";
import { readHeader } from "../../flexgs_lightning/deploy/web/player/egs/header.js";
import { ROW, WIDTH, meanOf, movingValue, spreadOrder } from "../../flexgs_lightning/deploy/web/player/egs/rows.js";

const bytes = new Uint8Array(readFileSync(process.argv[2]));
const start = performance.now();
const header = readHeader(bytes);
const groups = header.totals.map((_, group) => ({ decoder: new Decoder(header, group), levels: [], harmonics: [], flags: [] }));
for (const entry of header.entries) {
  const { decoder, levels, harmonics, flags } = groups[entry.group];
  const chunk = decoder.decode(bytes.subarray(entry.offset, entry.end), entry);
  const level = (levels[chunk.level] ??= []);
  (chunk.updated ?? []).forEach(({ rows }) => level.push(rows));
  level.push(chunk.rows);
  harmonics.push(harmonicsOf(chunk, decoder.head.numbers));
  if (header.moves) flags.push(Uint8Array.from(spreadOrder(chunk.stop - chunk.first), (i) => chunk.flags?.[i] ?? 0));
}
const milliseconds = performance.now() - start;
const hash = createHash("sha256");
for (const { decoder, levels, harmonics, flags } of groups) {
  for (const level of levels) for (const rows of level) hash.update(valuesOf(rows, decoder.head));
  for (const values of [...harmonics, ...flags]) hash.update(values);
}
const gaussians = header.totals.reduce((sum, total) => sum + total, 0);
console.log(JSON.stringify({ digest: hash.digest("hex"), gaussians, milliseconds }));

/** Unit of each column, in float32. */
function unitsOf(numbers) {
  const units = [2 ** -12, 2 ** -10, 2 ** -10, 2 ** -10, 0, 0, 0];
  units.push(2 ** -14, 2 ** -14, 2 ** -14, 2 ** -10, 2 ** -10, 2 ** -10);
  units.fill(numbers.meansUnit, 4, 7);
  return Float32Array.from(units);
}

/**
 * Values [n, 13 + M] float32 of a chunk's rows in the order of drawing, as docs/elastic_file.md means them; those of
 * motion stand behind.
 */
function valuesOf(rows, { numbers, motion }) {
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

/** Spherical harmonics [n, D] float32 of a chunk in the order of drawing. */
function harmonicsOf({ sums, steps }, numbers) {
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
