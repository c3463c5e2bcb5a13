// The entropy decoder: range asymmetric numeral systems over adaptive tables of 16 symbols.
// docs/elastic_file.md, section 3, specifies every operation; all of it is integer arithmetic.

const LOWEST = 1 << 23;
const WHOLE = 65536;

/** Numbers of a table: how often it has adapted, and the bounds 1 to 15; bound 0 is 0, bound 16 is 65536. */
const ROW_BITS = 4;

/** Tables that have not seen a symbol: all symbols alike. */
export function newTables(count) {
  const tables = new Uint16Array(count << ROW_BITS);
  for (let i = 0; i < tables.length; i++) tables[i] = 4096 * (i & 15);
  return tables;
}

/** A stream that symbols are read from. Its state lies in a typed array, where V8 keeps 32-bit integers raw. */
export class Stream {
  constructor(data) {
    this.data = data;
    this.state = new Int32Array(2); // x, and the place of the next byte
    this.failed = false;
    if (data.length >= 4) {
      const x = ((data[0] << 24) | (data[1] << 16) | (data[2] << 8) | data[3]) >>> 0;
      this.failed = x < LOWEST || x > 0x7fffffff;
      this.state[0] = x;
      this.state[1] = 4;
    } else this.failed = data.length > 0;
  }

  /** Whether it was read to its end, and holds what an encoder writes. */
  get endedWell() {
    if (this.failed) return false;
    return this.data.length === 0 || (this.state[0] === LOWEST && this.state[1] === this.data.length);
  }
}

/** Leave the interval of `size` from `start`, and read the bytes that the state has room for. */
function advance(stream, start, size, slot) {
  const state = stream.state;
  let x = Math.imul(size, state[0] >> 16) + slot - start;
  while (x < LOWEST) {
    const place = state[1]++;
    if (place >= stream.data.length) {
      stream.failed = true;
      if (x === 0) x = LOWEST; // nothing that an encoder writes; must not loop
    }
    x = (x << 8) | stream.data[place]; // undefined counts as 0
  }
  state[0] = x;
}

/** A symbol of 0 to 15 by an adaptive table, which adapts. */
export function symbol(stream, tables, table) {
  const base = table << ROW_BITS;
  const slot = stream.state[0] & 65535;
  const count = tables[base];
  const rate = count > 50 ? (count > 150 ? 7 : 6) : count > 15 ? 5 : 4;
  if (count < 255) tables[base] = count + 1;
  let start = 0;
  let stop = WHOLE;
  let i = 1;
  for (; i < 16; i++) {
    const bound = tables[base + i];
    if (bound > slot) {
      stop = bound;
      break;
    }
    start = bound;
    tables[base + i] = bound + ((i - bound) >> rate);
  }
  const value = i - 1;
  for (; i < 16; i++) {
    const bound = tables[base + i];
    tables[base + i] = bound + ((i + 65520 - bound) >> rate);
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
  if (token < 8) return token;
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
