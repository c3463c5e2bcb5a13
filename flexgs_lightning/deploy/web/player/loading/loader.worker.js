// Worker: fetches an elastic file, decodes its chunks as they are wanted, and hands them on ready to draw.

import { Decoder } from "../egs/decoder.js";
import { harmonicWidth } from "../egs/head.js";
import { FileError, START_BYTES, headerLength, readHeader } from "../egs/header.js";
import { Download, ServerError } from "./download.js";
import { packHarmonics, packRows } from "./packing.js";
import { Chunks, Plan } from "./plan.js";

const FIRST_REQUEST = 1 << 16; // bytes: of most files the header and the first chunks

let wish = {}; // what the page wants: a share of each group, and the group at the playhead
let wake = () => {};

self.onmessage = ({ data }) => {
  if (data.wanted !== undefined) {
    wish = data;
    wake();
  }
  if (data.url) load(data.url).catch(tellError);
};

async function load(url) {
  const download = new Download(url, (connection) => postMessage({ kind: "connection", ...connection }));
  const header = await fetchHeader(download);
  const { entries, totals } = header;
  const there = entries.filter((entry) => entry.end <= download.total);
  if (there.length === 0) throw new FileError("The elastic file ends within its first chunk.");
  postMessage({ kind: "header", header: summary(header, there) });
  if (there.length < entries.length && there[there.length - 1].end !== download.total) tellEarlyEnd(there, totals);
  const plan = new Plan(there, totals);
  const chunks = new Chunks(download, entries);
  const decoders = totals.map((_, group) => new Decoder(header, group));
  let decoding = 0; // milliseconds
  let bytes = there[0].offset; // of the file that have been used
  while (!plan.finished) {
    Object.assign(plan, wish, { inOrder: !download.ranged });
    const wanted = wish.wanted === undefined ? [] : plan.next;
    if (wanted.length === 0) {
      postMessage({ kind: "rest" });
      await new Promise((done) => (wake = done));
      continue;
    }
    const [entry] = wanted;
    const data = await chunks.first(wanted);
    if (data === null) {
      tellEarlyEnd(there.filter(({ index }) => index < entry.index), totals); // of a server that does not say how long it is
      break;
    }
    plan.take(entry);
    const start = performance.now();
    const decoder = decoders[entry.group];
    const packed = packChunk(decoder.decode(data, entry), decoder.head);
    decoding += performance.now() - start;
    bytes += data.length;
    const facts = { group: entry.group, bytes, received: download.received, decoding };
    const head = entry.first === 0 ? { head: drawnHead(decoder.head) } : {};
    const { words, places, harmonics } = packed;
    postMessage({ kind: "chunk", ...packed, ...facts, ...head }, [words.buffer, places.buffer, harmonics.buffer]);
  }
  postMessage({ kind: "done" });
}

async function fetchHeader(download) {
  const start = await download.next(START_BYTES, FIRST_REQUEST);
  if (start === null) throw new FileError("This is no elastic file (.egs): it is too short.");
  const length = headerLength(start);
  const rest = await download.next(length - START_BYTES, Math.max(FIRST_REQUEST, length));
  if (rest === null) throw new FileError("The elastic file ends within its header.");
  const bytes = new Uint8Array(length);
  bytes.set(start);
  bytes.set(rest, START_BYTES);
  return readHeader(bytes);
}

/** The rows from `first` on that are new at a level: of a chunk, or of all before it, too, if they have moved. */
function packChunk(chunk, head) {
  return {
    level: chunk.level,
    first: chunk.updated ? 0 : chunk.first,
    stop: chunk.stop,
    ...packRows([...(chunk.updated ?? []), chunk], head),
    firstHarmonics: chunk.first,
    harmonics: packHarmonics(chunk, head.numbers),
  };
}

/** What drawing needs of a header: the film's traits, and of each group what there is. */
function summary({ moves, degree, antialiased, background, seconds, frames, bounds, totals, entries }, there) {
  const groups = totals.map((total, group) => {
    const own = (list) => list.filter((entry) => entry.group === group);
    const available = own(there).reduce((most, { stop }) => Math.max(most, stop), 0);
    const start = group === 0 ? entries[0].offset : 0; // the header counts once
    let bytes = start;
    const ends = own(entries).map(({ stop, offset, end }) => [stop, (bytes += end - offset)]);
    return { total, available, ends };
  });
  return { moves, degree, antialiased, background, seconds, frames, bounds, width: harmonicWidth(degree), groups };
}

/** What drawing needs of a group's head. */
function drawnHead({ ratios, counts, motion }) {
  return { ratios, counts, motion };
}

function tellEarlyEnd(there, totals) {
  const count = totals.reduce((sum, _, group) => {
    return sum + there.reduce((most, entry) => (entry.group === group ? Math.max(most, entry.stop) : most), 0);
  }, 0);
  const words = `The scene's file ends early on the server: ${count.toLocaleString("en")} Gaussians are there.`;
  postMessage({ kind: "error", words, failed: false });
}

function tellError(error) {
  const known = error instanceof FileError || error instanceof ServerError;
  postMessage({ kind: "error", words: known ? error.message : `Loading has failed: ${error}`, failed: true });
}
