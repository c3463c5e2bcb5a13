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
  const decoders = header.totals.map((_, group) => new Decoder(header, group));
  for (const entry of header.entries) {
    const decoder = decoders[entry.group];
    const chunk = decoder.decode(bytes.subarray(entry.offset, entry.end), entry);
    packRows([...(chunk.updated ?? []), chunk], decoder.head);
    packHarmonics(chunk, decoder.head.numbers);
  }
  const { user, system } = process.cpuUsage(before);
  const total = header.totals.reduce((sum, count) => sum + count, 0);
  rates.push(Math.round((1e6 * total) / (user + system)));
}
console.log(JSON.stringify({ first: rates[0], warm: Math.max(...rates) }));
