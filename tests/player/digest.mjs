// SHA-256 of every bit of a decoded elastic file, as elastic_arrays.digest (of a film: moving_arrays.film_digest) computes it: node digest.mjs FILE

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { Decoder } from "../../flexgs_lightning/deploy/web/player/egs/decoder.js";
import { readHeader } from "../../flexgs_lightning/deploy/web/player/egs/header.js";
import { harmonicsOf, spreadOrder, valuesOf } from "../../flexgs_lightning/deploy/web/player/egs/values.js";

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
