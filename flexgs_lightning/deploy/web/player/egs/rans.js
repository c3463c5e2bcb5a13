// The entropy decoder: range asymmetric numeral systems over adaptive tables of 16 symbols.
// docs/elastic_file.md, section 3, specifies every operation; all of it is integer arithmetic.

const LOWEST = 1 << 23;

/** Numbers of a table: how often it has adapted, and the bounds 1 to 15; bound 0 is 0, bound 16 is 65536. */
const ROW_BITS = 4;

/** Where bounds above a symbol go, two in an integer; none is ever beyond, so that their differences do not mix. */
const GOALS = new Int32Array(Uint16Array.from({ length: 16 }, (_, i) => 65520 + i).buffer);

/** Tables that have not seen a symbol: all symbols alike. `pairs` are the same numbers by twos. */
export function newTables(count) {
  const bounds = new Uint16Array(count << ROW_BITS);
  for (let i = 0; i < 16; i++) bounds[i] = 4096 * i;
  for (let filled = 16; filled < bounds.length; filled *= 2) bounds.copyWithin(filled, 0, filled);
  return { bounds, pairs: new Int32Array(bounds.buffer) };
}

/** A stream that symbols are read from. Its state lies in a typed array, where V8 keeps 32-bit integers raw. */
export class Stream {
  constructor(bytes) {
    const [a, b, c, d] = bytes;
    const { length } = bytes;
    this.data = new Uint8Array(length + 2); // `advance` looks ahead
    this.data.set(bytes);
    this.length = length;
    const x = length ? (a << 24) | (b << 16) | (c << 8) | d : LOWEST;
    this.state = Int32Array.of(x, length ? 4 : 0); // and the place of the next byte
    this.failed = x < LOWEST;
  }

  /** Whether it was read to its end, and holds what an encoder writes. */
  get endedWell() {
    return !this.failed && this.state[0] === LOWEST && this.state[1] === this.length;
  }
}

/** Leave the interval of `size` from `start`, and read the bytes that the state has room for: at most two, no branch. */
function advance({ state, data }, start, size, slot) {
  const x = Math.imul(size, state[0] >> 16) + slot - start;
  const count = (Math.clz32(x) - 1) >> 3;
  const place = state[1];
  const ahead = (data[place] << 8) | data[place + 1];
  state[0] = (x << (8 * count)) | (ahead >> (16 - 8 * count));
  state[1] = place + count;
}

/** A symbol of 0 to 15 by an adaptive table, which adapts. */
export function symbol(stream, { bounds, pairs }, table) {
  const base = table << ROW_BITS;
  const slot = stream.state[0] & 65535;
  const count = bounds[base];
  const rate = count > 50 ? (count > 150 ? 7 : 6) : count > 15 ? 5 : 4;
  if (count < 255) bounds[base] = count + 1;
  let start = 0;
  let stop = 65536;
  let i = 1;
  for (; i < 16; i++) {
    const bound = bounds[base + i];
    if (bound > slot) {
      stop = bound;
      break;
    }
    start = bound;
    bounds[base + i] = bound + ((i - bound) >> rate);
  }
  const value = i - 1;
  if (i & 1) {
    bounds[base + i] = stop + ((i + 65520 - stop) >> rate);
    i++;
  }
  const kept = 0x10001 * (65535 >> rate);
  for (let pair = i >> 1; pair < 8; pair++) {
    const two = pairs[(base >> 1) + pair];
    pairs[(base >> 1) + pair] = two + (((GOALS[pair] - two) >>> rate) & kept);
  }
  advance(stream, start, stop - start, slot);
  return value;
}

/** An integer of 1 to 16 bits, every value alike. */
export function plainBits(stream, count) {
  const slot = stream.state[0] & 65535;
  const value = slot >> (16 - count);
  advance(stream, value << (16 - count), 1 << (16 - count), slot);
  return value;
}

/** An integer of 0 to 48 bits, in pieces of 16 from the top; a double holds it. */
export function longBits(stream, count) {
  let value = 0;
  while (count > 0) {
    const piece = count < 16 ? count : 16;
    value = value * (1 << piece) + plainBits(stream, piece);
    count -= piece;
  }
  return value;
}

/** A non-negative integer: small ones have symbols of their own, large ones a length and plain bits. */
export function magnitude(stream, tables, table) {
  const token = symbol(stream, tables, table);
  return token < 8 ? token : large(stream, token);
}

function large(stream, token) {
  if (token < 14) {
    const bits = 2 + ((token - 8) >> 1);
    return ((2 + (token & 1)) << bits) + plainBits(stream, bits);
  }
  if (token === 14) return 64 + plainBits(stream, 6);
  const bits = plainBits(stream, 5);
  if (bits > 24) {
    stream.failed = true;
    return 0;
  }
  return 127 + (1 << bits) + longBits(stream, bits);
}
