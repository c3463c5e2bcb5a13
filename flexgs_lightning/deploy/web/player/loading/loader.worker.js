// Worker: fetches an elastic file, decodes its chunks in order, and hands them on ready to draw.

import { Decoder } from "../egs/decoder.js";
import { FileError, START_BYTES, headerLength, readHeader } from "../egs/header.js";
import { Download, ServerError } from "./download.js";
import { packHarmonics, packRows } from "./packing.js";

const FIRST_REQUEST = 1 << 16; // bytes: of most files the header and the first chunks

let wanted = 0; // Gaussians that are to be loaded; the page says how many once it knows the header
let wake = () => {};

self.onmessage = ({ data }) => {
  if (data.wanted !== undefined) {
    wanted = data.wanted;
    wake();
  }
  if (data.url) load(data.url).catch(tellError);
};

async function load(url) {
  const download = new Download(url, (connection) => postMessage({ kind: "connection", ...connection }));
  const header = await fetchHeader(download);
  const there = header.entries.filter((entry) => entry.end <= download.total);
  if (there.length === 0) throw new FileError("The elastic file ends within its first chunk.");
  const { stop: available, end } = there[there.length - 1];
  postMessage({ kind: "header", header: { ...summary(header), available } });
  if (available < header.total && end !== download.total) tellEarlyEnd(available);
  const decoder = new Decoder(header);
  let decoding = 0; // milliseconds
  for (const entry of there) {
    while (wanted <= entry.first) {
      postMessage({ kind: "rest" });
      await new Promise((done) => (wake = done));
    }
    const bytes = await download.next(entry.end - entry.offset, endOfWanted(header));
    if (bytes === null) {
      tellEarlyEnd(entry.first); // of a server that does not say how long a file is
      break;
    }
    const start = performance.now();
    const chunk = decoder.decode(bytes);
    const packed = packChunk(chunk, header);
    decoding += performance.now() - start;
    const facts = { bytes: entry.end, received: download.received, decoding };
    postMessage({ kind: "chunk", ...packed, ...facts }, [packed.words.buffer, packed.means.buffer, packed.harmonics.buffer]);
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

/** Bytes up to the end of the last chunk that is wanted. */
function endOfWanted(header) {
  const last = header.entries.find((entry) => entry.stop >= wanted);
  return (last ?? header.entries[header.entries.length - 1]).end;
}

/** The rows from `first` on that are new at a level: of a chunk, or of all before it, too, if they have moved. */
function packChunk(chunk, header) {
  const { numbers } = header;
  const chunks = [...(chunk.updated ?? []), chunk.rows];
  return {
    level: chunk.level,
    first: chunk.updated ? 0 : chunk.first,
    stop: chunk.stop,
    ...packRows(chunks, numbers),
    firstHarmonics: chunk.first,
    harmonics: packHarmonics(chunk, numbers),
  };
}

/** What drawing needs of a header. */
function summary({ total, degree, antialiased, background, ratios, counts, numbers, entries }) {
  const ends = entries.map(({ stop, end }) => [stop, end]);
  return { total, degree, antialiased, background, ratios, counts, width: numbers.width, ends };
}

function tellEarlyEnd(count) {
  const words = `The scene's file ends early on the server: ${count.toLocaleString("en")} Gaussians are there.`;
  postMessage({ kind: "error", words, failed: false });
}

function tellError(error) {
  const known = error instanceof FileError || error instanceof ServerError;
  postMessage({ kind: "error", words: known ? error.message : `Loading has failed: ${error}`, failed: true });
}
