// Gaussians decoded and packed for drawing in a second of one processor: node benchmarks/player_rate.mjs FILE

import { readFileSync } from "node:fs";
import { Decoder } from "../flexgs_lightning/deploy/web/player/egs/decoder.js";
import { readHeader } from "../flexgs_lightning/deploy/web/player/egs/header.js";
import { packHarmonics, packRows } from "../flexgs_lightning/deploy/web/player/loading/packing.js";

const bytes = new Uint8Array(readFileSync(process.argv[2]));
const rates = [];
for (let round = 0; round < 3; round++) {
  const before = process.cpuUsage();
  const header = readHeader(bytes);
  const decoder = new Decoder(header);
  for (const entry of header.entries) {
    const chunk = decoder.decode(bytes.subarray(entry.offset, entry.end));
    packRows([...(chunk.updated ?? []), chunk.rows], header.numbers);
    packHarmonics(chunk, header.numbers);
  }
  const { user, system } = process.cpuUsage(before);
  rates.push(Math.round((1e6 * header.total) / (user + system)));
}
console.log(JSON.stringify({ first: rates[0], warm: Math.max(...rates) }));
