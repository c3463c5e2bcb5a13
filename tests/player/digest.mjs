// SHA-256 of every bit of a decoded elastic file, as elastic_arrays.digest computes it: node digest.mjs FILE

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { Decoder, harmonicsOf, valuesOf } from "../../flexgs_lightning/deploy/web/player/egs/decoder.js";
import { readHeader } from "../../flexgs_lightning/deploy/web/player/egs/header.js";

const bytes = new Uint8Array(readFileSync(process.argv[2]));
const start = performance.now();
const header = readHeader(bytes);
const decoder = new Decoder(header);
const levels = header.counts.map(() => []);
const harmonics = [];
for (const entry of header.entries) {
  const chunk = decoder.decode(bytes.subarray(entry.offset, entry.end));
  (chunk.updated ?? []).forEach((rows) => levels[chunk.level].push(rows));
  levels[chunk.level].push(chunk.rows);
  harmonics.push(harmonicsOf(chunk, header.numbers));
}
const milliseconds = performance.now() - start;
const hash = createHash("sha256");
for (const level of levels) for (const rows of level) hash.update(valuesOf(rows, header.numbers));
for (const values of harmonics) hash.update(values);
console.log(JSON.stringify({ digest: hash.digest("hex"), gaussians: header.total, milliseconds }));
